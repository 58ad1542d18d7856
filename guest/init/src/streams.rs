//! The main process's standard streams when the host carries them: pipes or a terminal, whose other ends the agent gets.
//!
//! Invariant: no byte of a stream is changed or looked at here, and the ends kept here do not block.

use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::config::Streams;
use crate::failure::{Failure, Step};
use crate::terminal;

/// Our ends.
#[derive(Debug)]
pub struct Ends {
    /// What is written here is the input.
    pub input: Option<OwnedFd>,
    /// The output, or what the terminal shows.
    pub output: OwnedFd,
    /// The standard error.
    pub error: Option<OwnedFd>,
}

/// Connects the streams of `command`, whose input is empty so far, to new pipes or a new terminal of `uid`, which is returned to become the
/// controlling one.
///
/// # Errors
/// What the kernel says.
pub fn connect(
    command: &mut Command,
    uid: u32,
    wanted: &Streams,
    tty: bool,
) -> Result<(Ends, Option<OwnedFd>), Failure> {
    let step = Step::Exec;
    if tty {
        let opened = terminal::open((wanted.columns, wanted.rows), Some(uid));
        let (user, program) = opened.map_err(step.at("terminal"))?;
        let side = || program.try_clone().map_err(step.io("terminal"));
        command.stdin(side()?).stdout(side()?).stderr(side()?);
        let input = wanted.input.then(|| user.try_clone().map_err(step.io("terminal")));
        let ends = Ends { input: input.transpose()?, output: user, error: None };
        return Ok((ends, Some(program)));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(step.at("pipe"));
    let ours = |end: OwnedFd| {
        rustix::io::ioctl_fionbio(&end, true).map_err(step.at("pipe"))?;
        Ok(end)
    };
    let mut input = None;
    if wanted.input {
        let (reader, writer) = pipe()?;
        command.stdin(reader);
        input = Some(ours(writer)?);
    }
    let ((output, stdout), (error, stderr)) = (pipe()?, pipe()?);
    command.stdout(stdout).stderr(stderr);
    Ok((Ends { input, output: ours(output)?, error: Some(ours(error)?) }, None))
}
