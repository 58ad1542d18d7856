//! Sessions of supervisors: one per sandbox, and the newest wins.
//!
//! The registry is in memory only: a session belongs to this process, and so does what follows from it. It tells one observer that the
//! sessions of a sandbox have changed, always after it has let go of its lock; the observer asks [`Registry::instance`] what is so now.
//! Tasks of the server call it; one mutex guards it and is never held across an await.
//!
//! Invariant: what an old session does after it has been superseded changes nothing.

mod control;
mod relay;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use openshell_proto::v1::{
    GatewayMessage, SessionAccepted, SupervisorHello, gateway_message::Payload,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::Status;

pub use control::{Ended, end_of_transport};
pub use relay::{Claimant, Relay, Target};

use relay::Pending;

/// What the registry may hold, and for how long.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Between two heartbeats, each way.
    pub heartbeat: Duration,
    /// Heartbeats of the supervisor that may be missing in a row before its session is over.
    pub missed_heartbeats: u32,
    /// How long the supervisor has to open a relay.
    pub relay_open: Duration,
    /// Relays that nobody has opened yet, of all sandboxes.
    pub pending: usize,
    /// The same of one sandbox.
    pub pending_per_sandbox: usize,
    /// Messages to a supervisor that it has not read.
    pub outbound: usize,
    /// Bytes of a relay on their way, in each direction.
    pub relay_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(15),
            missed_heartbeats: 3,
            relay_open: Duration::from_secs(10),
            pending: 256,
            pending_per_sandbox: 32,
            outbound: 64,
            relay_buffer: 64 * 1024,
        }
    }
}

/// Hears of changes. There is one, the compute runtime.
#[tonic::async_trait]
pub trait Observer: Send + Sync {
    /// A session of the sandbox has come, gone or been replaced.
    async fn session_changed(&self, sandbox_id: &str);
}

/// All sessions and all relays that wait for one.
pub struct Registry {
    limits: Limits,
    state: Mutex<State>,
    /// A session has come.
    arrived: Notify,
    observer: OnceLock<Weak<dyn Observer>>,
}

#[derive(Default)]
struct State {
    sessions: HashMap<String, Entry>,
    pending: HashMap<String, Pending>,
}

struct Entry {
    session_id: String,
    instance_id: String,
    outbound: mpsc::Sender<Result<GatewayMessage, Status>>,
    /// Dropped with the entry: so the session learns that it is over.
    _alive: oneshot::Sender<()>,
}

/// A session that has been registered: its owner runs it to its end.
#[derive(Debug)]
pub struct Session {
    /// The sandbox whose supervisor it is.
    pub sandbox_id: String,
    /// Made by the registry.
    pub session_id: String,
    /// Whether it has replaced another one.
    pub superseded: bool,
    outbound: mpsc::Sender<Result<GatewayMessage, Status>>,
    /// Ends when another session takes the place of this one, or the sandbox is stopped.
    over: oneshot::Receiver<()>,
}

