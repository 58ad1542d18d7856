//! A Unix stream as a link: each frame behind its length, four bytes with the highest first, as QEMU's `-netdev stream` has it.
//!
//! Invariant: what is kept of either direction is bounded; a length that no frame has ends the link, because nothing behind it can be
//! trusted. The net thread owns it.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use openshell_usernet::link::HEAD_LEN;
use openshell_usernet::{Frame, Link, LinkFull, Offload, Offloads};

use super::buffer::{FrameBytes, Pool};
use super::link::{LinkEvent, PacketLink, Source};

const LENGTH_BYTES: usize = 4;
/// Headers of Ethernet with a tag, and the largest packet.
const MAX_FRAME_BYTES: usize = 18 + 65_535;
/// Bytes that wait to be sent before there is no room.
const SEND_BYTES: usize = 256 << 10;
const RECEIVE_BYTES: usize = 256 << 10;

/// A Unix stream.
#[derive(Debug)]
pub struct StreamLink {
    stream: UnixStream,
    received: Box<[u8]>,
    /// Of `received`: what was not taken yet.
    from: usize,
    to: usize,
    sending: Vec<u8>,
    sent: usize,
    /// A frame found no room.
    starved: bool,
    ended: bool,
    pool: Pool,
}

impl StreamLink {
    /// The link over `stream`.
    ///
    /// # Errors
    /// What the host said.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            received: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            from: 0,
            to: 0,
            sending: Vec::new(),
            sent: 0,
            starved: false,
            ended: false,
            pool: Pool::default(),
        })
    }

    /// Sends what waits, as far as the stream takes it.
    fn flush(&mut self) {
        while self.sent < self.sending.len() && !self.ended {
            match self.stream.write(&self.sending[self.sent..]) {
                Ok(0) => self.ended = true,
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.ended = true,
            }
        }
        self.sending.clear();
        self.sent = 0;
    }

    /// Reads more behind what there is. False: there is nothing more now.
    fn fill(&mut self) -> bool {
        self.received.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        loop {
            match self.stream.read(&mut self.received[self.to..]) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    self.to += count;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.ended = true,
            }
            return false;
        }
    }

    /// The bytes of the next frame, when all of it is here.
    fn frame(&mut self) -> Option<&[u8]> {
        let (length, rest) =
            self.received[self.from..self.to].split_first_chunk::<LENGTH_BYTES>()?;
        let len = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if len > MAX_FRAME_BYTES {
            self.ended = true;
            return None;
        }
        let frame = rest.get(..len)?;
        self.from += LENGTH_BYTES + len;
        Some(frame)
    }
}

impl Link for StreamLink {
    type Payload = FrameBytes;

    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn send(&mut self, _offload: Offload, head: &[u8], body: &[&[u8]]) -> Result<(), LinkFull> {
        let len = body.iter().fold(head.len(), |len, piece| len + piece.len());
        let Ok(length) = u32::try_from(len) else { return Ok(()) };
        if self.sending.len() - self.sent + LENGTH_BYTES + len > SEND_BYTES {
            self.flush();
            if !self.sending.is_empty() && !self.ended {
                self.starved = true;
                return Err(LinkFull);
            }
        }
        self.sending.extend_from_slice(&length.to_be_bytes());
        self.sending.extend_from_slice(head);
        for piece in body {
            self.sending.extend_from_slice(piece);
        }
        Ok(())
    }
}

impl PacketLink for StreamLink {
    fn sources(&self) -> Vec<Source> {
        vec![Source { number: 0, fd: self.stream.as_raw_fd() }]
    }

    fn on_ready(&mut self, _number: u8, writable: bool) -> io::Result<LinkEvent> {
        if writable {
            self.flush();
        }
        Ok(if self.ended && self.from == self.to {
            LinkEvent::Ended
        } else if writable && self.sending.is_empty() && std::mem::take(&mut self.starved) {
            LinkEvent::Room
        } else {
            LinkEvent::Frames
        })
    }

