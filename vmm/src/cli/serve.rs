//! The run of a machine of the store: in this process, or in one of its own in the background.
//!
//! Invariant: the process of a machine holds its lock from before the first of its files is opened until it ends. Sockets are bound by
//! names relative to the machine's directory, which is where its process works, so that no path is too long for them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use openshell_vmm::config::kernel::{KernelPlaces, Profile};
use openshell_vmm::config::open;
use openshell_vmm::config::plan::{
    ConsolePlan, ControlPlan, Plan, StreamsPlan, VsockPlan, runtime_directory,
};
use openshell_vmm::config::spec::{DiskSpec, MemorySize, Spec};
use openshell_vmm::config::units::parse_size;
use openshell_vmm::config::user::UserConfig;
use openshell_vmm::control::client::Client;
use openshell_vmm::control::protocol::Request;
use openshell_vmm::explain::Explain;
use openshell_vmm::launch::disks::DiskSize;
use openshell_vmm::launch::process::{GuestFacts, Streams as GuestStreams, guest_config};
use openshell_vmm::launch::{Places, disks};
use openshell_vmm::logbook::{self, Logbook, now_unix_ms};
use openshell_vmm::machines::journal::{Event, Journal};
use openshell_vmm::machines::record::{Image, Process, Record};
use openshell_vmm::machines::{Held, Machine, Store, names, remove_own};
use openshell_vmm::report::json::Document;
use openshell_vmm::report::{BootTrace, CODE_VMM, Outcome, Phase, Verdict, text};
use openshell_vmm::sys::process::own_session;
use openshell_vmm::sys::tty;

use super::failure::Failure;
use super::image_run::has_network;
use super::run::{self, not_started, say_trace};

/// The verb of a machine's own process in the background.
pub(super) const VERB: &str = "serve-machine";
/// How long a machine may take to open what it needs.
const START_PATIENCE: Duration = Duration::from_secs(60);
const START_LOOK: Duration = Duration::from_millis(3);

/// Run a machine of the store, whose lock is standard input
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Its directory
    directory: PathBuf,
}

/// What becomes of the main process's streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams {
    /// They are this process's as well.
    pub(super) own: bool,
    /// There is an input.
    pub(super) input: bool,
}

/// The process of a machine in the background.
pub(super) fn serve<E: Explain>(
    args: &ServeArgs,
    machine: impl FnOnce(Plan, BootTrace) -> Result<Outcome, E>,
) -> Result<u8, Failure> {
    let trace = BootTrace::of_process();
    let store = Store::of_process().map_err(|error| failed(&error))?;
    let found = Machine::open(&args.directory).map_err(|error| failed(&error))?;
    let found = found.ok_or_else(|| host("find the machine", &args.directory)(not_found()))?;
    let lock = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let lock = lock.map_err(host("take the lock", &args.directory))?;
    lock.try_lock().map_err(|error| host("take the lock", &args.directory)(error.into()))?;
    let args = super::parse_run(&found.record.words)
        .map_err(|error| Failure::usage(error.kind(), &error.render().to_string(), CODE_VMM))?;
    let mut args = args;
    let input = args.image.interactive;
    args.image = super::image_args::ImageArgs::default();
    let spec = args.into_spec().map_err(|error| failed(&error))?;
    let held = Held { machine: found, lock };
    let streams = Streams { own: false, input };
    run(&held, spec, streams, trace, Journal::open(&store), machine)
}

/// Starts the process of a machine in the background, hands it the lock, and waits until it runs.
pub(super) fn start(held: &Held) -> Result<(), Failure> {
    let machine = &held.machine;
    let log = machine.path(names::START_LOG);
    let said = File::options().write(true).create(true).truncate(true).mode(0o600).open(&log);
    let said = said.map_err(host("make", &log))?;
    let program = std::env::current_exe().map_err(host("find", Path::new("openshell-vmm")))?;
    let lock = held.lock.try_clone().map_err(host("hand over the lock of", &machine.directory))?;
    let mut command = Command::new(&program);
    command.arg(VERB).arg(&machine.directory).current_dir(&machine.record.cwd);
    command.stdin(lock).stdout(Stdio::null()).stderr(said);
    own_session(&mut command);
    let mut child = command.spawn().map_err(host("start", &program))?;
    let ends = Instant::now() + START_PATIENCE;
    let socket = machine.socket(names::CONTROL).map_err(|error| failed(&error))?;
    loop {
        let up = Client::connect(&socket)
            .and_then(|mut client| client.ask(&Request::Status, Some(Duration::from_secs(5))));
        if up.is_ok() {
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            // One whose command is over already has started: its guest ended it, or it has removed itself.
            if machine.ended().is_some_and(|ended| ended.source != "vmm") || !log.exists() {
                return Ok(());
            }
            let text = fs::read_to_string(&log).unwrap_or_default();
            return Err(told(&machine.record.name, &text, &status.to_string()));
        }
        if Instant::now() >= ends {
            drop(child.kill());
            drop(child.wait());
            let text = fs::read_to_string(&log).unwrap_or_default();
            return Err(told(&machine.record.name, &text, "it took too long"));
        }
        std::thread::sleep(START_LOOK);
    }
}

