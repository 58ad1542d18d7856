//! A layer as a stream: fetched in parts by several connections, resumed where one breaks off, read in order.
//!
//! Invariant: a reader gives exactly as many bytes as the descriptor says, in order, or an error; what waits in memory
//! is bounded by the parts' permits. Parts are fetched on the registry's thread, and read on the caller's, which must
//! not be a task of a runtime. The bytes' digest is checked by whoever reads them, see [`super::Verified`].

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;

use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::error::{RegistryError, clean};
use super::hosts::authority;
use super::http::{Ask, Body};
use super::retry::Tries;
use super::session::Session;
use crate::image::Descriptor;

/// Most parts of one layer that are fetched at once.
pub(super) const PARTS_PER_LAYER: usize = 4;
/// Most parts of one image that are fetched at once. Each open layer always has one, also beyond this.
pub(super) const PARTS_PER_IMAGE: usize = 16;
/// How much of an image may wait in memory, in bytes, apart from the parts that are being read.
const BUFFERED: u64 = 64 << 20;
/// Largest and smallest part, in bytes.
const PART: std::ops::RangeInclusive<u64> = (4 << 20)..=(16 << 20);
/// What goes from the registry's thread to the reader at a time, in bytes.
const CHUNK: usize = 256 << 10;
/// How many chunks of a part without a permit may wait.
const CHUNKS_WITHOUT_PERMIT: usize = 4;
/// A try that got this far does not count as failed, in bytes.
const PROGRESS: u64 = 64 << 10;

/// The size of parts, so that all that are fetched at once fit into memory: fewer large layers have larger parts.
pub(super) fn part_bytes(layers: &[Descriptor]) -> u64 {
    let large = layers.iter().filter(|layer| layer.size > *PART.start()).count();
    let at_once = PARTS_PER_LAYER * large.clamp(1, PARTS_PER_IMAGE / PARTS_PER_LAYER);
    (BUFFERED / at_once as u64).clamp(*PART.start(), *PART.end())
}

/// What all readers of an image share.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub(super) handle: Handle,
    pub(super) permits: Arc<Semaphore>,
    pub(super) part_bytes: u64,
}

/// What a part's task tells its reader.
enum Message {
    /// The first part's server sends ranges, or everything.
    Ranges(bool),
    Bytes(Vec<u8>),
    Failed(RegistryError),
}

/// A part that is being fetched.
struct Part {
    messages: Receiver<Message>,
    /// How many bytes are still to come.
    left: u64,
    task: JoinHandle<()>,
    /// Given back once the part has been read.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a layer is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nobody knows yet whether the server sends ranges.
    Unknown,
    Ranges,
    Whole,
}

/// The bytes of a layer.
pub(super) struct BlobReader {
    pool: Pool,
    places: Arc<[Arc<Session>]>,
    descriptor: Descriptor,
    mode: Mode,
    parts: VecDeque<Part>,
    /// Where the part after those in `parts` begins.
    next: u64,
    chunk: io::Cursor<Vec<u8>>,
    failed: bool,
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

impl BlobReader {
    /// Begins to fetch a layer.
    pub(super) fn open(pool: Pool, places: Arc<[Arc<Session>]>, descriptor: &Descriptor) -> Self {
        let whole = descriptor.size <= pool.part_bytes;
        let mut reader = Self {
            pool,
            places,
            descriptor: descriptor.clone(),
            mode: if whole { Mode::Whole } else { Mode::Unknown },
            parts: VecDeque::new(),
            next: 0,
            chunk: io::Cursor::default(),
            failed: false,
        };
        reader.start_parts();
        reader
    }

    /// Starts as many parts as there may be. One that is read next starts without a permit if it must.
    fn start_parts(&mut self) {
        while self.next < self.descriptor.size && self.parts.len() < PARTS_PER_LAYER {
            let first = self.parts.is_empty();
            if !first && self.mode != Mode::Ranges {
                return;
            }
            let permit = self.pool.permits.clone().try_acquire_owned().ok();
            if permit.is_none() && !first {
                return;
            }
            let part = self.start(permit);
            self.next += part.left;
            self.parts.push_back(part);
        }
    }

