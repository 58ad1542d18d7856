//! One machine: built from a plan, run until it ends, stopped in one order.
//!
//! Invariant: the machine stops in one order whatever ended it: vCPUs leave the guest and are joined, devices drain and make their data durable,
//! the console says its last words, the outcome is returned. The thread that calls [`run`] is the event loop.

mod build;
mod cmdline;
mod console;
mod net;
mod orders;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::bus::StopCause;
use crate::config::plan::Plan;
use crate::control;
use crate::control::protocol::Ending as ControlEnding;
use crate::event::Waiter;
use crate::explain::Explain;
use crate::jail::{Jail, Role};
use crate::kvm::{Vcpu, Vm};
use crate::report::{End, Outcome, Verdict};
use crate::streams;
use crate::sys::signal::EndingSignals;
use crate::sys::start_up;
use crate::trace::{BootTrace, Marks};
use crate::vcpu::exit::Fault;
use crate::vcpu::{Ending, Handle, Link, Report};
use crate::virtio::transport::Transport;

pub use build::BuildError;
use console::Console;

/// How often idle processors are looked at for having halted for good.
const HALT_CHECK: Duration = Duration::from_secs(1);
/// When the first look is: a boot is over by then, what the guest does next gains from huge pages, and what only the start
/// needed can go.
const FIRST_CHECK: Duration = Duration::from_millis(250);

/// Why a machine could not be run.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// It could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The host refused something while it ran.
    #[error("cannot {what}")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}

/// The event loop's descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Token {
    Signal,
    Timeout,
    Report,
    HaltCheck,
    SerialOutput,
    SinkReady,
    Input,
    InputWanted,
    Order,
    StopDeadline,
}

impl Token {
    const ALL: [Self; 10] = [
        Self::Signal,
        Self::Timeout,
        Self::Report,
        Self::HaltCheck,
        Self::SerialOutput,
        Self::SinkReady,
        Self::Input,
        Self::InputWanted,
        Self::Order,
        Self::StopDeadline,
    ];
}

impl Explain for MachineError {
    fn fix(&self) -> Option<String> {
        match self {
            Self::Build(error) => error.fix(),
            Self::Host { .. } => None,
        }
    }
}

/// Builds the machine of `plan` and runs it until it ends, completing `trace` on the way.
///
/// Blocks the signals that end the process on the calling thread. For a process that ends soon after: the memory of a
/// machine that ran for less than a quarter of a second stays mapped until then.
///
/// # Errors
/// [`MachineError`] when the machine can't be built or the host refuses it something; how a guest ends is never an error.
pub fn run(mut plan: Plan, trace: BootTrace) -> Result<Outcome, MachineError> {
    let signals = EndingSignals::open().map_err(host("watch for signals"))?;
    crate::sys::kick::install().map_err(host("install the vCPU signal"))?;
    let marks = Arc::new(Marks::default());
    let timeout = plan.timeout;
    let triple_fault_resets = cmdline::asks_for_triple_fault(&plan.append);
    let jail = Jail { seccomp: plan.seccomp };
    let control = plan.control.take();
    let streams = plan.streams.take();
    let resizes = streams.as_ref().filter(|streams| streams.own && streams.tty);
    let resizes = resizes.map(|_| EndingSignals::resizes()).transpose();
    let resizes = resizes.map_err(host("watch for signals"))?;
    let stopping = control.as_ref().map(orders::Manner::of);
    let parts = build::build(plan, &marks, jail)?;
    let control = control
        .map(|plan| control::Link::start(plan, Arc::clone(&marks), jail))
        .transpose()
        .map_err(host("serve the control socket"))?;
    let streams = streams
        .map(|plan| streams::Link::start(plan, resizes, jail))
        .transpose()
        .map_err(host("serve the streams of the main process"))?;
    let waiter = Waiter::new().map_err(host("make an epoll"))?;
    let console = Console::open(parts.console, parts.serial, Arc::clone(&marks), &waiter)
        .map_err(host("connect the console"))?;
    let (sender, reports) = mpsc::sync_channel(parts.vcpus.len());
    let doorbell =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("make an eventfd"))?;
    let link = Link::new(parts.buses, Arc::clone(&marks), sender, doorbell, parts.vcpus.len());
    let mut machine = Machine {
        waiter,
        signals,
        console,
        reports,
        handles: Vec::with_capacity(parts.vcpus.len()),
        link,
        disks: parts.disks,
        others: parts.others,
        network: parts.network,
        marks,
        trace,
        vm: ManuallyDrop::new(parts.vm),
        settled: false,
        control,
        streams,
        manner: stopping.unwrap_or_default(),
        paused: false,
    };
    let mut timers = machine.watch(timeout).map_err(host("watch for events"))?;
    machine.start(parts.vcpus, jail)?;
    let (end, last_exit) = machine.serve(&mut timers).unwrap_or_else(|error| {
        // The guest runs already: what it wrote must still reach its disks.
        let failed = End::Failed { what: error.to_string(), why: error.why(), fix: error.fix() };
        (failed, None)
    });
    let end = match end {
        End::TripleFault { .. } if triple_fault_resets => End::Reset,
        end => end,
    };
    Ok(machine.stop(end, last_exit))
}

