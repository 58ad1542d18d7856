//! The compute driver, as the runtime sees it, and the one at the other end of a gRPC channel.
//!
//! Invariant: each call ends within its deadline, whatever the driver does.

use std::time::Duration;

use openshell_proto::compute::v1::compute_driver_client::ComputeDriverClient;
use openshell_proto::compute::v1::{
    CreateSandboxRequest, DeleteSandboxRequest, DriverSandbox, GetCapabilitiesRequest,
    GetCapabilitiesResponse, GetSandboxRequest, ListSandboxesRequest, StartSandboxRequest,
    StopSandboxRequest, ValidateSandboxCreateRequest, WatchSandboxesEvent, WatchSandboxesRequest,
};
use tokio_stream::Stream;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// What a driver says, as it says it.
pub type Events = std::pin::Pin<Box<dyn Stream<Item = Result<WatchSandboxesEvent, Status>> + Send>>;

/// How long a driver may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take to start, stop or delete a machine.
const WORK: Duration = Duration::from_secs(60);

/// The calls of a driver. Its codes mean what they mean on the wire.
#[tonic::async_trait]
pub trait Driver: Send + Sync + 'static {
    /// What it can do.
    async fn capabilities(&self) -> Result<GetCapabilitiesResponse, Status>;
    /// Judges a sandbox without making it.
    async fn validate(&self, sandbox: DriverSandbox) -> Result<(), Status>;
    /// Accepts a sandbox.
    async fn create(&self, sandbox: DriverSandbox) -> Result<(), Status>;
    /// One sandbox; `None`: there is none of this id.
    async fn find(&self, id: &str, name: &str) -> Result<Option<DriverSandbox>, Status>;
    /// All sandboxes.
    async fn list(&self) -> Result<Vec<DriverSandbox>, Status>;
    /// Stops one, keeping its disks. Idempotent.
    async fn stop(&self, id: &str, name: &str) -> Result<(), Status>;
    /// Starts one. Idempotent.
    async fn start(&self, id: &str, name: &str) -> Result<(), Status>;
    /// Deletes one; says whether there was one.
    async fn delete(&self, id: &str, name: &str) -> Result<bool, Status>;
    /// All sandboxes as they are, then what happens.
    async fn watch(&self) -> Result<Events, Status>;
}

/// A driver behind a channel.
#[derive(Debug, Clone)]
pub struct RemoteDriver {
    client: ComputeDriverClient<Channel>,
}

impl RemoteDriver {
    /// A driver at the other end of this channel.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self { client: ComputeDriverClient::new(channel) }
    }
}

fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

#[tonic::async_trait]
impl Driver for RemoteDriver {
    async fn capabilities(&self) -> Result<GetCapabilitiesResponse, Status> {
        let request = within(ANSWER, GetCapabilitiesRequest {});
        Ok(self.client.clone().get_capabilities(request).await?.into_inner())
    }

    async fn validate(&self, sandbox: DriverSandbox) -> Result<(), Status> {
        let message = ValidateSandboxCreateRequest { sandbox: Some(sandbox) };
        self.client.clone().validate_sandbox_create(within(ANSWER, message)).await.map(drop)
    }

    async fn create(&self, sandbox: DriverSandbox) -> Result<(), Status> {
        let message = CreateSandboxRequest { sandbox: Some(sandbox) };
        self.client.clone().create_sandbox(within(WORK, message)).await.map(drop)
    }

    async fn find(&self, id: &str, name: &str) -> Result<Option<DriverSandbox>, Status> {
        let message = GetSandboxRequest { sandbox_id: id.into(), sandbox_name: name.into() };
        match self.client.clone().get_sandbox(within(ANSWER, message)).await {
            Ok(response) => Ok(response.into_inner().sandbox),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    async fn list(&self) -> Result<Vec<DriverSandbox>, Status> {
        let request = within(ANSWER, ListSandboxesRequest {});
        Ok(self.client.clone().list_sandboxes(request).await?.into_inner().sandboxes)
    }

    async fn stop(&self, id: &str, name: &str) -> Result<(), Status> {
        let message = StopSandboxRequest { sandbox_id: id.into(), sandbox_name: name.into() };
        self.client.clone().stop_sandbox(within(WORK, message)).await.map(drop)
    }

    async fn start(&self, id: &str, name: &str) -> Result<(), Status> {
        let message = StartSandboxRequest { sandbox_id: id.into(), sandbox_name: name.into() };
        self.client.clone().start_sandbox(within(WORK, message)).await.map(drop)
    }

    async fn delete(&self, id: &str, name: &str) -> Result<bool, Status> {
        let message = DeleteSandboxRequest { sandbox_id: id.into(), sandbox_name: name.into() };
        let response = self.client.clone().delete_sandbox(within(WORK, message)).await?;
        Ok(response.into_inner().deleted)
    }

    async fn watch(&self) -> Result<Events, Status> {
        let stream = self.client.clone().watch_sandboxes(WatchSandboxesRequest {}).await?;
        Ok(Box::pin(stream.into_inner()))
    }
}