/// What the supervisor is to be sent.
pub type Outbound = mpsc::Receiver<Result<GatewayMessage, Status>>;

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
            arrived: Notify::new(),
            observer: OnceLock::new(),
        })
    }

    /// Installs the observer. The first one stays.
    pub fn observe(&self, observer: Weak<dyn Observer>) {
        if self.observer.set(observer).is_err() {
            tracing::warn!("sessions have an observer already");
        }
    }

    /// Registers a session in the place of the one before, accepts it, tells it of the relays that still wait, and tells the observer.
    ///
    /// That the sandbox exists and that the caller may speak for it has been checked by then.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT where the hello names no sandbox.
    pub async fn connect(&self, hello: &SupervisorHello) -> Result<(Session, Outbound), Status> {
        if hello.sandbox_id.is_empty() {
            return Err(Status::invalid_argument("hello names no sandbox"));
        }
        let (session, inbox) = self.register(&hello.sandbox_id, &hello.instance_id);
        self.announce(&hello.sandbox_id).await;
        Ok((session, inbox))
    }

    fn register(&self, sandbox_id: &str, instance_id: &str) -> (Session, Outbound) {
        let session_id = uuid::Uuid::new_v4().to_string();
        let (outbound, inbox) = mpsc::channel(self.limits.outbound);
        let (alive, over) = oneshot::channel();
        let entry = Entry {
            session_id: session_id.clone(),
            instance_id: instance_id.to_owned(),
            outbound: outbound.clone(),
            _alive: alive,
        };
        let accepted = Payload::SessionAccepted(SessionAccepted {
            session_id: session_id.clone(),
            heartbeat_interval_secs: u32::try_from(self.limits.heartbeat.as_secs())
                .unwrap_or(u32::MAX),
        });
        let superseded = {
            let mut state = self.lock();
            // The queue is empty: it has room for these, as no sandbox may have more relays waiting than that.
            send(&outbound, accepted);
            let superseded = state.sessions.insert(sandbox_id.to_owned(), entry).is_some();
            for pending in state.pending.values().filter(|p| p.sandbox_id == sandbox_id) {
                send(&outbound, Payload::RelayOpen(pending.open.clone()));
            }
            superseded
        };
        self.arrived.notify_waiters();
        tracing::info!(sandbox_id, session_id, superseded, "supervisor session accepted");
        let session =
            Session { sandbox_id: sandbox_id.to_owned(), session_id, superseded, outbound, over };
        (session, inbox)
    }

    /// The run of the main process that the sandbox's session belongs to, while there is a session.
    #[must_use]
    pub fn instance(&self, sandbox_id: &str) -> Option<String> {
        self.lock().sessions.get(sandbox_id).map(|entry| entry.instance_id.clone())
    }

    /// Whether the sandbox has a session.
    #[must_use]
    pub fn has_session(&self, sandbox_id: &str) -> bool {
        self.lock().sessions.contains_key(sandbox_id)
    }

    /// Number of sessions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Whether there is no session.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes this very session out, and says whether it was there. The observer is not told.
    fn take(&self, sandbox_id: &str, session_id: &str) -> bool {
        let mut state = self.lock();
        let current = state.sessions.get(sandbox_id).is_some_and(|e| e.session_id == session_id);
        if current {
            state.sessions.remove(sandbox_id);
        }
        current
    }

    /// Ends this session unless another has taken its place; says whether it did.
    pub async fn remove_if_current(&self, sandbox_id: &str, session_id: &str) -> bool {
        let removed = self.take(sandbox_id, session_id);
        if removed {
            tracing::info!(sandbox_id, session_id, "supervisor session ended");
            self.announce(sandbox_id).await;
        }
        removed
    }

    /// Ends whatever session the sandbox has, with all relays that wait for one: the sandbox has been stopped or deleted. The observer,
    /// which does this, is not told.
    pub fn remove(&self, sandbox_id: &str) -> bool {
        let (removed, waiting) = {
            let mut state = self.lock();
            let removed = state.sessions.remove(sandbox_id).is_some();
            let waiting: Vec<_> =
                state.pending.extract_if(|_, p| p.sandbox_id == sandbox_id).collect();
            (removed, waiting)
        };
        for (_, pending) in waiting {
            pending.fail(Status::unavailable("sandbox is not running"));
        }
        removed
    }

    async fn announce(&self, sandbox_id: &str) {
        if let Some(observer) = self.observer.get().and_then(Weak::upgrade) {
            observer.session_changed(sandbox_id).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics with the lock held; should it, the maps are still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("sessions", &self.len()).finish_non_exhaustive()
    }
}

/// Queues a message; false where the supervisor is gone or does not read.
fn send(outbound: &mpsc::Sender<Result<GatewayMessage, Status>>, payload: Payload) -> bool {
    outbound.try_send(Ok(GatewayMessage { payload: Some(payload) })).is_ok()
}
