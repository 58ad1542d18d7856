//! A driver that serves, and a client that speaks to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openshell_driver_vm::backend::stub::Stub;
use openshell_driver_vm::decoder;
use openshell_driver_vm::endpoint;
use openshell_driver_vm::listen::{Listen, Peer};
use openshell_driver_vm::resources::Host;
use openshell_driver_vm::sandbox::{Driver, Settings};
use openshell_driver_vm::serve::serve;
use openshell_driver_vm::state::StateDir;
use openshell_proto::compute::v1 as pb;
use pb::compute_driver_client::ComputeDriverClient;
use pb::watch_sandboxes_event::Payload;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

/// Nothing here takes longer on a machine that is not broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Client = ComputeDriverClient<Channel>;

/// A driver with a stub behind it.
pub(crate) struct Fixture {
    pub(crate) place: TempDir,
    pub(crate) stub: Stub,
    pub(crate) client: Client,
    end: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

pub(crate) fn settings() -> Settings {
    let endpoint = endpoint::Endpoint::parse("http://127.0.0.1:17670").expect("an endpoint");
    Settings {
        default_image: Some("registry.example/base:1".to_owned()),
        overlay_bytes: 64 << 20,
        ..Settings::new(endpoint, Host { cpus: 8, memory_mib: 16_384 })
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(settings(), Stub::default()).await
    }

    pub(crate) async fn with(settings: Settings, stub: Stub) -> Self {
        let place = tempfile::tempdir().expect("a directory");
        Self::at(place, settings, stub).await
    }

    async fn at(place: TempDir, settings: Settings, stub: Stub) -> Self {
        let state = StateDir::open(&place.path().join("state")).expect("a state directory");
        let socket = place.path().join("run/driver.sock");
        let backend = Arc::new(stub.clone());
        let driver = Driver::new(state, settings.clone(), backend, decoder(settings));
        let listen = Listen::Unix { path: socket.clone(), peer: Peer::SameUser };
        let (end, ended) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let ended = async { drop(ended.await) };
            serve(driver, &listen, ended).await.expect("served");
        });
        let client = connect(&socket).await;
        Self { place, stub, client, end: Some(end), served }
    }

    /// Ends the driver in order, and starts another on what it left.
    pub(crate) async fn restart(self, settings: Settings) -> Self {
        let (place, _) = self.stop().await;
        Self::at(place, settings, Stub::default()).await
    }

    /// Ends the driver in order.
    pub(crate) async fn stop(mut self) -> (TempDir, Stub) {
        drop(self.end.take());
        timeout(PATIENCE, self.served).await.expect("ended").expect("no panic");
        (self.place, self.stub)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.place.path().join("run/driver.sock")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.place.path().join("state")
    }

    pub(crate) fn sandbox(&self, id: &str) -> PathBuf {
        self.state().join("sandboxes").join(id)
    }

    pub(crate) async fn create(&mut self, id: &str) -> Result<(), Code> {
        create(&mut self.client, sandbox(id)).await
    }

    pub(crate) async fn condition(&mut self, id: &str) -> Condition {
        condition(&mut self.client, id).await.expect("there")
    }

    /// Waits until the first condition of a sandbox has this reason.
    pub(crate) async fn wait_for(&mut self, id: &str, reason: &str) -> Condition {
        wait_for(&mut self.client, id, reason).await
    }

    /// Waits until so many machines run.
    pub(crate) async fn wait_for_running(&self, count: usize) {
        until(|| self.stub.running() == count).await;
    }

    pub(crate) async fn watch(&mut self) -> Watch {
        watch(&mut self.client).await
    }
}

/// The first condition of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) count: usize,
    pub(crate) deleting: bool,
}

pub(crate) fn first_condition(sandbox: &pb::DriverSandbox) -> Condition {
    let status = sandbox.status.as_ref().expect("a status");
    let first = status.conditions.first().expect("a condition").clone();
    Condition {
        kind: first.r#type,
        status: first.status,
        reason: first.reason,
        message: first.message,
        count: status.conditions.len(),
        deleting: status.deleting,
    }
}

pub(crate) async fn connect(socket: &Path) -> Client {
    connect_with(socket, None).await
}

