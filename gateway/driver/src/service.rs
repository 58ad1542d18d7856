//! `openshell.compute.v1.ComputeDriver`.
//!
//! Invariant: each RPC has one code for each kind of failure; nothing it returns holds a secret. Runs on the runtime's threads
//! and never blocks them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use openshell_proto::compute::v1 as pb;
use pb::compute_driver_server::{ComputeDriver, ComputeDriverServer};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::sandbox::{Driver, DriverError, Watcher};
use crate::{validate, wire};

/// The name by which a gateway knows the driver.
pub const DRIVER_NAME: &str = "openshell-driver-vm";
/// Watchers at one time.
const WATCHERS: usize = 64;
/// Changes on their way to one watcher.
const WATCH_BUFFER: usize = 32;
/// The largest message that is taken, in bytes.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The service.
#[derive(Debug, Clone)]
pub struct Service {
    driver: Arc<Driver>,
    closing: watch::Receiver<bool>,
    watchers: Arc<AtomicUsize>,
}

impl Service {
    /// The service of a driver. Streams end when `closing` is true.
    pub fn new(driver: Arc<Driver>, closing: watch::Receiver<bool>) -> Self {
        Self { driver, closing, watchers: Arc::default() }
    }

    /// The service for a server.
    pub fn into_server(self) -> ComputeDriverServer<Self> {
        // Lists of many sandboxes are larger than what is taken.
        ComputeDriverServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(usize::MAX)
    }
}

