//! `exec`: a command in a machine that runs.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::Args;
use openshell_vmm::agent::{self, AgentError, Exec, ExecError, Size, Stdio, Streams};
use openshell_vmm::config::spec::TimeLimit;
use openshell_vmm::sys::tty::{self, RawMode};

use super::failure::Failure;
use super::reach::{self, CODE_AGENT, host};

/// Run a command in a running machine
///
/// At a terminal the command gets a terminal and input of its own accord. It ends when this process does. Exits with the
/// command's own code; 128 + N when signal N ended it, 127 and 126 when it is not there or cannot be run, 124 at a timeout, 125 for
/// everything else.
#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable; without a value, to that of this process
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Start in this directory [default: that of the main process]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Run as this user [default: that of the main process]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Leave the command running and return
    #[arg(short, long, conflicts_with_all = ["interactive", "tty", "timeout"])]
    detach: bool,
    /// End the command after this time: 30s, 5m, or a bare number of seconds
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    /// The vsock socket of a machine that has no name
    #[arg(long, value_name = "PATH")]
    vsock: Option<PathBuf>,
    /// The machine, unless --vsock names it, and the command
    #[arg(
        value_name = "MACHINE] [--] [COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<OsString>,
}

pub(super) fn exec(args: &ExecArgs) -> Result<u8, Failure> {
    let timeout = args.timeout.as_deref().map(TimeLimit::parse).transpose();
    let timeout = timeout.map_err(|error| Failure::of(&error, CODE_AGENT))?;
    let (path, words) = reach::machine(args.vsock.as_deref(), &args.words, Some(CODE_AGENT))?;
    let stdin = io::stdin();
    let at_terminal = tty::is_terminal(0) && tty::is_terminal(1);
    let by_itself = at_terminal && !args.interactive && !args.tty && !args.detach;
    let (interactive, at_tty) = (args.interactive || by_itself, args.tty || by_itself);
    if at_tty && interactive && !tty::is_terminal(0) {
        return Err(Failure {
            what: "standard input is not a terminal".to_owned(),
            why: None,
            fix: Some("leave out --tty".to_owned()),
            code: CODE_AGENT,
        });
    }
    let stdio = match (args.detach, at_tty, interactive) {
        (true, ..) => Stdio::Detached,
        (_, true, _) => Stdio::Terminal(size()),
        (_, _, true) => Stdio::Pipes,
        _ => Stdio::Output,
    };
    let command = command(args, words, stdio).map_err(|error| Failure {
        what: error.to_string(),
        why: None,
        fix: Some("see `openshell-vmm exec --help`".to_owned()),
        code: CODE_AGENT,
    })?;
    // Before any signal that is meant for the command can end this process.
    let signals = reach::signals()?;
    let raw = if at_tty && interactive {
        RawMode::enter().map_err(|error| host("use the terminal", &error))?
    } else {
        None
    };
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let streams = Streams {
        input: interactive.then(|| stdin.as_fd()),
        output: stdout.as_fd(),
        error: stderr.as_fd(),
        signals: Some(&signals),
        timeout: timeout.map(|TimeLimit(limit)| limit),
    };
    let ended = agent::exec(&path, &command, &streams);
    drop(raw);
    match ended {
        Ok(exit) => Ok(exit.code()),
        // Whoever reads no more, or pressed Ctrl-C three times, knows.
        Err(error @ AgentError::Interrupted(_)) => Ok(error.exit_code()),
        Err(error) => Err(Failure::of(&error, error.exit_code())),
    }
}

fn command(args: &ExecArgs, words: &[OsString], stdio: Stdio) -> Result<Exec, ExecError> {
    let words = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let variables = args.env.iter().filter_map(|word| variable(word)).collect();
    let mut exec = Exec::new(words, stdio)?.env(variables)?;
    if let Some(directory) = &args.workdir {
        exec = exec.directory(directory.as_os_str().as_bytes().to_vec())?;
    }
    match &args.user {
        Some(user) => exec.user(user.clone()),
        None => Ok(exec),
    }
}

/// `NAME=VALUE` as it is; a name alone with the value that it has here, or not at all.
fn variable(word: &OsStr) -> Option<Vec<u8>> {
    if word.as_bytes().contains(&b'=') {
        return Some(word.as_bytes().to_vec());
    }
    let value = std::env::var_os(word)?;
    Some([word.as_bytes(), b"=", &value.into_vec()].concat())
}

fn size() -> Size {
    let (columns, rows) = tty::size(1).or_else(|| tty::size(0)).unwrap_or((80, 24));
    Size { columns, rows }
}
