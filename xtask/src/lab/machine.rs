//! One running lab: the emulator, its four ports and the deadline.
//!
//! Invariant: whatever way a run ends, no process, socket or file of it is left. The emulator dies
//! with the thread that started it (parent-death signal), the run's directory is removed as soon as
//! the emulator has opened what is in it, and a directory whose owner was killed earlier is found
//! by its free lock and removed by the next run.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::channel::{Message, PORTS, UntilMark, random_mark};
use super::console::Console;
use super::initramfs::Base;
use super::qemu::{Paths, arguments};
use super::{Input, Outcome, Output, Spec};
use crate::cmd;

const PREFIX: &str = "openshell-lab-";
const POLL: Duration = Duration::from_millis(50);

enum Event {
    Said(Message),
    Ended,
    Broken(&'static str, std::io::Error),
}

/// Runs a lab from start to end. A lab that misses its deadline or dies is an error that holds the
/// last phase; what the console said last is printed.
pub(crate) fn run(spec: &Spec, base: &Base) -> Result<Outcome> {
    let begin = Instant::now();
    let qemu = cmd::require("qemu-system-x86_64", "qemu-system-x86")?;
    let setpriv = cmd::require("setpriv", "util-linux")?;
    let work = WorkDirectory::create()?;
    let mark = random_mark()?;
    base.with_files_of(spec, &mark, &work.path.join("initramfs"))?;
    if let Some(mib) = spec.scratch_mib {
        make_scratch(&work.path.join("scratch"), mib)?;
    }
    let (events, inbox) = channel();
    let ports = Ports::open(spec, &work.path, &mark, &events)?;
    // A developer's terminal is the console of a lab that has one.
    let console = if spec.terminal { None } else { Some(Console::open(&work.path)?) };
    let paths = Paths { vmlinux: &base.vmlinux, work: &work.path };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(qemu).args(arguments(spec, &paths));
    if !spec.terminal {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    }
    let mut emulator = Emulator(command.spawn().context("cannot start the emulator")?);
    let mut run = Run { spec, begin, inbox, work: Some(work), phase: "booting", boot: None };
    let ended = run.wait(&mut emulator);
    let late = ended.as_ref().is_err_and(|error| error.is::<super::TimedOut>());
    if let (true, Some(console)) = (late, &console) {
        console.interrogate();
    }
    emulator.stop()?;
    let said = emulator.stderr();
    let (stdout, stderr) = ports.close();
    let printed = console.map(|console| console.close(late)).unwrap_or_default();
    if ended.is_err() {
        crate::say::quote(format!("{said}last console lines of the lab:\n{printed}"));
    }
    let code = ended.with_context(|| {
        let seconds = begin.elapsed().as_secs_f64();
        format!("lab failed while {} after {seconds:.1} s", run.phase)
    })?;
    let boot = run.boot.unwrap_or_default();
    Ok(Outcome { code, stdout, stderr, boot, total: begin.elapsed() })
}

struct Run<'a> {
    spec: &'a Spec,
    begin: Instant,
    inbox: Receiver<Event>,
    work: Option<WorkDirectory>,
    phase: &'static str,
    boot: Option<Duration>,
}

impl Run<'_> {
    /// Follows the run until the command has ended and both its streams are complete.
    fn wait(&mut self, emulator: &mut Emulator) -> Result<u8> {
        let mut code = None;
        let mut open = 2;
        loop {
            match self.inbox.recv_timeout(POLL) {
                Ok(Event::Said(Message::Ready)) => {
                    self.boot = Some(self.begin.elapsed());
                    self.phase = "running the command";
                    self.work = None;
                }
                Ok(Event::Said(Message::Exit(number))) => code = Some(number),
                Ok(Event::Said(Message::Fail(text))) => bail!("the lab's init: {text}"),
                Ok(Event::Ended) => open -= 1,
                Ok(Event::Broken(port, error)) => bail!("port {port}: {error}"),
                Err(RecvTimeoutError::Disconnected) => bail!("the lab closed its ports"),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(status) = emulator.0.try_wait()? {
                        bail!("the emulator ended with {status}");
                    }
                }
            }
            if let Some(code) = code.filter(|_| open == 0) {
                return Ok(code);
            }
            if self.begin.elapsed() > self.spec.timeout {
                return Err(anyhow::Error::new(super::TimedOut(self.spec.timeout)));
            }
        }
    }
}

struct Emulator(Child);

impl Emulator {
    fn stop(&mut self) -> Result<()> {
        if self.0.try_wait()?.is_none() {
            self.0.kill()?;
        }
        self.0.wait().context("cannot wait for the emulator")?;
        Ok(())
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.0.stderr.take()
            && stderr.read_to_string(&mut text).is_err()
        {
            text = "(the emulator printed no text)\n".into();
        }
        text
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Already reaped on the ordinary path; nothing to tell anyone on the other ones.
        let _ended = self.stop();
    }
}

/// The host's side of the ports, one thread each.
struct Ports {
    directory: PathBuf,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
    result: JoinHandle<()>,
    held_open: Receiver<UnixStream>,
}

