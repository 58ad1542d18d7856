//! The host's agent, started beside the main process, and what it needs to carry that one's streams to the host.
//!
//! Invariant: it is one more child. Its end is reaped as an orphan's is, and ends nothing else. The connection to the host is begun
//! before there is a main process that could begin one in its place.

use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use crate::config::Process;
use crate::disks::TOOLS;
use crate::failure::{Failure, Step};
use crate::machine::Outcome;
use crate::streams::Ends;
use crate::sys::spawn::{self, Owner};
use crate::sys::vsock;

/// The name by which this program is the agent.
pub const NAME: &str = "openshell-agent";
/// Where the host waits for the streams of the main process.
const MAIN_PORT: u32 = 1021;

/// The main process's streams on their way to the host.
#[derive(Debug)]
pub struct Streams {
    ends: Ends,
    socket: OwnedFd,
}

impl Streams {
    /// Begins to connect to the host.
    ///
    /// # Errors
    /// On a machine without vsock.
    pub fn connect(ends: Ends) -> Result<Self, Failure> {
        let socket = vsock::connect_to_host(MAIN_PORT).map_err(Step::Agent.at("vsock"))?;
        Ok(Self { ends, socket })
    }
}

/// An agent that runs.
#[derive(Debug)]
pub struct Agent {
    /// Its process.
    pub pid: Pid,
    /// Where it hears how the main process ended, if it carries that one's streams.
    status: Option<OwnedFd>,
}

impl Agent {
    /// Tells it how the main process ended; whether it will end itself when the host has all of the streams.
    #[must_use]
    pub fn tell(&mut self, outcome: Outcome) -> bool {
        let Some(status) = self.status.take() else { return false };
        let told = match outcome {
            Outcome::Code(code) => [0, code],
            Outcome::Signal(signal) => [1, signal],
        };
        // One that has gone is found to have gone.
        _ = rustix::io::write(&status, &told);
        true
    }
}

/// Starts it, as root, with the environment, user and directory that commands of the host get when they do not ask for others. With
/// `streams` it carries those of `main`.
///
/// # Errors
/// When the tools disk has no program of this name any more, or it cannot be started.
pub fn start(process: &Process, main: Pid, streams: Option<Streams>) -> Result<Agent, Failure> {
    let program = Path::new(TOOLS).join("bin/openshell-init");
    let mut command = Command::new(&program);
    command.arg0(NAME).args(["--workdir", process.cwd()]);
    if !process.user.is_empty() {
        command.args(["--user", &process.user]);
    }
    for group in &process.groups {
        command.args(["--group", group]);
    }
    let mut status = None;
    if let Some(streams) = &streams {
        let pipe = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
        let (reader, writer) = pipe.map_err(Step::Agent.at("pipe"))?;
        command.args(["--main", &inherited(main, streams, &reader)?]);
        status = Some((writer, reader));
    }
    let variables = process.env.iter().filter_map(|variable| variable.split_once('='));
    command.env_clear().envs(variables).stdin(Stdio::null()).current_dir("/");
    spawn::settle(&mut command, Some(&Owner::ROOT), None);
    // Whoever waits for every child waits for this one too.
    let child = command.spawn().map_err(Step::Agent.io(program))?;
    // From here on they are the agent's alone: their end is to be seen.
    drop(streams);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.expect("a process has a number");
    Ok(Agent { pid, status: status.map(|(writer, _)| writer) })
}

/// `PID:SOCKET:STATUS:INPUT:OUTPUT:ERROR`, descriptors by their numbers, which the agent inherits; 0 for one that there is not.
fn inherited(main: Pid, streams: &Streams, status: &OwnedFd) -> Result<String, Failure> {
    let Streams { ends: Ends { input, output, error }, socket } = streams;
    let mut text = main.as_raw_nonzero().to_string();
    for end in [Some(socket), Some(status), input.as_ref(), Some(output), error.as_ref()] {
        let number = end.map_or(0, |end| end.as_raw_fd());
        if let Some(end) = end {
            fcntl_setfd(end.as_fd(), FdFlags::empty()).map_err(Step::Agent.at("descriptor"))?;
        }
        _ = write!(text, ":{number}");
    }
    Ok(text)
}
