//! The verbs of a machine's life: `create`, `start`, `stop`, `restart`, `kill`, `rm`, `pause`, `resume`, `wait`.
//!
//! Invariant: a process is signalled only while it is held, and only when it is the machine's. Every wait but that of `wait` has an end.

use std::io::{self, ErrorKind};
use std::time::Duration;

use clap::Args;
use openshell_vmm::agent;
use openshell_vmm::config::units::parse_duration;
use openshell_vmm::config::user::UserConfig;
use openshell_vmm::control::client::Client;
use openshell_vmm::control::protocol::{Reply, Request};
use openshell_vmm::launch::image::{Source, Wanted};
use openshell_vmm::launch::process::signal;
use openshell_vmm::launch::{Places, image};
use openshell_vmm::machines::journal::{Event, Journal};
use openshell_vmm::machines::record::Running;
use openshell_vmm::machines::{Machine, Status, Store, StoreError, names};
use openshell_vmm::sys::process::Process;

use super::failure::Failure;
use super::run::RunArgs;
use super::targets::{Done, Targets, of_store, open_store};
use super::{image_run, serve};

/// How long a machine may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// What a machine may take beyond the time of its guest: it writes its disks.
const BEYOND: Duration = Duration::from_secs(15);
/// How long a killed process may take to go.
const KILLED: Duration = Duration::from_secs(10);
/// How long a machine may take until its control socket is there.
const SOCKET_PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);
const CODE_BUSY: u8 = 5;
/// The exit code of a machine whose process was killed.
const CODE_KILLED: u8 = 137;

/// Create a machine of an image without starting it
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    run: Box<RunArgs>,
}

/// Start machines in the background
#[derive(Debug, Args)]
pub(super) struct StartArgs {
    #[command(flatten)]
    targets: Targets,
}

/// Stop machines in good order
///
/// The main process gets the image's stop signal, and what is left of it is killed when its time is over.
#[derive(Debug, Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    targets: Targets,
    /// How long the guest may take: 10s, or a bare number of seconds [default: as the machine was created]
    #[arg(short, long, value_name = "TIME", value_parser = time)]
    time: Option<Duration>,
}

/// End machines now, or send their main process a signal
#[derive(Debug, Args)]
pub(super) struct KillArgs {
    #[command(flatten)]
    targets: Targets,
    /// SIGKILL ends the machine; any other goes to its main process
    #[arg(short, long, value_name = "SIGNAL", default_value = "SIGKILL", value_parser = signal_number)]
    signal: i32,
}

/// Remove machines and all that they wrote
#[derive(Debug, Args)]
pub(super) struct RmArgs {
    #[command(flatten)]
    targets: Targets,
    /// End those that run
    #[arg(short, long)]
    force: bool,
}

/// Stop machines in good order, and start them again
#[derive(Debug, Args)]
pub(super) struct RestartArgs {
    #[command(flatten)]
    stop: StopArgs,
}

/// Hold machines: their processors stand still until they are resumed
#[derive(Debug, Args)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    targets: Targets,
}

/// Let paused machines go on
#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    targets: Targets,
}

/// Wait until machines have ended, and print their exit codes
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    targets: Targets,
}

fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(str::to_owned)
}

fn signal_number(text: &str) -> Result<i32, String> {
    signal(text).ok_or_else(|| "write a signal as SIGTERM, TERM or 15".to_owned())
}

/// Creates a machine, and prints its id.
pub(super) fn create(args: CreateArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let words = image_run::words_after_verb()?;
    if args.run.image.source.is_none() {
        return Err(refused("create takes an image", "openshell-vmm create IMAGE", 2));
    }
    let (record, _) = image_run::record(*args.run, words, false, &store)?;
    let held = store.create(record).map_err(|error| of_store(&error))?;
    Journal::open(&store).add(&Event::now("create", &held.machine));
    super::print(format!("{}\n", held.machine.record.id).as_bytes())?;
    Ok(0)
}

pub(super) fn start(args: &StartArgs) -> Result<u8, Failure> {
    let idle = |machine: &Machine| !matches!(machine.status(), Status::Running(_));
    args.targets.each(idle, |store, machine| start_one(store, machine).map(|()| None))
}