/// A client that takes so many bytes of a stream before it has read any.
pub(crate) async fn connect_with(socket: &Path, window: Option<u32>) -> Client {
    let address = format!("unix://{}", socket.display());
    let connected = async {
        loop {
            let endpoint = Endpoint::new(address.clone()).expect("an address");
            let endpoint = endpoint.initial_stream_window_size(window);
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let channel = timeout(PATIENCE, connected).await.expect("connected");
    ComputeDriverClient::new(channel)
}

/// A request that is accepted.
pub(crate) fn sandbox(id: &str) -> pb::DriverSandbox {
    pb::DriverSandbox {
        id: id.to_owned(),
        name: format!("name-{id}"),
        namespace: "default".to_owned(),
        workspace: "work".to_owned(),
        spec: Some(pb::DriverSandboxSpec {
            sandbox_token: "secret-token".to_owned(),
            environment: [("KEY".to_owned(), "secret-value".to_owned())].into(),
            template: Some(pb::DriverSandboxTemplate {
                image: "registry.example/app:2".to_owned(),
                ..pb::DriverSandboxTemplate::default()
            }),
            ..pb::DriverSandboxSpec::default()
        }),
        status: None,
    }
}

pub(crate) async fn create(client: &mut Client, sandbox: pb::DriverSandbox) -> Result<(), Code> {
    let request = pb::CreateSandboxRequest { sandbox: Some(sandbox) };
    client.create_sandbox(request).await.map(drop).map_err(|status| status.code())
}

pub(crate) async fn stop(client: &mut Client, id: &str) -> Result<(), Code> {
    let request = pb::StopSandboxRequest { sandbox_id: id.to_owned(), ..Default::default() };
    client.stop_sandbox(request).await.map(drop).map_err(|status| status.code())
}

pub(crate) async fn start(client: &mut Client, id: &str) -> Result<(), Code> {
    let request = pb::StartSandboxRequest { sandbox_id: id.to_owned(), ..Default::default() };
    client.start_sandbox(request).await.map(drop).map_err(|status| status.code())
}

pub(crate) async fn delete(client: &mut Client, id: &str) -> Result<bool, Code> {
    let request = pb::DeleteSandboxRequest { sandbox_id: id.to_owned(), ..Default::default() };
    let reply = client.delete_sandbox(request).await.map_err(|status| status.code())?;
    Ok(reply.into_inner().deleted)
}

pub(crate) async fn get(
    client: &mut Client,
    id: &str,
    name: &str,
) -> Result<pb::DriverSandbox, Code> {
    let request =
        pb::GetSandboxRequest { sandbox_id: id.to_owned(), sandbox_name: name.to_owned() };
    let reply = client.get_sandbox(request).await.map_err(|status| status.code())?;
    Ok(reply.into_inner().sandbox.expect("a sandbox"))
}

pub(crate) async fn condition(client: &mut Client, id: &str) -> Result<Condition, Code> {
    get(client, id, "").await.map(|sandbox| first_condition(&sandbox))
}

pub(crate) async fn wait_for(client: &mut Client, id: &str, reason: &str) -> Condition {
    let arrived = async {
        loop {
            let found = condition(client, id).await.expect("there");
            if found.reason == reason {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, arrived).await.unwrap_or_else(|_| panic!("{id} never became {reason}"))
}

pub(crate) async fn list(client: &mut Client) -> Vec<pb::DriverSandbox> {
    let reply = client.list_sandboxes(pb::ListSandboxesRequest::default()).await.expect("a list");
    reply.into_inner().sandboxes
}

/// Waits until something is so.
pub(crate) async fn until(is: impl Fn() -> bool) {
    let arrived = async {
        while !is() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, arrived).await.expect("it comes to be");
}

/// A stream of changes.
pub(crate) struct Watch(Streaming<pb::WatchSandboxesEvent>);

pub(crate) async fn watch(client: &mut Client) -> Watch {
    let reply = client.watch_sandboxes(pb::WatchSandboxesRequest::default()).await;
    Watch(reply.expect("a stream").into_inner())
}

impl Watch {
    pub(crate) async fn next(&mut self) -> Option<Payload> {
        let next = timeout(PATIENCE, self.0.message()).await.expect("a change in time");
        next.ok()?.map(|event| event.payload.expect("a payload"))
    }

    /// The next change as one word: `=REASON` for a sandbox, `-` for its end, the reason of an event otherwise.
    pub(crate) async fn word(&mut self) -> String {
        match self.next().await.expect("a change") {
            Payload::Sandbox(event) => {
                let sandbox = event.sandbox.expect("a sandbox");
                assert!(sandbox.spec.is_none(), "a request holds secrets");
                format!("={}", first_condition(&sandbox).reason)
            }
            Payload::Deleted(_) => "-".to_owned(),
            Payload::PlatformEvent(event) => event.event.expect("an event").reason,
        }
    }

    /// Words until `last`.
    pub(crate) async fn words(&mut self, last: &str) -> Vec<String> {
        let mut words = Vec::new();
        while words.last().map(String::as_str) != Some(last) {
            words.push(self.word().await);
        }
        words
    }
}
