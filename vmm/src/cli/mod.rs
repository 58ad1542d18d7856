//! Verbs of the command, and the one place where errors are printed.
//!
//! Invariant: a verb returns; only `main` ends the process.

mod doctor;
mod failure;
mod kernel;
mod net;
mod net_args;
mod pages;
mod run;
mod version;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use openshell_vmm::config::plan::Plan;
use openshell_vmm::explain::Explain;
use openshell_vmm::report::{BootTrace, CODE_VMM, Outcome};

use failure::Failure;

/// Runs Linux in a microVM: one process, one machine, no root.
#[derive(Debug, Parser)]
#[command(name = "openshell-vmm", version, disable_help_subcommand = true, max_term_width = 100)]
struct Cli<V: Subcommand> {
    #[command(subcommand)]
    verb: V,
}

/// The verb whose start is counted in microseconds, alone: to define the others takes longer than to define it.
#[derive(Debug, Subcommand)]
enum JustRun {
    Run(Box<run::RunArgs>),
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::RunArgs>),
    Net(Box<net::NetVerbArgs>),
    Doctor(doctor::DoctorArgs),
    Kernel(kernel::KernelArgs),
    Version(version::VersionArgs),
    Completions(pages::CompletionsArgs),
    Man(pages::ManArgs),
}

/// Usage errors of every verb but `run`, where the numbers below 124 are the guest's.
const CODE_USAGE: u8 = 2;

/// Reads the arguments of this process and does what they say. `machine` runs a machine to its end.
pub(crate) fn main<E: Explain>(
    machine: impl FnOnce(Plan, BootTrace) -> Result<Outcome, E>,
) -> ExitCode {
    let verb = match parse() {
        Ok(verb) => verb,
        Err(error) => return usage(&error),
    };
    let done = match verb {
        Verb::Run(args) => run::run(*args, machine),
        Verb::Net(args) => net::net(*args),
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::Kernel(args) => kernel::kernel(&args),
        Verb::Version(args) => version::version(&args),
        Verb::Completions(args) => pages::completions(&args),
        Verb::Man(args) => pages::man(&args),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code)
        }
    }
}

fn parse() -> Result<Verb, clap::Error> {
    if is_run() {
        return parse_as::<JustRun>().map(|JustRun::Run(args)| Verb::Run(args));
    }
    parse_as()
}

fn is_run() -> bool {
    std::env::args_os().nth(1).is_some_and(|verb| verb == "run")
}

fn parse_as<V: Subcommand>() -> Result<V, clap::Error> {
    let mut command = Cli::<V>::command();
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches_mut(&mut matches)
        .map(|cli| cli.verb)
        .map_err(|error| error.format(&mut command))
}

/// Help and version are data that was asked for; everything else is an error like any other.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match print(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => ExitCode::from(failure.code),
        },
        kind => {
            let code = if is_run() { CODE_VMM } else { CODE_USAGE };
            let failure = Failure::usage(kind, &text, code);
            failure.print();
            ExitCode::from(failure.code)
        }
    }
}

/// Writes data to standard output. A reader that has gone is not an error.
fn print(data: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure {
            what: "cannot write to standard output".to_owned(),
            why: Some(error.to_string()),
            fix: None,
            code: 1,
        }),
        _ => Ok(()),
    }
}

/// Writes to standard error. There is nobody to tell when that fails.
fn say(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

/// The definition of the whole command, for completions and manual pages.
fn definition() -> clap::Command {
    Cli::<Verb>::command()
}