/// What the process of a machine said before it ended, as an error of this one.
fn told(name: &str, text: &str, otherwise: &str) -> Failure {
    let mut lines = text.lines().map(str::trim);
    let what = lines.find_map(|line| line.strip_prefix("error: "));
    let mut why = Vec::new();
    let mut fix = None;
    for line in lines {
        match line.strip_prefix("fix: ") {
            Some(told) => fix = Some(told.to_owned()),
            None => why.push(line.to_owned()),
        }
    }
    Failure {
        what: what.map_or_else(|| format!("machine {name:?} did not start"), str::to_owned),
        why: Some(if what.is_some() { why.join("\n") } else { otherwise.to_owned() })
            .filter(|why| !why.is_empty()),
        fix,
        code: CODE_VMM,
    }
}

/// Runs a machine to its end in this process, which holds its lock.
pub(super) fn run<E: Explain>(
    held: &Held,
    mut spec: Spec,
    streams: Streams,
    mut trace: BootTrace,
    mut journal: Journal,
    machine: impl FnOnce(Plan, BootTrace) -> Result<Outcome, E>,
) -> Result<u8, Failure> {
    let Machine { directory, record } = &held.machine;
    let asked = spec.result.take();
    let format = spec.boot_trace;
    let mut results = Vec::new();
    for path in std::iter::once(held.machine.path(names::RESULT)).chain(asked) {
        results.push(run::Record::open(&path)?);
    }
    let (plan, log) = match prepare(held, spec, streams) {
        Ok(prepared) => prepared,
        Err(failure) => {
            for result in results {
                drop(result.finish(&Document::of_failure(&failure.verdict())));
            }
            return Err(failure);
        }
    };
    held.claim().map_err(|error| failed(&error))?;
    journal.add(&Event::now("start", &held.machine));
    trace.mark(Phase::ProcessStart);
    let mut outcome = match machine(plan, trace) {
        Ok(outcome) => outcome,
        Err(error) => {
            let mut results = results.into_iter();
            let failure = not_started(&error, results.next());
            drop(results.next().map(|it| it.finish(&Document::of_failure(&failure.verdict()))));
            drop(fs::remove_file(names::CONTROL));
            return Err(failure);
        }
    };
    let verdict = Verdict::of(&outcome);
    let said = text::ending(&outcome, &verdict);
    log.add(logbook::Source::Vmm, format!("{}\n{said}", verdict.what).as_bytes());
    super::say(&said);
    say_trace(&mut outcome, format);
    journal.add(&Event { code: Some(verdict.code), ..Event::now("die", &held.machine) });
    let mut code = verdict.code;
    for result in results {
        if let Err(failure) = result.finish(&Document::of(&outcome, &verdict)) {
            // The machine has run: what it wrote stays, whatever becomes of the record.
            failure.print();
            code = failure.code;
        }
    }
    if record.ephemeral {
        remove_own(directory);
        journal.add(&Event::now("remove", &held.machine));
    }
    Ok(code)
}

/// Makes the machine's own disks, opens everything, and binds its sockets.
fn prepare(held: &Held, spec: Spec, streams: Streams) -> Result<(Plan, Logbook), Failure> {
    let Machine { directory, record } = &held.machine;
    let (Some(image), Some(process)) = (&record.image, &record.process) else {
        return Err(host("read the image of", directory)(not_found()));
    };
    let plan = open_all(&held.machine, spec, image, process, streams)?;
    std::env::set_current_dir(directory).map_err(host("change to", directory))?;
    let config = UserConfig::of_process().map_err(|error| failed(&error))?;
    let limit = config.set("logs.max_size").and_then(|text| parse_size(text, None).ok());
    let log = Logbook::open(directory, limit.unwrap_or(logbook::DEFAULT_LIMIT_BYTES));
    let log = log.map_err(host("open the log in", directory))?;
    let listen = |name| {
        // Nobody listens on one that is left: this process holds the lock.
        drop(fs::remove_file(name));
        UnixListener::bind(name).map_err(host("listen in", directory))
    };
    let control = PathBuf::from(names::CONTROL);
    let streams = StreamsPlan {
        guest: listen(names::MAIN)?,
        attach: listen(names::ATTACH)?,
        paths: [names::MAIN, names::ATTACH].map(PathBuf::from),
        log: log.clone(),
        tty: process.tty,
        input: streams.input,
        own: streams.own,
    };
    // The last, so that whoever finds it finds the others.
    let listener = listen(names::CONTROL)?;
    let guest = PathBuf::from(names::VSOCK);
    let grace = Duration::from_millis(process.stop_grace_ms);
    let stop_signal = process.stop_signal;
    Ok((
        Plan {
            vsock: Some(VsockPlan {
                path: guest.clone(),
                guest_cid: *VsockPlan::GUEST_CIDS.start(),
            }),
            control: Some(ControlPlan { listener, path: control, guest, stop_signal, grace }),
            console: ConsolePlan::Logged { log: log.clone(), output: streams.own },
            streams: Some(streams),
            runtime_dir: runtime_directory(),
            ..plan
        },
        log,
    ))
}

