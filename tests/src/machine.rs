//! A run of `openshell-vmm` as a process: started, watched, ended, and looked after for what it leaves behind.
//!
//! Invariant: no process outlives its [`Running`], and every wait has an end: the deadline kills the process and fails the test with
//! all that it said. The process is in a process group of its own, so that a child of it is found after it has gone.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::memory::anonymous_beside_guest_kib;
use crate::process;

/// The environment variable that names the directory of fixtures; `cargo xtask test` sets it.
pub const FIXTURES: &str = "OPENSHELL_VMM_FIXTURES";

const DEADLINE: Duration = Duration::from_secs(60);
/// How long the streams of a process that has ended may stay open.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The path of a fixture.
///
/// # Panics
/// When the tests were not started by `cargo xtask test`, or there is no such fixture.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    let directory = std::env::var_os(FIXTURES)
        .expect("the variable is not set: start these tests with `cargo xtask test`");
    let path = Path::new(&directory).join(name);
    assert!(path.exists(), "no fixture {}", path.display());
    path
}

/// What the process reads.
#[derive(Debug)]
pub enum Input {
    /// Nothing.
    Nothing,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// What [`Running::type_bytes`] writes, until [`Running::end_input`].
    Typed,
    /// A descriptor.
    From(Stdio),
}

/// A run to be started.
#[derive(Debug)]
pub struct Run {
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Input,
    stdout: Option<Stdio>,
    deadline: Duration,
}

impl Run {
    /// `openshell-vmm` with `args`, the first of which is the verb; nothing on its standard input, a deadline of 60 s.
    #[must_use]
    pub fn new<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        Self { args, env: Vec::new(), input: Input::Nothing, stdout: None, deadline: DEADLINE }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What it reads.
    #[must_use]
    pub fn stdin(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Where its standard output goes instead of being kept.
    #[must_use]
    pub fn stdout(mut self, to: impl Into<Stdio>) -> Self {
        self.stdout = Some(to.into());
        self
    }

    /// How long the process may live from its start.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn spawn(self) -> Running {
        let program = fixture("openshell-vmm");
        let mut command = Command::new(&program);
        command.args(&self.args).process_group(0);
        command.envs(self.env).env_remove("OPENSHELL_VMM_KERNEL").stderr(Stdio::piped());
        command.stdout(self.stdout.unwrap_or_else(Stdio::piped));
        let mut bytes = None;
        command.stdin(match self.input {
            Input::Nothing => Stdio::null(),
            Input::From(stdio) => stdio,
            Input::Typed => Stdio::piped(),
            Input::Bytes(input) => {
                bytes = Some(input);
                Stdio::piped()
            }
        });
        let mut child = command.spawn().expect("the fixture is a program");
        // What was handed over is the child's alone.
        drop(command);
        let mut typed = child.stdin.take();
        let mut threads = Vec::new();
        if let Some(bytes) = bytes {
            let pipe = typed.take();
            threads.push(thread("input", move || {
                // A process that ends without reading it all is no error here.
                drop(pipe.map(|mut pipe| pipe.write_all(&bytes)));
            }));
        }
        let shared = Arc::new(Shared::default());
        threads.extend(watch(&mut child, &shared));
        let ends = Instant::now() + self.deadline;
        Running { child, shared, typed, threads, ends, reaped: false }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// As [`Running::wait`].
    #[must_use]
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.spawn().wait()
    }
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    streams: u32,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.lock());
        self.news.notify_all();
    }

    /// Waits until `done`, at the latest until `ends`; whether it was done.
    fn wait_until(&self, ends: Instant, mut done: impl FnMut(&Seen) -> bool) -> bool {
        let mut seen = self.lock();
        loop {
            if done(&seen) {
                return true;
            }
            let left = ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.news.wait_timeout(seen, left);
            seen = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    Builder::new().name(name.to_owned()).spawn(body).expect("the host has a thread left")
}

/// Reads the streams, and waits for the end.
fn watch(child: &mut Child, shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let mut threads = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let shared = Arc::clone(shared);
        shared.lock().streams += 1;
        threads.push(thread("stdout", move || read(stdout, &shared, |seen| &mut seen.stdout)));
    }
    if let Some(stderr) = child.stderr.take() {
        let shared = Arc::clone(shared);
        shared.lock().streams += 1;
        threads.push(thread("stderr", move || read(stderr, &shared, |seen| &mut seen.stderr)));
    }
    let shared = Arc::clone(shared);
    let pid = child.id();
    threads.push(thread("end", move || {
        process::wait_for_end(pid).expect("the process is our child");
        shared.update(|seen| seen.ended = true);
    }));
    threads
}

