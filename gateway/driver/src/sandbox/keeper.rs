//! The task that keeps one machine: makes its disks, starts it, waits for its end.
//!
//! Invariant: whoever cancels the task and waits for its end finds no machine. An end that nobody asked for is written down
//! before it is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::condition::Status;
use super::driver::Driver;
use crate::backend::{BackendError, Ended, Machine, MachineSpec, News, Stop, bounded};
use crate::events::{Event, Reason, progress};
use crate::id::SandboxId;
use crate::state::SandboxDir;

/// How often a machine that starts is looked at, and for how long.
const LOOK: Duration = Duration::from_secs(5);
const LOOKS: Duration = Duration::from_secs(600);

/// What the task works on.
pub(super) struct Keeper {
    pub(super) driver: Arc<Driver>,
    pub(super) id: SandboxId,
    pub(super) spec: MachineSpec,
    pub(super) directory: SandboxDir,
    /// Whether nothing is lost with the directory.
    pub(super) fresh: bool,
    pub(super) cancelled: watch::Receiver<Option<Stop>>,
}

/// How a machine's life ended.
enum Life {
    Cancelled,
    Failed(String),
    Ended(Ended),
    Lost(String),
}

impl Keeper {
    pub(super) async fn run(self) {
        let id = self.id.clone();
        let registry = Arc::clone(&self.driver.registry);
        match self.live().await {
            Life::Cancelled => {}
            Life::Failed(why) => self.failed(why).await,
            Life::Ended(ended) if !ended.ran => self.failed(ended.message).await,
            Life::Ended(ended) => {
                let event = Event::new(Reason::ProcessExited, &ended.message)
                    .with("exit_code", ended.code.to_string());
                self.over(Status::ProcessExited(ended.message), event).await;
            }
            Life::Lost(why) => {
                let event = Event::new(Reason::ProcessPollFailed, &why);
                self.over(Status::ProcessPollFailed(why), event).await;
            }
        }
        if let Some(record) = registry.lock().all.get_mut(&id) {
            record.active = false;
        }
    }

    async fn live(&self) -> Life {
        let mut cancelled = self.cancelled.clone();
        let machine = tokio::select! {
            biased;
            _ = cancel(&mut cancelled) => return Life::Cancelled,
            machine = self.machine() => machine,
        };
        let mut machine = match machine {
            Ok(machine) => machine,
            Err(error) => return Life::Failed(error.to_string()),
        };
        let began = Instant::now();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.tick().await;
        let limit = self.driver.settings.boot_limit;
        let mut boot = std::pin::pin!(timeout(limit, machine.booted()));
        let mut boots = true;
        loop {
            tokio::select! {
                biased;
                how = cancel(&mut cancelled) => {
                    machine.stop(how).await;
                    return Life::Cancelled;
                }
                ended = machine.wait() => return match ended {
                    Ok(ended) => Life::Ended(ended),
                    Err(error) => {
                        machine.stop(Stop::Now).await;
                        Life::Lost(format!("the state of the VM process is unknown: {error}"))
                    }
                },
                booted = &mut boot, if boots => match booted {
                    Ok(()) => boots = false,
                    Err(_) => return hung(&mut *machine, limit).await,
                },
                _ = looks.tick(), if began.elapsed() < LOOKS => self.look(&*machine),
            }
        }
    }

    /// Makes disks and starts the machine.
    async fn machine(&self) -> Result<Box<dyn Machine>, BackendError> {
        let driver = &self.driver;
        let (registry, id) = (Arc::clone(&driver.registry), self.id.clone());
        let news = News::new(move |event| registry.tell(&id, event));
        let closed = |_| BackendError::Refused("the driver ends".to_owned());
        let prepared = {
            let _permit = driver.preparing.acquire().await.map_err(closed)?;
            driver.backend.prepare(&self.spec, news.clone()).await?
        };
        let _permit = driver.starting.acquire().await.map_err(closed)?;
        let machine = driver.backend.start(&self.spec, &prepared).await?;
        let size = self.spec.size;
        let message = format!("VM started with {} CPUs and {} MiB", size.vcpus, size.memory_mib);
        news.tell(Event::new(Reason::Started, message).active(progress::STARTING));
        Ok(machine)
    }

    /// A guest that cannot reach its gateway never says so to the gateway: its console does.
    fn look(&self, machine: &dyn Machine) {
        if let Some(said) = machine.said() {
            let message = bounded(&format!("VM is starting; the guest says: {said}"));
            self.driver.registry.set_starting(&self.id, message);
        }
    }

    /// There is no machine. A sandbox that never had one leaves nothing but the message.
    async fn failed(&self, why: String) {
        let why = bounded(&why);
        if self.fresh {
            let (driver, id) = (Arc::clone(&self.driver), self.id.clone());
            let removed = spawn_blocking(move || driver.state.remove(&id)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(id = %self.id, %error, "the directory of a failed sandbox stays");
            }
        }
        let registry = &self.driver.registry;
        registry.set(&self.id, Status::ProvisioningFailed(why.clone()));
        registry.tell(&self.id, Event::new(Reason::ProvisioningFailed, why));
    }

    /// The machine is gone for good.
    async fn over(&self, status: Status, event: Event) {
        let (directory, message) = (self.directory.clone(), event.message.clone());
        match spawn_blocking(move || directory.set_exited(&message)).await {
            Ok(Err(error)) => tracing::error!(id = %self.id, %error, "cannot write down an end"),
            Err(error) => tracing::error!(id = %self.id, %error, "cannot write down an end"),
            Ok(Ok(())) => {}
        }
        let registry = &self.driver.registry;
        registry.set(&self.id, status);
        registry.tell(&self.id, event);
    }
}

/// Ends a machine whose guest does not boot.
async fn hung(machine: &mut dyn Machine, limit: Duration) -> Life {
    let why = format!("the guest did not boot within {} s", limit.as_secs());
    match machine.abandon().await {
        Ok(ended) => {
            let message = bounded(&format!("{why}; {}", ended.message));
            Life::Ended(Ended { ran: true, message, ..ended })
        }
        Err(error) => {
            machine.stop(Stop::Now).await;
            Life::Lost(format!("{why}; the state of the VM process is unknown: {error}"))
        }
    }
}

/// Waits until somebody cancels. Nobody who could is somebody who does: the driver is going.
async fn cancel(cancelled: &mut watch::Receiver<Option<Stop>>) -> Stop {
    match cancelled.wait_for(Option::is_some).await {
        Ok(how) => how.unwrap_or(Stop::Orderly),
        Err(_) => Stop::Orderly,
    }
}