    fn start(&self, permit: Option<OwnedSemaphorePermit>) -> Part {
        let len = (self.descriptor.size - self.next).min(self.pool.part_bytes);
        let chunks = match permit {
            Some(_) => usize::try_from(len.div_ceil(CHUNK as u64)).unwrap_or(usize::MAX) + 1,
            None => CHUNKS_WITHOUT_PERMIT,
        };
        let (sender, messages) = channel(chunks.min(Semaphore::MAX_PERMITS));
        let fetch = Fetch {
            places: self.places.clone(),
            descriptor: self.descriptor.clone(),
            at: self.next,
            end: self.next + len,
            undecided: self.mode == Mode::Unknown && self.next == 0,
            no_ranges: false,
            sender,
        };
        let task = self.pool.handle.spawn(fetch.run());
        Part { messages, left: len, task, _permit: permit }
    }

    /// Waits for the next message of the part that is read.
    fn wait(&mut self) -> Result<(), RegistryError> {
        self.start_parts();
        let Some(part) = self.parts.front_mut() else { return Err(RegistryError::Ended) };
        match part.messages.blocking_recv() {
            Some(Message::Bytes(bytes)) => {
                let len = bytes.len() as u64;
                part.left = part.left.checked_sub(len).ok_or(RegistryError::Ended)?;
                self.chunk = io::Cursor::new(bytes);
            }
            Some(Message::Ranges(true)) => self.mode = Mode::Ranges,
            Some(Message::Ranges(false)) => {
                self.mode = Mode::Whole;
                part.left += self.descriptor.size - self.next;
                self.next = self.descriptor.size;
            }
            Some(Message::Failed(error)) => return Err(error),
            None => return Err(RegistryError::Ended),
        }
        if part.left == 0 {
            self.parts.pop_front();
        }
        Ok(())
    }

    fn is_at_end(&self) -> bool {
        self.parts.is_empty() && self.next == self.descriptor.size
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let taken = self.chunk.read(buffer)?;
            if taken > 0 || buffer.is_empty() || self.is_at_end() {
                return Ok(taken);
            }
            if self.failed {
                return Err(io::Error::other(RegistryError::Ended));
            }
            if let Err(error) = self.wait() {
                self.failed = true;
                self.parts.clear();
                return Err(io::Error::other(error));
            }
        }
    }
}

/// One part, on its way.
struct Fetch {
    places: Arc<[Arc<Session>]>,
    descriptor: Descriptor,
    /// The next byte to ask for, and the one after the last.
    at: u64,
    end: u64,
    /// Whether the reader waits to hear if there are ranges.
    undecided: bool,
    /// Whether a server has refused ranges.
    no_ranges: bool,
    sender: Sender<Message>,
}

/// The reader is gone, and nobody wants the rest.
struct Gone;

impl Fetch {
    async fn run(mut self) {
        let places = self.places.clone();
        let mut failure = RegistryError::Ended;
        for place in places.iter().filter(|place| place.is_up()) {
            match self.from(place).await {
                Ok(()) => return,
                Err(error) => failure = error,
            }
            if matches!(failure, RegistryError::Transport { .. }) {
                place.set_down();
            }
        }
        // A reader that is gone needs no error.
        drop(self.sender.send(Message::Failed(failure)).await);
    }

    /// Fetches the rest from one place, in as many tries as it takes while each gets further.
    async fn from(&mut self, place: &Session) -> Result<(), RegistryError> {
        let patience = place.http().patience;
        let mut tries = Tries::new(patience);
        loop {
            let before = self.at;
            let error = match self.attempt(place).await {
                Ok(Ok(()) | Err(Gone)) => return Ok(()),
                Err(error) => error,
            };
            if matches!(error, RegistryError::Status { status: 416, .. }) {
                self.no_ranges = true;
            }
            if self.at - before >= PROGRESS {
                tries.progressed();
            }
            tokio::time::sleep(tries.after(error)?).await;
        }
    }

    async fn attempt(&mut self, place: &Session) -> Result<Result<(), Gone>, RegistryError> {
        let size = self.descriptor.size;
        let url = place.url("blobs", &self.descriptor.digest.to_string());
        let all = self.at == 0 && self.end == size;
        let range = (!all && !self.no_ranges).then_some((self.at, self.end.saturating_sub(1)));
        let response = place.send(&Ask { range, ..Ask::get(url) }).await?;
        let ranged = response.status() == StatusCode::PARTIAL_CONTENT;
        let skip = if ranged { self.check_range(&response)? } else { self.at };
        if !ranged
            && let Some(found) = response.content_length()
            && found != size
        {
            return Err(self.length(authority(response.url()), found));
        }
        if self.undecided {
            self.undecided = false;
            if !ranged {
                self.end = size;
            }
            if self.sender.send(Message::Ranges(ranged)).await.is_err() {
                return Ok(Err(Gone));
            }
        }
        self.body(Body::new(response, place.http().patience), skip).await
    }

