//! A gateway, as users and supervisors use it, with [`Played`] as its driver.
//!
//! Invariant: every sandbox has a name of its own for this run, and is deleted at the end.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use openshell_proto::sandbox::v1::GetSandboxConfigRequest;
use openshell_proto::v1::open_shell_client::OpenShellClient;
use openshell_proto::v1::{self as api, SandboxPhase, gateway_message, supervisor_message};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::played::Played;
use crate::{Report, refused};

type Client = OpenShellClient<Channel>;

/// How long a gateway may take to come up: it may wait for its driver, which is us.
const UP: Duration = Duration::from_secs(60);

/// What the checks share.
struct Bed {
    client: Client,
    played: Played,
    /// In every name.
    run: String,
}

/// Checks the gateway at an endpoint.
///
/// # Errors
///
/// When nobody listens there within a minute.
pub async fn check(endpoint: Endpoint, played: Played) -> Result<Report> {
    let ends = Instant::now() + UP;
    let channel = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(error) if Instant::now() > ends => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let run = format!("{:x}", since.as_millis());
    let bed = Bed { client: OpenShellClient::new(channel), played, run };
    let mut report = Report::default();
    report.check("the gateway says who it is", bed.information()).await;
    report.check("creating, finding, listing and deleting", bed.rows()).await;
    report.check("a driver's refusal leaves no row", bed.refusals()).await;
    report
        .check("a token is good for its own sandbox, and for calls of supervisors", bed.tokens())
        .await;
    report.check("a sandbox has a policy that a supervisor can load", bed.policy()).await;
    report.check("ready with a session, and only then", bed.readiness()).await;
    report.check("a session that takes another's place demotes nothing", bed.supersede()).await;
    report.check("a relay carries bytes, and only its supervisor claims it", bed.relay()).await;
    report.check("stopping and starting", bed.stop_start()).await;
    report.check("the end of the main process is final, with its exit code", bed.exits()).await;
    report.check("a watch begins with the row and ends with the sandbox", bed.watch_ends()).await;
    bed.clean().await;
    Ok(report)
}

impl Bed {
    async fn information(&self) -> Result<()> {
        let mut c = self.client.clone();
        let health = c.health(api::HealthRequest {}).await?.into_inner();
        ensure!(health.status() == api::ServiceStatus::Healthy, "{health:?}");
        ensure!(!health.version.is_empty(), "no version");
        let info = c.get_gateway_info(api::GetGatewayInfoRequest::default()).await;
        crate::tolerated(info)?;
        crate::tolerated(
            c.get_gateway_config(openshell_proto::sandbox::v1::GetGatewayConfigRequest::default())
                .await,
        )
    }

    fn name(&self, what: &str) -> String {
        format!("c-{what}-{}", self.run)
    }

    async fn create(&self, what: &str) -> Result<(String, String), Status> {
        let spec =
            api::SandboxSpec { command: vec!["sleep".into(), "9".into()], ..Default::default() };
        let name = self.name(what);
        let request = api::CreateSandboxRequest {
            spec: Some(spec),
            name: name.clone(),
            ..Default::default()
        };
        let row = self.client.clone().create_sandbox(request).await?.into_inner().sandbox;
        let id = row.and_then(|row| row.metadata).unwrap_or_default().id;
        if id.is_empty() {
            return Err(Status::internal("an answer without a sandbox"));
        }
        Ok((name, id))
    }

    async fn find(&self, name: &str) -> Result<api::Sandbox, Status> {
        let request = api::GetSandboxRequest { name: name.into(), ..Default::default() };
        let found = self.client.clone().get_sandbox(request).await?.into_inner().sandbox;
        found.ok_or_else(|| Status::internal("an answer without a sandbox"))
    }

    async fn delete(&self, name: &str) -> Result<bool, Status> {
        let request = api::DeleteSandboxRequest { name: name.into(), ..Default::default() };
        Ok(self.client.clone().delete_sandbox(request).await?.into_inner().deleted)
    }

    fn token(&self, id: &str) -> Result<String> {
        let sandbox = self.played.sandbox(id).context("the driver was not asked for it")?;
        let token = sandbox.spec.unwrap_or_default().sandbox_token;
        ensure!(!token.is_empty() && token.is_ascii(), "no token");
        Ok(token)
    }

    async fn phase(&self, name: &str) -> Result<SandboxPhase> {
        Ok(self.find(name).await?.status.unwrap_or_default().phase())
    }

