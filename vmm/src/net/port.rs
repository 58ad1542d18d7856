//! A link with what a machine's owner wants of it besides frames: a capture, and limits of rate.
//!
//! Invariant: a frame that is over the limit waits where it is, in the guest's ring or in the stack; nothing is dropped here. A capture
//! that cannot be written ends, and frames go on. The net thread owns it.

use std::fs::File;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use openshell_usernet::limits::RateLimit;
use openshell_usernet::link::{HEAD_LEN, Segmentation};
use openshell_usernet::pcap::{Capture, Direction, Place};
use openshell_usernet::{Frame, Instant, Link, LinkFull, Offload, Offloads, Payload};

use crate::config::net_plan::CaptureFiles;

use super::link::{LinkEvent, PacketLink, Source};

/// Bytes of both files of a capture together.
const CAPTURE_BYTES: u64 = 64 << 20;
/// Bytes of each frame that a capture keeps.
const SNAP_BYTES: usize = 1600;
/// Records are written when there are so many bytes, and at the end of a turn.
const CAPTURE_BATCH_BYTES: usize = 64 << 10;

/// Frames on their way to two files that take turns.
#[derive(Debug)]
pub(super) struct Recorder {
    capture: Capture,
    files: [File; 2],
    /// Which one is written; before the first record, neither was.
    current: usize,
    pending: Vec<u8>,
}

impl Recorder {
    /// A recorder at `now`.
    #[must_use]
    pub(super) fn new(files: CaptureFiles, now: Instant) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_nanos = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
        let capture =
            Capture::new(CAPTURE_BYTES, SNAP_BYTES, wall_nanos.saturating_sub(now.as_nanos()));
        // The first record begins a file, which makes the other one current.
        Self { capture, files: [files.first, files.second], current: 1, pending: Vec::new() }
    }

    /// Records a frame of `len` bytes that begins with `parts`.
    fn record(
        &mut self,
        at: Instant,
        direction: Direction,
        len: usize,
        parts: &[&[u8]],
    ) -> io::Result<()> {
        let before = self.pending.len();
        if self.capture.record(at, direction, len, parts, &mut self.pending) == Place::New {
            let begun = self.pending.split_off(before);
            self.flush()?;
            self.pending = begun;
            self.current = 1 - self.current;
            self.files[self.current].set_len(0)?;
        }
        if self.pending.len() >= CAPTURE_BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.files[self.current].write_all(&self.pending);
        self.pending.clear();
        written
    }
}

/// A link with a capture and limits.
#[derive(Debug)]
pub(super) struct Port<'a, L: PacketLink> {
    link: &'a mut L,
    recorder: &'a mut Option<Recorder>,
    limits: &'a mut Limits,
    /// The moment of the turn.
    now: Instant,
    /// When a frame of either direction may pass that was over the limit.
    from_guest_at: Option<Instant>,
    to_guest_at: Option<Instant>,
    /// A frame that was taken from the link and is over the limit.
    held: Option<Held<L::Payload>>,
}

#[derive(Debug)]
struct Held<P> {
    head: Box<[u8]>,
    payload: P,
    offload: Offload,
}

/// What may pass, each way.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    from_guest: RateLimit,
    to_guest: RateLimit,
}

impl Limits {
    /// So many bytes and packets a second, each way.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>, packets_per_second: Option<u64>) -> Self {
        let limit = || RateLimit::new(bytes_per_second, packets_per_second);
        Self { from_guest: limit(), to_guest: limit() }
    }
}

impl<'a, L: PacketLink> Port<'a, L> {
    pub(super) fn new(
        link: &'a mut L,
        recorder: &'a mut Option<Recorder>,
        limits: &'a mut Limits,
        now: Instant,
    ) -> Self {
        Self { link, recorder, limits, now, from_guest_at: None, to_guest_at: None, held: None }
    }

