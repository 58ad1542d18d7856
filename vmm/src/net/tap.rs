//! A tap device as a link: the other side is the host's own kernel, with a guest or a network namespace behind it.
//!
//! Invariant: one frame is one read or one write, with a vnet header in front; what the header says is judged as a guest's. The net
//! thread owns it.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use openshell_usernet::link::HEAD_LEN;
use openshell_usernet::{Frame, Link, LinkFull, Offload, Offloads};
use smallvec::SmallVec;

use crate::config::net::MacAddress;
use crate::sys::tun;

use super::buffer::{FrameBytes, Pool, SMALL_BYTES};
use super::link::{LinkEvent, PacketLink, Source};
use super::vnet_header::{self, HEADER_BYTES};

/// Pieces of a frame that are written without an allocation, header included.
const INLINE_PIECES: usize = 8;

/// What passed a tap, and what it dropped. Counts since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapCounters {
    /// Frames from the tap with a header that does not fit them.
    pub malformed: u64,
    /// Frames that the host did not take.
    pub refused: u64,
    /// Frames for which there was no room now.
    pub full: u64,
}

/// A tap device.
#[derive(Debug)]
pub struct TapLink {
    tap: File,
    /// What goes either way without being cut or summed.
    offloads: Offloads,
    mtu: u16,
    pool: Pool,
    /// The large buffer of the last frame that did not need it.
    spare: Option<Box<[u8]>>,
    counters: TapCounters,
    ended: bool,
}

impl TapLink {
    /// Opens the tap `name` in this process's network namespace or in `netns`; frames that are not to be cut have `mtu` bytes and
    /// their headers at most. Without `offloads` every frame is as it would be on a wire.
    ///
    /// # Errors
    /// What the host said.
    pub fn open(name: &str, netns: Option<&Path>, mtu: u16, offloads: bool) -> io::Result<Self> {
        let (tap, agreed) = tun::open(name, netns, offloads)?;
        let offloads = Offloads {
            checksum: agreed.checksum(),
            tcp4: agreed.tcp(),
            tcp6: agreed.tcp(),
            udp: agreed.udp(),
        };
        let pool = Pool::default();
        let counters = TapCounters::default();
        Ok(Self { tap, offloads, mtu, pool, spare: None, counters, ended: false })
    }

    /// Gives the interface behind the tap the address `mac`, or tells which one it has.
    ///
    /// # Errors
    /// What the host said.
    pub fn agree_on_address(&self, mac: Option<MacAddress>) -> io::Result<MacAddress> {
        match mac {
            Some(mac) => tun::set_hardware_address(self.tap.as_fd(), mac.0).map(|()| mac),
            None => tun::hardware_address(self.tap.as_fd()).map(MacAddress),
        }
    }

    /// What passed so far.
    #[must_use]
    pub fn counters(&self) -> &TapCounters {
        &self.counters
    }

    /// Reads one frame. `None`: there is none, or the tap is gone.
    fn read(&mut self) -> Option<([u8; HEADER_BYTES], FrameBytes)> {
        let mut header = [0; HEADER_BYTES];
        let mut small = self.pool.small();
        let mut large = self.spare.take().unwrap_or_else(|| self.pool.large());
        let mut pieces = [&mut header[..], &mut small, &mut large];
        let read = match tun::read_frame(self.tap.as_fd(), &mut pieces) {
            Ok(read) => read,
            Err(error) => {
                self.ended |= !is_passing(&error);
                self.spare = Some(large);
                drop(FrameBytes::new(&self.pool, small, None, 0));
                return None;
            }
        };
        let len = read.saturating_sub(HEADER_BYTES);
        let large = if len > SMALL_BYTES {
            Some(large)
        } else {
            self.spare = Some(large);
            None
        };
        Some((header, FrameBytes::new(&self.pool, small, large, len)))
    }
}

/// Whether `error` is of this moment and no more: nothing to read, or the device is down.
fn is_passing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::EIO)
}

impl Link for TapLink {
    type Payload = FrameBytes;

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn send(&mut self, offload: Offload, head: &[u8], body: &[&[u8]]) -> Result<(), LinkFull> {
        let Some(header) = vnet_header::build(offload, head.len(), self.offloads) else {
            self.counters.refused += 1;
            return Ok(());
        };
        let pieces: SmallVec<[IoSlice<'_>; INLINE_PIECES]> =
            [&header[..], head].iter().chain(body).map(|piece| IoSlice::new(piece)).collect();
        match self.tap.write_vectored(&pieces) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.counters.full += 1;
                Err(LinkFull)
            }
            // The device is down, or the frame is none that it takes: as a wire that is cut.
            Err(_) => {
                self.counters.refused += 1;
                Ok(())
            }
        }
    }
}

impl PacketLink for TapLink {
    fn sources(&self) -> Vec<Source> {
        vec![Source { number: 0, fd: self.tap.as_raw_fd() }]
    }

    fn on_ready(&mut self, _number: u8, writable: bool) -> io::Result<LinkEvent> {
        Ok(if writable { LinkEvent::Room } else { LinkEvent::Frames })
    }

    fn next_frame<'a>(&mut self, head: &'a mut [u8; HEAD_LEN]) -> Option<Frame<'a, FrameBytes>> {
        loop {
            let (header, payload) = self.read()?;
            let [first, second] = payload.pieces();
            let head_len = first.len().min(HEAD_LEN);
            head[..head_len].copy_from_slice(&first[..head_len]);
            let len = first.len() + second.len();
            match vnet_header::parse(&header, &head[..head_len], len, self.offloads, self.mtu) {
                Ok(offload) => return Some(Frame { head: &head[..head_len], payload, offload }),
                Err(_) => self.counters.malformed += 1,
            }
        }
    }

    fn end_turn(&mut self) -> bool {
        false
    }

    fn has_ended(&self) -> bool {
        self.ended
    }
}
