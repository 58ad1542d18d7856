//! The session with the gateway: while it lives, and only then, the sandbox is ready.
//!
//! One bidirectional stream carries hello, heartbeats and requests for relays; every relay is a stream of its own on the same
//! connection. Invariant: a session that ends is replaced, after 1 to 30 seconds, until the main process has ended.

mod relay;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openshell_proto::v1::gateway_message::Payload as Theirs;
use openshell_proto::v1::supervisor_message::Payload as Ours;
use openshell_proto::v1::{
    GatewayMessage, RelayOpen, RelayOpenResult, SessionAccepted, SupervisorHeartbeat,
    SupervisorHello, SupervisorMessage,
};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

use crate::connect::{Backoff, Client, chain, client};
use crate::logs::Log;
use crate::token::Token;

const OUTGOING: usize = 64;
const CONNECT: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(15);
const HEARTBEAT_MIN: Duration = Duration::from_secs(5);
const HEARTBEAT_MAX: Duration = Duration::from_secs(300);
/// Beats that a gateway may miss which has sent one before.
const MISSED: u32 = 3;
const RELAYS_MAX: usize = 256;
/// How long relays may go on once the main process has ended: whoever is attached is told how.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The gateway cannot be reached.
    #[error("the gateway cannot be reached")]
    Connect(#[source] tonic::transport::Error),
    /// Something took too long.
    #[error("no {0} in time")]
    Late(&'static str),
    /// The gateway ended the call.
    #[error("the gateway ended the session: {}: {}", .0.code(), .0.message())]
    Status(Box<Status>),
    /// The gateway closed the stream.
    #[error("the gateway closed the session")]
    Closed,
    /// The gateway does not want the session.
    #[error("the gateway rejected the session: {0}")]
    Rejected(String),
    /// The first message is something else than an answer to hello.
    #[error("the gateway's first message is no answer to hello")]
    Unexpected,
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// What sessions are made from.
#[derive(Debug)]
pub struct Session {
    /// The gateway.
    pub endpoint: Endpoint,
    /// Who we are.
    pub token: Token,
    /// The sandbox.
    pub sandbox_id: String,
    /// This run of the main process.
    pub instance_id: String,
    /// Where the SSH server listens.
    pub ssh_socket: PathBuf,
    /// What is said about it.
    pub log: Log,
}

impl Session {
    /// Keeps a session up until `ended` is true.
    pub async fn keep(self, mut ended: watch::Receiver<bool>) {
        let mut backoff = Backoff::default();
        let mut relays = Relays::default();
        while !*ended.borrow() {
            let error = match self.once(&mut ended, &mut relays, &mut backoff).await {
                Ok(()) => break,
                Err(error) => error,
            };
            let wait = backoff.wait();
            let text = format!("{}; next try in {} s", chain(&error), wait.as_secs());
            self.log.warn(&text);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = over(&mut ended) => break,
            }
        }
        relays.last_words().await;
    }

    /// One session, until it fails or the main process has ended.
    async fn once(
        &self,
        ended: &mut watch::Receiver<bool>,
        relays: &mut Relays,
        backoff: &mut Backoff,
    ) -> Result<(), SessionError> {
        let connected = timeout(CONNECT, self.endpoint.connect()).await;
        let channel = connected.map_err(|_| SessionError::Late("connection"))?;
        let mut client = client(channel.map_err(SessionError::Connect)?, &self.token);
        let (ours, outgoing) = mpsc::channel(OUTGOING);
        let (sandbox_id, instance_id) = (self.sandbox_id.clone(), self.instance_id.clone());
        let hello = Ours::Hello(SupervisorHello { sandbox_id, instance_id });
        // There is room for it: the channel is new.
        drop(ours.try_send(message(hello)));
        let call = client.connect_supervisor(ReceiverStream::new(outgoing));
        let answered = timeout(ANSWER, call).await.map_err(|_| SessionError::Late("answer"))?;
        let mut theirs = answered?.into_inner();
        let first = timeout(ANSWER, theirs.message()).await;
        let accepted = accepted(first.map_err(|_| SessionError::Late("answer to hello"))??)?;
        self.log.info(&format!("session {} is up", accepted.session_id));
        backoff.reset();
        let mut live = Live { session: self, client, ours, relays, beats: false };
        live.serve(&mut theirs, period(accepted.heartbeat_interval_secs), ended).await
    }
}

/// Waits until it is over; whoever says so has ended is the same.
async fn over(ended: &mut watch::Receiver<bool>) {
    drop(ended.wait_for(|ended| *ended).await);
}

fn message(payload: Ours) -> SupervisorMessage {
    SupervisorMessage { payload: Some(payload) }
}

fn accepted(first: Option<GatewayMessage>) -> Result<SessionAccepted, SessionError> {
    match first.ok_or(SessionError::Closed)?.payload {
        Some(Theirs::SessionAccepted(accepted)) => Ok(accepted),
        Some(Theirs::SessionRejected(rejected)) => Err(SessionError::Rejected(rejected.reason)),
        _ => Err(SessionError::Unexpected),
    }
}

fn period(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds)).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX)
}