fn start_one(store: &Store, machine: Machine) -> Result<(), Failure> {
    let held = match machine.hold() {
        Ok(held) => held,
        // As it was asked for.
        Err(StoreError::Running { .. }) => return Ok(()),
        Err(error) => return Err(of_store(&error)),
    };
    if let Some(kept) = held.machine.record.image.as_ref().filter(|image| !image.path.exists()) {
        let source = Source::parse(&kept.reference);
        let config = UserConfig::of_process().map_err(|error| Failure::of(&error, 1))?;
        let variables = image_run::image_variables(&config);
        let wanted = Wanted { variables, ..Wanted::default() };
        let found = image::find(&source, &wanted, store, &Places::of_process());
        let found = found.map_err(|error| Failure::of(&error, 1))?;
        if found.key != kept.key || !kept.path.exists() {
            let what = format!("the image of machine {:?} is gone", held.machine.record.name);
            let fix = format!(
                "{} is another one by now: put the old one back, or make a new machine",
                kept.reference
            );
            return Err(refused(&what, &fix, 1));
        }
    }
    serve::start(&held).map_err(|failure| Failure { code: 1, ..failure })
}

pub(super) fn stop(args: &StopArgs) -> Result<u8, Failure> {
    let act = |store: &Store, machine: Machine| {
        Journal::open(store).add(&Event::now("stop", &machine));
        stop_one(&machine, args.time).map(|()| None)
    };
    args.targets.each(runs, act)
}

fn runs(machine: &Machine) -> bool {
    matches!(machine.status(), Status::Running(_))
}

/// Stops a machine; one that does not run is as it should be.
fn stop_one(machine: &Machine, grace: Option<Duration>) -> Result<(), Failure> {
    let Status::Running(running) = machine.status() else { return Ok(()) };
    let Some(process) = running.process.hold() else { return Ok(()) };
    let given = machine.record.process.as_ref().map_or(0, |process| process.stop_grace_ms);
    let patience = grace.unwrap_or(Duration::from_millis(given)).saturating_add(BEYOND);
    let grace_ms = grace.map(super::moment::millis);
    let asked = ask(machine, &Request::Stop { signal: None, grace_ms }, Some(ANSWER));
    if asked.is_err() && !process.ended_within(Duration::ZERO) {
        // It does not answer: the process itself is asked.
        drop(process.signal(libc::SIGTERM));
    }
    if process.ended_within(patience) {
        return Ok(());
    }
    end_now(machine, &process)
}

fn end_now(machine: &Machine, process: &Process) -> Result<(), Failure> {
    drop(process.signal(libc::SIGKILL));
    if process.ended_within(KILLED) {
        return Ok(());
    }
    let what = format!("machine {:?} does not end", machine.record.name);
    Err(refused(&what, "its process waits for the host: see dmesg", 1))
}

pub(super) fn restart(args: &RestartArgs) -> Result<u8, Failure> {
    let act = |store: &Store, machine: Machine| {
        if machine.record.ephemeral {
            let what = format!("machine {:?} goes away when it ends", machine.record.name);
            return Err(refused(&what, "create it with --keep or a name, without --rm", CODE_BUSY));
        }
        stop_one(&machine, args.stop.time)?;
        start_one(store, machine).map(|()| None)
    };
    args.stop.targets.each(runs, act)
}

pub(super) fn kill(args: &KillArgs) -> Result<u8, Failure> {
    let act = |store: &Store, machine: Machine| {
        let (running, process) = running(&machine)?;
        Journal::open(store).add(&Event::now("kill", &machine));
        if args.signal == libc::SIGKILL {
            return end_in_order(&machine, &process).map(|()| None);
        }
        let asked = ask(&machine, &Request::Kill { signal: Some(args.signal) }, Some(ANSWER));
        asked.map(|_| None).map_err(|error| unanswered(&machine, &running, &error))
    };
    args.targets.each(runs, act)
}

/// Ends a machine without asking its guest; it writes down its end itself, unless it hangs.
fn end_in_order(machine: &Machine, process: &Process) -> Result<(), Failure> {
    let asked = ask(machine, &Request::Kill { signal: None }, Some(ANSWER));
    let hangs =
        |error: io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    // One that hangs up has been asked by somebody else before, and is about to end.
    if !asked.is_err_and(hangs) && process.ended_within(ANSWER) {
        return Ok(());
    }
    end_now(machine, process)
}

/// A machine's process, held, if it runs.
fn running(machine: &Machine) -> Result<(Running, Process), Failure> {
    let not = || of_store(&StoreError::NotRunning { name: machine.record.name.clone() });
    let Status::Running(running) = machine.status() else { return Err(not()) };
    let process = running.process.hold().ok_or_else(not)?;
    Ok((running, process))
}

