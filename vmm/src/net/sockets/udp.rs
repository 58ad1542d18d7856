//! UDP sockets, each connected to one peer.
//!
//! Invariant: an empty datagram is a datagram; an error is told once and never tried again without end.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use openshell_usernet::FlowId;
use openshell_usernet::sockets::{Datagrams, ForwardId, HostError, Unsendable, Unsent};
use smallvec::SmallVec;

use crate::memory::Gather;
use crate::net::link::Iovecs;
use crate::sys::inet::{self, Datagram, Kind, MAX_DATAGRAMS, NumberOption};

use super::{HostSockets, MAX_DATAGRAM_BYTES, Socket, sent_error, told};

/// Datagrams that wait here, at most.
const MAX_KEPT: usize = 32;
/// The most segments that every kernel which can segment takes at once.
const MAX_SEGMENTS: usize = 64;
/// Bytes of several datagrams that leave as one at most: what fits a packet of either family.
const MAX_JOINED_BYTES: usize = 65_000;
/// Longer ones leave and arrive alone: a call for each is little beside its bytes.
const LONGEST_JOINED: usize = 16 << 10;
/// Messages of one call.
const MAX_MESSAGES: usize = 16;
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
    /// An error that came when there was something else to tell.
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
        Ok(Self { fd, peer, visitor: None, kept: VecDeque::new(), failed: None, segments: true })
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
    /// What is not like them is kept.
    fn read_equal(&mut self, segment: usize, into: &mut [u8], overflow: &mut [u8]) -> usize {
        let mut len = segment;
        while (1..=LONGEST_JOINED).contains(&segment) && len / segment < MAX_SEGMENTS {
            let free = into.get_mut(len..).unwrap_or_default().chunks_exact_mut(segment);
            let mut places: SmallVec<[[&mut [u8]; 2]; MAX_DATAGRAMS]> = free
                .zip(overflow.chunks_exact_mut(MAX_DATAGRAM_BYTES))
                .take(MAX_SEGMENTS - len / segment)
                .map(|(place, more)| [place, more])
                .collect();
            let wanted = places.len();
            if wanted == 0 {
                break;
            }
            let got = match inet::receive_datagrams(self.fd.as_fd(), &mut places) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.failed = Some(self.error(&error));
                    break;
                }
            };
            let mut goes_on = true;
            for (got, [place, more]) in got.iter().zip(&places) {
                if !self.is_ours(got) {
                    // Its place in the row is lost: the rest does not follow on what was read.
                    goes_on = false;
                } else if goes_on && (1..=segment).contains(&got.len) && got.segment.is_none() {
                    len += got.len;
                    goes_on = got.len == segment;
                } else {
                    goes_on = false;
                    let (first, rest) = (got.len.min(segment), got.len.saturating_sub(segment));
                    let bytes = [&place[..first], &more[..rest]].concat();
                    self.kept.push_back((bytes.into(), got.segment.unwrap_or(got.len)));
                }
            }
            if !goes_on || got.len() < wanted {
                break;
            }
        }
        len
    }

    /// Reads what the peer sent.
    fn read(&self, into: &mut [&mut [u8]]) -> io::Result<Datagram> {
        loop {
            let got = inet::receive_datagram(self.fd.as_fd(), into)?;
            if self.is_ours(&got) {
                return Ok(got);
            }
        }
    }

    /// Between its opening and its connecting a socket at a published port may have got what is another's.
    fn is_ours(&self, got: &Datagram) -> bool {
        self.visitor.is_none() || got.from == Some(self.peer)
    }

    /// The error that a call ended with, with what the host knows of it.
    fn error(&self, error: &io::Error) -> HostError {
        sent_error(&self.fd).unwrap_or_else(|| told(error))
    }

    pub(super) fn take_error(&mut self) -> Option<HostError> {
        self.failed.take().or_else(|| sent_error(&self.fd))
    }

    /// Sends a batch; how many payloads a full socket did not take.
    fn send<P: Iovecs>(&mut self, batch: &[Unsent<P>]) -> Result<u64, Unsendable> {
        let mut index = 0;
        let mut again = false;
        while let Some((first, _)) = batch.get(index..).and_then(<[_]>::split_first) {
            let unsent = (batch.len() - index) as u64;
            if let Some(segment) = first.segment {
                let mut gather = Gather::new();
                first.payload.gather(&mut gather);
                match self.send_segments(&gather, segment) {
                    Ok(true) => index += 1,
                    Ok(false) => return Ok(unsent),
                    Err(error) => return Err(Unsendable { index, error }),
                }
                continue;
            }
            let messages = messages(batch.get(index..).unwrap_or_default(), self.segments);
            if messages.headers.first().is_none_or(|(first, _)| first.is_cut()) {
                return Err(Unsendable { index, error: HostError::TooLarge { mtu: None } });
            }
            let error = match Gather::send_each(self.fd.as_fd(), &messages.headers) {
                Ok(sent) => {
                    index += messages.payloads.iter().take(sent).sum::<usize>();
                    again = false;
                    continue;
                }
                Err(error) => error,
            };
            let joined = messages.headers.first().is_some_and(|(_, segment)| segment.is_some());
            if is_full(&error) {
                return Ok(unsent);
            } else if joined && is_of_segments(&error) {
                // A kernel or a device that does not segment, or segments larger than the path: one by one it shows which.
                self.segments = false;
            } else if again || error.raw_os_error() == Some(libc::EMSGSIZE) {
                return Err(Unsendable { index, error: self.error(&error) });
            } else {
                // What an earlier datagram met ended this call, and is kept to be told; this one was not sent.
                again = true;
            }
        }
        Ok(0)
    }

    /// Sends `payload` as datagrams of `segment` bytes. `Ok(false)`: the socket was full.
    fn send_segments(&mut self, payload: &Gather<'_>, segment: u16) -> Result<bool, HostError> {
        if payload.is_cut() {
            return Err(HostError::TooLarge { mtu: None });
        }
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
                Err(error) if is_of_segments(&error) => self.segments = false,
                Err(_) if self.send_one(&part.part(0, each))? => from += each,
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn send_one(&self, payload: &Gather<'_>) -> Result<bool, HostError> {
        match payload.send(self.fd.as_fd()) {
            Ok(_) => Ok(true),
            Err(error) if is_full(&error) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Err(self.error(&error)),
            // As above.
            Err(_) => match payload.send(self.fd.as_fd()) {
                Ok(_) => Ok(true),
                Err(error) if is_full(&error) => Ok(false),
                Err(error) => Err(self.error(&error)),
            },
        }
    }
}

