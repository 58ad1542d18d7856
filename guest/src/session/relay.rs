//! One relayed connection: from a stream of the gateway to a socket of the guest.
//!
//! Invariant: each half closes by itself, so that an end of file on one side is one on the other; what is in flight is
//! bounded by [`FRAMES`] of at most [`RELAY_CHUNK_BYTES`] and the windows of HTTP/2.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use openshell_proto::v1::relay_frame::Payload;
use openshell_proto::v1::relay_open::Target;
use openshell_proto::v1::{RelayFrame, RelayInit, TcpRelayTarget};
use openshell_proto::window::RELAY_CHUNK_BYTES;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::connect::Client;
use crate::ssh::forward::loopback;

const FRAMES: usize = 4;
const CONNECT: Duration = Duration::from_secs(5);
/// How long the gateway may take to answer a relay stream.
const ANSWER: Duration = Duration::from_secs(10);

/// A socket of the guest.
#[derive(Debug)]
pub(super) enum Local {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Connects what the gateway asks for.
pub(super) async fn connect(target: Option<&Target>, ssh: &Path) -> io::Result<Local> {
    let connecting = async {
        match target {
            // Without a target the gateway means SSH.
            None | Some(Target::Ssh(_)) => UnixStream::connect(ssh).await.map(Local::Unix),
            Some(Target::Tcp(target)) => tcp(target).await.map(Local::Tcp),
        }
    };
    tokio::time::timeout(CONNECT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn tcp(target: &TcpRelayTarget) -> io::Result<TcpStream> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned());
    let address = loopback(&target.host).ok_or_else(|| refused("only the loopback is relayed"))?;
    let port = u16::try_from(target.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| refused("no such port"))?;
    let stream = TcpStream::connect((address, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Carries bytes both ways until both ways have ended.
pub(super) async fn carry(client: Client, channel_id: String, local: Local) -> Result<(), Status> {
    match local {
        Local::Unix(stream) => {
            let (read, write) = stream.into_split();
            both_ways(client, channel_id, read, write).await
        }
        Local::Tcp(stream) => {
            let (read, write) = stream.into_split();
            both_ways(client, channel_id, read, write).await
        }
    }
}

async fn both_ways(
    mut client: Client,
    channel_id: String,
    read: impl AsyncRead + Unpin + Send,
    mut write: impl AsyncWrite + Unpin + Send,
) -> Result<(), Status> {
    let (frames, outgoing) = mpsc::channel(FRAMES);
    let init = RelayFrame { payload: Some(Payload::Init(RelayInit { channel_id })) };
    // There is room for it: the channel is new.
    drop(frames.try_send(init));
    let call = client.relay_stream(ReceiverStream::new(outgoing));
    let answered = tokio::time::timeout(ANSWER, call).await;
    let answer =
        answered.map_err(|_| Status::deadline_exceeded("no answer to the relay stream"))?;
    let mut incoming = answer?.into_inner();
    let down = async {
        let mut open = true;
        while let Some(frame) = incoming.message().await? {
            let Some(Payload::Data(bytes)) = frame.payload else {
                return Err(Status::invalid_argument("a frame without data"));
            };
            // Who reads no more may still write: the rest is dropped, and the other way goes on.
            open = open && write.write_all(&bytes).await.is_ok();
        }
        drop(write.shutdown().await);
        Ok(())
    };
    let (down, ()) = tokio::join!(down, up(read, frames));
    down
}

/// Sends what the guest writes, until its end or until nobody takes it.
async fn up(mut read: impl AsyncRead + Unpin, frames: mpsc::Sender<RelayFrame>) {
    let mut buffer = BytesMut::with_capacity(RELAY_CHUNK_BYTES);
    loop {
        buffer.reserve(RELAY_CHUNK_BYTES);
        let mut chunk = (&mut buffer).limit(RELAY_CHUNK_BYTES);
        let len = tokio::select! {
            read = read.read_buf(&mut chunk) => read.unwrap_or(0),
            () = frames.closed() => 0,
        };
        if len == 0 {
            return;
        }
        let frame = RelayFrame { payload: Some(Payload::Data(buffer.split().freeze())) };
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}
