//! What lasts: watching a sandbox, running commands in it, forwarding connections to it.
//!
//! Invariant: a watch begins with the row as it is after its follower is in place, so that no change is missed.

use openshell_proto::v1::{
    ExecSandboxInput, ExecSandboxRequest, Sandbox, SandboxLogLine, SandboxPhase,
    SandboxStreamEvent, SandboxStreamWarning, SshRelayTarget, TcpForwardFrame, TcpRelayTarget,
    WatchSandboxRequest, relay_open, sandbox_stream_event::Payload, tcp_forward_frame,
    tcp_forward_init,
};
use tokio::io::DuplexStream;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::Stream;
use tonic::{Code, Status};

use super::supervisors::first;
use super::{Gateway, Reply, SESSION, now_ms};
use crate::compute::rules::phase_of;
use crate::exec;
use crate::logs::Filter;
use crate::relay_io;
use crate::watch::{Follower, Heard};

/// Events that a watcher has not read.
const EVENTS: usize = 64;

type Sender = mpsc::Sender<Result<SandboxStreamEvent, Status>>;

impl Gateway {
    pub(super) async fn follow(
        &self,
        request: WatchSandboxRequest,
    ) -> Result<Reply<SandboxStreamEvent>, Status> {
        self.row(&request.id).await?;
        let follower = self.0.compute.bus().follow(&request.id);
        let logs = self.0.logs.follow(&request.id);
        // Read again behind the follower.
        let row = match self.row(&request.id).await {
            Ok(row) => row,
            Err(status) => {
                if status.code() == Code::NotFound {
                    self.0.compute.bus().remove(&request.id);
                    self.0.logs.remove(&request.id);
                }
                return Err(status);
            }
        };
        let (events, outbound) = mpsc::channel(EVENTS);
        let this = self.clone();
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = this.watch(request, row, follower, logs, &events) => ended,
                () = events.closed() => Ok(()),
            };
            if let Err(status) = ended {
                // A watcher that is gone needs not be told.
                drop(events.send(Err(status)).await);
            }
        });
        Ok(Reply::new(outbound))
    }

    async fn watch(
        &self,
        request: WatchSandboxRequest,
        row: Sandbox,
        mut follower: Follower,
        mut logs: broadcast::Receiver<SandboxLogLine>,
        events: &Sender,
    ) -> Result<(), Status> {
        let done = |row: &Sandbox| request.stop_on_terminal && phase_of(row) == SandboxPhase::Ready;
        let mut last = row.clone();
        let over = done(&row);
        send(events, Payload::Sandbox(Box::new(row))).await?;
        let filter = Filter {
            since_ms: request.log_since_ms,
            sources: request.log_sources.clone(),
            min_level: request.log_min_level.clone(),
        };
        if request.follow_events {
            for event in follower.tail(request.event_tail as usize) {
                send(events, Payload::Event(event)).await?;
            }
        }
        if request.follow_logs {
            let count = request.log_tail_lines as usize;
            for line in self.0.logs.last(&request.id, &filter, count).0 {
                send(events, Payload::Log(line)).await?;
            }
        }
        if over {
            return Ok(());
        }
        loop {
            tokio::select! {
                heard = follower.next() => match heard {
                    Heard::Changed => {
                        let row = self.row(&request.id).await?;
                        let over = done(&row);
                        if (request.follow_status || over) && row != last {
                            last = row.clone();
                            send(events, Payload::Sandbox(Box::new(row))).await?;
                        }
                        if over {
                            return Ok(());
                        }
                    }
                    Heard::Event(event) if request.follow_events => {
                        send(events, Payload::Event(*event)).await?;
                    }
                    Heard::Event(_) => {}
                    Heard::Lost(count) => lost(events, "events", count).await?,
                    Heard::Gone => return Err(Status::cancelled("sandbox is gone")),
                },
                line = logs.recv(), if request.follow_logs => match line {
                    Ok(line) if filter.matches(&line) => send(events, Payload::Log(line)).await?,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(count)) => {
                        lost(events, "log lines", count).await?;
                    }
                    Err(broadcast::error::RecvError::Closed) => {
                        return Err(Status::cancelled("sandbox is gone"));
                    }
                },
            }
        }
    }

    /// A sandbox that must be ready.
    pub(super) async fn ready(&self, id: &str) -> Result<Sandbox, Status> {
        let row = self.row(id).await?;
        if phase_of(&row) == SandboxPhase::Ready {
            Ok(row)
        } else {
            Err(Status::failed_precondition("sandbox is not ready"))
        }
    }

    pub(super) async fn execute(
        &self,
        request: ExecSandboxRequest,
        input: impl Stream<Item = Result<ExecSandboxInput, Status>> + Send + 'static,
    ) -> Result<exec::Events, Status> {
        // What cannot be said needs no relay.
        exec::line(&request)?;
        self.ready(&request.sandbox_id).await?;
        let target = relay_open::Target::Ssh(SshRelayTarget {});
        let relay = self.relay_to(&request.sandbox_id, target, "").await?;
        exec::run(relay, request, input).await
    }

    pub(super) async fn forward<S>(&self, mut inbound: S) -> Result<Reply<TcpForwardFrame>, Status>
    where
        S: Stream<Item = Result<TcpForwardFrame, Status>> + Send + Unpin + 'static,
    {
        let Some(tcp_forward_frame::Payload::Init(init)) = first(&mut inbound).await?.payload
        else {
            return Err(Status::invalid_argument("first frame is no init"));
        };
        let permit = self.0.ssh.connect(&init.authorization_token, &init.sandbox_id, now_ms())?;
        let target = match init.target {
            Some(tcp_forward_init::Target::Tcp(target)) => {
                relay_open::Target::Tcp(check_target(target)?)
            }
            Some(tcp_forward_init::Target::Ssh(target)) => relay_open::Target::Ssh(target),
            None => relay_open::Target::Ssh(SshRelayTarget {}),
        };
        self.ready(&init.sandbox_id).await?;
        let relay = self.relay_to(&init.sandbox_id, target, &init.service_id).await?;
        Ok(relay_io::connect(relay, inbound, permit))
    }

    async fn relay_to(
        &self,
        id: &str,
        target: relay_open::Target,
        service: &str,
    ) -> Result<DuplexStream, Status> {
        self.0.compute.sessions().open_relay(id, target, service, SESSION).await?.opened().await
    }
}

/// A port of the guest's own loopback interface.
fn check_target(mut target: TcpRelayTarget) -> Result<TcpRelayTarget, Status> {
    if !(1..=65_535).contains(&target.port) {
        return Err(Status::invalid_argument("port is out of range"));
    }
    match target.host.as_str() {
        "" => "127.0.0.1".clone_into(&mut target.host),
        "127.0.0.1" | "::1" | "localhost" => {}
        _ => return Err(Status::invalid_argument("host is not the sandbox's loopback")),
    }
    Ok(target)
}

async fn send(events: &Sender, payload: Payload) -> Result<(), Status> {
    let event = SandboxStreamEvent { payload: Some(payload) };
    events.send(Ok(event)).await.map_err(|_| Status::cancelled("watcher is gone"))
}

async fn lost(events: &Sender, what: &str, count: u64) -> Result<(), Status> {
    let message = format!("{count} {what} were lost to this watcher");
    send(events, Payload::Warning(SandboxStreamWarning { message })).await
}