impl From<DriverError> for Status {
    fn from(error: DriverError) -> Self {
        let text = error.to_string();
        match error {
            DriverError::Exists(_) => Self::already_exists(text),
            DriverError::Unknown(_) => Self::not_found(text),
            DriverError::Precondition(_) => Self::failed_precondition(text),
            DriverError::Invalid(_) => Self::invalid_argument(text),
            DriverError::Internal(_) => {
                tracing::error!(error = text, "a request failed on the host");
                Self::internal(text)
            }
        }
    }
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ComputeDriver for Service {
    async fn get_capabilities(
        &self,
        _: Request<pb::GetCapabilitiesRequest>,
    ) -> Reply<pb::GetCapabilitiesResponse> {
        Ok(Response::new(pb::GetCapabilitiesResponse {
            driver_name: DRIVER_NAME.to_owned(),
            driver_version: env!("CARGO_PKG_VERSION").to_owned(),
            default_image: self.driver.settings().default_image.clone().unwrap_or_default(),
            gateway_manages_lifecycle: true,
        }))
    }

    async fn get_gateway_listener_requirements(
        &self,
        _: Request<pb::GetGatewayListenerRequirementsRequest>,
    ) -> Reply<pb::GetGatewayListenerRequirementsResponse> {
        // Guests reach the gateway through the loopback of this host.
        Ok(Response::new(pb::GetGatewayListenerRequirementsResponse::default()))
    }

    async fn validate_sandbox_create(
        &self,
        request: Request<pb::ValidateSandboxCreateRequest>,
    ) -> Reply<pb::ValidateSandboxCreateResponse> {
        let sandbox = request.into_inner().sandbox;
        let request = validate::request(sandbox.as_ref(), self.driver.settings())?;
        self.driver.check(request).await?;
        Ok(Response::new(pb::ValidateSandboxCreateResponse::default()))
    }

    async fn get_sandbox(
        &self,
        request: Request<pb::GetSandboxRequest>,
    ) -> Reply<pb::GetSandboxResponse> {
        let request = request.into_inner();
        let found = self.driver.find(&request.sandbox_id, &request.sandbox_name)?;
        let sandbox = Some(wire::sandbox(&found));
        Ok(Response::new(pb::GetSandboxResponse { sandbox }))
    }

    async fn list_sandboxes(
        &self,
        _: Request<pb::ListSandboxesRequest>,
    ) -> Reply<pb::ListSandboxesResponse> {
        let all = self.driver.list();
        let sandboxes = all.iter().map(|snapshot| wire::sandbox(snapshot)).collect();
        Ok(Response::new(pb::ListSandboxesResponse { sandboxes }))
    }

    async fn create_sandbox(
        &self,
        request: Request<pb::CreateSandboxRequest>,
    ) -> Reply<pb::CreateSandboxResponse> {
        let sandbox = request.into_inner().sandbox;
        let request = validate::request(sandbox.as_ref(), self.driver.settings())?;
        let id = request.identity.id.clone();
        let encoded = sandbox.unwrap_or_default().encode_to_vec();
        self.driver.create(request, encoded).await?;
        tracing::info!(%id, "sandbox accepted");
        Ok(Response::new(pb::CreateSandboxResponse::default()))
    }

    async fn stop_sandbox(
        &self,
        request: Request<pb::StopSandboxRequest>,
    ) -> Reply<pb::StopSandboxResponse> {
        let request = request.into_inner();
        self.driver.stop(&request.sandbox_id, &request.sandbox_name).await?;
        tracing::info!(id = request.sandbox_id, "sandbox stopped");
        Ok(Response::new(pb::StopSandboxResponse::default()))
    }

    async fn start_sandbox(
        &self,
        request: Request<pb::StartSandboxRequest>,
    ) -> Reply<pb::StartSandboxResponse> {
        let request = request.into_inner();
        self.driver.start(&request.sandbox_id, &request.sandbox_name).await?;
        tracing::info!(id = request.sandbox_id, "sandbox started");
        Ok(Response::new(pb::StartSandboxResponse::default()))
    }

    async fn delete_sandbox(
        &self,
        request: Request<pb::DeleteSandboxRequest>,
    ) -> Reply<pb::DeleteSandboxResponse> {
        let request = request.into_inner();
        let deleted = self.driver.delete(&request.sandbox_id, &request.sandbox_name).await?;
        tracing::info!(id = request.sandbox_id, deleted, "sandbox deleted");
        Ok(Response::new(pb::DeleteSandboxResponse { deleted }))
    }

    type WatchSandboxesStream = Changes;

    async fn watch_sandboxes(
        &self,
        _: Request<pb::WatchSandboxesRequest>,
    ) -> Reply<Self::WatchSandboxesStream> {
        let place = Place::take(&self.watchers)
            .ok_or_else(|| Status::resource_exhausted("too many watchers"))?;
        let (send, receive) = mpsc::channel(WATCH_BUFFER);
        let forward = forward(self.driver.watch(), send, self.closing.clone(), place);
        tokio::spawn(forward);
        Ok(Response::new(Changes(receive)))
    }

    async fn ensure_workspace(
        &self,
        _: Request<pb::EnsureWorkspaceRequest>,
    ) -> Reply<pb::EnsureWorkspaceResponse> {
        Ok(Response::new(pb::EnsureWorkspaceResponse::default()))
    }

    async fn delete_workspace(
        &self,
        _: Request<pb::DeleteWorkspaceRequest>,
    ) -> Reply<pb::DeleteWorkspaceResponse> {
        Ok(Response::new(pb::DeleteWorkspaceResponse::default()))
    }
}

/// A place among the watchers.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(watchers: &Arc<AtomicUsize>) -> Option<Self> {
        let take = |taken: usize| (taken < WATCHERS).then_some(taken + 1);
        watchers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok()?;
        Some(Self(Arc::clone(watchers)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Passes changes on until the reader or the driver goes.
async fn forward(
    mut watcher: Watcher,
    send: mpsc::Sender<Result<pb::WatchSandboxesEvent, Status>>,
    mut closing: watch::Receiver<bool>,
    _place: Place,
) {
    let pass = async {
        while let Some(change) = watcher.next().await {
            // A reader that is slow makes the watcher look at everything again, not the driver wait.
            if send.send(Ok(wire::change(&change))).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = pass => {}
        () = send.closed() => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
}

/// The stream of a watcher.
#[derive(Debug)]
pub struct Changes(mpsc::Receiver<Result<pb::WatchSandboxesEvent, Status>>);

impl Stream for Changes {
    type Item = Result<pb::WatchSandboxesEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
