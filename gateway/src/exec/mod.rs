//! Commands inside a sandbox, over a relay to the SSH server of its supervisor.
//!
//! The relay is the authentication: the supervisor that holds the session opened it. One task per command; it ends with the command, its
//! time limit, or the caller.
//!
//! Invariant: the last event is the exit status, and it comes after all output.

mod command;

use std::sync::Arc;
use std::time::Duration;

use openshell_proto::v1::{
    ExecSandboxEvent, ExecSandboxExit, ExecSandboxInput, ExecSandboxRequest, ExecSandboxStderr,
    ExecSandboxStdout, exec_sandbox_event, exec_sandbox_input,
};
use russh::client::{self, Handle, Msg};
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelMsg};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

pub(crate) use command::is_name;
pub use command::line;

const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long the SSH server has for its half of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Events that the caller has not read.
const EVENTS: usize = 16;
/// What the SSH server may send before it is read, in bytes: the supervisor holds no more than that of a caller that does not read.
const WINDOW: u32 = 256 << 10;
/// Packets that are read and not yet taken.
const PACKETS: usize = 8;
/// Extended data of this kind is standard error (RFC 4254).
const STDERR: u32 = 1;

/// What the caller of a command gets.
pub type Events = ReceiverStream<Result<ExecSandboxEvent, Status>>;

/// Runs a command over a relay. `input` is what follows the request; where it ends, so does the command's standard input.
///
/// # Errors
///
/// UNAVAILABLE where the SSH server does not answer; INVALID_ARGUMENT for a command that cannot be said.
pub async fn run(
    relay: DuplexStream,
    request: ExecSandboxRequest,
    input: impl Stream<Item = Result<ExecSandboxInput, Status>> + Send + 'static,
) -> Result<Events, Status> {
    let line = line(&request)?;
    let opened = tokio::time::timeout(HANDSHAKE, open(relay, &request, line)).await;
    let (handle, channel) = opened
        .map_err(|_| Status::deadline_exceeded("SSH server of the sandbox does not answer"))?
        .map_err(|error| lost(&error))?;
    let (events, outbound) = mpsc::channel(EVENTS);
    tokio::spawn(async move {
        let limit = Duration::from_secs(u64::from(request.timeout_seconds));
        let work = follow(channel, request.stdin, input, &events);
        let over = async {
            if limit.is_zero() {
                return work.await;
            }
            let late = || Err(Status::deadline_exceeded("command took longer than it may"));
            tokio::time::timeout(limit, work).await.unwrap_or_else(|_| late())
        };
        let ended = tokio::select! {
            ended = over => ended,
            () = events.closed() => Ok(()),
        };
        if let Err(status) = ended {
            // A caller that is gone needs not be told.
            drop(events.send(Err(status)).await);
        }
        // It may be closed already.
        drop(handle.disconnect(russh::Disconnect::ByApplication, "", "en").await);
    });
    Ok(ReceiverStream::new(outbound))
}

async fn open(
    relay: DuplexStream,
    request: &ExecSandboxRequest,
    line: String,
) -> Result<(Handle<Client>, Channel<Msg>), russh::Error> {
    let config = client::Config {
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: 4,
        window_size: WINDOW,
        channel_buffer_size: PACKETS,
        ..client::Config::default()
    };
    let mut handle = client::connect_stream(Arc::new(config), relay, Client).await?;
    if !handle.authenticate_none("sandbox").await?.success() {
        return Err(russh::Error::NotAuthenticated);
    }
    let channel = handle.channel_open_session().await?;
    if request.tty {
        let or = |size: u32, usual: u32| if size == 0 { usual } else { size };
        let (cols, rows) = (or(request.cols, 80), or(request.rows, 24));
        channel.request_pty(false, "xterm-256color", cols, rows, 0, 0, &[]).await?;
    }
    channel.exec(true, line).await?;
    Ok((handle, channel))
}

/// Carries input and output until the command has ended.
async fn follow(
    channel: Channel<Msg>,
    stdin: Vec<u8>,
    input: impl Stream<Item = Result<ExecSandboxInput, Status>> + Send + 'static,
    events: &mpsc::Sender<Result<ExecSandboxEvent, Status>>,
) -> Result<(), Status> {
    let (mut output, write) = channel.split();
    // Beside the output: a command that reads nothing may still write.
    let mut feeding = tokio::task::JoinSet::new();
    feeding.spawn(async move {
        let mut input = std::pin::pin!(input);
        if !stdin.is_empty() && write.data(&stdin[..]).await.is_err() {
            return;
        }
        while let Some(Ok(message)) = input.next().await {
            let sent = match message.payload {
                Some(exec_sandbox_input::Payload::Stdin(data)) => write.data(&data[..]).await,
                Some(exec_sandbox_input::Payload::Resize(size)) => {
                    write.window_change(size.cols, size.rows, 0, 0).await
                }
                _ => break,
            };
            if sent.is_err() {
                return;
            }
        }
        // An error means that the command has ended.
        drop(write.eof().await);
        // The half that writes closes the channel when it goes: it stays until the command has ended.
        std::future::pending::<()>().await;
    });
    let mut code = None;
    while let Some(message) = output.wait().await {
        let payload = match message {
            ChannelMsg::Data { data } => {
                exec_sandbox_event::Payload::Stdout(ExecSandboxStdout { data })
            }
            ChannelMsg::ExtendedData { data, ext: STDERR } => {
                exec_sandbox_event::Payload::Stderr(ExecSandboxStderr { data })
            }
            ChannelMsg::ExitStatus { exit_status } => {
                code = Some(i32::try_from(exit_status).unwrap_or(i32::MAX));
                continue;
            }
            ChannelMsg::ExitSignal { signal_name, .. } => {
                code = Some(128 + command::number(&signal_name));
                continue;
            }
            ChannelMsg::Failure => {
                return Err(Status::unavailable("sandbox refused to start the command"));
            }
            ChannelMsg::Close => break,
            _ => continue,
        };
        if events.send(Ok(ExecSandboxEvent { payload: Some(payload) })).await.is_err() {
            return Ok(());
        }
    }
    let Some(exit_code) = code else {
        return Err(Status::unavailable("connection ended before the command did"));
    };
    let payload = exec_sandbox_event::Payload::Exit(ExecSandboxExit { exit_code });
    // A caller that is gone needs not be told.
    drop(events.send(Ok(ExecSandboxEvent { payload: Some(payload) })).await);
    Ok(())
}

fn lost(error: &russh::Error) -> Status {
    tracing::debug!(%error, "SSH over a relay");
    Status::unavailable("SSH server of the sandbox cannot be reached")
}

struct Client;

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _key: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        // The relay leads to one supervisor, which has shown its token: its key, made anew at each start, says nothing more.
        Ok(true)
    }
}
