//! Programs that the driver starts: bounded output, bounded time, and an end with the driver.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::BackendError;
use crate::launcher;

/// The most that is read of a program's standard output.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;
/// The longest line of its standard error that is looked at; longer ones are taken apart.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// A program with its arguments.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    directory: PathBuf,
    launcher: PathBuf,
    without: Vec<&'static str>,
}

/// What a program that ended has said.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) code: Option<i32>,
    pub(super) text: Vec<u8>,
}

impl Program {
    /// A program that runs in `directory`. `launcher` is this program, see [`launcher`].
    pub(super) fn new(path: &Path, directory: &Path, launcher: &Path) -> Self {
        let (path, launcher) = (path.to_owned(), launcher.to_owned());
        let (arguments, without) = (Vec::new(), Vec::new());
        Self { path, arguments, directory: directory.to_owned(), launcher, without }
    }

    /// The program without some of the driver's variables.
    pub(super) fn without(mut self, names: impl IntoIterator<Item = &'static str>) -> Self {
        self.without.extend(names);
        self
    }

    /// The program with a further argument.
    pub(super) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// The program with further arguments.
    pub(super) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.launcher);
        command
            .arg(launcher::FLAG)
            .arg(std::process::id().to_string())
            .arg(&self.path)
            .args(&self.arguments)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            // Signals from a terminal are the driver's to handle.
            .process_group(0);
        for name in &self.without {
            command.env_remove(name);
        }
        command
    }

    /// Starts it with `environment` and nothing else, and its standard error in a file.
    pub(super) fn spawn(
        &self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        stderr: std::fs::File,
    ) -> Result<Child, BackendError> {
        let mut command = self.command();
        command.env_clear().envs(environment).stderr(stderr);
        command.spawn().map_err(|source| self.cannot_run(source))
    }

    /// Runs it to its end with the driver's own environment. `line` gets each line of its standard error, `tick` is called
    /// while nothing is said. Dropping the future kills it.
    pub(super) async fn run(
        &self,
        limit: Duration,
        every: Duration,
        line: impl Fn(&str),
        tick: impl Fn(),
    ) -> Result<Output, BackendError> {
        let mut command = self.command();
        command.stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| self.cannot_run(source))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (text, ()) =
                tokio::try_join!(read_all(stdout), read_lines(stderr, every, line, tick))?;
            let status = child.wait().await?;
            Ok::<_, io::Error>(Output { code: status.code(), text })
        };
        match timeout(limit, work).await {
            Ok(output) => output.map_err(|source| self.cannot_run(source)),
            Err(_) => Err(BackendError::TooLong { program: self.name(), after: limit }),
        }
    }

    fn cannot_run(&self, source: io::Error) -> BackendError {
        BackendError::Run { program: self.name(), source }
    }

    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

async fn read_all(from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(from) = from {
        from.take(MAX_OUTPUT_BYTES).read_to_end(&mut text).await?;
    }
    Ok(text)
}

async fn read_lines(
    from: Option<impl AsyncRead + Unpin>,
    every: Duration,
    line: impl Fn(&str),
    tick: impl Fn(),
) -> io::Result<()> {
    let Some(from) = from else { return Ok(()) };
    let mut reader = BufReader::new(from);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut bytes = Vec::new();
    loop {
        let mut bounded = (&mut reader).take(MAX_LINE_BYTES - bytes.len() as u64);
        tokio::select! {
            // What was read before the tick stays in `bytes`.
            read = bounded.read_until(b'\n', &mut bytes) => {
                if read? == 0 && bytes.is_empty() {
                    return Ok(());
                }
                line(String::from_utf8_lossy(&bytes).trim_end());
                bytes.clear();
                ticks.reset();
            }
            _ = ticks.tick() => tick(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[tokio::test]
    async fn lines_are_told_and_taken_apart_where_they_are_too_long() {
        let mut text = b"first\nsecond\n".to_vec();
        text.extend(vec![b'x'; 100_000]);
        let lines = RefCell::new(Vec::new());
        let told = |line: &str| lines.borrow_mut().push(line.len());
        read_lines(Some(&text[..]), Duration::from_secs(60), told, || {}).await.expect("read");
        assert_eq!(*lines.borrow(), [5, 6, 65_536, 34_464]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_told() {
        let (mut write, read) = tokio::io::duplex(64);
        let (ticks, lines) = (Cell::new(0), RefCell::new(Vec::new()));
        let reading = read_lines(
            Some(read),
            Duration::from_secs(15),
            |line| lines.borrow_mut().push(line.to_owned()),
            || ticks.set(ticks.get() + 1),
        );
        let writing = async {
            tokio::io::AsyncWriteExt::write_all(&mut write, b"ha").await.expect("written");
            tokio::time::sleep(Duration::from_secs(50)).await;
            tokio::io::AsyncWriteExt::write_all(&mut write, b"lf\n").await.expect("written");
            drop(write);
        };
        let (read, ()) = tokio::join!(reading, writing);
        read.expect("read");
        assert_eq!(ticks.get(), 3);
        assert_eq!(*lines.borrow(), ["half"]);
    }
}
