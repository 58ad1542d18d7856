//! The way to the gateway: plaintext HTTP/2 or TLS with our own certificate, and how long to wait between tries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use openshell_proto::v1::open_shell_client::OpenShellClient;
use openshell_proto::window;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::settings::Settings;
use crate::token::Token;

const CONNECT: Duration = Duration::from_secs(10);
const PING: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(20);
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A client of the gateway that carries the token.
pub type Client = OpenShellClient<InterceptedService<Channel, Token>>;

/// Why the gateway cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The endpoint is no URL.
    #[error("{endpoint:?} is no endpoint")]
    Endpoint {
        /// What it is.
        endpoint: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// A TLS file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// The TLS files do not make a client.
    #[error("the TLS files cannot be used")]
    Tls(#[source] tonic::transport::Error),
}

/// Where the gateway is, ready to be connected to.
///
/// # Errors
/// When it cannot even be tried.
pub fn endpoint(settings: &Settings) -> Result<Endpoint, ConnectError> {
    let text = &settings.endpoint;
    let mut endpoint = Endpoint::from_shared(text.clone())
        .map_err(|source| ConnectError::Endpoint { endpoint: text.clone(), source })?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(Some(window::STREAM_BYTES))
        .initial_connection_window_size(Some(window::CONNECTION_BYTES));
    if let Some(files) = &settings.tls {
        let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(&files.ca)?))
            .identity(identity);
        if let Some(name) = &files.server_name {
            tls = tls.domain_name(name);
        }
        endpoint = endpoint.tls_config(tls).map_err(ConnectError::Tls)?;
    }
    Ok(endpoint)
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|source| ConnectError::Read { path: path.to_owned(), source })
}

/// A client over `channel`.
#[must_use]
pub fn client(channel: Channel, token: &Token) -> Client {
    OpenShellClient::with_interceptor(channel, token.clone())
}

/// Waits between tries: doubling, up to half a minute.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::starting_at(BACKOFF_FIRST)
    }
}

impl Backoff {
    /// One whose first wait is this long.
    #[must_use]
    pub fn starting_at(first: Duration) -> Self {
        Self { first, next: first }
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(BACKOFF_MAX);
        now
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// An error with its causes, in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    let mut line = error.to_string();
    for cause in causes {
        let text = cause.to_string();
        // Libraries like to repeat the cause in their own text.
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let mut backoff = Backoff::default();
        let seconds: Vec<u64> = (0..7).map(|_| backoff.wait().as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        backoff.reset();
        assert_eq!(backoff.wait(), BACKOFF_FIRST);
    }
}
