//! The SSH server behind the gateway's relays: exec, shell, the main process, connections to the guest's own ports.
//!
//! It listens on a Unix socket that only root may open, and serves connections of this very process: relays. Whoever comes
//! through one was authenticated by the gateway, so that SSH's own authentication is `none`. Invariant: at most
//! [`CHANNELS_MAX`] channels per connection, each a task that ends with it.

mod channel;
pub mod forward;
mod input;
pub mod simple;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, run_stream};
use russh::{Channel, ChannelOpenFailure, MethodKind, MethodSet};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::main_process::MainProcess;
use crate::process::Sandbox;

const CHANNELS_MAX: usize = 64;
const CONNECTIONS_MAX: usize = 128;
/// Bytes that a client may leave unread before its session waits.
const UNREAD: usize = 32 << 20;
const CHUNK: usize = 64 << 10;
/// How long a failed accept waits: a machine out of descriptors is given time.
const PAUSE: Duration = Duration::from_millis(100);

/// What every connection serves.
#[derive(Debug)]
pub struct Context {
    /// How processes are started.
    pub sandbox: Sandbox,
    /// The main process.
    pub main: Arc<MainProcess>,
}

/// Listens at `path`, whose directory is made private.
///
/// # Errors
/// When directory or socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
    }
    // What an earlier supervisor left.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves connections for ever.
///
/// # Errors
/// When there is no key to be had.
pub async fn serve(listener: UnixListener, context: Arc<Context>) -> io::Result<()> {
    let config = Arc::new(config()?);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        if !is_ours(&stream) {
            continue;
        }
        let (config, context) = (Arc::clone(&config), Arc::clone(&context));
        tokio::spawn(async move {
            let channels = Arc::new(Semaphore::new(CHANNELS_MAX));
            let connection = Connection { context, channels };
            // How a connection ends is its client's business.
            if let Ok(session) = run_stream(config, never_full(stream), connection).await {
                drop(session.await);
            }
            drop(place);
        });
    }
}

/// The stream with room for what the client does not read at once.
///
/// A session reads nothing while it waits to write. So does the client's, if it is of the same library: two of them that both
/// send much would wait for each other for ever. What is written here is bounded by the windows that the client grants.
fn never_full(stream: UnixStream) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
    let (read, mut write) = stream.into_split();
    let (ours, queued) = tokio::io::duplex(UNREAD);
    tokio::spawn(async move {
        let mut queued = BufReader::with_capacity(CHUNK, queued);
        // The session sees the end of a client that is gone when it reads.
        drop(tokio::io::copy_buf(&mut queued, &mut write).await);
        drop(write.shutdown().await);
    });
    tokio::io::join(read, ours)
}

fn is_ours(stream: &UnixStream) -> bool {
    let own = i32::try_from(std::process::id()).ok();
    stream.peer_cred().is_ok_and(|peer| peer.pid() == own)
}

/// A key of its own for each start: whoever is connected to is known by the relay, not by its key.
fn config() -> io::Result<Config> {
    let mut seed = [0; 32];
    getrandom(&mut seed[..], GetRandomFlags::empty())?;
    Ok(Config {
        methods: MethodSet::from(&[MethodKind::None][..]),
        keys: vec![PrivateKey::from(Ed25519Keypair::from_seed(&seed))],
        auth_rejection_time: Duration::ZERO,
        inactivity_timeout: None,
        ..Config::default()
    })
}

struct Connection {
    context: Arc<Context>,
    channels: Arc<Semaphore>,
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(place) = Arc::clone(&self.channels).try_acquire_owned() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        reply.accept().await;
        let (context, handle) = (Arc::clone(&self.context), session.handle());
        tokio::spawn(async move {
            channel::serve(channel, handle, &context).await;
            drop(place);
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(place) = Arc::clone(&self.channels).try_acquire_owned() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let host = host.to_owned();
        tokio::spawn(async move {
            match forward::connect(&host, port).await {
                Ok(stream) => {
                    reply.accept().await;
                    forward::serve(channel, stream).await;
                }
                Err(failure) => reply.reject(failure).await,
            }
            drop(place);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
