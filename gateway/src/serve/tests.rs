//! The services over real sockets, with a driver and a supervisor of the test.

mod configuration;
mod relays;
mod tls;

use std::net::SocketAddr;
use std::sync::Mutex;

use openshell_proto::compute::v1::watch_sandboxes_event::Payload;
use openshell_proto::compute::v1::{
    DriverCondition, DriverSandbox, DriverSandboxStatus, GetCapabilitiesResponse,
    WatchSandboxesEvent, WatchSandboxesSandboxEvent,
};
use openshell_proto::v1::open_shell_client::OpenShellClient;
use openshell_proto::v1::*;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::*;
use crate::compute::driver::{Driver, Events};
use crate::compute::rules::{phase_of, ready_condition};
use crate::session::{Limits, Registry};
use crate::store::Store;

/// A driver that accepts everything and remembers it.
#[derive(Default)]
struct Fake(Mutex<Vec<DriverSandbox>>);

impl Fake {
    fn of(&self, id: &str) -> Option<DriverSandbox> {
        self.0.lock().unwrap().iter().find(|sandbox| sandbox.id == id).cloned()
    }
}

#[tonic::async_trait]
impl Driver for Fake {
    async fn capabilities(&self) -> Result<GetCapabilitiesResponse, Status> {
        Ok(GetCapabilitiesResponse::default())
    }
    async fn validate(&self, sandbox: DriverSandbox) -> Result<(), Status> {
        match sandbox.spec.and_then(|spec| spec.template).map(|template| template.image) {
            Some(image) if !image.is_empty() => Ok(()),
            _ => Err(Status::failed_precondition("no image")),
        }
    }
    async fn create(&self, sandbox: DriverSandbox) -> Result<(), Status> {
        self.0.lock().unwrap().push(sandbox);
        Ok(())
    }
    async fn find(&self, id: &str, _: &str) -> Result<Option<DriverSandbox>, Status> {
        Ok(self.of(id))
    }
    async fn list(&self) -> Result<Vec<DriverSandbox>, Status> {
        Ok(self.0.lock().unwrap().clone())
    }
    async fn stop(&self, _: &str, _: &str) -> Result<(), Status> {
        Ok(())
    }
    async fn start(&self, _: &str, _: &str) -> Result<(), Status> {
        Ok(())
    }
    async fn delete(&self, id: &str, _: &str) -> Result<bool, Status> {
        let mut all = self.0.lock().unwrap();
        let before = all.len();
        all.retain(|sandbox| sandbox.id != id);
        Ok(all.len() < before)
    }
    async fn watch(&self) -> Result<Events, Status> {
        Ok(Box::pin(tokio_stream::pending()))
    }
}

/// A gateway that nobody reaches yet.
async fn gateway(users: Users) -> (Gateway, Arc<Fake>) {
    let store = Store::open("sqlite::memory:").await.unwrap();
    let driver = Arc::new(Fake::default());
    let compute = Compute::new(
        store,
        driver.clone(),
        Registry::new(Limits::default()),
        Arc::default(),
        crate::compute::Settings::default(),
    );
    let keys = Keys::generate("test", None).unwrap();
    let about = About {
        driver: "vm".into(),
        default_image: "usual:1".into(),
        address: ("http".into(), "127.0.0.1".into(), 1),
        ..About::default()
    };
    (Gateway::new(compute, keys, users, about), driver)
}

async fn serve(gateway: &Gateway, tls: Option<ServerTlsConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(gateway.clone().serve(listener, tls, std::future::pending()));
    address
}

struct Lab {
    gateway: Gateway,
    driver: Arc<Fake>,
    client: OpenShellClient<Channel>,
    address: SocketAddr,
}

impl Lab {
    async fn new() -> Self {
        let users = Users { allow_unauthenticated: true, ..Users::default() };
        let (gateway, driver) = gateway(users).await;
        let address = serve(&gateway, None).await;
        let client = client(address).await;
        Self { gateway, driver, client, address }
    }

    async fn create(&self, name: &str) -> Sandbox {
        let request = CreateSandboxRequest { name: name.into(), ..Default::default() };
        let response = self.client.clone().create_sandbox(request).await.unwrap();
        response.into_inner().sandbox.unwrap()
    }

    fn token(&self, row: &Sandbox) -> String {
        self.driver.of(id(row)).unwrap().spec.unwrap().sandbox_token
    }

    /// Opens a session; it lasts until the sender is dropped.
    async fn connect(
        &self,
        token: &str,
        sandbox_id: &str,
    ) -> Result<(mpsc::Sender<SupervisorMessage>, tonic::Streaming<GatewayMessage>), Status> {
        let (messages, inbound) = mpsc::channel(8);
        let hello = SupervisorHello { sandbox_id: sandbox_id.into(), instance_id: "run-1".into() };
        let payload = Some(supervisor_message::Payload::Hello(hello));
        messages.send(SupervisorMessage { payload }).await.unwrap();
        let stream = ReceiverStream::new(inbound);
        let request = with(token, stream);
        let response = self.client.clone().connect_supervisor(request).await?;
        Ok((messages, response.into_inner()))
    }

