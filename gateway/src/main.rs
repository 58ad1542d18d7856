//! `openshell-gateway`: the server.
//!
//! It opens the database, finds its driver, and serves until it is told to end. See the library for what it does.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use openshell_gateway::auth::Users;
use openshell_gateway::auth::token::Keys;
use openshell_gateway::compute::driver::{Driver, RemoteDriver};
use openshell_gateway::compute::{Compute, Settings};
use openshell_gateway::config::{Config, Flags, JwtFiles, TlsFiles, read};
use openshell_gateway::serve::{About, Gateway, health};
use openshell_gateway::session::{Limits, Registry};
use openshell_gateway::store::Store;
use openshell_proto::compute::v1::GetCapabilitiesResponse;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::{Certificate, Endpoint, Identity, ServerTlsConfig};

/// How long a driver has until it answers at start.
const DRIVER: Duration = Duration::from_secs(30);
const DRIVER_RETRY: Duration = Duration::from_millis(250);
/// How long calls have to end at shutdown.
const GRACE: Duration = Duration::from_secs(5);
const REAP: Duration = Duration::from_secs(30);

/// The gateway of `OpenShell` sandboxes
#[derive(Debug, Parser)]
#[command(name = "openshell-gateway", version)]
struct Command {
    #[command(flatten)]
    flags: Flags,
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let config = Config::load(Command::parse().flags)?;
    run(config).await
}

async fn run(config: Config) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let store = Store::open(&config.db_url).await?;
    let (driver, capabilities) = reach(&config).await?;
    let leaves_it = capabilities.gateway_manages_lifecycle;
    let compute = Compute::new(
        store.clone(),
        Arc::new(driver),
        Registry::new(Limits::default()),
        Arc::default(),
        Settings::default(),
    );
    compute.distrust_persisted().await?;

    let listener = TcpListener::bind(config.bind)
        .await
        .with_context(|| format!("{} cannot be listened on", config.bind))?;
    let gateway = Gateway::new(
        compute.clone(),
        keys(config.jwt.as_ref())?,
        Users { allow_unauthenticated: config.open_to_users, allow_certificate: config.mtls_users },
        about(&config, &listener, capabilities)?,
    );
    if let Some(address) = config.health {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("{address} cannot be listened on"))?;
        tokio::spawn(health::serve(gateway.clone(), listener));
    }
    let tls = config.tls.as_ref().map(tls).transpose()?;
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = Arc::clone(&stop);
    let mut server =
        tokio::spawn(gateway.serve(listener, tls, async move { stopped.notified().await }));
    tracing::info!(address = %config.bind, "serving");

    compute.start_persisted_sandboxes(leaves_it).await?;
    let this = compute.clone();
    let following = tokio::spawn(async move { this.follow_driver().await });
    let this = compute.clone();
    let reconciling = tokio::spawn(async move { this.reconcile_driver().await });
    let this = compute.clone();
    let reaping = tokio::spawn(async move {
        loop {
            tokio::time::sleep(REAP).await;
            this.sessions().reap_expired_relays();
        }
    });

    let ended = tokio::select! {
        ended = &mut server => Some(ended),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    tracing::info!("ending");
    // Stored: the server hears of it even if it is not waiting yet.
    stop.notify_one();
    let swept = compute.shutdown(leaves_it).await;
    let ended = match ended {
        Some(ended) => Some(ended),
        // Sessions last for ever: those that are left are cut off.
        None => tokio::time::timeout(GRACE, &mut server).await.ok(),
    };
    server.abort();
    for task in [following, reconciling, reaping] {
        task.abort();
    }
    store.close().await;
    swept?;
    if let Some(ended) = ended {
        ended.context("server")??;
    }
    Ok(())
}

/// Connects to the driver and asks what it can do.
async fn reach(config: &Config) -> Result<(RemoteDriver, GetCapabilitiesResponse)> {
    let path = config.driver_socket.to_str().context("driver's socket has no name in UTF-8")?;
    let endpoint = Endpoint::from_shared(format!("unix:{path}"))?;
    let deadline = tokio::time::Instant::now() + DRIVER;
    loop {
        let last = match endpoint.connect().await {
            Ok(channel) => {
                let driver = RemoteDriver::new(channel);
                match driver.capabilities().await {
                    Ok(capabilities) => return Ok((driver, capabilities)),
                    Err(status) => status.to_string(),
                }
            }
            Err(error) => error.to_string(),
        };
        if tokio::time::Instant::now() + DRIVER_RETRY > deadline {
            bail!("compute driver at {path} does not answer: {last}");
        }
        tokio::time::sleep(DRIVER_RETRY).await;
    }
}

fn keys(files: Option<&JwtFiles>) -> Result<Keys> {
    let Some(files) = files else {
        tracing::warn!("no [openshell.gateway.gateway_jwt]: tokens end with this process");
        return Ok(Keys::generate("local", None)?);
    };
    let lifetime = (files.ttl_secs != 0).then(|| Duration::from_secs(files.ttl_secs));
    let (pem, kid) = (read(&files.signing_key_path)?, read(&files.kid_path)?);
    Ok(Keys::from_pem(&pem, &kid, &files.gateway_id, lifetime)?)
}

fn tls(files: &TlsFiles) -> Result<ServerTlsConfig> {
    let identity = Identity::from_pem(read(&files.cert_path)?, read(&files.key_path)?);
    let tls = ServerTlsConfig::new().identity(identity);
    Ok(match &files.client_ca_path {
        Some(path) => tls.client_ca_root(Certificate::from_pem(read(path)?)),
        None => tls,
    })
}

fn about(
    config: &Config,
    listener: &TcpListener,
    capabilities: GetCapabilitiesResponse,
) -> Result<About> {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let address = listener.local_addr()?;
    let image = &config.image;
    Ok(About {
        driver: config.driver.clone(),
        driver_name: capabilities.driver_name,
        driver_version: capabilities.driver_version,
        default_image: if image.is_empty() { capabilities.default_image } else { image.clone() },
        address: (scheme.to_owned(), address.ip().to_string(), address.port()),
    })
}