    fn next_frame<'a>(&mut self, head: &'a mut [u8; HEAD_LEN]) -> Option<Frame<'a, FrameBytes>> {
        let pool = self.pool.clone();
        loop {
            if let Some(bytes) = self.frame() {
                let head_len = bytes.len().min(HEAD_LEN);
                head[..head_len].copy_from_slice(&bytes[..head_len]);
                let payload = FrameBytes::copy_of(&pool, bytes);
                let offload = Offload::default();
                return Some(Frame { head: &head[..head_len], payload, offload });
            }
            if self.ended || !self.fill() {
                return None;
            }
        }
    }

    fn end_turn(&mut self) -> bool {
        self.flush();
        false
    }

    fn has_ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (StreamLink, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        (StreamLink::new(near).unwrap(), far)
    }

    fn next(link: &mut StreamLink) -> Option<Vec<u8>> {
        let mut head = [0; HEAD_LEN];
        let frame = link.next_frame(&mut head)?;
        Some(frame.payload.pieces().concat())
    }

    #[test]
    fn frames_pass_whole_in_both_directions() {
        let (mut link, mut far) = pair();
        link.send(Offload::default(), b"head", &[b"bo", b"dy"]).unwrap();
        link.send(Offload::default(), b"x", &[]).unwrap();
        assert!(!link.end_turn());
        let mut bytes = [0; 64];
        let count = far.read(&mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"\0\0\0\x08headbody\0\0\0\x01x");
        far.write_all(b"\0\0\0\x03abc\0\0\0\x05de").unwrap();
        assert_eq!(next(&mut link).unwrap(), b"abc");
        assert_eq!(next(&mut link), None);
        far.write_all(b"fgh").unwrap();
        assert_eq!(next(&mut link).unwrap(), b"defgh");
        assert_eq!(link.on_ready(0, false).unwrap(), LinkEvent::Frames);
        drop(far);
        assert_eq!(next(&mut link), None);
        assert_eq!(link.on_ready(0, false).unwrap(), LinkEvent::Ended);
    }

    #[test]
    fn a_reader_that_is_slow_makes_the_link_full_and_loses_nothing() {
        let (mut link, mut far) = pair();
        let frame = [7; 1500];
        let mut taken = 0_usize;
        while link.send(Offload::default(), &frame, &[]).is_ok() {
            taken += 1;
            assert!(taken < 10_000, "there is a bound");
        }
        let mut got = 0;
        let mut bytes = vec![0; 1 << 16];
        while got < taken * 1504 {
            match far.read(&mut bytes) {
                Ok(count) => got += count,
                Err(_) => {
                    link.on_ready(0, true).unwrap();
                }
            }
        }
        link.starved = true;
        assert_eq!(link.on_ready(0, true).unwrap(), LinkEvent::Room);
    }

    #[test]
    fn a_length_that_no_frame_has_ends_the_link() {
        let (mut link, mut far) = pair();
        far.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert_eq!(next(&mut link), None);
        assert!(link.has_ended());
    }

    proptest! {
        #[test]
        fn frames_arrive_however_the_bytes_are_cut(
            lens in prop::collection::vec(0..70_000_usize, 1..8),
            cut in 1..40_000_usize,
        ) {
            let (mut link, mut far) = pair();
            far.set_nonblocking(false).unwrap();
            let frames: Vec<Vec<u8>> =
                lens.iter().map(|&len| vec![len.to_le_bytes()[0]; len.min(MAX_FRAME_BYTES)]).collect();
            let mut bytes = Vec::new();
            for frame in &frames {
                bytes.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
                bytes.extend_from_slice(frame);
            }
            let mut got = Vec::new();
            for part in bytes.chunks(cut) {
                far.write_all(part).unwrap();
                while let Some(frame) = next(&mut link) {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, frames);
        }
    }
}