fn read(mut stream: impl Read, shared: &Shared, of: fn(&mut Seen) -> &mut Vec<u8>) {
    let mut chunk = vec![0; 1 << 16];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => shared.update(|seen| of(seen).extend(&chunk[..len])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    shared.update(|seen| seen.streams -= 1);
}

/// A process that runs, or has ended and was not asked for.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shared: Arc<Shared>,
    typed: Option<ChildStdin>,
    threads: Vec<JoinHandle<()>>,
    ends: Instant,
    reaped: bool,
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<u8> {
        self.shared.lock().stdout.clone()
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().stderr).into_owned()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.lock().ended
    }

    /// Waits until standard output holds `text`.
    ///
    /// # Panics
    /// When the process ends, or the deadline passes, without that.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let wanted = text.as_bytes();
        let holds = |seen: &Seen| seen.stdout.windows(wanted.len()).any(|window| window == wanted);
        self.shared.wait_until(self.ends, |seen| holds(seen) || seen.streams == 0);
        let found = holds(&self.shared.lock());
        assert!(found, "no {text:?} on standard output\n{}", self.said());
    }

    /// Writes to its standard input, which is [`Input::Typed`].
    ///
    /// # Panics
    /// When it reads no more, or its input is something else.
    #[track_caller]
    pub fn type_bytes(&mut self, bytes: &[u8]) {
        let pipe = self.typed.as_mut().expect("the input is typed");
        pipe.write_all(bytes).expect("the process reads its input");
    }

    /// Ends its standard input.
    pub fn end_input(&mut self) {
        self.typed = None;
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When `signal` is no signal.
    #[track_caller]
    pub fn signal(&self, signal: i32) {
        process::signal(self.pid(), signal).expect("the process was not reaped");
    }

    /// Names of its threads, sorted; none once it has ended.
    #[must_use]
    pub fn threads(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .entries("task")
            .filter_map(|task| fs::read_to_string(task.join("comm")).ok())
            .map(|name| name.trim_end().to_owned())
            .collect();
        names.sort();
        names
    }

    /// Each thread's name and its value of `field` in /proc/PID/task/TID/status.
    #[must_use]
    pub fn thread_status(&self, field: &str) -> Vec<(String, String)> {
        let of = |task: PathBuf| {
            let name = fs::read_to_string(task.join("comm")).ok()?;
            let status = fs::read_to_string(task.join("status")).ok()?;
            let value = status.lines().find_map(|line| line.strip_prefix(field))?;
            Some((name.trim_end().to_owned(), value.trim().to_owned()))
        };
        self.entries("task").filter_map(of).collect()
    }

    /// What its descriptors refer to, sorted; none once it has ended.
    #[must_use]
    pub fn descriptors(&self) -> Vec<String> {
        let mut targets: Vec<_> = self
            .entries("fd")
            .filter_map(|entry| fs::read_link(entry).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .collect();
        targets.sort();
        targets
    }

    /// Its memory of no file that is in RAM beside the guest's, in KiB; 0 once it has ended.
    #[must_use]
    pub fn own_memory_kib(&self) -> u64 {
        anonymous_beside_guest_kib(self.pid()).unwrap_or(0)
    }

    fn entries(&self, directory: &str) -> impl Iterator<Item = PathBuf> {
        let path = format!("/proc/{}/{directory}", self.pid());
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path())
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When the deadline passes first (the process is killed), or when it leaves a process behind.
    #[must_use]
    #[track_caller]
    pub fn wait(mut self) -> Finished {
        let in_time = self.shared.wait_until(self.ends, |seen| seen.ended);
        assert!(in_time, "it has not ended at its deadline\n{}", self.said());
        let left = members_of_group(self.pid());
        assert!(left.is_empty(), "it left processes behind: {left:?}\n{}", self.said());
        let closing = Instant::now() + LAST_WORDS;
        let closed = self.shared.wait_until(closing, |seen| seen.streams == 0);
        assert!(closed, "somebody holds its streams open\n{}", self.said());
        let status = self.reap();
        let mut seen = self.shared.lock();
        Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: std::mem::take(&mut seen.stdout),
            stderr: String::from_utf8_lossy(&seen.stderr).into_owned(),
        }
    }

    fn reap(&mut self) -> std::process::ExitStatus {
        self.typed = None;
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
        self.reaped = true;
        self.child.wait().expect("the process is our child")
    }

    fn said(&self) -> String {
        let seen = self.shared.lock();
        said(&seen.stdout, &seen.stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            drop(process::signal(self.pid(), libc::SIGKILL));
            self.reap();
        }
    }
}

/// Processes of the group that `pid` leads, but not itself.
fn members_of_group(pid: u32) -> Vec<u32> {
    let is_member = |other: &u32| {
        let stat = fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
        // pid (name) state parent group ...; the name may hold anything.
        let group = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(2));
        *other != pid && group.and_then(|group| group.parse().ok()) == Some(pid)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_member).collect()
}

/// A process that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code, when it exited.
    pub code: Option<i32>,
    /// The signal that ended it, when one did.
    pub signal: Option<i32>,
    /// All of its standard output, where that was kept.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Checks the exit code.
    ///
    /// # Panics
    /// When it is another one; says everything that the process said.
    #[track_caller]
    pub fn expect_code(self, code: u8) -> Self {
        assert_eq!(self.code, Some(i32::from(code)), "{self}");
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, signal, stdout, stderr } = self;
        write!(f, "exit code {code:?}, signal {signal:?}\n{}", said(stdout, stderr.as_bytes()))
    }
}

fn said(stdout: &[u8], stderr: &[u8]) -> String {
    let mut text = String::new();
    for (name, bytes) in [("standard output", stdout), ("standard error", stderr)] {
        let shown = String::from_utf8_lossy(bytes);
        // Writing into memory can't fail.
        _ = writeln!(text, "--- {name}, {} bytes\n{shown}", bytes.len());
    }
    text
}
