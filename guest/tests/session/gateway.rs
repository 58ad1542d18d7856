//! A gateway as a supervisor sees it, over a real socket, in the hands of a test.
//!
//! It lives in a runtime of its own, so that it can be killed with everything in flight.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openshell_proto::sandbox::v1::{
    GetGatewayConfigRequest, GetGatewayConfigResponse, GetSandboxConfigRequest,
    GetSandboxConfigResponse, ProcessPolicy, SandboxPolicy,
};
use openshell_proto::v1::gateway_message::Payload as Theirs;
use openshell_proto::v1::open_shell_server::{OpenShell, OpenShellServer};
use openshell_proto::v1::relay_frame::Payload;
use openshell_proto::v1::relay_open::Target;
use openshell_proto::v1::supervisor_message::Payload as Ours;
use openshell_proto::v1::{
    CreateSandboxRequest, CreateSshSessionRequest, CreateSshSessionResponse, DeleteSandboxRequest,
    DeleteSandboxResponse, ExecSandboxEvent, ExecSandboxInput, ExecSandboxRequest, GatewayMessage,
    GetCurrentUserRequest, GetCurrentUserResponse, GetGatewayInfoRequest, GetGatewayInfoResponse,
    GetSandboxLogsRequest, GetSandboxLogsResponse, GetSandboxProviderEnvironmentRequest,
    GetSandboxProviderEnvironmentResponse, GetSandboxRequest, HealthRequest, HealthResponse,
    IssueSandboxTokenRequest, IssueSandboxTokenResponse, ListSandboxesRequest,
    ListSandboxesResponse, PushSandboxLogsRequest, PushSandboxLogsResponse,
    RefreshSandboxTokenRequest, RefreshSandboxTokenResponse, RelayFrame, RelayOpen,
    ReportMainProcessExitRequest, ReportMainProcessExitResponse, ReportPolicyStatusRequest,
    ReportPolicyStatusResponse, RevokeSshSessionRequest, RevokeSshSessionResponse, SandboxLogLine,
    SandboxResponse, SandboxStreamEvent, SessionAccepted, SessionRejected, StartSandboxRequest,
    StopSandboxRequest, SubmitPolicyAnalysisRequest, SubmitPolicyAnalysisResponse, SupervisorHello,
    SupervisorMessage, TcpForwardFrame, UpdateConfigRequest, UpdateConfigResponse,
    WatchSandboxRequest,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::unserved::unserved;

pub(crate) const TOKEN: &str = "token-of-the-test";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const FRAME: usize = 16 << 10;

type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// A session that a supervisor has opened.
pub(crate) struct Session {
    pub(crate) hello: SupervisorHello,
    pub(crate) incoming: Streaming<SupervisorMessage>,
    pub(crate) outgoing: mpsc::Sender<Result<GatewayMessage, Status>>,
}

struct Relay {
    incoming: Streaming<RelayFrame>,
    outgoing: mpsc::Sender<Result<RelayFrame, Status>>,
}

/// What the gateway was told, and how it shall answer.
#[derive(Default)]
pub(crate) struct State {
    relays: Mutex<HashMap<String, oneshot::Sender<Relay>>>,
    pub(crate) logs: Mutex<Vec<SandboxLogLine>>,
    pub(crate) reports: Mutex<Vec<ReportMainProcessExitRequest>>,
    /// Calls that fail before one succeeds.
    pub(crate) config_failures: AtomicU32,
    pub(crate) report_failures: AtomicU32,
    pub(crate) rejections: AtomicU32,
    pub(crate) forbid_config: AtomicU32,
}

/// A running gateway.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<State>,
    pub(crate) sessions: mpsc::UnboundedReceiver<Session>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Gateway {
    pub(crate) fn start(state: Arc<State>, port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (connected, sessions) = mpsc::unbounded_channel();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let service = Service { state: Arc::clone(&state), connected };
        let (bound, address_of) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            // A gateway that comes back takes its port at once.
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            let listener: TcpListener = socket.listen(64).unwrap();
            bound.send(listener.local_addr().unwrap()).unwrap();
            let served = Server::builder()
                .add_service(OpenShellServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener));
            served.await.unwrap();
        });
        let address = address_of.recv().unwrap();
        Self { address, state, sessions, runtime: Some(runtime) }
    }

    /// The next session.
    pub(crate) async fn session(&mut self) -> Session {
        timeout(PATIENCE, self.sessions.recv()).await.expect("a session").unwrap()
    }

    /// Ends it with everything in flight.
    pub(crate) fn kill(mut self) -> u16 {
        let runtime = self.runtime.take().unwrap();
        // A runtime may not be waited for on a thread of another one.
        std::thread::scope(|scope| {
            scope.spawn(move || runtime.shutdown_timeout(PATIENCE));
        });
        self.address.port()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Session {
    pub(crate) async fn send(&self, payload: Theirs) {
        self.outgoing.send(Ok(GatewayMessage { payload: Some(payload) })).await.unwrap();
    }

    /// The next message that is no heartbeat.
    pub(crate) async fn message(&mut self) -> Ours {
        loop {
            let message = timeout(PATIENCE, self.incoming.message()).await.expect("a message");
            match message.unwrap().expect("the session goes on").payload.unwrap() {
                Ours::Heartbeat(_) => {}
                payload => return payload,
            }
        }
    }

    /// Asks for a relay; its stream, or why not.
    pub(crate) async fn relay(
        &mut self,
        state: &State,
        channel: &str,
        target: Option<Target>,
    ) -> Result<DuplexStream, String> {
        let (claim, claimed) = oneshot::channel();
        state.relays.lock().unwrap().insert(channel.to_owned(), claim);
        let channel_id = channel.to_owned();
        let open = RelayOpen { channel_id, target, ..RelayOpen::default() };
        self.send(Theirs::RelayOpen(open)).await;
        let Ours::RelayOpenResult(result) = self.message().await else { panic!("no result") };
        assert_eq!(result.channel_id, channel);
        if !result.success {
            return Err(result.error);
        }
        let relay = timeout(PATIENCE, claimed).await.expect("a relay stream").unwrap();
        Ok(relay.into_stream())
    }
}

impl Relay {
    fn into_stream(self) -> DuplexStream {
        let Self { mut incoming, outgoing } = self;
        let (ours, theirs) = duplex(64 << 10);
        let (mut read, mut write) = tokio::io::split(theirs);
        tokio::spawn(async move {
            let mut bytes = vec![0; FRAME];
            while let Ok(len @ 1..) = read.read(&mut bytes).await {
                let data = Payload::Data(bytes[..len].to_vec().into());
                if outgoing.send(Ok(RelayFrame { payload: Some(data) })).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok(Some(frame)) = incoming.message().await {
                let Some(Payload::Data(bytes)) = frame.payload else { break };
                if write.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            drop(write.shutdown().await);
        });
        ours
    }
}

struct Service {
    state: Arc<State>,
    connected: mpsc::UnboundedSender<Session>,
}

/// Counts down; whether there was anything left.
fn take(count: &AtomicU32) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

fn check<T>(request: &Request<T>) -> Result<(), Status> {
    let expected = format!("Bearer {TOKEN}");
    match request.metadata().get("authorization") {
        Some(header) if header.as_bytes() == expected.as_bytes() => Ok(()),
        _ => Err(Status::unauthenticated("no token")),
    }
}

#[tonic::async_trait]
impl OpenShell for Service {
    type WatchSandboxStream = Answers<SandboxStreamEvent>;
    type ExecSandboxStream = Answers<ExecSandboxEvent>;
    type ExecSandboxInteractiveStream = Answers<ExecSandboxEvent>;
    type ForwardTcpStream = Answers<TcpForwardFrame>;
    type ConnectSupervisorStream = Answers<GatewayMessage>;
    type RelayStreamStream = Answers<RelayFrame>;

    async fn connect_supervisor(
        &self,
        request: Request<Streaming<SupervisorMessage>>,
    ) -> Result<Response<Self::ConnectSupervisorStream>, Status> {
        check(&request)?;
        let mut incoming = request.into_inner();
        let Some(Ours::Hello(hello)) = incoming.message().await?.and_then(|first| first.payload)
        else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (outgoing, answers) = mpsc::channel(64);
        let answer = if take(&self.state.rejections) {
            Theirs::SessionRejected(SessionRejected { reason: "not now".to_owned() })
        } else {
            let session_id = "session-1".to_owned();
            Theirs::SessionAccepted(SessionAccepted { session_id, heartbeat_interval_secs: 1 })
        };
        let rejected = matches!(answer, Theirs::SessionRejected(_));
        outgoing.send(Ok(GatewayMessage { payload: Some(answer) })).await.unwrap();
        if !rejected {
            drop(self.connected.send(Session { hello, incoming, outgoing }));
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn relay_stream(
        &self,
        request: Request<Streaming<RelayFrame>>,
    ) -> Result<Response<Self::RelayStreamStream>, Status> {
        check(&request)?;
        let mut incoming = request.into_inner();
        let Some(Payload::Init(init)) = incoming.message().await?.and_then(|first| first.payload)
        else {
            return Err(Status::invalid_argument("no init"));
        };
        let claim = self.state.relays.lock().unwrap().remove(&init.channel_id);
        let claim = claim.ok_or_else(|| Status::not_found("no such relay"))?;
        let (outgoing, answers) = mpsc::channel(4);
        drop(claim.send(Relay { incoming, outgoing }));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn get_sandbox_config(
        &self,
        request: Request<GetSandboxConfigRequest>,
    ) -> Result<Response<GetSandboxConfigResponse>, Status> {
        check(&request)?;
        if take(&self.state.forbid_config) {
            return Err(Status::permission_denied("not yours"));
        }
        if take(&self.state.config_failures) {
            return Err(Status::unavailable("not yet"));
        }
        let process =
            Some(ProcessPolicy { run_as_user: "0".to_owned(), run_as_group: "0".to_owned() });
        let policy = Some(SandboxPolicy { version: 1, process, ..SandboxPolicy::default() });
        Ok(Response::new(GetSandboxConfigResponse { policy, version: 1, ..Default::default() }))
    }

    async fn report_main_process_exit(
        &self,
        request: Request<ReportMainProcessExitRequest>,
    ) -> Result<Response<ReportMainProcessExitResponse>, Status> {
        check(&request)?;
        if take(&self.state.report_failures) {
            return Err(Status::unavailable("not yet"));
        }
        self.state.reports.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ReportMainProcessExitResponse {}))
    }

    async fn push_sandbox_logs(
        &self,
        request: Request<Streaming<PushSandboxLogsRequest>>,
    ) -> Result<Response<PushSandboxLogsResponse>, Status> {
        check(&request)?;
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            self.state.logs.lock().unwrap().extend(batch.logs);
        }
        Ok(Response::new(PushSandboxLogsResponse {}))
    }

    unserved! {
        health(HealthRequest) -> HealthResponse;
        get_current_user(GetCurrentUserRequest) -> GetCurrentUserResponse;
        get_gateway_info(GetGatewayInfoRequest) -> GetGatewayInfoResponse;
        get_gateway_config(GetGatewayConfigRequest) -> GetGatewayConfigResponse;
        create_sandbox(CreateSandboxRequest) -> SandboxResponse;
        get_sandbox(GetSandboxRequest) -> SandboxResponse;
        list_sandboxes(ListSandboxesRequest) -> ListSandboxesResponse;
        delete_sandbox(DeleteSandboxRequest) -> DeleteSandboxResponse;
        stop_sandbox(StopSandboxRequest) -> SandboxResponse;
        start_sandbox(StartSandboxRequest) -> SandboxResponse;
        watch_sandbox(WatchSandboxRequest) -> Self::WatchSandboxStream;
        get_sandbox_logs(GetSandboxLogsRequest) -> GetSandboxLogsResponse;
        exec_sandbox(ExecSandboxRequest) -> Self::ExecSandboxStream;
        exec_sandbox_interactive(Streaming<ExecSandboxInput>) -> Self::ExecSandboxInteractiveStream;
        forward_tcp(Streaming<TcpForwardFrame>) -> Self::ForwardTcpStream;
        create_ssh_session(CreateSshSessionRequest) -> CreateSshSessionResponse;
        revoke_ssh_session(RevokeSshSessionRequest) -> RevokeSshSessionResponse;
        update_config(UpdateConfigRequest) -> UpdateConfigResponse;
        get_sandbox_provider_environment(GetSandboxProviderEnvironmentRequest) -> GetSandboxProviderEnvironmentResponse;
        report_policy_status(ReportPolicyStatusRequest) -> ReportPolicyStatusResponse;
        submit_policy_analysis(SubmitPolicyAnalysisRequest) -> SubmitPolicyAnalysisResponse;
        issue_sandbox_token(IssueSandboxTokenRequest) -> IssueSandboxTokenResponse;
        refresh_sandbox_token(RefreshSandboxTokenRequest) -> RefreshSandboxTokenResponse;
    }
}
