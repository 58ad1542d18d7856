//! A compute driver that is played: it accepts sandboxes, remembers calls, and says what a check has it say.
//!
//! Invariant: it answers as the protocol has it, so that what goes wrong is the gateway's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use openshell_proto::compute::v1::compute_driver_server::{ComputeDriver, ComputeDriverServer};
use openshell_proto::compute::v1::watch_sandboxes_event::Payload;
use openshell_proto::compute::v1::{
    CreateSandboxRequest, CreateSandboxResponse, DeleteSandboxRequest, DeleteSandboxResponse,
    DeleteWorkspaceRequest, DeleteWorkspaceResponse, DriverCondition, DriverSandbox,
    DriverSandboxStatus, EnsureWorkspaceRequest, EnsureWorkspaceResponse, GetCapabilitiesRequest,
    GetCapabilitiesResponse, GetGatewayListenerRequirementsRequest,
    GetGatewayListenerRequirementsResponse, GetSandboxRequest, GetSandboxResponse,
    ListSandboxesRequest, ListSandboxesResponse, StartSandboxRequest, StartSandboxResponse,
    StopSandboxRequest, StopSandboxResponse, ValidateSandboxCreateRequest,
    ValidateSandboxCreateResponse, WatchSandboxesEvent, WatchSandboxesRequest,
    WatchSandboxesSandboxEvent,
};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

type Events = mpsc::Sender<Result<WatchSandboxesEvent, Status>>;

/// The driver. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Played(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    sandboxes: BTreeMap<String, DriverSandbox>,
    calls: Vec<String>,
    watchers: Vec<Events>,
    refuse: Option<Status>,
}

