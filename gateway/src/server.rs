//! The server's life: open the database, listen, get a driver, serve, end.
//!
//! Invariant: the address is bound before a driver is started, so that a second gateway touches nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use openshell_gateway::auth::Users;
use openshell_gateway::auth::certificate::Authority;
use openshell_gateway::auth::keyset::KeySet;
use openshell_gateway::auth::token::Keys;
use openshell_gateway::compute::driver::RemoteDriver;
use openshell_gateway::compute::{Compute, Settings};
use openshell_gateway::config::{self, Config, TlsFiles, read};
use openshell_gateway::managed::{Running, reach};
use openshell_gateway::serve::{About, Gateway, health};
use openshell_gateway::session::{Limits, Registry};
use openshell_gateway::store::Store;
use openshell_proto::compute::v1::GetCapabilitiesResponse;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// How long a driver that runs by itself has until it answers at start.
const DRIVER: Duration = Duration::from_secs(30);
const DRIVER_RETRY: Duration = Duration::from_millis(250);
/// How long calls have to end at shutdown.
const GRACE: Duration = Duration::from_secs(5);
const REAP: Duration = Duration::from_secs(30);
/// The gateway's name in tokens, where the operator has given none.
const GATEWAY_ID: &str = "openshell";

/// Serves until it is told to end.
pub(crate) async fn run(config: Config) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let listener = TcpListener::bind(config.bind)
        .await
        .with_context(|| format!("{} cannot be listened on", config.bind))?;
    let authority = config.tls.as_ref().map(authority).transpose()?.flatten();
    let tls = config.tls.as_ref().map(tls).transpose()?;
    let keys = keys(&config)?;
    let store = Store::open(&config.db_url).await?;
    let port = listener.local_addr()?.port();
    let (running, driver, capabilities) = drive(&config, port, authority.as_ref()).await?;
    let leaves_it = capabilities.gateway_manages_lifecycle;
    let compute = Compute::new(
        store.clone(),
        Arc::new(driver),
        Registry::new(Limits::default()),
        Arc::default(),
        Settings::default(),
    );
    compute.distrust_persisted().await?;

    let users = Users {
        allow_unauthenticated: config.open_to_users,
        allow_certificate: config.mtls_users,
        authority,
    };
    let gateway =
        Gateway::new(compute.clone(), keys, users, about(&config, &listener, capabilities)?);
    if let Some(address) = config.health {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("{address} cannot be listened on"))?;
        tokio::spawn(health::serve(gateway.clone(), listener));
    }
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = Arc::clone(&stop);
    let mut server =
        tokio::spawn(gateway.serve(listener, tls, async move { stopped.notified().await }));
    tracing::info!(address = %SocketAddr::new(config.bind.ip(), port), "serving");

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
    if let Some(running) = running {
        running.stop().await;
    }
    store.close().await;
    swept?;
    if let Some(ended) = ended {
        ended.context("server")??;
    }
    Ok(())
}

/// The driver, and the process if it is ours.
async fn drive(
    config: &Config,
    port: u16,
    authority: Option<&Authority>,
) -> Result<(Option<Running>, RemoteDriver, GetCapabilitiesResponse)> {
    match &config.compute {
        config::Compute::Attached(socket) => {
            let (driver, capabilities) = reach(socket, DRIVER, DRIVER_RETRY).await?;
            Ok((None, driver, capabilities))
        }
        config::Compute::Managed { driver, guest_certificate } => {
            if let (Some(authority), Some(path)) = (authority, guest_certificate) {
                let users = authority.knows(&read(path)?);
                ensure!(
                    !users.with_context(|| path.display().to_string())?,
                    "guest_tls_cert {} is a user's certificate: every guest would be a user. \
                     `openshell-gateway generate-certs` makes guest/tls.crt",
                    path.display()
                );
            }
            let mut driver = driver.clone();
            if driver.endpoint.is_empty() {
                let scheme = if config.tls.is_some() { "https" } else { "http" };
                driver.endpoint = format!("{scheme}://127.0.0.1:{port}");
            }
            let (running, driver, capabilities) = Running::start(driver).await?;
            Ok((Some(running), driver, capabilities))
        }
    }
}

/// The key of tokens. One that is found or made in a directory stays: tokens outlive the process.
fn keys(config: &Config) -> Result<Keys> {
    if let Some(files) = &config.jwt {
        let lifetime = (files.ttl_secs != 0).then(|| Duration::from_secs(files.ttl_secs));
        let (pem, kid) = (read(&files.signing_key_path)?, read(&files.kid_path)?);
        return Ok(Keys::from_pem(&pem, &kid, &files.gateway_id, lifetime)?);
    }
    let Some(dir) = config.key_dir() else {
        tracing::warn!(
            "neither a file for the key of tokens nor one for rows: both end with this process"
        );
        return Ok(Keys::generate(GATEWAY_ID, None)?);
    };
    let set = KeySet::keep(&dir)?;
    tracing::info!(dir = %dir.display(), "key of tokens");
    Ok(Keys::from_pem(&read(&set.signing)?, &read(&set.kid)?, GATEWAY_ID, None)?)
}

/// Who signs users' certificates.
fn authority(files: &TlsFiles) -> Result<Option<Authority>> {
    let Some(path) = &files.client_ca_path else { return Ok(None) };
    let authority =
        Authority::from_pem(&read(path)?).with_context(|| path.display().to_string())?;
    if let Some(guests) = &files.guest_ca_path {
        let same = authority.knows(&read(guests)?).with_context(|| guests.display().to_string())?;
        ensure!(
            !same,
            "guest_ca_path {} is of the users' authority too: every guest would be a user",
            guests.display()
        );
    }
    Ok(Some(authority))
}

fn tls(files: &TlsFiles) -> Result<ServerTlsConfig> {
    let identity = Identity::from_pem(read(&files.cert_path)?, read(&files.key_path)?);
    let tls = ServerTlsConfig::new().identity(identity);
    let Some(users) = &files.client_ca_path else { return Ok(tls) };
    let mut roots = read(users)?;
    if let Some(guests) = &files.guest_ca_path {
        roots.push('\n');
        roots.push_str(&read(guests)?);
    }
    Ok(tls.client_ca_root(Certificate::from_pem(roots)))
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
