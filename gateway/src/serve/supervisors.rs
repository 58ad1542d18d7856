//! Sessions and relays, as supervisors open them.
//!
//! Invariant: a session is registered after its token, its hello and its row have been checked against each other.

use std::time::Duration;

use openshell_proto::v1::{
    GatewayMessage, PushSandboxLogsRequest, RelayFrame, SupervisorMessage, relay_frame,
    supervisor_message,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status};

use super::{Gateway, Reply};
use crate::auth::Principal;
use crate::compute::rules::is_terminating;
use crate::relay_io;

/// How long a caller has for the first message of a stream.
const FIRST: Duration = Duration::from_secs(10);

impl Gateway {
    pub(super) async fn session<S>(
        &self,
        caller: Principal,
        mut inbound: S,
    ) -> Result<Reply<GatewayMessage>, Status>
    where
        S: Stream<Item = Result<SupervisorMessage, Status>> + Send + Unpin + 'static,
    {
        let Some(supervisor_message::Payload::Hello(hello)) = first(&mut inbound).await?.payload
        else {
            return Err(Status::invalid_argument("first message is no hello"));
        };
        if hello.sandbox_id.is_empty() {
            return Err(Status::invalid_argument("hello names no sandbox"));
        }
        caller.speaks_for(&hello.sandbox_id)?;
        let row = self.row(&hello.sandbox_id).await?;
        if is_terminating(&row) {
            return Err(Status::failed_precondition("sandbox is being deleted"));
        }
        let sessions = self.0.compute.sessions();
        let (session, outbound) = sessions.connect(&hello).await?;
        let sessions = std::sync::Arc::clone(sessions);
        tokio::spawn(async move {
            let sandbox_id = session.sandbox_id.clone();
            let ended = sessions.run(session, inbound).await;
            tracing::info!(sandbox_id, ?ended, "supervisor stream ended");
        });
        Ok(Reply::new(outbound))
    }

    pub(super) async fn relay<S>(
        &self,
        caller: &Principal,
        mut inbound: S,
    ) -> Result<Reply<RelayFrame>, Status>
    where
        S: Stream<Item = Result<RelayFrame, Status>> + Send + Unpin + 'static,
    {
        let channel = match first(&mut inbound).await?.payload {
            Some(relay_frame::Payload::Init(init)) if !init.channel_id.is_empty() => {
                init.channel_id
            }
            _ => return Err(Status::invalid_argument("first frame names no channel")),
        };
        let stream = self.0.compute.sessions().claim_relay(&channel, caller.claimant())?;
        Ok(relay_io::connect(stream, inbound, ()))
    }

    pub(super) async fn take_logs<S>(&self, caller: Principal, mut inbound: S) -> Result<(), Status>
    where
        S: Stream<Item = Result<PushSandboxLogsRequest, Status>> + Send + Unpin + 'static,
    {
        let own = caller.sandbox()?;
        self.row(&own).await?;
        while let Some(batch) = inbound.next().await {
            let batch = match batch {
                Ok(batch) => batch,
                // A supervisor that is gone has said all that it had to say.
                Err(status) if matches!(status.code(), Code::Cancelled | Code::Unknown) => break,
                Err(status) => return Err(status),
            };
            if batch.sandbox_id != own {
                return Err(Status::permission_denied("logs of another sandbox"));
            }
            for line in batch.logs {
                self.0.logs.push(&own, "sandbox", line);
            }
        }
        Ok(())
    }
}

/// The first message of a stream, within bounded time.
pub(super) async fn first<T, S>(inbound: &mut S) -> Result<T, Status>
where
    S: Stream<Item = Result<T, Status>> + Unpin,
{
    match tokio::time::timeout(FIRST, inbound.next()).await {
        Ok(Some(message)) => message,
        Ok(None) => Err(Status::invalid_argument("stream ended before its first message")),
        Err(_) => Err(Status::deadline_exceeded("first message did not come")),
    }
}