struct Machine {
    waiter: Waiter,
    signals: EndingSignals,
    console: Console,
    reports: mpsc::Receiver<Report>,
    handles: Vec<Handle>,
    link: Link,
    disks: Vec<Arc<Transport>>,
    others: Vec<Arc<Transport>>,
    network: Option<net::Tally>,
    marks: Arc<Marks>,
    trace: BootTrace,
    /// Dropped only when there was time to fill its memory: a process that ends gives memory back in one go, and to unmap it
    /// before has KVM told of it, which is more than the little that a short run has touched.
    vm: ManuallyDrop<Vm>,
    /// The first halt check was.
    settled: bool,
    /// Who asks from outside, where somebody can.
    control: Option<control::Link>,
    /// The main process's streams, where the guest brings them.
    streams: Option<streams::Link>,
    /// How the guest is asked to end, and whether it was.
    manner: orders::Manner,
    /// The processors are held.
    paused: bool,
}

/// The event loop's own timers.
struct Timers {
    halt_check: TimerFd,
    /// When a guest that was asked to end has had its time.
    stop: TimerFd,
    _deadline: Option<TimerFd>,
}

impl Machine {
    /// Registers what the event loop waits for, before it may open nothing more.
    fn watch(&self, timeout: Option<Duration>) -> io::Result<Timers> {
        let waiter = &self.waiter;
        waiter.add_readable(self.signals.as_raw_fd(), Token::Signal as u64)?;
        waiter.add_readable(self.link.doorbell.as_raw_fd(), Token::Report as u64)?;
        let halt_check = timer(FIRST_CHECK, Some(HALT_CHECK))?;
        waiter.add_readable(halt_check.as_raw_fd(), Token::HaltCheck as u64)?;
        let deadline = timeout.map(|after| timer(after, None)).transpose()?;
        if let Some(deadline) = &deadline {
            waiter.add_readable(deadline.as_raw_fd(), Token::Timeout as u64)?;
        }
        let stop = TimerFd::new().map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        if let Some(control) = &self.control {
            waiter.add_readable(stop.as_raw_fd(), Token::StopDeadline as u64)?;
            waiter.add_readable(control.bell().as_raw_fd(), Token::Order as u64)?;
        }
        Ok(Timers { halt_check, stop, _deadline: deadline })
    }

    fn start(&mut self, vcpus: Vec<Vcpu>, jail: Jail) -> Result<(), MachineError> {
        for (index, vcpu) in (0u8..).zip(vcpus) {
            let handle = Handle::start(index, vcpu, self.link.clone(), jail)
                .map_err(host("start a vCPU thread"))?;
            self.handles.push(handle);
        }
        jail.confine(Role::Main).map_err(host("confine the event loop"))
    }

