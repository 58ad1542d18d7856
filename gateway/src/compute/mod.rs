//! The compute runtime: it puts what the driver says and what the sessions say into rows, and carries out what users ask for.
//!
//! Two kinds of locks, always taken in this order: the gate of a sandbox, held over a whole create, stop, start or delete; and one of 64
//! row locks, held over reading, judging and writing a row, so that what is known of the sessions is as fresh as the row. Work that has
//! begun runs in tasks of its own: a caller that goes away strands no row.
//!
//! Invariant: every change of a row is [`rules::apply`] of an event, written by compare-and-swap.

pub mod driver;
pub mod phase;
pub mod rules;

mod clock;
mod follow;
mod lifecycle;
mod sweep;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::Duration;

use openshell_proto::v1::{ReportMainProcessExitRequest, Sandbox};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tonic::Status;

use crate::session::{Observer, Registry};
use crate::store::{Scope, Store, StoreError};
use crate::watch::Bus;
use driver::Driver;
use rules::Event;

const ROW_LOCKS: usize = 64;

/// Times and numbers of the runtime.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Before a watch stream that ended is opened again.
    pub watch_retry: Duration,
    /// Between two comparisons of all rows with the driver.
    pub reconcile: Duration,
    /// A row that the driver does not know is dropped when it is older than this.
    pub prune_after: Duration,
    /// Calls to the driver at once, in sweeps over all rows.
    pub sweep_width: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            watch_retry: Duration::from_secs(2),
            reconcile: Duration::from_secs(60),
            prune_after: Duration::from_secs(300),
            sweep_width: 16,
        }
    }
}

/// The runtime. Clones are the same one.
#[derive(Clone)]
pub struct Compute(Arc<Inner>);

struct Inner {
    store: Store,
    driver: Arc<dyn Driver>,
    sessions: Arc<Registry>,
    bus: Arc<Bus>,
    settings: Settings,
    gates: StdMutex<HashMap<String, Weak<Mutex<()>>>>,
    rows: [Mutex<()>; ROW_LOCKS],
    hasher: RandomState,
    /// True: no more snapshots are taken, so that a shutdown's stops are not written into rows.
    closing: watch::Sender<bool>,
}

impl Compute {
    /// A runtime that observes these sessions.
    #[must_use]
    pub fn new(
        store: Store,
        driver: Arc<dyn Driver>,
        sessions: Arc<Registry>,
        bus: Arc<Bus>,
        settings: Settings,
    ) -> Self {
        let inner = Arc::new(Inner {
            store,
            driver,
            sessions,
            bus,
            settings,
            gates: StdMutex::default(),
            rows: std::array::from_fn(|_| Mutex::new(())),
            hasher: RandomState::new(),
            closing: watch::Sender::new(false),
        });
        let observer: Weak<dyn Observer> = Arc::<Inner>::downgrade(&inner);
        inner.sessions.observe(observer);
        Self(inner)
    }

    /// The rows.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The sessions.
    #[must_use]
    pub fn sessions(&self) -> &Arc<Registry> {
        &self.0.sessions
    }

    /// Who follows which sandbox.
    #[must_use]
    pub fn bus(&self) -> &Arc<Bus> {
        &self.0.bus
    }

    /// The driver.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.0.driver
    }

    /// The row of a sandbox that a supervisor speaks for.
    ///
    /// # Errors
    ///
    /// NOT_FOUND where there is none.
    pub async fn require_persisted_sandbox(&self, id: &str) -> Result<Sandbox, Status> {
        let row = self.0.store.fetch(id).await.map_err(|error| internal(&error))?;
        row.ok_or_else(|| Status::not_found("sandbox not found"))
    }

    /// The supervisor says that the main process has ended. Acknowledged whether it changes anything or not.
    ///
    /// # Errors
    ///
    /// INTERNAL where the row cannot be written: to be said again.
    pub async fn main_process_exited(
        &self,
        report: &ReportMainProcessExitRequest,
    ) -> Result<(), Status> {
        let event = |_: Option<String>| {
            let ReportMainProcessExitRequest { instance_id, exit_code, .. } = report;
            Change::Exited { instance: instance_id.clone(), code: *exit_code }
        };
        self.0.update(&report.sandbox_id, event).await.map_err(|error| internal(&error))?;
        Ok(())
    }
}

