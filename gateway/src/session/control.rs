//! A session from its acceptance to its end: heartbeats, and what the supervisor says about relays.
//!
//! Invariant: it ends in bounded time once the supervisor is silent, gone or replaced, and takes itself out of the registry.

use std::time::Duration;

use openshell_proto::v1::{
    GatewayHeartbeat, SupervisorMessage, gateway_message, supervisor_message::Payload,
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status};

use super::{Registry, Session, send};

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The supervisor closed its half of the stream.
    Closed,
    /// Another session took its place, or the sandbox was stopped.
    Superseded,
    /// No word from the supervisor for too many heartbeats.
    Silent,
    /// The supervisor does not read what it is sent.
    Stuck,
    /// It broke the protocol.
    Protocol,
    /// The connection broke. Expected: the gateway is shutting down.
    Transport {
        /// Whether it had to be expected.
        expected: bool,
    },
}

/// What an error of the transport means. While the gateway shuts down, its own closing of connections is no failure; anything else is.
#[must_use]
pub fn end_of_transport(error: &Status, shutting_down: bool) -> Ended {
    let closing = matches!(error.code(), Code::Cancelled | Code::Unavailable)
        || (error.code() == Code::Unknown && error.message().contains("transport error"));
    Ended::Transport { expected: shutting_down && closing }
}

impl Registry {
    /// Runs an accepted session to its end. `inbound` is what follows the hello.
    pub async fn run<S>(&self, mut session: Session, inbound: S) -> Ended
    where
        S: Stream<Item = Result<SupervisorMessage, Status>> + Send,
    {
        let ended = self.follow(&mut session, inbound).await;
        tracing::debug!(sandbox_id = session.sandbox_id, ?ended, "supervisor session");
        self.remove_if_current(&session.sandbox_id, &session.session_id).await;
        ended
    }

    async fn follow<S>(&self, session: &mut Session, inbound: S) -> Ended
    where
        S: Stream<Item = Result<SupervisorMessage, Status>> + Send,
    {
        let mut inbound = std::pin::pin!(inbound);
        let interval = self.limits.heartbeat.max(Duration::from_millis(1));
        let mut beat = tokio::time::interval_at(Instant::now() + interval, interval);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let patience = interval * self.limits.missed_heartbeats.max(1);
        let silence = tokio::time::sleep(patience);
        tokio::pin!(silence);
        loop {
            tokio::select! {
                biased;
                _ = &mut session.over => return Ended::Superseded,
                message = inbound.next() => match message {
                    None => return Ended::Closed,
                    // A connection that is closed on purpose is told by the edge, which knows that it shuts down.
                    Some(Err(error)) => return end_of_transport(&error, false),
                    Some(Ok(message)) => {
                        silence.as_mut().reset(Instant::now() + patience);
                        if !self.heard(session, message) {
                            return Ended::Protocol;
                        }
                    }
                },
                () = &mut silence => return Ended::Silent,
                _ = beat.tick() => {
                    let heartbeat = gateway_message::Payload::Heartbeat(GatewayHeartbeat {});
                    if !send(&session.outbound, heartbeat) {
                        return Ended::Stuck;
                    }
                }
            }
        }
    }

    /// False: the message has no place here.
    fn heard(&self, session: &Session, message: SupervisorMessage) -> bool {
        match message.payload {
            Some(Payload::Hello(_)) => return false,
            Some(Payload::RelayOpenResult(result)) => {
                self.relay_opened(&session.sandbox_id, &result);
            }
            Some(Payload::RelayClose(close)) => self.relay_closed(&session.sandbox_id, &close),
            // A message of a later release is a sign of life.
            Some(Payload::Heartbeat(_)) | None => {}
        }
        true
    }
}