pub(super) fn rm(args: &RmArgs) -> Result<u8, Failure> {
    let idle = |machine: &Machine| args.force || !runs(machine);
    args.targets.each(idle, |store, machine| {
        if args.force
            && let Ok((_, process)) = running(&machine)
        {
            end_in_order(&machine, &process)?;
        }
        let event = Event::now("remove", &machine);
        let ephemeral = machine.record.ephemeral;
        match machine.hold().and_then(|held| held.remove(store)) {
            Ok(()) => Journal::open(store).add(&event),
            // It removed itself when it ended.
            Err(StoreError::NotFound { .. }) if ephemeral => {}
            Err(error) => return Err(of_store(&error)),
        }
        Ok(None)
    })
}

pub(super) fn pause(args: &PauseArgs) -> Result<u8, Failure> {
    args.targets.each(runs, |store, machine| order(store, &machine, &Request::Pause, "pause"))
}

pub(super) fn resume(args: &ResumeArgs) -> Result<u8, Failure> {
    args.targets.each(runs, |store, machine| {
        let done = order(store, &machine, &Request::Resume, "resume")?;
        // The host may have slept, or changed its clock, while the guest did not look.
        let set = machine.socket(names::VSOCK).map(|path| agent::set_clock(&path));
        if let Ok(Err(error)) = set {
            super::say(&format!(
                "warning: the clock of {:?} may be wrong: {error}\n",
                machine.record.name
            ));
        }
        Ok(done)
    })
}

fn order(store: &Store, machine: &Machine, request: &Request, event: &str) -> Done {
    let (running, _) = running(machine)?;
    let reply = ask(machine, request, Some(ANSWER));
    let reply = reply.map_err(|error| unanswered(machine, &running, &error))?;
    if let Some(error) = reply.error {
        let what = format!("cannot {event} machine {:?}: {error}", machine.record.name);
        return Err(refused(&what, "`openshell-vmm ps` says what it does", CODE_BUSY));
    }
    Journal::open(store).add(&Event::now(event, machine));
    Ok(None)
}

pub(super) fn wait(args: &WaitArgs) -> Result<u8, Failure> {
    args.targets.each(runs, |_, machine| wait_one(&machine).map(Some))
}

fn wait_one(machine: &Machine) -> Result<u8, Failure> {
    let code = || machine.ended().filter(|ended| !ended.was_cut_off()).map(|ended| ended.code);
    let running = match machine.status() {
        Status::Created => {
            let error = StoreError::NotRunning { name: machine.record.name.clone() };
            return Err(of_store(&error));
        }
        Status::Exited(ended) => return Ok(ended.code),
        Status::Dead => return Ok(CODE_KILLED),
        Status::Running(running) => running,
    };
    let told = ask(machine, &Request::Wait, None).ok().and_then(|reply| reply.ended);
    if let Some(process) = running.process.hold() {
        while !process.ended_within(Duration::from_secs(3600)) {}
    }
    Ok(told.map(|ended| ended.code).or_else(code).unwrap_or(CODE_KILLED))
}

/// Asks a machine that runs; one whose socket is not there yet is waited for.
pub(super) fn ask(
    machine: &Machine,
    request: &Request,
    patience: Option<Duration>,
) -> io::Result<Reply> {
    let path = machine.socket(names::CONTROL).map_err(io::Error::other)?;
    let mut waited = Duration::ZERO;
    loop {
        match Client::connect(&path) {
            Ok(mut client) => return client.ask(request, patience),
            Err(error) if waited >= SOCKET_PATIENCE || !runs(machine) => return Err(error),
            Err(_) => {
                std::thread::sleep(LOOK);
                waited += LOOK;
            }
        }
    }
}

fn unanswered(machine: &Machine, running: &Running, error: &io::Error) -> Failure {
    Failure {
        what: format!("machine {:?} does not answer", machine.record.name),
        why: Some(format!("process {}: {error}", running.process.pid)),
        fix: Some(format!("`openshell-vmm kill {}` ends it", machine.record.name)),
        code: 1,
    }
}

fn refused(what: &str, fix: &str, code: u8) -> Failure {
    Failure { what: what.to_owned(), why: None, fix: Some(fix.to_owned()), code }
}
