//! One thread per virtual processor: start, kick, join.
//!
//! Invariant: a kick is never lost: the signal's handler raises `immediate_exit` on the thread that owns the processor, so that a signal
//! before KVM_RUN ends it as surely as one during it.

pub mod exit;
mod pause;

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::StopCause;
use crate::jail::{Jail, Role};
use crate::kvm::{Registers, Vcpu};
use crate::sys::kick;
use crate::trace::{Marks, Phase};

use exit::{Action, Buses, Fault};
pub use pause::Pause;

/// Why a processor's thread ended by itself.
#[derive(Debug)]
pub enum Ending {
    /// The guest asked for it.
    Stopped(StopCause),
    /// The processor failed.
    Failed {
        /// How.
        fault: Fault,
        /// Its registers then.
        registers: Registers,
    },
}

/// A message of a processor's thread to the machine.
#[derive(Debug)]
pub struct Report {
    /// Which processor.
    pub index: u8,
    /// What happened.
    pub ending: Ending,
}

/// What all processors' threads share with the machine.
#[derive(Debug, Clone)]
pub struct Link {
    /// Per processor: whether it could be woken by nothing in the guest when it was last kicked.
    pub asleep: Arc<[AtomicBool]>,
    /// Ports and registers.
    pub buses: Arc<Buses>,
    /// Boot marks.
    pub marks: Arc<Marks>,
    /// Set before a kick that ends the thread.
    pub stop: Arc<AtomicBool>,
    /// Where processors are held.
    pub pause: Arc<Pause>,
    /// Where reports go, and the doorbell to ring after sending one.
    pub reports: mpsc::SyncSender<Report>,
    /// Rung after a report was sent.
    pub doorbell: Arc<EventFd>,
}

impl Link {
    /// A link for `count` processors.
    #[must_use]
    pub fn new(
        buses: Arc<Buses>,
        marks: Arc<Marks>,
        reports: mpsc::SyncSender<Report>,
        doorbell: EventFd,
        count: usize,
    ) -> Self {
        Self {
            asleep: (0..count).map(|_| AtomicBool::new(false)).collect(),
            buses,
            marks,
            stop: Arc::new(AtomicBool::new(false)),
            pause: Arc::new(Pause::new()),
            reports,
            doorbell: Arc::new(doorbell),
        }
    }
}

/// A running processor.
#[derive(Debug)]
pub struct Handle {
    thread: JoinHandle<()>,
}

impl Handle {
    /// Starts the processor's thread.
    ///
    /// # Errors
    /// What the host said when the thread could not start.
    pub fn start(index: u8, vcpu: Vcpu, link: Link, jail: Jail) -> io::Result<Self> {
        let name = format!("vcpu{index}");
        let thread = jail.spawn(Role::Vcpu, &name, move || run(index, vcpu, &link))?;
        Ok(Self { thread })
    }

    /// Makes the processor leave the guest and look at its orders.
    pub fn kick(&self) {
        kick::send(self.thread.as_pthread_t());
    }

    /// CPU time that the thread has used, or `None` when it has ended.
    #[must_use]
    pub fn cpu_time(&self) -> Option<std::time::Duration> {
        kick::cpu_time(self.thread.as_pthread_t())
    }

    /// Waits for the thread, which the caller has told to stop.
    pub fn join(self) {
        // A panic in the thread has ended the process; in tests it was printed when it happened.
        drop(self.thread.join());
    }
}

fn run(index: u8, mut vcpu: Vcpu, link: &Link) {
    let _registration = kick::register(vcpu.immediate_exit_ptr());
    if index == 0 {
        link.marks.stamp(Phase::FirstRun);
    }
    if let Some(ending) = run_until_end(index, &mut vcpu, link) {
        // The machine is gone only when the process ends.
        drop(link.reports.send(Report { index, ending }));
        drop(link.doorbell.write(1));
    }
}

/// Runs the processor; `None` when the machine told it to stop.
fn run_until_end(index: u8, vcpu: &mut Vcpu, link: &Link) -> Option<Ending> {
    let mut entered = index != 0;
    // A kick that came before this thread could be kicked has left its order behind.
    while !link.stop.load(Ordering::SeqCst) {
        if link.pause.hold() {
            vcpu.was_held();
            continue;
        }
        let action = exit::decide(vcpu.run(), &link.buses);
        if !entered {
            link.marks.stamp(Phase::KernelEntry);
            entered = true;
        }
        match action {
            Action::Resume => {}
            Action::Kicked => {
                vcpu.clear_kick();
                if let Some(asleep) = link.asleep.get(usize::from(index)) {
                    let for_good = vcpu.halted_for_good() || vcpu.waits_for_start();
                    asleep.store(for_good, Ordering::SeqCst);
                }
            }
            Action::Stop(cause) => return Some(Ending::Stopped(cause)),
            Action::Fail(fault) => {
                return Some(Ending::Failed { fault, registers: vcpu.registers() });
            }
            Action::GaveUp => {
                let fault = Fault::Internal { suberror: vcpu.internal_suberror() };
                return Some(Ending::Failed { fault, registers: vcpu.registers() });
            }
        }
    }
    None
}
