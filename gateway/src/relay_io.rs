//! Byte streams over the frames of a bidirectional RPC.
//!
//! Two tasks per stream, one each way. An end of either direction is passed on and leaves the other open.
//!
//! Invariant: no more than a few frames are held for a peer that does not read.

use prost::bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use openshell_proto::v1::{RelayFrame, TcpForwardFrame, relay_frame, tcp_forward_frame};
use openshell_proto::window;

/// Bytes of one frame that is sent.
const CHUNK: usize = window::RELAY_CHUNK_BYTES;
/// Frames on their way to a peer.
const FRAMES: usize = 4;

/// A frame that carries bytes.
pub trait Frame: Send + 'static {
    /// The frame of some bytes.
    fn wrap(data: Bytes) -> Self;

    /// The bytes; `None`: it carries none, and has no place in a stream that has begun.
    fn unwrap(self) -> Option<Bytes>;
}

impl Frame for RelayFrame {
    fn wrap(data: Bytes) -> Self {
        Self { payload: Some(relay_frame::Payload::Data(data)) }
    }

    fn unwrap(self) -> Option<Bytes> {
        match self.payload {
            Some(relay_frame::Payload::Data(data)) => Some(data),
            _ => None,
        }
    }
}

impl Frame for TcpForwardFrame {
    fn wrap(data: Bytes) -> Self {
        Self { payload: Some(tcp_forward_frame::Payload::Data(data)) }
    }

    fn unwrap(self) -> Option<Bytes> {
        match self.payload {
            Some(tcp_forward_frame::Payload::Data(data)) => Some(data),
            _ => None,
        }
    }
}

/// Connects a stream of bytes with the frames that come in; returns those that go out. `held` is dropped when both directions have ended.
pub fn connect<F: Frame, H: Send + 'static>(
    stream: DuplexStream,
    inbound: impl Stream<Item = Result<F, Status>> + Send + 'static,
    held: H,
) -> ReceiverStream<Result<F, Status>> {
    let (mut from, mut to) = tokio::io::split(stream);
    let (frames, outbound) = mpsc::channel(FRAMES);
    // Weak: an end of the outward half is passed on though the inward one goes on.
    let answer = frames.downgrade();
    let inward = tokio::spawn(async move {
        let mut inbound = std::pin::pin!(inbound);
        while let Some(Ok(frame)) = inbound.next().await {
            let Some(data) = frame.unwrap() else {
                let told = Err(Status::invalid_argument("frame carries no data"));
                if let Some(answer) = answer.upgrade() {
                    // A peer that is gone needs not be told.
                    drop(answer.send(told).await);
                }
                break;
            };
            if to.write_all(&data).await.is_err() {
                break;
            }
        }
        // An error means that the other side is gone already.
        drop(to.shutdown().await);
    });
    tokio::spawn(async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = tokio::select! {
                read = from.read_buf(&mut chunk) => read,
                () = frames.closed() => break,
            };
            if !matches!(read, Ok(1..)) || frames.send(Ok(F::wrap(chunk.into()))).await.is_err() {
                break;
            }
        }
        let gone = frames.is_closed();
        drop(frames);
        if gone {
            // Nobody reads the answer: nobody waits for what would still be written.
            inward.abort();
        }
        drop(inward.await);
        drop(held);
    });
    ReceiverStream::new(outbound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(bytes: &[u8]) -> Result<RelayFrame, Status> {
        Ok(RelayFrame::wrap(Bytes::copy_from_slice(bytes)))
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_each_end_is_passed_on() {
        let (mut near, far) = tokio::io::duplex(64);
        let inbound = tokio_stream::iter([data(b"to "), data(b"guest")]);
        let mut outbound = connect(far, inbound, ());
        let mut heard = Vec::new();
        near.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"to guest");
        near.write_all(b"answer").await.unwrap();
        assert_eq!(
            outbound.next().await.unwrap().unwrap(),
            RelayFrame::wrap(Bytes::from_static(b"answer"))
        );
        drop(near);
        assert!(outbound.next().await.is_none());
    }

    #[tokio::test]
    async fn a_second_init_is_refused() {
        let (_near, far) = tokio::io::duplex(64);
        let inbound = tokio_stream::iter([Ok(RelayFrame::default())]);
        let mut outbound = connect(far, inbound, ());
        let refused = outbound.next().await.unwrap().unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_both_ways() {
        let (mut near, far) = tokio::io::duplex(64);
        let outbound = connect::<RelayFrame, ()>(far, tokio_stream::pending(), ());
        drop(outbound);
        let mut heard = Vec::new();
        near.read_to_end(&mut heard).await.unwrap();
        assert!(heard.is_empty());
    }
}