    /// Whether a partial answer is the part that was asked for. What comes back is how much of it to pass over.
    fn check_range(&self, response: &Response) -> Result<u64, RegistryError> {
        let header = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let header = header.unwrap_or_default();
        let parsed = content_range(header);
        let fits = parsed.is_some_and(|(first, last, total)| {
            first == self.at
                && last < self.end
                && total.is_none_or(|total| total == self.descriptor.size)
        });
        if fits {
            return Ok(0);
        }
        let host = authority(response.url());
        match parsed {
            Some((_, _, Some(total))) if total != self.descriptor.size => {
                Err(self.length(host, total))
            }
            _ => Err(RegistryError::Range { host, at: self.at, range: clean(header) }),
        }
    }

    /// Passes bytes on until the part is complete.
    async fn body(
        &mut self,
        mut body: Body,
        mut skip: u64,
    ) -> Result<Result<(), Gone>, RegistryError> {
        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            let next = body.next().await;
            let bytes = match &next {
                Ok(Some(bytes)) => bytes.as_ref(),
                _ => &[],
            };
            let skipped = bytes.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            skip -= skipped as u64;
            let mut rest = &bytes[skipped..];
            let missing = self.end - self.at - chunk.len() as u64;
            if rest.len() as u64 > missing {
                if self.end == self.descriptor.size {
                    // More than the blob has: its digest cannot be right.
                    let found = self.end + rest.len() as u64 - missing;
                    return Err(self.length(body.host().to_owned(), found));
                }
                rest = &rest[..usize::try_from(missing).unwrap_or(rest.len())];
            }
            chunk.extend_from_slice(rest);
            let complete = self.at + chunk.len() as u64 == self.end;
            let ended = !matches!(next, Ok(Some(_)));
            // At the end of the blob one more look tells whether the host has more than it should, and only then the
            // reader gets the end.
            let last = ended || (complete && self.end != self.descriptor.size);
            if (chunk.len() >= CHUNK && !complete) || last {
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
                if self.pass(full).await.is_err() {
                    return Ok(Err(Gone));
                }
            }
            if last && complete {
                return Ok(Ok(()));
            }
            match next {
                Ok(Some(_)) => {}
                Ok(None) => {
                    let (host, at) = (body.host().to_owned(), self.at);
                    return Err(RegistryError::Cut {
                        host,
                        digest: self.descriptor.digest.clone(),
                        at,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn pass(&mut self, bytes: Vec<u8>) -> Result<(), Gone> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.at += bytes.len() as u64;
        self.sender.send(Message::Bytes(bytes)).await.map_err(|_| Gone)
    }

    fn length(&self, host: String, found: u64) -> RegistryError {
        let (digest, expected) = (self.descriptor.digest.clone(), self.descriptor.size);
        RegistryError::Length { host, digest, expected, found }
    }
}

/// First byte, last byte and total of `bytes 0-99/1000`; the total may be unknown.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last).then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn a_range_is_read_as_it_is_written() {
        for (text, expected) in [
            ("bytes 0-99/1000", Some((0, 99, Some(1000)))),
            ("bytes 5-5/*", Some((5, 5, None))),
            ("bytes 9-5/10", None),
            ("bytes */1000", None),
            ("items 0-1/2", None),
            ("bytes 0-99999999999999999999/1", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), expected, "{text}");
        }
    }

    #[test]
    fn fewer_large_layers_have_larger_parts() {
        let layer =
            |size| Descriptor { media_type: String::new(), digest: Digest::sha256(b""), size };
        let (small, large) = (layer(1 << 20), layer(1 << 30));
        for (layers, mib) in [
            (vec![], 16),
            (vec![small.clone(); 50], 16),
            (vec![large.clone(), small], 16),
            (vec![large.clone(); 2], 8),
            (vec![large.clone(); 4], 4),
            (vec![large; 100], 4),
        ] {
            assert_eq!(part_bytes(&layers), mib << 20, "{}", layers.len());
        }
    }
}
