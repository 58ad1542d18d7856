//! Verbs of the command, and the one place where errors are printed.
//!
//! Invariant: a verb returns; only `main` ends the process.

mod attach;
mod config;
mod cp;
mod doctor;
mod exec;
mod failure;
mod image_args;
mod image_run;
mod kernel;
mod life;
mod list;
mod logs;
mod moment;
mod net;
mod net_args;
mod pages;
mod reach;
mod run;
mod serve;
mod stats;
mod targets;
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

/// The verbs whose start is counted in microseconds, alone: to define the others takes longer than to define them.
#[derive(Debug, Subcommand)]
enum JustRun {
    Run(Box<run::RunArgs>),
    #[command(name = serve::VERB, hide = true)]
    Serve(serve::ServeArgs),
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::RunArgs>),
    #[command(name = serve::VERB, hide = true)]
    Serve(serve::ServeArgs),
    Create(Box<life::CreateArgs>),
    Start(life::StartArgs),
    Stop(life::StopArgs),
    Restart(life::RestartArgs),
    Kill(life::KillArgs),
    Rm(life::RmArgs),
    Pause(life::PauseArgs),
    Resume(life::ResumeArgs),
    Wait(life::WaitArgs),
    Logs(logs::LogsArgs),
    #[command(visible_alias = "ls")]
    Ps(list::PsArgs),
    Inspect(list::InspectArgs),
    Port(list::PortArgs),
    Df(list::DfArgs),
    Prune(list::PruneArgs),
    Events(logs::EventsArgs),
    Config(config::ConfigArgs),
    Cp(cp::CpArgs),
    Attach(attach::AttachArgs),
    Exec(Box<exec::ExecArgs>),
    Stats(stats::StatsArgs),
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
        Verb::Serve(args) => serve::serve(&args, machine),
        Verb::Create(args) => life::create(*args),
        Verb::Start(args) => life::start(&args),
        Verb::Stop(args) => life::stop(&args),
        Verb::Restart(args) => life::restart(&args),
        Verb::Kill(args) => life::kill(&args),
        Verb::Rm(args) => life::rm(&args),
        Verb::Pause(args) => life::pause(&args),
        Verb::Resume(args) => life::resume(&args),
        Verb::Wait(args) => life::wait(&args),
        Verb::Logs(args) => logs::logs(&args),
        Verb::Ps(args) => list::ps(&args),
        Verb::Inspect(args) => list::inspect(&args),
        Verb::Port(args) => list::port(&args),
        Verb::Df(args) => list::df(&args),
        Verb::Prune(args) => list::prune(&args),
        Verb::Events(args) => logs::events(&args),
        Verb::Config(args) => config::config(&args),
        Verb::Cp(args) => cp::cp(&args),
        Verb::Attach(args) => attach::attach(&args),
        Verb::Exec(args) => exec::exec(&args),
        Verb::Stats(args) => stats::stats(&args),
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
    if is_run() || std::env::args_os().nth(1).is_some_and(|verb| verb == serve::VERB) {
        return Ok(match parse_as::<JustRun>(std::env::args_os())? {
            JustRun::Run(args) => Verb::Run(args),
            JustRun::Serve(args) => Verb::Serve(args),
        });
    }
    parse_as(std::env::args_os())
}

fn is_run() -> bool {
    std::env::args_os().nth(1).is_some_and(|verb| verb == "run")
}

/// The numbers below 124 are the command's there, as they are the guest's with `run`.
fn is_exec() -> bool {
    std::env::args_os().nth(1).is_some_and(|verb| verb == "exec" || verb == "attach")
}

/// Reads the words of `run` that a machine was created with.
fn parse_run(words: &[String]) -> Result<run::RunArgs, clap::Error> {
    let name = std::iter::once("openshell-vmm").chain(std::iter::once("run"));
    let words = name.chain(words.iter().map(String::as_str)).map(std::ffi::OsString::from);
    match parse_as::<JustRun>(words)? {
        JustRun::Run(args) => Ok(*args),
        JustRun::Serve(_) => Err(clap::Error::new(ErrorKind::InvalidSubcommand)),
    }
}

fn parse_as<V: Subcommand>(
    words: impl Iterator<Item = std::ffi::OsString>,
) -> Result<V, clap::Error> {
    let mut command = Cli::<V>::command();
    let mut matches = command.try_get_matches_from_mut(words)?;
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
            let code = if is_run() || is_exec() { CODE_VMM } else { CODE_USAGE };
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