/// An event that owns what it is made of.
enum Change {
    Session(Option<String>),
    Exited {
        instance: String,
        code: i32,
    },
    Snapshot(Option<openshell_proto::compute::v1::DriverSandboxStatus>, Option<String>),
    DeleteFailed {
        before: openshell_proto::v1::SandboxStatus,
        status: Option<openshell_proto::compute::v1::DriverSandboxStatus>,
        instance: Option<String>,
    },
    Failed {
        reason: &'static str,
        message: String,
    },
    Plain(Event<'static>),
}

impl Change {
    fn event(&self) -> Event<'_> {
        match self {
            Self::Session(instance) => Event::Session { instance: instance.as_deref() },
            Self::Exited { instance, code } => Event::MainProcessExited { instance, code: *code },
            Self::Snapshot(status, instance) => {
                Event::Snapshot { status: status.as_ref(), instance: instance.as_deref() }
            }
            Self::DeleteFailed { before, status, instance } => Event::DeleteFailed {
                before,
                status: status.as_ref(),
                instance: instance.as_deref(),
            },
            Self::Failed { reason, message } => Event::Failed { reason, message },
            Self::Plain(event) => event.clone(),
        }
    }
}

impl Inner {
    /// Writes what an event makes of a row. The event is made from the instance of the session that is held when the row is judged.
    /// Returns the row as it is then; `None` where there is none.
    async fn update(
        &self,
        id: &str,
        change: impl Fn(Option<String>) -> Change + Send + Sync,
    ) -> Result<Option<Sandbox>, StoreError> {
        let _row = self.lock_row(id).await;
        let judge = |row: &Sandbox| {
            let change = change(self.sessions.instance(id));
            rules::apply(row, &change.event(), &clock::now_rfc3339())
        };
        let Some((row, written)) = self.store.update_message_cas(id, judge).await? else {
            return Ok(None);
        };
        if written {
            self.bus.changed(id);
        }
        Ok(Some(row))
    }

    /// Drops a row and all that belongs to it.
    async fn forget(&self, id: &str) -> Result<bool, StoreError> {
        let _row = self.lock_row(id).await;
        let deleted = self.store.delete::<Sandbox>(id).await?;
        self.store.delete::<Scope>(id).await?;
        self.sessions.remove(id);
        self.bus.remove(id);
        Ok(deleted)
    }

    async fn lock_row(&self, id: &str) -> tokio::sync::MutexGuard<'_, ()> {
        let slot = usize::try_from(self.hasher.hash_one(id) % 64).unwrap_or(0);
        self.rows[slot].lock().await
    }

    /// Waits for the gate of a sandbox.
    async fn gate(&self, id: &str) -> OwnedMutexGuard<()> {
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            if gates.len() >= 64 && gates.len().is_power_of_two() {
                gates.retain(|_, gate| gate.strong_count() > 0);
            }
            if let Some(gate) = gates.get(id).and_then(Weak::upgrade) {
                gate
            } else {
                let gate = Arc::new(Mutex::new(()));
                gates.insert(id.to_owned(), Arc::downgrade(&gate));
                gate
            }
        };
        gate.lock_owned().await
    }
}

#[tonic::async_trait]
impl Observer for Inner {
    async fn session_changed(&self, sandbox_id: &str) {
        // The session stays, whatever the database does: the next snapshot or reconciliation writes it.
        if let Err(error) = self.update(sandbox_id, Change::Session).await {
            tracing::error!(sandbox_id, %error, "session not written into the row");
        }
    }
}

impl std::fmt::Debug for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compute").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

/// What a caller learns of an error that is none of its business.
fn internal(error: &StoreError) -> Status {
    tracing::error!(error = %chain(error), "store");
    Status::internal("the gateway's store failed")
}

/// An error with its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        text.push_str(": ");
        text.push_str(&next.to_string());
        source = next.source();
    }
    text
}
