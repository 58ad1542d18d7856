//! What a client sends to a process or a connection, between the SSH session and whoever reads it.
//!
//! The session serves all channels in turn, window adjustments too: were it to wait for one reader, the others and this one's
//! output would wait with it, and two directions could wait for each other. So up to [`ROOM`] bytes are taken at once.
//! Invariant: no more than that is kept.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

/// Bytes that may wait.
const ROOM: u32 = 16 << 20;

/// The session's side.
#[derive(Debug)]
pub(super) struct Feed {
    sender: mpsc::UnboundedSender<Bytes>,
    room: Arc<Semaphore>,
}

/// The reader's side.
#[derive(Debug)]
pub(super) struct Fed {
    receiver: mpsc::UnboundedReceiver<Bytes>,
    room: Arc<Semaphore>,
    /// Bytes of the chunk that was handed out last.
    taken: usize,
}

pub(super) fn channel() -> (Feed, Fed) {
    let room = Arc::new(Semaphore::new(ROOM as usize));
    let (sender, receiver) = mpsc::unbounded_channel();
    (Feed { sender, room: Arc::clone(&room) }, Fed { receiver, room, taken: 0 })
}

impl Feed {
    /// Takes a chunk; waits while there is no room. Whether anybody still reads.
    pub(super) async fn push(&self, bytes: Bytes) -> bool {
        let len = u32::try_from(bytes.len()).unwrap_or(ROOM).min(ROOM);
        let room = tokio::select! {
            room = self.room.acquire_many(len) => room,
            () = self.sender.closed() => return false,
        };
        match room {
            Ok(room) => room.forget(),
            Err(_) => return false,
        }
        self.sender.send(bytes).is_ok()
    }
}

impl Fed {
    /// The next chunk; the one before counts as read. Nothing at the end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        self.room.add_permits(std::mem::take(&mut self.taken));
        let bytes = self.receiver.recv().await?;
        self.taken = bytes.len().min(ROOM as usize);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn chunks_arrive_in_order_and_end() {
        let (feed, mut fed) = channel();
        assert!(feed.push(Bytes::from_static(b"a")).await);
        assert!(feed.push(Bytes::from_static(b"b")).await);
        drop(feed);
        assert_eq!(fed.next().await.as_deref(), Some(&b"a"[..]));
        assert_eq!(fed.next().await.as_deref(), Some(&b"b"[..]));
        assert_eq!(fed.next().await, None);
    }

    #[tokio::test]
    async fn a_full_queue_waits_for_its_reader() {
        let (feed, mut fed) = channel();
        let large = Bytes::from(vec![0; ROOM as usize]);
        assert!(feed.push(large).await);
        let more = feed.push(Bytes::from_static(b"x"));
        tokio::pin!(more);
        let early = tokio::time::timeout(Duration::from_millis(20), &mut more).await;
        assert!(early.is_err(), "there was no room");
        let taken = fed.next().await;
        assert!(taken.is_some());
        let (pushed, next) = tokio::join!(more, fed.next());
        assert!(pushed && next.as_deref() == Some(b"x"));
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_noticed_also_while_waiting() {
        let (feed, fed) = channel();
        assert!(feed.push(Bytes::from(vec![0; ROOM as usize])).await);
        let more = feed.push(Bytes::from_static(b"x"));
        let (pushed, ()) = tokio::join!(more, async { drop(fed) });
        assert!(!pushed);
    }
}