fn open_all(
    machine: &Machine,
    mut spec: Spec,
    image: &Image,
    process: &Process,
    streams: Streams,
) -> Result<Plan, Failure> {
    let record = &machine.record;
    let places = Places::of_process();
    let tools = places.tools().map_err(|error| failed(&error))?;
    let size = if streams.own { tty::size(1).or_else(|| tty::size(0)) } else { None };
    let facts = GuestFacts {
        hostname: &record.name,
        clock_unix_ms: now_unix_ms(),
        network: has_network(&spec),
        mtu: spec.net.mtu.map(|mtu| mtu.bytes()),
        streams: GuestStreams { input: streams.input, size },
        volatile: record.ephemeral,
    };
    let config = guest_config(process, &facts).map_err(|error| failed(&error))?;
    let (disk, told) = (machine.path(names::DISK), machine.path(names::CONFIG));
    let volatile = record.ephemeral.then_some(&config[..]);
    if volatile.is_some() || !disk.exists() {
        let fresh = machine.path("disk.new");
        disks::writable(&fresh, disk_size(record), image.nodes, &record.id, volatile)
            .and_then(|()| fs::rename(&fresh, &disk))
            .map_err(host("make the disk", &disk))?;
    }
    let read_only = |path: PathBuf| DiskSpec { path, ro: true, ..DiskSpec::default() };
    let own = DiskSpec { path: disk.clone(), ..DiskSpec::default() };
    let mut all = vec![read_only(tools), read_only(image.path.clone()), own];
    let mut config_disk = all.len() - 1;
    // The user's have the same names in every machine.
    all.append(&mut spec.disks);
    if volatile.is_none() {
        disks::config(&told, &config, &record.id).map_err(host("make the disk", &told))?;
        config_disk = all.len();
        all.push(read_only(told.clone()));
    }
    spec.disks = all;
    spec.vsock = None;
    spec.console = None;
    // These are read again later, when the process works somewhere else.
    for path in [&mut spec.net.policy, &mut spec.net.resolv_conf].into_iter().flatten() {
        *path = std::path::absolute(&*path).map_err(host("find", path))?;
    }
    spec.memory = Some(MemorySize(record.memory_bytes));
    spec.cpus = Some(record.cpus);
    let more = spec.append.take().unwrap_or_default();
    let words = "rootfstype=ext4 init=/bin/openshell-init openshell.config=";
    let name = disks::device_name(config_disk);
    spec.append = Some(format!("{words}{name} {more}").trim_end().into());
    let kernels = KernelPlaces::of_process();
    if spec.kernel.is_none() && kernels.find(None, Profile::default()).is_err() {
        spec.kernel = places.kernel_beside();
    }
    let mut plan = open::open(&spec, &kernels).map_err(|error| failed(&error));
    // What it says was for this start, and is open now.
    drop(fs::remove_file(&told));
    if record.ephemeral {
        // Nothing of it is left, whatever ends the process.
        drop(fs::remove_file(&disk));
        for own in plan.iter_mut().flat_map(|plan| &mut plan.disks).filter(|it| it.path == disk) {
            own.volatile = true;
        }
    }
    plan
}

/// The size of the disk that a machine writes on.
fn disk_size(record: &Record) -> DiskSize {
    super::parse_run(&record.words).ok().and_then(|args| args.image.disk_size).unwrap_or_default()
}

fn failed(error: &impl Explain) -> Failure {
    Failure::of(error, CODE_VMM)
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

pub(super) fn host(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let what = format!("cannot {what} {}", path.display());
    move |error| Failure { what, why: Some(error.to_string()), fix: None, code: CODE_VMM }
}
