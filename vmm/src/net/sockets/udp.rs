//! UDP sockets, each connected to one peer.
//!
//! Invariant: an empty datagram is a datagram; an error is told once and never tried again without end.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use openshell_usernet::FlowId;
use openshell_usernet::sockets::{Datagrams, ForwardId, HostError};

use crate::memory::Gather;
use crate::sys::inet::{self, Datagram, Kind, NumberOption};

use super::{HostSockets, Socket, sent_error, told};

/// Datagrams that wait here, at most.
const MAX_KEPT: usize = 32;
/// The most segments that every kernel which can segment takes at once.
const MAX_SEGMENTS: usize = 64;
/// Bytes of buffers, so that a burst finds room where the host's default is small.
const BUFFER_BYTES: i32 = 1 << 20;

/// A UDP socket.
#[derive(Debug)]
pub(super) struct Udp {
    pub(super) fd: OwnedFd,
    peer: SocketAddr,
    /// At a published port: whose it is.
    pub(super) visitor: Option<(ForwardId, SocketAddr)>,
    /// Read from the socket and not yet asked for: bytes, and of each datagram in them.
    kept: VecDeque<(Box<[u8]>, usize)>,
    /// The socket was found empty when there was something else to tell.
    drained: bool,
    /// The same for an error.
    failed: Option<HostError>,
    /// The kernel cuts into segments.
    segments: bool,
}

impl Udp {
    /// Connected to `peer`, from any address.
    pub(super) fn connect(peer: SocketAddr) -> io::Result<Self> {
        Self::between(None, peer)
    }

    /// Connected to `peer`, from `local` where that is given.
    pub(super) fn between(local: Option<SocketAddr>, peer: SocketAddr) -> io::Result<Self> {
        let fd = inet::open(peer.ip(), Kind::Datagram)?;
        if let Some(local) = local {
            NumberOption::REUSE_PORT.set(fd.as_fd(), 1)?;
            inet::bind(fd.as_fd(), local)?;
        }
        inet::connect(fd.as_fd(), peer)?;
        // Each of these makes it better, and none is needed.
        NumberOption::keep_errors(peer.ip()).set(fd.as_fd(), 1).ok();
        NumberOption::UDP_GRO.set(fd.as_fd(), 1).ok();
        NumberOption::RECEIVE_BUFFER.set(fd.as_fd(), BUFFER_BYTES).ok();
        NumberOption::SEND_BUFFER.set(fd.as_fd(), BUFFER_BYTES).ok();
        Ok(Self {
            fd,
            peer,
            visitor: None,
            kept: VecDeque::new(),
            drained: false,
            failed: None,
            segments: true,
        })
    }