impl Played {
    /// Serves on a socket, which is replaced.
    ///
    /// # Errors
    ///
    /// When the socket cannot be listened on.
    pub fn serve(socket: &Path) -> Result<Self> {
        if socket.exists() {
            std::fs::remove_file(socket)?;
        }
        let listener = UnixListener::bind(socket)
            .with_context(|| format!("{} cannot be listened on", socket.display()))?;
        let played = Self::default();
        let service = ComputeDriverServer::new(played.clone());
        let served = Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener));
        // It ends with the program.
        tokio::spawn(async move { drop(served.await) });
        Ok(played)
    }

    /// What was asked for since the last time.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().calls)
    }

    /// A sandbox as it was asked for.
    #[must_use]
    pub fn sandbox(&self, id: &str) -> Option<DriverSandbox> {
        self.lock().sandboxes.get(id).cloned()
    }

    /// The next sandbox is refused so.
    pub fn refuse(&self, status: Status) {
        self.lock().refuse = Some(status);
    }

    /// Says something about a sandbox to whoever watches.
    pub async fn say(&self, id: &str, kind: &str, status: &str, reason: &str) {
        let condition = DriverCondition {
            r#type: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message: format!("played: {reason}"),
            ..DriverCondition::default()
        };
        let (sandbox, watchers) = {
            let mut state = self.lock();
            let Some(sandbox) = state.sandboxes.get_mut(id) else { return };
            let status = DriverSandboxStatus { conditions: vec![condition], ..Default::default() };
            sandbox.status = Some(status);
            (shown(sandbox), state.watchers.clone())
        };
        for watcher in watchers {
            // One that is gone needs not be told.
            drop(watcher.send(Ok(event(sandbox.clone()))).await);
        }
    }

    fn call(&self, what: &str, id: &str) -> Result<DriverSandbox, Status> {
        let mut state = self.lock();
        state.calls.push(format!("{what} {id}"));
        state.sandboxes.get(id).cloned().ok_or_else(|| Status::not_found("no such sandbox"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As a driver shows a sandbox: without its specification.
fn shown(sandbox: &DriverSandbox) -> DriverSandbox {
    DriverSandbox { spec: None, ..sandbox.clone() }
}

fn event(sandbox: DriverSandbox) -> WatchSandboxesEvent {
    let said = WatchSandboxesSandboxEvent { sandbox: Some(sandbox) };
    WatchSandboxesEvent { payload: Some(Payload::Sandbox(Box::new(said))) }
}

#[tonic::async_trait]
impl ComputeDriver for Played {
    type WatchSandboxesStream = ReceiverStream<Result<WatchSandboxesEvent, Status>>;

    async fn get_capabilities(
        &self,
        _: Request<GetCapabilitiesRequest>,
    ) -> Result<Response<GetCapabilitiesResponse>, Status> {
        Ok(Response::new(GetCapabilitiesResponse {
            driver_name: "openshell-conformance".into(),
            driver_version: env!("CARGO_PKG_VERSION").into(),
            default_image: "registry.example/conformance:1".into(),
            gateway_manages_lifecycle: true,
        }))
    }

    async fn get_gateway_listener_requirements(
        &self,
        _: Request<GetGatewayListenerRequirementsRequest>,
    ) -> Result<Response<GetGatewayListenerRequirementsResponse>, Status> {
        Ok(Response::new(GetGatewayListenerRequirementsResponse::default()))
    }

    async fn validate_sandbox_create(
        &self,
        _: Request<ValidateSandboxCreateRequest>,
    ) -> Result<Response<ValidateSandboxCreateResponse>, Status> {
        Ok(Response::new(ValidateSandboxCreateResponse {}))
    }

    async fn get_sandbox(
        &self,
        request: Request<GetSandboxRequest>,
    ) -> Result<Response<GetSandboxResponse>, Status> {
        let found = self.lock().sandboxes.get(&request.get_ref().sandbox_id).map(shown);
        let found = found.ok_or_else(|| Status::not_found("no such sandbox"))?;
        Ok(Response::new(GetSandboxResponse { sandbox: Some(found) }))
    }

    async fn list_sandboxes(
        &self,
        _: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        let sandboxes = self.lock().sandboxes.values().map(shown).collect();
        Ok(Response::new(ListSandboxesResponse { sandboxes }))
    }

    async fn create_sandbox(
        &self,
        request: Request<CreateSandboxRequest>,
    ) -> Result<Response<CreateSandboxResponse>, Status> {
        let sandbox = request.into_inner().sandbox;
        let sandbox = sandbox.ok_or_else(|| Status::invalid_argument("no sandbox"))?;
        let mut state = self.lock();
        state.calls.push(format!("create {}", sandbox.id));
        if let Some(status) = state.refuse.take() {
            return Err(status);
        }
        state.sandboxes.insert(sandbox.id.clone(), sandbox);
        Ok(Response::new(CreateSandboxResponse {}))
    }

    async fn stop_sandbox(
        &self,
        request: Request<StopSandboxRequest>,
    ) -> Result<Response<StopSandboxResponse>, Status> {
        self.call("stop", &request.get_ref().sandbox_id)?;
        Ok(Response::new(StopSandboxResponse {}))
    }

    async fn start_sandbox(
        &self,
        request: Request<StartSandboxRequest>,
    ) -> Result<Response<StartSandboxResponse>, Status> {
        self.call("start", &request.get_ref().sandbox_id)?;
        Ok(Response::new(StartSandboxResponse {}))
    }

    async fn delete_sandbox(
        &self,
        request: Request<DeleteSandboxRequest>,
    ) -> Result<Response<DeleteSandboxResponse>, Status> {
        let deleted = self.call("delete", &request.get_ref().sandbox_id).is_ok();
        self.lock().sandboxes.remove(&request.get_ref().sandbox_id);
        Ok(Response::new(DeleteSandboxResponse { deleted }))
    }

    async fn watch_sandboxes(
        &self,
        _: Request<WatchSandboxesRequest>,
    ) -> Result<Response<Self::WatchSandboxesStream>, Status> {
        let (events, stream) = mpsc::channel(1024);
        let mut state = self.lock();
        for sandbox in state.sandboxes.values() {
            // There is room: the channel is new, and checks make few sandboxes.
            events.try_send(Ok(event(shown(sandbox)))).ok();
        }
        state.watchers.push(events);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn ensure_workspace(
        &self,
        _: Request<EnsureWorkspaceRequest>,
    ) -> Result<Response<EnsureWorkspaceResponse>, Status> {
        Ok(Response::new(EnsureWorkspaceResponse {}))
    }

    async fn delete_workspace(
        &self,
        _: Request<DeleteWorkspaceRequest>,
    ) -> Result<Response<DeleteWorkspaceResponse>, Status> {
        Ok(Response::new(DeleteWorkspaceResponse {}))
    }
}