impl Ports {
    fn open(spec: &Spec, work: &Path, mark: &str, events: &Sender<Event>) -> Result<Self> {
        let mut listeners = PORTS.iter().map(|port| {
            UnixListener::bind(work.join(port)).with_context(|| format!("cannot open port {port}"))
        });
        let mut next = || listeners.next().context("one listener per port")?;
        let (stdin, stdout, stderr, result) = (next()?, next()?, next()?, next()?);
        let held_open = serve_stdin(stdin, spec.input)?;
        Ok(Self {
            directory: work.to_owned(),
            stdout: serve_stream("stdout", stdout, spec.output, mark, events.clone())?,
            stderr: serve_stream("stderr", stderr, spec.output, mark, events.clone())?,
            result: serve_result(result, events.clone())?,
            held_open,
        })
    }

    /// Ends the threads once the emulator is gone and returns what was captured.
    fn close(self) -> (Vec<u8>, Vec<u8>) {
        for port in ["stdout", "stderr", "result"] {
            // A thread that never saw the emulator connect still waits for somebody.
            let _woken = UnixStream::connect(self.directory.join(port));
        }
        drop(self.held_open);
        let _joined = self.result.join();
        (self.stdout.join().unwrap_or_default(), self.stderr.join().unwrap_or_default())
    }
}

/// Feeds the command's stdin. The thread may outlive the run, blocked on the developer's terminal
/// or pipe; it owns nothing that anybody waits for.
fn serve_stdin(listener: UnixListener, input: Input) -> Result<Receiver<UnixStream>> {
    let (hold, held_open) = channel();
    thread("lab-stdin", move || {
        let Ok((mut port, _)) = listener.accept() else { return };
        if input == Input::Inherit {
            // The lab may end before it has read everything.
            let _copied = std::io::copy(&mut std::io::stdin().lock(), &mut port);
        }
        // Only the sending half: QEMU drops unread bytes when the socket goes away as a whole.
        let _closed = port.shutdown(std::net::Shutdown::Write);
        let _run_is_over = hold.send(port);
    })?;
    Ok(held_open)
}

fn serve_stream(
    name: &'static str,
    listener: UnixListener,
    output: Output,
    mark: &str,
    events: Sender<Event>,
) -> Result<JoinHandle<Vec<u8>>> {
    let mut stream = UntilMark::new(mark);
    thread(name, move || {
        let mut captured = Vec::new();
        let Ok((mut port, _)) = listener.accept() else { return captured };
        let mut buffer = vec![0; 64 << 10];
        while !stream.ended() {
            let outcome = match port.read(&mut buffer) {
                Ok(0) => return captured,
                Ok(count) => {
                    let bytes = stream.push(&buffer[..count]);
                    match (output, name) {
                        (Output::Capture, _) => captured.write_all(&bytes),
                        (Output::Inherit, "stdout") => pass(&mut std::io::stdout(), &bytes),
                        (Output::Inherit, _) => pass(&mut std::io::stderr(), &bytes),
                    }
                }
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                let _run_is_over = events.send(Event::Broken(name, error));
                return captured;
            }
        }
        let _run_is_over = events.send(Event::Ended);
        captured
    })
}

fn pass(to: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn serve_result(listener: UnixListener, events: Sender<Event>) -> Result<JoinHandle<()>> {
    thread("result", move || {
        let Ok((port, _)) = listener.accept() else { return };
        for line in BufReader::new(port).lines().map_while(Result::ok) {
            let said = Message::parse(&line)
                .unwrap_or_else(|| Message::Fail(format!("said `{line}` on the result port")));
            if events.send(Event::Said(said)).is_err() {
                return;
            }
        }
    })
}

pub(super) fn thread<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .with_context(|| format!("cannot start the thread {name}"))
}

/// The directory of one run, locked while it is in use and removed when dropped.
struct WorkDirectory {
    path: PathBuf,
    _lock: File,
}

impl WorkDirectory {
    fn create() -> Result<Self> {
        // Not /tmp: a scratch disk can grow to gigabytes, and /tmp may be memory.
        let parent = Path::new("/var/tmp");
        sweep(parent);
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = File::create(directory.path().join("lock"))?;
        lock.lock()?;
        Ok(Self { path: directory.keep(), _lock: lock })
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            crate::say::line(format_args!("cannot remove {}: {error}", self.path.display()));
        }
    }
}

/// Removes what runs that were killed have left behind. A directory in its first minute may belong
/// to a run that has not locked it yet.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > Duration::from_mins(1)));
        if ours && old {
            let free =
                File::open(entry.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
            if free {
                // Somebody else may sweep at the same moment.
                let _gone = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn make_scratch(path: &Path, mib: u64) -> Result<()> {
    let bytes = mib.checked_mul(1 << 20).context("scratch disk too large")?;
    File::create(path)?.set_len(bytes).context("cannot size the scratch disk")?;
    let mke2fs = cmd::require("mke2fs", "e2fsprogs")?;
    let mut command = Command::new(mke2fs);
    command.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"]);
    command.args(["-E", "lazy_itable_init=1,nodiscard"]).arg(path);
    cmd::output(&mut command)?;
    Ok(())
}