/// A session that was accepted.
struct Live<'a> {
    session: &'a Session,
    client: Client,
    ours: mpsc::Sender<SupervisorMessage>,
    relays: &'a mut Relays,
    /// Whether the gateway sends heartbeats at all.
    beats: bool,
}

impl Live<'_> {
    async fn serve(
        &mut self,
        theirs: &mut Streaming<GatewayMessage>,
        period: Duration,
        ended: &mut watch::Receiver<bool>,
    ) -> Result<(), SessionError> {
        let mut beat = interval_at(Instant::now() + period, period);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                received = theirs.message() => {
                    heard = Instant::now();
                    let received = received?.ok_or(SessionError::Closed)?;
                    if let Some(payload) = received.payload {
                        self.take(payload)?;
                    }
                }
                _ = beat.tick() => {
                    if self.beats && heard.elapsed() > period * MISSED {
                        return Err(SessionError::Late("heartbeat of the gateway"));
                    }
                    let heartbeat = message(Ours::Heartbeat(SupervisorHeartbeat {}));
                    let sent = timeout(period, self.ours.send(heartbeat)).await;
                    sent.map_err(|_| SessionError::Late("room for a heartbeat"))?
                        .map_err(|_| SessionError::Closed)?;
                }
                () = over(ended) => return Ok(()),
            }
        }
    }

    fn take(&mut self, payload: Theirs) -> Result<(), SessionError> {
        match payload {
            Theirs::Heartbeat(_) => self.beats = true,
            Theirs::RelayOpen(open) => self.open(open),
            Theirs::RelayClose(close) => self.relays.close(&close.channel_id),
            Theirs::SessionRejected(rejected) => {
                return Err(SessionError::Rejected(rejected.reason));
            }
            Theirs::SessionAccepted(_) => {}
        }
        Ok(())
    }

    fn open(&mut self, open: RelayOpen) {
        let (client, ours) = (self.client.clone(), self.ours.clone());
        let (ssh, log) = (self.session.ssh_socket.clone(), self.session.log.clone());
        let full = self.relays.is_full();
        let id = open.channel_id.clone();
        self.relays.spawn(id, async move {
            let local = match full {
                true => Err(std::io::Error::other("too many relays")),
                false => relay::connect(open.target.as_ref(), &ssh).await,
            };
            let result = RelayOpenResult {
                channel_id: open.channel_id.clone(),
                success: local.is_ok(),
                error: local.as_ref().err().map(ToString::to_string).unwrap_or_default(),
            };
            // A session that is gone has no relays.
            if ours.send(message(Ours::RelayOpenResult(result))).await.is_err() {
                return;
            }
            drop(ours);
            let Ok(local) = local else { return };
            if let Err(status) = relay::carry(client, open.channel_id, local).await {
                log.warn(&format!("a relay ended: {}: {}", status.code(), status.message()));
            }
        });
    }
}

/// Relays that run, of this session and of those before it.
#[derive(Debug, Default)]
struct Relays {
    tasks: JoinSet<()>,
    by_channel: HashMap<Arc<str>, AbortHandle>,
}

impl Relays {
    fn is_full(&mut self) -> bool {
        while self.tasks.try_join_next().is_some() {}
        self.by_channel.retain(|_, relay| !relay.is_finished());
        self.tasks.len() >= RELAYS_MAX
    }

    fn spawn(&mut self, channel: String, relay: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(relay);
        // The gateway replays what it is still waiting for: the later one counts.
        if let Some(earlier) = self.by_channel.insert(channel.into(), handle) {
            earlier.abort();
        }
    }

    fn close(&mut self, channel: &str) {
        if let Some(relay) = self.by_channel.remove(channel) {
            relay.abort();
        }
    }

    async fn last_words(&mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(LAST_WORDS, all).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}