    /// Serves events until one of them ends the machine.
    fn serve(&mut self, timers: &mut Timers) -> Result<(End, Option<String>), MachineError> {
        self.console.offer_input(&self.waiter);
        let mut halts = HaltWatch::default();
        let mut ready = Vec::new();
        loop {
            self.waiter.wait(&mut ready).map_err(host("wait for events"))?;
            for token in ready.drain(..) {
                let Some(token) = Token::ALL.into_iter().find(|&known| known as u64 == token)
                else {
                    continue;
                };
                match token {
                    Token::Signal => {
                        let signal = self.signals.take();
                        if let Some(end) = signal.and_then(|it| self.signalled(it, timers)) {
                            return Ok((end, None));
                        }
                    }
                    Token::Timeout => return Ok((End::TimedOut, None)),
                    Token::Report => {
                        if let Ok(report) = self.reports.try_recv() {
                            return Ok(ended_by(report));
                        }
                        self.link.doorbell.read().ok();
                    }
                    Token::HaltCheck => {
                        timers.halt_check.wait().ok();
                        if !self.settled {
                            self.vm.ram().allow_huge_pages();
                            start_up::release();
                            self.settled = true;
                        }
                        if !self.paused && halts.check(&self.handles, &self.link) {
                            return Ok((End::Halted, None));
                        }
                    }
                    Token::SerialOutput | Token::SinkReady => {
                        self.console.forward_output(&self.waiter);
                    }
                    Token::Input => self.console.input_ready(&self.waiter),
                    Token::InputWanted => self.console.input_wanted(&self.waiter),
                    Token::Order => {
                        if let Some(end) = self.obey(timers) {
                            return Ok((end, None));
                        }
                    }
                    Token::StopDeadline => return Ok((End::Signal(libc::SIGKILL), None)),
                }
            }
        }
    }

    fn stop(mut self, mut end: End, last_exit: Option<String>) -> Outcome {
        self.signals.next_is_final();
        self.link.stop.store(true, Ordering::SeqCst);
        self.link.pause.release();
        for handle in &self.handles {
            handle.kick();
        }
        for handle in self.handles.drain(..) {
            handle.join();
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if let Err(error) = disk.shutdown() {
                end = End::Failed {
                    what: format!("disk {index} could not be flushed: its last writes may be lost"),
                    why: Some(error.to_string()),
                    fix: Some("check the host's disk, then the image with e2fsck".to_owned()),
                };
            }
        }
        for device in &self.others {
            // Only disks hold data that could be lost.
            device.shutdown().ok();
        }
        let started = self.streams.is_none_or(streams::Link::finish);
        self.console.close(started);
        if self.settled {
            drop(ManuallyDrop::into_inner(self.vm));
        }
        self.trace.take(&self.marks);
        let network = self.network.and_then(|tally| tally.get().cloned()).unwrap_or_default();
        let console = self.console.tail().clone();
        let outcome = Outcome { end, trace: self.trace, console, last_exit, network };
        if let Some(control) = self.control {
            let Verdict { code, source, what, .. } = Verdict::of(&outcome);
            let source = source.key().to_owned();
            control.finish(ControlEnding { code, source, reason: what });
        }
        outcome
    }
}

fn timer(after: Duration, every: Option<Duration>) -> io::Result<TimerFd> {
    let os_error = |e: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(e.errno());
    let mut timer = TimerFd::new().map_err(os_error)?;
    timer.reset(after, every).map_err(os_error)?;
    Ok(timer)
}

/// How a processor's report ends the machine, and its last exit in words.
fn ended_by(report: Report) -> (End, Option<String>) {
    let cpu = report.index;
    match report.ending {
        Ending::Stopped(StopCause::Exit(exit)) => {
            (End::GuestExit(exit), Some("the guest reported its exit status".to_owned()))
        }
        Ending::Stopped(StopCause::Reset) => {
            (End::Reset, Some("write to a reset register".to_owned()))
        }
        Ending::Stopped(StopCause::PowerOff) => {
            (End::PowerOff, Some("write to the ACPI sleep register".to_owned()))
        }
        Ending::Failed { fault, registers } => {
            let exit = fault.to_string();
            let end = match fault {
                Fault::TripleFault => End::TripleFault { cpu, registers },
                _ => End::VcpuFailed { cpu, reason: exit.clone(), registers },
            };
            (end, Some(exit))
        }
    }
}

/// Finds machines whose processors all sleep for good: a guest without a power-off register ends that way.
///
/// A processor that has used no CPU time since the last look is kicked, and says whether anything could wake it.
#[derive(Debug, Default)]
struct HaltWatch {
    used: Option<Duration>,
    asked: bool,
}

impl HaltWatch {
    /// One look; true when every processor was found halted for good.
    fn check(&mut self, handles: &[Handle], link: &Link) -> bool {
        if self.asked && link.asleep.iter().all(|asleep| asleep.load(Ordering::SeqCst)) {
            return true;
        }
        let used = handles.iter().map(Handle::cpu_time).sum();
        let idle = self.used == used && used.is_some();
        self.asked = idle;
        self.used = used;
        if idle {
            for handle in handles {
                handle.kick();
            }
        }
        false
    }
}
