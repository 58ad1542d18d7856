//! The gRPC services of the gateway: `openshell.v1.OpenShell` and `openshell.inference.v1.Inference`.
//!
//! [`users`] is what users ask for, [`supervisors`] what supervisors do, [`streams`] what lasts, [`settings`] and
//! [`policy`] what a sandbox may do, [`merge`] changes of that. Each call judges its caller first.
//!
//! Invariant: no call of a supervisor touches a sandbox other than the one that its token names.

mod merge;
mod policy;
mod rpc;
mod settings;
mod ssh_sessions;
mod streams;
mod supervisors;
mod users;

pub mod health;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openshell_proto::inference::v1::inference_server::InferenceServer;
use openshell_proto::v1::Sandbox;
use openshell_proto::v1::open_shell_server::OpenShellServer;
use openshell_proto::window;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Status};

use crate::auth::token::Keys;
use crate::auth::{Principal, Users};
use crate::compute::Compute;
use crate::logs::Logs;
use crate::store::StoreError;
use ssh_sessions::SshSessions;

/// How long exec and forward wait for a session.
const SESSION: Duration = Duration::from_secs(15);
/// Workspace of those who name none.
const WORKSPACE: &str = "default";
/// Longest message that is read.
const MESSAGE_MAX: usize = 4 * 1024 * 1024;

/// Calls of one connection at once: a supervisor has its session and all its relays on one.
const STREAMS: u32 = 1024;

/// A stream that a call answers with.
pub(crate) type Reply<T> = ReceiverStream<Result<T, Status>>;

/// What the gateway says about itself.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// Name of the driver in the configuration.
    pub driver: String,
    /// How the driver names itself.
    pub driver_name: String,
    /// Its version.
    pub driver_version: String,
    /// Image of sandboxes that ask for none.
    pub default_image: String,
    /// Where users reach the gateway: scheme, host, port.
    pub address: (String, String, u16),
}

/// All that the services need. Clones are the same gateway.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    compute: Compute,
    keys: Keys,
    users: Users,
    about: About,
    logs: Logs,
    ssh: SshSessions,
}

impl Gateway {
    /// A gateway over this runtime.
    #[must_use]
    pub fn new(compute: Compute, keys: Keys, users: Users, about: About) -> Self {
        let (logs, ssh) = (Logs::default(), SshSessions::default());
        Self(Arc::new(Inner { compute, keys, users, about, logs, ssh }))
    }

    /// The runtime.
    #[must_use]
    pub fn compute(&self) -> &Compute {
        &self.0.compute
    }

    /// Serves until `shutdown`; then lets calls end that do so by themselves. Sessions do not: who calls this bounds the wait.
    ///
    /// # Errors
    ///
    /// Those of the TLS configuration and of the transport.
    pub async fn serve(
        self,
        listener: TcpListener,
        tls: Option<ServerTlsConfig>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .initial_stream_window_size(Some(window::STREAM_BYTES))
            .initial_connection_window_size(Some(window::CONNECTION_BYTES))
            .max_concurrent_streams(Some(STREAMS));
        if let Some(tls) = tls {
            server = server.tls_config(tls)?;
        }
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        server
            .add_service(OpenShellServer::new(self.clone()).max_decoding_message_size(MESSAGE_MAX))
            .add_service(InferenceServer::new(self))
            .serve_with_incoming_shutdown(incoming, shutdown)
            .await
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<Principal, Status> {
        Principal::of(request, &self.0.keys, &self.0.users)
    }

    /// The row of a sandbox by its id.
    async fn row(&self, id: &str) -> Result<Sandbox, Status> {
        self.0.compute.require_persisted_sandbox(id).await
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("about", &self.0.about).finish_non_exhaustive()
    }
}

fn workspace(named: &str) -> &str {
    if named.is_empty() { WORKSPACE } else { named }
}

/// What a caller learns of an error that is none of its business.
fn internal(error: &StoreError) -> Status {
    tracing::error!(%error, "store");
    Status::internal("the gateway's store failed")
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