    async fn becomes(&self, name: &str, phase: SandboxPhase) -> Result<api::Sandbox> {
        let ends = Instant::now() + Duration::from_secs(20);
        loop {
            let row = self.find(name).await?;
            let now = row.status.clone().unwrap_or_default().phase();
            if now == phase {
                return Ok(row);
            }
            ensure!(Instant::now() < ends, "it is {now:?}, and should become {phase:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn rows(&self) -> Result<()> {
        let (name, id) = self.create("rows").await?;
        let calls = self.played.calls();
        ensure!(calls.contains(&format!("create {id}")), "the driver heard {calls:?}");
        let given = self.played.sandbox(&id).context("no sandbox")?;
        ensure!(given.name == name, "the driver was given the name {:?}", given.name);
        let command = given.spec.unwrap_or_default().command;
        ensure!(command == ["sleep", "9"], "the driver was given {command:?}");
        self.token(&id)?;
        ensure!(self.phase(&name).await? == SandboxPhase::Provisioning, "not Provisioning");
        refused(self.create("rows").await, &[Code::AlreadyExists])?;
        refused(self.find(&self.name("none")).await, &[Code::NotFound])?;
        let request = api::ListSandboxesRequest { limit: 1000, ..Default::default() };
        let listed = self.client.clone().list_sandboxes(request).await?.into_inner().sandboxes;
        let of = |row: &api::Sandbox| row.metadata.clone().unwrap_or_default().id == id;
        ensure!(listed.iter().filter(|row| of(row)).count() == 1, "it is not listed once");
        ensure!(self.delete(&name).await?, "it was not deleted");
        let calls = self.played.calls();
        ensure!(calls.contains(&format!("delete {id}")), "the driver heard {calls:?}");
        refused(self.find(&name).await, &[Code::NotFound])?;
        match self.delete(&name).await {
            Ok(false) => Ok(()),
            other => refused(other, &[Code::NotFound]),
        }
    }

    async fn refusals(&self) -> Result<()> {
        for (status, expected) in [
            (Status::failed_precondition("no room here"), Code::FailedPrecondition),
            (Status::unavailable("away"), Code::Internal),
        ] {
            let message = status.message().to_owned();
            self.played.refuse(status);
            let answer = self.create("refused").await;
            if expected == Code::FailedPrecondition {
                let told = answer.as_ref().err().map(|status| status.message().to_owned());
                ensure!(told.is_some_and(|told| told.contains(&message)), "its words are lost");
            }
            refused(answer, &[expected])?;
            refused(self.find(&self.name("refused")).await, &[Code::NotFound])?;
        }
        Ok(())
    }

    async fn tokens(&self) -> Result<()> {
        let (_, one) = self.create("token-one").await?;
        let (_, two) = self.create("token-two").await?;
        let token = self.token(&one)?;
        ensure!(token != self.token(&two)?, "two sandboxes have one token");
        let strangers = [Code::Unauthenticated, Code::PermissionDenied];
        refused(self.connect("", &one, "i").await, &strangers)?;
        refused(self.connect("not-a-token", &one, "i").await, &strangers)?;
        refused(self.connect(&token, &two, "i").await, &[Code::PermissionDenied])?;
        let mut c = self.client.clone();
        let list = with(&token, api::ListSandboxesRequest::default())?;
        refused(c.list_sandboxes(list).await, &strangers)?;
        let other = GetSandboxConfigRequest { sandbox_id: two };
        refused(c.get_sandbox_config(with(&token, other)?).await, &[Code::PermissionDenied])?;
        let beat = supervisor_message::Payload::Heartbeat(Default::default());
        refused(self.begin(&token, beat).await, &[Code::InvalidArgument])
    }

    async fn policy(&self) -> Result<()> {
        let (_, id) = self.create("policy").await?;
        let mut c = self.client.clone();
        let request = with(&self.token(&id)?, GetSandboxConfigRequest { sandbox_id: id })?;
        let config = c.get_sandbox_config(request).await?.into_inner();
        ensure!(!config.workspace.is_empty(), "no workspace");
        if let Some(policy) = config.policy {
            ensure!(config.version >= 1 && !config.policy_hash.is_empty(), "no version or hash");
            ensure!(policy.process.is_some_and(|of| !of.run_as_user.is_empty()), "no user");
        }
        Ok(())
    }

    /// The first answer to a first message.
    async fn begin(
        &self,
        token: &str,
        payload: supervisor_message::Payload,
    ) -> Result<Session, Status> {
        let (messages, outbound) = mpsc::channel(8);
        drop(messages.send(api::SupervisorMessage { payload: Some(payload) }).await);
        let mut request = Request::new(ReceiverStream::new(outbound));
        if !token.is_empty() {
            let header = format!("Bearer {token}");
            let header = header.parse().map_err(|_| Status::internal("token is no header"))?;
            request.metadata_mut().insert("authorization", header);
        }
        let mut inbound = self.client.clone().connect_supervisor(request).await?.into_inner();
        match inbound.next().await {
            Some(Ok(first)) => Ok(Session { messages, inbound, first: first.payload }),
            Some(Err(status)) => Err(status),
            None => Err(Status::unavailable("the stream has ended")),
        }
    }

    async fn connect(&self, token: &str, id: &str, instance: &str) -> Result<Session, Status> {
        let hello = api::SupervisorHello { sandbox_id: id.into(), instance_id: instance.into() };
        let session = self.begin(token, supervisor_message::Payload::Hello(hello)).await?;
        match &session.first {
            Some(gateway_message::Payload::SessionAccepted(accepted))
                if !accepted.session_id.is_empty() =>
            {
                Ok(session)
            }
            other => Err(Status::internal(format!("hello was answered with {other:?}"))),
        }
    }

    async fn readiness(&self) -> Result<()> {
        let (name, id) = self.create("ready").await?;
        let token = self.token(&id)?;
        self.played.say(&id, "Ready", "False", "Starting").await;
        self.played.say(&id, "Ready", "True", "Up").await;
        // The driver's word is heard, and is not enough.
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(self.phase(&name).await? == SandboxPhase::Provisioning, "ready without a session");
        let exec = api::ExecSandboxRequest {
            sandbox_id: id.clone(),
            command: vec!["true".into()],
            ..Default::default()
        };
        refused(self.client.clone().exec_sandbox(exec).await, &[Code::FailedPrecondition])?;
        let session = self.connect(&token, &id, "run-1").await?;
        let row = self.becomes(&name, SandboxPhase::Ready).await?;
        let status = row.status.unwrap_or_default();
        ensure!(status.main_process_instance_id == "run-1", "{status:?}");
        let ready = status.conditions.iter().find(|condition| condition.r#type == "Ready");
        ensure!(
            ready
                .is_some_and(|ready| ready.status == "True" && ready.reason == "DependenciesReady"),
            "{ready:?}"
        );
        drop(session);
        let row = self.becomes(&name, SandboxPhase::Provisioning).await?;
        let conditions = row.status.unwrap_or_default().conditions;
        let ready = conditions.iter().find(|condition| condition.r#type == "Ready");
        ensure!(ready.is_some_and(|ready| ready.reason == "DependenciesNotReady"), "{ready:?}");
        self.played.say(&id, "Ready", "True", "Up").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(
            self.phase(&name).await? == SandboxPhase::Provisioning,
            "ready again without a session"
        );
        let _session = self.connect(&token, &id, "run-1").await?;
        self.becomes(&name, SandboxPhase::Ready).await?;
        self.played.say(&id, "Ready", "False", "ProcessExited").await;
        self.becomes(&name, SandboxPhase::Error).await?;
        Ok(())
    }

    async fn supersede(&self) -> Result<()> {
        let (name, id) = self.create("supersede").await?;
        let token = self.token(&id)?;
        let mut old = self.connect(&token, &id, "run-1").await?;
        self.becomes(&name, SandboxPhase::Ready).await?;
        let _new = self.connect(&token, &id, "run-1").await?;
        let ended = tokio::time::timeout(Duration::from_secs(20), async {
            while let Some(Ok(_)) = old.inbound.next().await {}
        });
        ended.await.context("the old session goes on")?;
        drop(old);
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(
            self.phase(&name).await? == SandboxPhase::Ready,
            "the old session's end demoted it"
        );
        Ok(())
    }

    async fn relay(&self) -> Result<()> {
        let (name, id) = self.create("relay").await?;
        let token = self.token(&id)?;
        let mut session = self.connect(&token, &id, "run-1").await?;
        self.becomes(&name, SandboxPhase::Ready).await?;
        let mut c = self.client.clone();
        refused(self.claim(&token, "no-such-channel").await, &[Code::NotFound])?;
        let asked = api::CreateSshSessionRequest { sandbox_id: id.clone() };
        let ssh = c.create_ssh_session(asked).await?.into_inner();
        let init = |token: &str| {
            api::tcp_forward_frame::Payload::Init(api::TcpForwardInit {
                sandbox_id: id.clone(),
                target: Some(api::tcp_forward_init::Target::Tcp(api::TcpRelayTarget {
                    host: "127.0.0.1".into(),
                    port: 80,
                })),
                authorization_token: token.into(),
                ..Default::default()
            })
        };
        let frame = |payload| api::TcpForwardFrame { payload: Some(payload) };
        refused(
            c.forward_tcp(tokio_stream::once(frame(init("")))).await,
            &[Code::Unauthenticated],
        )?;
        let (frames, outbound) = mpsc::channel(4);
        frames.send(frame(init(&ssh.token))).await?;
        let user = tokio::spawn(async move { c.forward_tcp(ReceiverStream::new(outbound)).await });
        let open = session.relay_open().await?;
        let (_, other) = self.create("relay-other").await?;
        let stolen = self.claim(&self.token(&other)?, &open.channel_id).await;
        refused(stolen, &[Code::PermissionDenied])?;
        let (out, mut back) = self.claim(&token, &open.channel_id).await?;
        let mut heard = user.await??.into_inner();
        frames.send(frame(api::tcp_forward_frame::Payload::Data(b"to".to_vec().into()))).await?;
        drop(frames);
        let mut got = Vec::new();
        while let Some(frame) = back.next().await {
            if let Some(api::relay_frame::Payload::Data(data)) = frame?.payload {
                got.extend_from_slice(&data);
            }
        }
        ensure!(got == b"to", "{got:?} came, where `to` was sent");
        // The other half is still open.
        let data = api::relay_frame::Payload::Data(b"fro".to_vec().into());
        out.send(api::RelayFrame { payload: Some(data) }).await?;
        drop(out);
        let mut got = Vec::new();
        while let Some(frame) = heard.next().await {
            if let Some(api::tcp_forward_frame::Payload::Data(data)) = frame?.payload {
                got.extend_from_slice(&data);
            }
        }
        ensure!(got == b"fro", "{got:?} came, where `fro` was sent");
        let revoked = self
            .client
            .clone()
            .revoke_ssh_session(api::RevokeSshSessionRequest { token: ssh.token })
            .await?;
        ensure!(revoked.into_inner().revoked, "the token was not revoked");
        Ok(())
    }

    /// Claims a relay; what came first decides whether that is an error.
    async fn claim(
        &self,
        token: &str,
        channel: &str,
    ) -> Result<(mpsc::Sender<api::RelayFrame>, Streaming<api::RelayFrame>), Status> {
        let (frames, outbound) = mpsc::channel(4);
        let init = api::relay_frame::Payload::Init(api::RelayInit { channel_id: channel.into() });
        drop(frames.send(api::RelayFrame { payload: Some(init) }).await);
        let mut request = Request::new(ReceiverStream::new(outbound));
        let header = format!("Bearer {token}").parse();
        let header = header.map_err(|_| Status::internal("token is no header"))?;
        request.metadata_mut().insert("authorization", header);
        let back = self.client.clone().relay_stream(request).await?.into_inner();
        Ok((frames, back))
    }

    async fn stop_start(&self) -> Result<()> {
        let (name, id) = self.create("stop").await?;
        let token = self.token(&id)?;
        let mut c = self.client.clone();
        let stop = || api::StopSandboxRequest { name: name.clone(), ..Default::default() };
        let start = || api::StartSandboxRequest { name: name.clone(), ..Default::default() };
        refused(c.stop_sandbox(stop()).await, &[Code::FailedPrecondition])?;
        let session = self.connect(&token, &id, "run-1").await?;
        self.becomes(&name, SandboxPhase::Ready).await?;
        c.start_sandbox(start()).await.context("a start of what is ready")?;
        self.played.calls();
        c.stop_sandbox(stop()).await?;
        self.becomes(&name, SandboxPhase::Stopped).await?;
        let calls = self.played.calls();
        ensure!(calls.contains(&format!("stop {id}")), "the driver heard {calls:?}");
        drop(session);
        c.stop_sandbox(stop()).await.context("a second stop")?;
        self.played.say(&id, "Ready", "True", "Up").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(self.phase(&name).await? == SandboxPhase::Stopped, "an old word woke it");
        c.start_sandbox(start()).await?;
        let calls = self.played.calls();
        ensure!(calls.contains(&format!("start {id}")), "the driver heard {calls:?}");
        let phase = self.phase(&name).await?;
        ensure!(phase == SandboxPhase::Starting, "it is {phase:?} without a session");
        // The end of the run before is no news.
        self.report_exit(&token, &id, "run-1", 137).await?;
        ensure!(
            self.phase(&name).await? == SandboxPhase::Starting,
            "the end of the run before counted"
        );
        let _session = self.connect(&token, &id, "run-2").await?;
        self.becomes(&name, SandboxPhase::Ready).await?;
        Ok(())
    }

    async fn report_exit(
        &self,
        token: &str,
        id: &str,
        instance: &str,
        exit_code: i32,
    ) -> Result<()> {
        let report = api::ReportMainProcessExitRequest {
            sandbox_id: id.into(),
            instance_id: instance.into(),
            exit_code,
        };
        self.client.clone().report_main_process_exit(with(token, report)?).await?;
        Ok(())
    }

    async fn exits(&self) -> Result<()> {
        let (name, id) = self.create("exit").await?;
        let token = self.token(&id)?;
        let _session = self.connect(&token, &id, "run-2").await?;
        self.becomes(&name, SandboxPhase::Ready).await?;
        self.report_exit(&token, &id, "run-1", 9).await.context("a stale report")?;
        ensure!(self.phase(&name).await? == SandboxPhase::Ready, "a stale report counted");
        self.report_exit(&token, &id, "run-2", 0).await?;
        let row = self.becomes(&name, SandboxPhase::Error).await?;
        ensure!(row.status.unwrap_or_default().exit_code == Some(0), "no exit code");
        self.report_exit(&token, &id, "run-2", 0).await.context("the same report again")?;
        self.report_exit(&token, &id, "run-2", 5).await.context("another code")?;
        let status = self.find(&name).await?.status.unwrap_or_default();
        ensure!(status.exit_code == Some(0), "the code was overwritten");
        Ok(())
    }

    async fn watch_ends(&self) -> Result<()> {
        let (name, id) = self.create("watch").await?;
        let mut c = self.client.clone();
        let request = |id: &str| api::WatchSandboxRequest {
            id: id.into(),
            follow_status: true,
            ..Default::default()
        };
        let none = c.watch_sandbox(request("no-such-id")).await;
        refused(none, &[Code::NotFound])?;
        let mut watch = c.watch_sandbox(request(&id)).await?.into_inner();
        let first = watch.next().await.context("no event")??.payload;
        ensure!(matches!(first, Some(api::sandbox_stream_event::Payload::Sandbox(_))), "{first:?}");
        let _session = self.connect(&self.token(&id)?, &id, "run-1").await?;
        loop {
            let event = watch.next().await.context("the watch has ended")??;
            if let Some(api::sandbox_stream_event::Payload::Sandbox(row)) = event.payload
                && row.status.unwrap_or_default().phase() == SandboxPhase::Ready
            {
                break;
            }
        }
        self.delete(&name).await?;
        while let Some(event) = watch.next().await {
            match event {
                Ok(_) => {}
                Err(status) if matches!(status.code(), Code::Cancelled | Code::NotFound) => break,
                Err(status) => bail!("the watch ended with {status}"),
            }
        }
        Ok(())
    }

    async fn clean(&self) {
        let request = api::ListSandboxesRequest { limit: 1000, ..Default::default() };
        let Ok(listed) = self.client.clone().list_sandboxes(request).await else { return };
        for row in listed.into_inner().sandboxes {
            let name = row.metadata.unwrap_or_default().name;
            if name.ends_with(&self.run) {
                drop(self.delete(&name).await);
            }
        }
    }
}

/// A session as its supervisor has it.
struct Session {
    #[expect(dead_code, reason = "the session lasts as long as it")]
    messages: mpsc::Sender<api::SupervisorMessage>,
    inbound: Streaming<api::GatewayMessage>,
    first: Option<gateway_message::Payload>,
}

impl Session {
    async fn relay_open(&mut self) -> Result<api::RelayOpen> {
        loop {
            let message = self.inbound.next().await.context("the session has ended")??;
            if let Some(gateway_message::Payload::RelayOpen(open)) = message.payload {
                return Ok(open);
            }
        }
    }
}

fn with<T>(token: &str, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    Ok(request)
}
