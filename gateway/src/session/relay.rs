//! Relays: byte streams from the gateway to a target inside a sandbox, opened by the sandbox's supervisor when it is asked to.
//!
//! A relay waits under a channel id until the supervisor claims it with a stream of its own, refuses it, or the time for it is over.
//!
//! Invariant: the number of waiting relays is bounded, and each ends once: claimed, refused, expired or given up.

use std::time::Duration;

use openshell_proto::v1::{RelayClose, RelayOpen, RelayOpenResult, gateway_message, relay_open};
use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Status;

use super::{Registry, send};

/// What a relay leads to.
pub type Target = relay_open::Target;

/// Who wants to claim a relay.
#[derive(Debug, Clone, Copy)]
pub enum Claimant<'a> {
    /// A user: never.
    User,
    /// The supervisor of a sandbox, by its id: its own.
    Sandbox(&'a str),
}

/// A relay that the supervisor has been asked for.
#[derive(Debug)]
pub struct Relay {
    /// Its channel.
    pub channel_id: String,
    stream: oneshot::Receiver<Result<DuplexStream, Status>>,
    deadline: Instant,
}

pub(super) struct Pending {
    pub(super) sandbox_id: String,
    pub(super) open: RelayOpen,
    waiter: oneshot::Sender<Result<DuplexStream, Status>>,
    deadline: Instant,
}

impl Pending {
    pub(super) fn fail(self, status: Status) {
        // Where nobody waits any more, nobody has to know.
        drop(self.waiter.send(Err(status)));
    }
}

impl Relay {
    /// Waits until the supervisor has opened the relay.
    ///
    /// # Errors
    ///
    /// DEADLINE_EXCEEDED after [`super::Limits::relay_open`]; UNAVAILABLE where the supervisor could not reach the target or is gone.
    pub async fn opened(self) -> Result<DuplexStream, Status> {
        match tokio::time::timeout_at(self.deadline, self.stream).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Status::unavailable("relay was dropped")),
            Err(_) => Err(Status::deadline_exceeded("relay open timed out")),
        }
    }
}

impl Registry {
    /// Asks the supervisor of a sandbox for a relay, waiting for a session for as long as `patience`.
    ///
    /// # Errors
    ///
    /// UNAVAILABLE without a session; RESOURCE_EXHAUSTED where too many relays wait.
    pub async fn open_relay(
        &self,
        sandbox_id: &str,
        target: Target,
        service_id: &str,
        patience: Duration,
    ) -> Result<Relay, Status> {
        let deadline = Instant::now() + patience;
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            // From here on no arrival is missed.
            arrived.as_mut().enable();
            if self.has_session(sandbox_id) {
                return self.ask(sandbox_id, target, service_id);
            }
            if tokio::time::timeout_at(deadline, arrived).await.is_err() {
                return Err(Status::unavailable("supervisor session not connected"));
            }
        }
    }

    fn ask(&self, sandbox_id: &str, target: Target, service_id: &str) -> Result<Relay, Status> {
        let channel_id = uuid::Uuid::new_v4().to_string();
        let deadline = Instant::now() + self.limits.relay_open;
        let (waiter, stream) = oneshot::channel();
        let open = RelayOpen {
            channel_id: channel_id.clone(),
            target: Some(target),
            service_id: service_id.to_owned(),
        };
        let mut state = self.lock();
        // Those that nobody waits for any more give their places away.
        state.pending.retain(|_, pending| !pending.waiter.is_closed());
        if state.pending.len() >= self.limits.pending {
            return Err(Status::resource_exhausted("too many pending relays"));
        }
        let own = state.pending.values().filter(|p| p.sandbox_id == sandbox_id).count();
        if own >= self.limits.pending_per_sandbox {
            return Err(Status::resource_exhausted("too many pending relays for this sandbox"));
        }
        let Some(entry) = state.sessions.get(sandbox_id) else {
            return Err(Status::unavailable("supervisor session not connected"));
        };
        if !send(&entry.outbound, gateway_message::Payload::RelayOpen(open.clone())) {
            return Err(Status::unavailable("supervisor session does not take messages"));
        }
        let pending = Pending { sandbox_id: sandbox_id.to_owned(), open, waiter, deadline };
        state.pending.insert(channel_id.clone(), pending);
        Ok(Relay { channel_id, stream, deadline })
    }

    /// Connects the stream that a supervisor has opened with whoever waits for it.
    ///
    /// # Errors
    ///
    /// NOT_FOUND for a channel that is not waiting; PERMISSION_DENIED for another sandbox's, which stays as it is; DEADLINE_EXCEEDED where
    /// it came too late; INTERNAL where nobody waits any more.
    pub fn claim_relay(
        &self,
        channel_id: &str,
        claimant: Claimant<'_>,
    ) -> Result<DuplexStream, Status> {
        let pending = {
            let mut state = self.lock();
            let Some(pending) = state.pending.get(channel_id) else {
                return Err(Status::not_found("unknown relay channel"));
            };
            match claimant {
                Claimant::Sandbox(id) if id == pending.sandbox_id => {}
                Claimant::Sandbox(_) | Claimant::User => {
                    return Err(Status::permission_denied("relay belongs to another sandbox"));
                }
            }
            state.pending.remove(channel_id)
        };
        let Some(pending) = pending else {
            return Err(Status::not_found("unknown relay channel"));
        };
        if pending.deadline <= Instant::now() {
            pending.fail(Status::deadline_exceeded("relay open timed out"));
            return Err(Status::deadline_exceeded("relay channel has expired"));
        }
        let (near, far) = tokio::io::duplex(self.limits.relay_buffer);
        match pending.waiter.send(Ok(near)) {
            Ok(()) => Ok(far),
            Err(_) => Err(Status::internal("requester of the relay is gone")),
        }
    }

    /// The supervisor has said how opening went. Success is said again by its stream.
    pub(super) fn relay_opened(&self, sandbox_id: &str, result: &RelayOpenResult) {
        if !result.success {
            self.give_up(sandbox_id, &result.channel_id, &result.error);
        }
    }

    /// The supervisor will not open it any more. A relay that is open is closed by its stream.
    pub(super) fn relay_closed(&self, sandbox_id: &str, close: &RelayClose) {
        self.give_up(sandbox_id, &close.channel_id, &close.reason);
    }

    fn give_up(&self, sandbox_id: &str, channel_id: &str, why: &str) {
        let pending = {
            let mut state = self.lock();
            let own = state.pending.get(channel_id).is_some_and(|p| p.sandbox_id == sandbox_id);
            if own { state.pending.remove(channel_id) } else { None }
        };
        if let Some(pending) = pending {
            // From the guest: shortened, it goes to users and logs.
            let why: String = why.chars().filter(|c| !c.is_control()).take(256).collect();
            pending.fail(Status::unavailable(format!("relay target not reached: {why}")));
        }
    }

    /// Drops the relays whose time is over or whose requester is gone, and says how many. To be called now and then.
    pub fn reap_expired_relays(&self) -> usize {
        let now = Instant::now();
        let expired: Vec<_> = self
            .lock()
            .pending
            .extract_if(|_, pending| pending.deadline <= now || pending.waiter.is_closed())
            .collect();
        let count = expired.len();
        for (_, pending) in expired {
            pending.fail(Status::deadline_exceeded("relay open timed out"));
        }
        count
    }

    /// Number of relays that wait.
    #[must_use]
    pub fn pending_relays(&self) -> usize {
        self.lock().pending.len()
    }
}
