//! The way to a gateway.
//!
//! Invariant: a token is sent over TLS, or to this host's loopback only.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use openshell_gateway::config::read;
use openshell_proto::v1::open_shell_client::OpenShellClient;
use openshell_proto::window;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

const CONNECT: Duration = Duration::from_secs(10);
const PING: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(20);
const MESSAGE_MAX: usize = 64 << 20;

pub(super) type Client = OpenShellClient<InterceptedService<Channel, Bearer>>;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct Connection {
    /// The gateway
    #[arg(
        long,
        global = true,
        env = "OPENSHELL_GATEWAY_ENDPOINT",
        default_value = "http://127.0.0.1:17670",
        value_name = "URL"
    )]
    endpoint: String,
    /// Directory of ca.crt, tls.crt and tls.key, or of `generate-certs`
    #[arg(long, global = true, env = "OPENSHELL_TLS_DIR", value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// The authority of the gateway's certificate
    #[arg(long, global = true, env = "OPENSHELL_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The user's certificate
    #[arg(long, global = true, env = "OPENSHELL_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, global = true, env = "OPENSHELL_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// The name in the gateway's certificate, where it is not the endpoint's
    #[arg(long, global = true, env = "OPENSHELL_GATEWAY_TLS_SERVER_NAME", value_name = "NAME")]
    tls_server_name: Option<String>,
    /// A file with a token to show
    #[arg(long, global = true, env = "OPENSHELL_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Puts the token into calls, if there is one.
#[derive(Debug, Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Connection {
    pub(super) async fn connect(&self) -> Result<Client> {
        let url = &self.endpoint;
        let mut endpoint = Endpoint::from_shared(url.clone())
            .with_context(|| format!("{url} is no endpoint"))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING_ANSWER)
            .initial_stream_window_size(Some(window::STREAM_BYTES))
            .initial_connection_window_size(Some(window::CONNECTION_BYTES));
        if url.starts_with("https:") {
            endpoint = endpoint.tls_config(self.tls()?).context("TLS files cannot be used")?;
        }
        let token = self.token(endpoint.uri().host().unwrap_or_default())?;
        let channel = endpoint.connect().await.with_context(|| format!("no gateway at {url}"))?;
        let client = OpenShellClient::with_interceptor(channel, Bearer(token));
        Ok(client.max_decoding_message_size(MESSAGE_MAX))
    }

    fn tls(&self) -> Result<ClientTlsConfig> {
        let found = |given: &Option<PathBuf>, names: [&str; 2]| {
            given.clone().or_else(|| {
                let dir = self.tls_dir.as_ref()?;
                names.iter().map(|name| dir.join(name)).find(|path| path.is_file())
            })
        };
        let ca = found(&self.tls_ca, ["ca.crt", "ca.crt"]);
        let ca = ca.context("--tls-ca or --tls-dir is needed for https")?;
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&ca)?));
        let certificate = found(&self.tls_cert, ["tls.crt", "client/tls.crt"]);
        match (certificate, found(&self.tls_key, ["tls.key", "client/tls.key"])) {
            (Some(certificate), Some(key)) => {
                tls = tls.identity(Identity::from_pem(read(&certificate)?, read(&key)?));
            }
            (None, None) => {}
            _ => bail!("a certificate and its key go together: --tls-cert and --tls-key"),
        }
        Ok(match &self.tls_server_name {
            Some(name) => tls.domain_name(name),
            None => tls,
        })
    }

    fn token(&self, host: &str) -> Result<Option<MetadataValue<Ascii>>> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let local = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        ensure!(
            local || self.endpoint.starts_with("https:"),
            "a token is not sent to {host} in plain text"
        );
        let text = format!("Bearer {}", read(path)?.trim());
        let mut token: MetadataValue<Ascii> =
            text.parse().with_context(|| format!("{} holds no token", path.display()))?;
        token.set_sensitive(true);
        Ok(Some(token))
    }
}