    async fn watch(&self, sandbox_id: &str) -> tonic::Streaming<SandboxStreamEvent> {
        let request = WatchSandboxRequest {
            id: sandbox_id.into(),
            follow_status: true,
            ..Default::default()
        };
        self.client.clone().watch_sandbox(request).await.unwrap().into_inner()
    }
}

async fn client(address: SocketAddr) -> OpenShellClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    OpenShellClient::new(endpoint.connect().await.unwrap())
}

fn id(row: &Sandbox) -> &str {
    &row.metadata.as_ref().unwrap().id
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let header = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", header);
    request
}

/// Reads a watch until the sandbox is in a phase.
async fn until(events: &mut tonic::Streaming<SandboxStreamEvent>, phase: SandboxPhase) -> Sandbox {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            if let Some(sandbox_stream_event::Payload::Sandbox(row)) = event.payload
                && phase_of(&row) == phase
            {
                return row;
            }
        }
    });
    *waited.await.unwrap()
}

#[tokio::test]
async fn a_sandbox_is_ready_while_its_session_lasts() {
    let lab = Lab::new().await;
    let row = lab.create("one").await;
    assert_eq!(phase_of(&row), SandboxPhase::Provisioning);
    let mut events = lab.watch(id(&row)).await;
    until(&mut events, SandboxPhase::Provisioning).await;
    // What a driver says while the machine boots.
    let condition = DriverCondition {
        r#type: "Ready".into(),
        status: "False".into(),
        reason: "Starting".into(),
        ..Default::default()
    };
    let status = DriverSandboxStatus { conditions: vec![condition], ..Default::default() };
    let sandbox = DriverSandbox { id: id(&row).into(), status: Some(status), ..Default::default() };
    let payload = Payload::Sandbox(Box::new(WatchSandboxesSandboxEvent { sandbox: Some(sandbox) }));
    let event = WatchSandboxesEvent { payload: Some(payload) };
    lab.gateway.compute().heard(event).await.unwrap();

    let (messages, mut inbound) = lab.connect(&lab.token(&row), id(&row)).await.unwrap();
    let first = inbound.next().await.unwrap().unwrap().payload;
    assert!(matches!(first, Some(gateway_message::Payload::SessionAccepted(_))), "{first:?}");
    let ready = until(&mut events, SandboxPhase::Ready).await;
    assert_eq!(ready_condition(&ready).unwrap().reason, "DependenciesReady");
    assert_eq!(ready.status.unwrap().main_process_instance_id, "run-1");

    drop(messages);
    let lost = until(&mut events, SandboxPhase::Provisioning).await;
    assert_eq!(ready_condition(&lost).unwrap().reason, "DependenciesNotReady");
}