    /// Keeps a datagram that came another way. False: there is no room.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> bool {
        let room = self.kept.len() < MAX_KEPT;
        if room {
            self.kept.push_back((bytes.into(), bytes.len()));
        }
        room
    }

    /// Reads one datagram, or equal ones one behind the other; of one that is longer than those before it the end goes to `overflow`.
    pub(super) fn receive(
        &mut self,
        into: &mut [u8],
        overflow: &mut [u8],
    ) -> Result<Option<Datagrams>, HostError> {
        if let Some((bytes, segment)) = self.kept.pop_front() {
            let len = bytes.len().min(into.len());
            into[..len].copy_from_slice(&bytes[..len]);
            return Ok(Some(Datagrams { len, segment: segment.min(len) }));
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if std::mem::take(&mut self.drained) {
            return Ok(None);
        }
        let first = match self.read(&mut [&mut *into]) {
            Ok(first) => first,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(self.error(&error)),
        };
        if let Some(segment) = first.segment {
            return Ok(Some(Datagrams { len: first.len, segment }));
        }
        let len = self.read_equal(first.len, into, overflow);
        Ok(Some(Datagrams { len, segment: first.len }))
    }

    /// Reads datagrams of `segment` bytes behind the one at the beginning of `into`, and a shorter one at the end; all bytes there.
    fn read_equal(&mut self, segment: usize, into: &mut [u8], overflow: &mut [u8]) -> usize {
        let mut len = segment;
        while segment > 0 && into.len() - len >= segment && len / segment < MAX_SEGMENTS {
            let slot = &mut into[len..len + segment];
            match self.read(&mut [&mut *slot, &mut *overflow]) {
                Ok(next) if next.len > 0 && next.len <= segment && next.segment.is_none() => {
                    len += next.len;
                    if next.len < segment {
                        break;
                    }
                }
                Ok(next) => {
                    let more = &overflow[..next.len.saturating_sub(segment)];
                    let bytes = [&slot[..next.len.min(segment)], more].concat();
                    let each = next.segment.unwrap_or(bytes.len());
                    self.kept.push_back((bytes.into_boxed_slice(), each));
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.drained = true;
                    break;
                }
                Err(error) => {
                    self.failed = Some(self.error(&error));
                    break;
                }
            }
        }
        len
    }

    /// Reads what the peer sent. Between its opening and its connecting a socket at a published port may have got what is another's.
    fn read(&self, into: &mut [&mut [u8]]) -> io::Result<Datagram> {
        loop {
            let got = inet::receive_datagram(self.fd.as_fd(), into)?;
            if self.visitor.is_none() || got.from == Some(self.peer) {
                return Ok(got);
            }
        }
    }

    /// The error that a call ended with, with what the host knows of it.
    fn error(&self, error: &io::Error) -> HostError {
        sent_error(&self.fd).unwrap_or_else(|| told(error))
    }

    pub(super) fn take_error(&mut self) -> Option<HostError> {
        self.failed.take().or_else(|| sent_error(&self.fd))
    }

    /// Sends `payload`, cut where `segment` says so. `Ok(false)`: the socket was full.
    fn send(&mut self, payload: &Gather<'_>, segment: Option<u16>) -> Result<bool, HostError> {
        let Some(segment) = segment.filter(|&size| usize::from(size) < payload.len_bytes()) else {
            return self.send_one(payload);
        };
        let each = usize::from(segment.max(1));
        let mut from = 0;
        while from < payload.len_bytes() {
            let count = if self.segments { MAX_SEGMENTS } else { 1 };
            let part = payload.part(from, each * count);
            if !self.segments || part.len_bytes() <= each {
                if !self.send_one(&part)? {
                    return Ok(false);
                }
                from += part.len_bytes();
                continue;
            }
            match part.send_segments(self.fd.as_fd(), segment) {
                Ok(_) => from += part.len_bytes(),
                Err(error) if is_full(&error) => return Ok(false),
                // A kernel or a device that does not segment, or segments larger than the path: one by one it shows which.
                Err(_) => self.segments = false,
            }
        }
        Ok(true)
    }

    fn send_one(&self, payload: &Gather<'_>) -> Result<bool, HostError> {
        match payload.send(self.fd.as_fd()) {
            Ok(_) => Ok(true),
            Err(error) if is_full(&error) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Err(self.error(&error)),
            // What an earlier datagram met ends this call, and is kept to be told; this one was not sent.
            Err(_) => match payload.send(self.fd.as_fd()) {
                Ok(_) => Ok(true),
                Err(error) if is_full(&error) => Ok(false),
                Err(error) => Err(self.error(&error)),
            },
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

impl HostSockets {
    pub(super) fn send_datagrams(
        &mut self,
        flow: FlowId,
        payload: &Gather<'_>,
        segment: Option<u16>,
    ) -> Result<(), HostError> {
        let sent = match self.find(flow) {
            Some(Socket::Udp(_)) if payload.is_cut() => {
                return Err(HostError::TooLarge { mtu: None });
            }
            Some(Socket::Udp(udp)) => udp.send(payload, segment)?,
            _ => return Err(HostError::Other(libc::EBADF)),
        };
        if !sent {
            self.counters.datagrams_unsent += 1;
        }
        Ok(())
    }
}
