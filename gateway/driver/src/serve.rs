//! The driver's life: listen, bring back what ran, serve until told to end, end the machines.
//!
//! Invariant: whatever ends the driver in order ends every machine first, and removes its socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::listen::{Incoming, Listen, Socket, SocketError};
use crate::sandbox::{Driver, DriverError};
use crate::service::Service;

/// How long requests that are under way may take when the driver ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// Requests of one connection at one time.
const STREAMS: u32 = 1024;

/// Why the driver does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The address cannot be listened on.
    #[error("cannot listen on the address: {0}")]
    Address(io::Error),
    /// The sandboxes of the state directory cannot be brought back.
    #[error("cannot restore sandboxes: {0}")]
    Restore(DriverError),
    /// The server failed.
    #[error("the server failed: {0}")]
    Server(tonic::transport::Error),
}

/// Serves until `end` is ready, or the server fails.
///
/// # Errors
///
/// When it cannot listen or restore, or the server fails. Machines are ended in any case.
pub async fn serve(
    driver: Arc<Driver>,
    listen: &Listen,
    end: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (close, closing) = watch::channel(false);
    let mut until = closing.clone();
    let closed = async move { drop(until.wait_for(|closing| *closing).await) };
    let server = Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(Service::new(Arc::clone(&driver), closing).into_server());
    // Whoever connects from here on waits until the sandboxes are back: a gateway must not miss any.
    let (socket, bound) = match listen {
        Listen::Unix { path, peer } => {
            let (socket, listener) = Socket::bind(path)?;
            (Some(socket), Bound::Unix(Incoming::new(listener, *peer)))
        }
        Listen::Tcp(address) => {
            let incoming = TcpIncoming::bind(*address).map_err(ServeError::Address)?;
            (None, Bound::Tcp(incoming))
        }
    };
    driver.restore().await.map_err(ServeError::Restore)?;
    let mut serving = match bound {
        Bound::Unix(incoming) => {
            tokio::spawn(server.serve_with_incoming_shutdown(incoming, closed))
        }
        Bound::Tcp(incoming) => tokio::spawn(server.serve_with_incoming_shutdown(incoming, closed)),
    };
    let warm = tokio::spawn({
        let driver = Arc::clone(&driver);
        async move { driver.warm().await }
    });
    tracing::info!(?listen, "serving");
    let served = tokio::select! {
        () = end => Ok(()),
        served = &mut serving => match served {
            Ok(served) => served.map_err(ServeError::Server),
            Err(error) => Err(ServeError::Address(io::Error::other(error))),
        },
    };
    warm.abort();
    close.send_replace(true);
    // Nobody connects any more while machines end.
    drop(socket);
    let requests = async {
        if !serving.is_finished() {
            drop(tokio::time::timeout(FAREWELL, serving).await);
        }
    };
    tokio::join!(requests, driver.close());
    served
}

/// A place that is listened on.
enum Bound {
    Unix(Incoming),
    Tcp(TcpIncoming),
}
