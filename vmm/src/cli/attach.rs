//! `attach`: the streams of a machine's main process, from now on.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use clap::Args;
use openshell_vmm::agent::{self, AgentError, Size, Streams};
use openshell_vmm::control::client::Client;
use openshell_vmm::control::protocol::Request;
use openshell_vmm::machines::{Machine, Status, StoreError, names};
use openshell_vmm::sys::tty::{self, RawMode};

use super::failure::Failure;
use super::reach::{CODE_AGENT, host, signals};
use super::targets::{of_store, open_store};

/// How long a machine may take to end after its main process has.
const END: Duration = Duration::from_secs(30);
/// The exit code of a machine whose process was killed.
const CODE_KILLED: u8 = 137;

/// Attach to the main process of a running machine
///
/// What the process writes from now on is shown, and it gets the standard input of this process if the machine was made with
/// --interactive. At a terminal Ctrl-P and then Ctrl-Q leave the machine running. Exits with the machine's own code when that ends.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// A name, an id or the beginning of one
    #[arg(value_name = "MACHINE")]
    name: String,
    /// Do not give the process any input
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the process; else they end this command
    #[arg(
        long,
        value_name = "YES",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true
    )]
    sig_proxy: bool,
}

pub(super) fn attach(args: &AttachArgs) -> Result<u8, Failure> {
    let of_store = |error: StoreError| Failure { code: CODE_AGENT, ..of_store(&error) };
    let machine = open_store()?.find(&args.name).map_err(of_store)?;
    if !matches!(machine.status(), Status::Running(_)) {
        return Err(of_store(StoreError::NotRunning { name: machine.record.name }));
    }
    let tty = machine.record.process.as_ref().is_some_and(|process| process.tty);
    let words = super::parse_run(&machine.record.words);
    let has_input = words.is_ok_and(|words| words.image.interactive);
    let gives = has_input && !args.no_stdin;
    // Asked before the end, which takes its socket with it.
    let mut control = end_of(&machine).map_err(|error| host("ask the machine", &error))?;
    let signals = args.sig_proxy.then(signals).transpose()?;
    let raw = if tty && gives { RawMode::enter() } else { Ok(None) };
    let raw = raw.map_err(|error| host("use the terminal", &error))?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = Streams {
        input: gives.then(|| stdin.as_fd()),
        output: stdout.as_fd(),
        error: stderr.as_fd(),
        signals: signals.as_ref(),
        timeout: None,
    };
    let size = tty::size(1).filter(|_| tty).map(|(columns, rows)| Size { columns, rows });
    let path = machine.socket(names::ATTACH).map_err(of_store)?;
    let ended = agent::attach(&path, size, raw.is_some(), &streams);
    drop(raw);
    match ended {
        Ok(_) | Err(AgentError::Broken) => {}
        Err(error @ (AgentError::Interrupted(_) | AgentError::Detached)) => {
            return Ok(error.exit_code());
        }
        Err(error) => return Err(Failure::of(&error, error.exit_code())),
    }
    let ended = control.hear(Some(END)).ok().and_then(|reply| reply.ended);
    Ok(ended.map_or(CODE_KILLED, |ended| ended.code))
}

/// A connection on which the machine tells how it ended.
fn end_of(machine: &Machine) -> io::Result<Client> {
    let path = machine.socket(names::CONTROL).map_err(io::Error::other)?;
    let mut client = Client::connect(&path)?;
    client.send(&Request::Wait)?;
    Ok(client)
}