/// Messages of the payloads at the beginning of a batch.
#[derive(Default)]
struct Messages<'a> {
    headers: SmallVec<[(Gather<'a>, Option<u16>); 1]>,
    /// How many payloads are in each.
    payloads: SmallVec<[usize; MAX_MESSAGES]>,
}

/// Makes messages of payloads that are one datagram each: equal ones that follow each other, and a shorter one behind them, are one
/// message where the kernel cuts.
fn messages<P: Iovecs>(batch: &[Unsent<P>], segments: bool) -> Messages<'_> {
    let mut messages = Messages::default();
    let mut rest = batch;
    while messages.payloads.len() < MAX_MESSAGES
        && rest.first().is_some_and(|first| first.segment.is_none())
    {
        let (gather, count) = join(rest, segments);
        let segment = rest.first().filter(|_| count > 1).map(|first| first.payload.len());
        messages.headers.push((gather, segment.and_then(|len| u16::try_from(len).ok())));
        messages.payloads.push(count);
        rest = rest.get(count..).unwrap_or_default();
    }
    messages
}

/// The payloads at the beginning of a batch that go into one message, and their number; at least one.
fn join<P: Iovecs>(batch: &[Unsent<P>], segments: bool) -> (Gather<'_>, usize) {
    let most = if segments { MAX_SEGMENTS } else { 1 };
    let (mut gather, mut count) = (Gather::new(), 0);
    let each = batch.first().map_or(0, |first| first.payload.len());
    for next in batch.iter().take(most) {
        let len = next.payload.len();
        let fits = next.segment.is_none()
            && (1..=each.min(LONGEST_JOINED)).contains(&len)
            && gather.len_bytes() == each * count
            && gather.len_bytes() + len <= MAX_JOINED_BYTES;
        if count > 0 && !fits {
            break;
        }
        next.payload.gather(&mut gather);
        if gather.is_cut() && count > 0 {
            return join(batch.get(..count).unwrap_or_default(), segments);
        }
        count += 1;
    }
    (gather, count)
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Whether `error` says that the kernel cannot cut this.
fn is_of_segments(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    [libc::EINVAL, libc::EMSGSIZE, libc::EIO, libc::EOPNOTSUPP, libc::ENOPROTOOPT]
        .iter()
        .any(|&known| errno == Some(known))
}

impl HostSockets {
    pub(super) fn send_datagrams<P: Iovecs>(
        &mut self,
        flow: FlowId,
        batch: &[Unsent<P>],
    ) -> Result<(), Unsendable> {
        let unsent = match self.find(flow) {
            Some(Socket::Udp(udp)) => udp.send(batch)?,
            _ => return Err(Unsendable { index: 0, error: HostError::Other(libc::EBADF) }),
        };
        self.counters.datagrams_unsent += unsent;
        Ok(())
    }

    pub(super) fn send_datagram(&mut self, flow: FlowId, bytes: &[u8]) -> Result<(), HostError> {
        let mut gather = Gather::new();
        gather.bytes(bytes);
        let sent = match self.find(flow) {
            Some(Socket::Udp(udp)) => udp.send_one(&gather)?,
            _ => return Err(HostError::Other(libc::EBADF)),
        };
        self.counters.datagrams_unsent += u64::from(!sent);
        Ok(())
    }
}