    /// A turn begins at `now`: whether there may be a frame, and whether there may be room, that there was not before.
    pub(super) fn begin_turn(&mut self, now: Instant) -> (bool, bool) {
        self.now = now;
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        (due(&mut self.from_guest_at), due(&mut self.to_guest_at))
    }

    /// When a turn is to begin because of a limit.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.from_guest_at, self.to_guest_at].into_iter().flatten().min()
    }

    /// Drops what is held, before a reset is finished.
    pub(super) fn let_go(&mut self) {
        self.held = None;
    }

    fn note(&mut self, direction: Direction, len: usize, parts: &[&[u8]]) {
        if let Some(recorder) = &mut *self.recorder
            && recorder.record(self.now, direction, len, parts).is_err()
        {
            *self.recorder = None;
        }
    }
}

/// Packets that a frame stands for.
fn packets(offload: Offload, len: usize) -> u64 {
    match offload.segmentation {
        None => 1,
        Some(Segmentation::Tcp4(size) | Segmentation::Tcp6(size) | Segmentation::Udp(size)) => {
            len.div_ceil(usize::from(size.max(1))).max(1) as u64
        }
    }
}

impl<L: PacketLink> Link for Port<'_, L> {
    type Payload = L::Payload;

    fn offloads(&self) -> Offloads {
        self.link.offloads()
    }

    fn send(&mut self, offload: Offload, head: &[u8], body: &[&[u8]]) -> Result<(), LinkFull> {
        if self.limits.to_guest.is_limited() {
            let len = body.iter().fold(head.len(), |len, piece| len + piece.len());
            let admitted = self.limits.to_guest.admit(self.now, len as u64, packets(offload, len));
            if let Err(again) = admitted {
                self.to_guest_at = Some(again);
                return Err(LinkFull);
            }
        }
        self.link.send(offload, head, body)?;
        if self.recorder.is_some() {
            let parts: Vec<&[u8]> = [head].into_iter().chain(body.iter().copied()).collect();
            let len = parts.iter().map(|part| part.len()).sum();
            self.note(Direction::ToGuest, len, &parts);
        }
        Ok(())
    }
}

impl<L: PacketLink> PacketLink for Port<'_, L> {
    fn sources(&self) -> Vec<Source> {
        self.link.sources()
    }

    fn on_ready(&mut self, number: u8, writable: bool) -> io::Result<LinkEvent> {
        self.link.on_ready(number, writable)
    }

    fn next_frame<'a>(&mut self, head: &'a mut [u8; HEAD_LEN]) -> Option<Frame<'a, Self::Payload>> {
        if self.from_guest_at.is_some() {
            return None;
        }
        let frame = match self.held.take() {
            Some(Held { head: kept, payload, offload }) => {
                head[..kept.len()].copy_from_slice(&kept);
                Frame { head: &head[..kept.len()], payload, offload }
            }
            None => self.link.next_frame(head)?,
        };
        if self.limits.from_guest.is_limited() {
            let len = frame.payload.len();
            let admitted =
                self.limits.from_guest.admit(self.now, len as u64, packets(frame.offload, len));
            if let Err(again) = admitted {
                self.from_guest_at = Some(again);
                let Frame { head, payload, offload } = frame;
                self.held = Some(Held { head: head.into(), payload, offload });
                return None;
            }
        }
        if self.recorder.is_some() {
            let mut bytes = [0; SNAP_BYTES];
            let count = frame.payload.copy_to(&mut bytes);
            self.note(Direction::FromGuest, frame.payload.len(), &[&bytes[..count]]);
        }
        Some(frame)
    }

    fn end_turn(&mut self) -> bool {
        if let Some(recorder) = &mut *self.recorder
            && recorder.flush().is_err()
        {
            *self.recorder = None;
        }
        self.link.end_turn()
    }

    fn has_ended(&self) -> bool {
        self.link.has_ended()
    }

    fn finish_reset(&mut self) {
        self.link.finish_reset();
    }
}