#[tokio::test]
async fn a_token_opens_its_own_sandbox_only() {
    let lab = Lab::new().await;
    let (one, two) = (lab.create("one").await, lab.create("two").await);
    let token = lab.token(&one);
    let refused = lab.connect(&token, id(&two)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = lab.connect("nonsense", id(&one)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let mut client = lab.client.clone();
    let asked =
        openshell_proto::sandbox::v1::GetSandboxConfigRequest { sandbox_id: id(&two).to_owned() };
    let refused = client.get_sandbox_config(with(&token, asked)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let report = ReportMainProcessExitRequest { sandbox_id: id(&two).into(), ..Default::default() };
    let refused = client.report_main_process_exit(with(&token, report)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused =
        client.list_sandboxes(with(&token, ListSandboxesRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let asked =
        openshell_proto::sandbox::v1::GetSandboxConfigRequest { sandbox_id: id(&one).to_owned() };
    let config = client.get_sandbox_config(with(&token, asked)).await.unwrap().into_inner();
    assert_eq!((config.version, config.workspace.as_str()), (1, "default"));
    assert!(config.policy.is_some() && config.policy_hash.len() == 64);
}

#[tokio::test]
async fn a_relay_carries_bytes_both_ways() {
    let lab = Lab::new().await;
    let row = lab.create("one").await;
    let token = lab.token(&row);
    let mut events = lab.watch(id(&row)).await;
    let (_messages, mut inbound) = lab.connect(&token, id(&row)).await.unwrap();
    until(&mut events, SandboxPhase::Ready).await;
    let mut client = lab.client.clone();
    let asked = CreateSshSessionRequest { sandbox_id: id(&row).into() };
    let session = client.create_ssh_session(asked).await.unwrap().into_inner();

    // The supervisor: it echoes the first relay that it is asked for.
    let (mut other, own) = (client.clone(), token.clone());
    let supervisor = tokio::spawn(async move {
        let open = loop {
            let message = inbound.next().await.unwrap().unwrap();
            if let Some(gateway_message::Payload::RelayOpen(open)) = message.payload {
                break open;
            }
        };
        let (frames, outbound) = mpsc::channel(4);
        let init = RelayInit { channel_id: open.channel_id };
        let payload = Some(relay_frame::Payload::Init(init));
        frames.send(RelayFrame { payload }).await.unwrap();
        let outbound = ReceiverStream::new(outbound);
        let mut back = other.relay_stream(with(&own, outbound)).await.unwrap().into_inner();
        while let Some(Ok(frame)) = back.next().await {
            frames.send(frame).await.unwrap();
        }
        open.target
    });

    let init = |token: &str, port| TcpForwardFrame {
        payload: Some(tcp_forward_frame::Payload::Init(TcpForwardInit {
            sandbox_id: id(&row).into(),
            target: Some(tcp_forward_init::Target::Tcp(TcpRelayTarget {
                host: String::new(),
                port,
            })),
            authorization_token: token.into(),
            ..Default::default()
        })),
    };
    for (token, port, expected) in [
        ("", 80, Code::Unauthenticated),
        ("other", 80, Code::Unauthenticated),
        (session.token.as_str(), 0, Code::InvalidArgument),
        (session.token.as_str(), 65_536, Code::InvalidArgument),
    ] {
        let refused = client.forward_tcp(tokio_stream::once(init(token, port))).await.unwrap_err();
        assert_eq!(refused.code(), expected, "{refused}");
    }

    let (frames, outbound) = mpsc::channel(4);
    frames.send(init(&session.token, 8080)).await.unwrap();
    let outbound = ReceiverStream::new(outbound);
    let mut back = client.forward_tcp(outbound).await.unwrap().into_inner();
    let sent: Vec<u8> = (0..100_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let writer = {
        let sent = sent.clone();
        tokio::spawn(async move {
            for chunk in sent.chunks(10_000) {
                let payload = Some(tcp_forward_frame::Payload::Data(chunk.to_vec().into()));
                frames.send(TcpForwardFrame { payload }).await.unwrap();
            }
        })
    };
    let mut heard = Vec::new();
    while let Some(frame) = back.next().await {
        if let Some(tcp_forward_frame::Payload::Data(data)) = frame.unwrap().payload {
            heard.extend(data);
        }
    }
    writer.await.unwrap();
    assert!(heard == sent, "{} of {} bytes", heard.len(), sent.len());
    let target = supervisor.await.unwrap();
    let expected = TcpRelayTarget { host: "127.0.0.1".into(), port: 8080 };
    assert_eq!(target, Some(relay_open::Target::Tcp(expected)));
}

#[tokio::test]
async fn what_a_user_asks_is_checked() {
    let lab = Lab::new().await;
    let mut client = lab.client.clone();
    let row = lab.create("one").await;
    let spec = lab.driver.of(id(&row)).unwrap().spec.unwrap();
    assert_eq!(spec.template.unwrap().image, "usual:1");
    let again = CreateSandboxRequest { name: "one".into(), ..Default::default() };
    assert_eq!(client.create_sandbox(again).await.unwrap_err().code(), Code::AlreadyExists);
    let environment = [("OPENSHELL_X".to_owned(), String::new())].into();
    let spec = SandboxSpec { environment, ..Default::default() };
    let reserved = CreateSandboxRequest { spec: Some(spec), ..Default::default() };
    assert_eq!(client.create_sandbox(reserved).await.unwrap_err().code(), Code::InvalidArgument);
    let early = ExecSandboxRequest {
        sandbox_id: id(&row).into(),
        command: vec!["true".into()],
        ..Default::default()
    };
    assert_eq!(client.exec_sandbox(early).await.unwrap_err().code(), Code::FailedPrecondition);

    let name = || DeleteSandboxRequest { name: "one".into(), ..Default::default() };
    let mut events = lab.watch(id(&row)).await;
    assert!(client.delete_sandbox(name()).await.unwrap().into_inner().deleted);
    assert!(!client.delete_sandbox(name()).await.unwrap().into_inner().deleted);
    let last = loop {
        if let Err(status) = events.next().await.unwrap() {
            break status;
        }
    };
    assert!(matches!(last.code(), Code::Cancelled | Code::NotFound), "{last}");
    assert!(lab.driver.0.lock().unwrap().is_empty());
    assert!(
        client
            .list_sandboxes(ListSandboxesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .sandboxes
            .is_empty()
    );
}

#[tokio::test]
async fn probes_are_answered() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let lab = Lab::new().await;
    lab.create("one").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(health::serve(lab.gateway.clone(), listener));
    for (line, expected) in [
        ("GET /healthz HTTP/1.1", "200 OK"),
        ("GET /readyz HTTP/1.1", "200 OK"),
        ("GET /metrics HTTP/1.1", "sandboxes{phase=\"provisioning\"} 1"),
        ("GET /other HTTP/1.1", "404"),
        ("PUT /healthz HTTP/1.1", "400"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{line}\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.contains(expected), "{line}: {text}");
    }
    let mut plain = client(lab.address).await;
    let health = plain.health(HealthRequest {}).await.unwrap().into_inner();
    assert_eq!(health.status(), ServiceStatus::Healthy);
}
