//! Sockets of the host by the names of their flows, for [`openshell_usernet::Stack`].
//!
//! Invariants: every socket is non-blocking and in the epoll instance, edge-triggered, under its flow's name; there are never more of
//! them than the bound. The net thread owns it.

mod echo;
mod forward;
mod udp;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use openshell_usernet::sockets::{
    Close, Connect, Datagrams, ForwardId, HostError, Received, Unsendable, Unsent,
};
use openshell_usernet::{FlowId, Sockets};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::config::publish::PublishedPort;
use crate::memory::Gather;
use crate::sys::inet::{self, Kind, MAX_DATAGRAMS, NumberOption};

use super::link::Iovecs;
use echo::Echo;
use udp::Udp;

/// Bytes that wait in a socket unsent before it takes no more: a tenth of a second at 40 Mb/s, and enough for one that is faster.
const UNSENT_BYTES: u32 = 512 << 10;
/// The least send space that is told of a writable socket, in bytes: it takes a whole buffer more than its bound. Two packets are
/// told at least: a guest whose packets are larger than the socket's first buffer would send none, and the buffer never grow; what the
/// socket does not take of them is held back.
const LEAST_SPACE_BYTES: u32 = 16 << 10;
/// Places of a page.
const PAGE: usize = 256;
/// Places of flows; the tables of the stack have fewer.
const MAX_PLACES: usize = 1 << 17;
/// Bytes of a datagram.
const MAX_DATAGRAM_BYTES: usize = 65_536;

/// What the host did not give. Counts since the sockets were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketCounters {
    /// Sockets refused because there were as many as may be.
    pub too_many: u64,
    /// Connections refused because the host has no port left.
    pub no_port: u64,
    /// Datagrams that a full socket did not take.
    pub datagrams_unsent: u64,
    /// Datagrams to published ports that found no room.
    pub datagrams_unread: u64,
}

/// The sockets of one stack.
#[derive(Debug)]
pub struct HostSockets {
    epoll: Arc<Epoll>,
    /// By the places of flows; a page is there from when it is needed. The parts of a stack have flows in stretches far from each other.
    pages: Vec<Vec<Option<Place>>>,
    open: usize,
    bound: usize,
    /// In bytes: see [`LEAST_SPACE_BYTES`].
    least_space: u32,
    forwards: Vec<PublishedPort>,
    /// Who has a socket of its own at a published UDP port.
    visitors: HashMap<(ForwardId, SocketAddr), FlowId>,
    /// Flows that were given something to read here.
    woken: Vec<FlowId>,
    /// Where datagrams go that are longer than those before them. Made when it is needed: its pages are the kernel's until then.
    overflow: Vec<u8>,
    counters: SocketCounters,
}

#[derive(Debug)]
struct Place {
    flow: FlowId,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(OwnedFd),
    Udp(Box<Udp>),
    Echo(Box<Echo>),
}

impl HostSockets {
    /// At most `bound` sockets for a guest with packets of `mtu` bytes, told by `epoll` under [`FlowId::to_bits`], and `forwards`,
    /// which the caller waits for.
    #[must_use]
    pub fn new(epoll: Arc<Epoll>, bound: usize, mtu: u16, forwards: Vec<PublishedPort>) -> Self {
        Self {
            epoll,
            pages: Vec::new(),
            open: 0,
            bound,
            least_space: LEAST_SPACE_BYTES.max(2 * u32::from(mtu)),
            forwards,
            visitors: HashMap::new(),
            woken: Vec::new(),
            overflow: Vec::new(),
            counters: SocketCounters::default(),
        }
    }

    /// What the host did not give so far.
    #[must_use]
    pub fn counters(&self) -> &SocketCounters {
        &self.counters
    }

    /// How many sockets are open.
    #[must_use]
    pub fn open_sockets(&self) -> usize {
        self.open
    }

    /// Published ports.
    #[must_use]
    pub fn forwards(&self) -> &[PublishedPort] {
        &self.forwards
    }

    /// Closes the sockets of all flows; published ports stay.
    pub fn close_all(&mut self) {
        self.pages.clear();
        self.visitors.clear();
        self.woken.clear();
        self.open = 0;
    }

    /// Takes a flow that has something to read though its socket says nothing of it.
    pub fn take_woken(&mut self) -> Option<FlowId> {
        self.woken.pop()
    }

    /// Whether another socket may be opened, and under this name.
    fn admit(&mut self, flow: FlowId) -> Result<(), HostError> {
        if self.open >= self.bound || flow.index() as usize >= MAX_PLACES {
            self.counters.too_many += 1;
            return Err(HostError::NoRoom);
        }
        Ok(())
    }

    /// Waits for `socket` and keeps it under its flow's name; what was there before is closed.
    fn keep(&mut self, flow: FlowId, socket: Socket) -> Result<(), HostError> {
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, flow.to_bits());
        let fd = socket.fd().as_raw_fd();
        self.epoll.ctl(ControlOperation::Add, fd, event).map_err(|error| told(&error))?;
        let (page, at) = (flow.index() as usize / PAGE, flow.index() as usize % PAGE);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, Vec::new);
        }
        if self.pages[page].is_empty() {
            self.pages[page].resize_with(PAGE, || None);
        }
        let before = self.pages[page][at].replace(Place { flow, socket });
        self.open += 1;
        if let Some(before) = before {
            self.forget(&before);
        }
        Ok(())
    }

    /// It is to be put back; after a panic there is another one.
    fn take_overflow(&mut self) -> Vec<u8> {
        let overflow = std::mem::take(&mut self.overflow);
        if overflow.is_empty() { vec![0; MAX_DATAGRAM_BYTES * MAX_DATAGRAMS] } else { overflow }
    }

    fn place(&mut self, flow: FlowId) -> Option<&mut Option<Place>> {
        let index = flow.index() as usize;
        self.pages.get_mut(index / PAGE)?.get_mut(index % PAGE)
    }

    fn find(&mut self, flow: FlowId) -> Option<&mut Socket> {
        let place = self.place(flow)?.as_mut()?;
        (place.flow == flow).then_some(&mut place.socket)
    }

    fn tcp(&mut self, flow: FlowId) -> Result<&OwnedFd, HostError> {
        match self.find(flow) {
            Some(Socket::Tcp(fd)) => Ok(fd),
            _ => Err(HostError::Other(libc::EBADF)),
        }
    }

    fn forget(&mut self, place: &Place) {
        self.open -= 1;
        if let Socket::Udp(udp) = &place.socket
            && let Some(visitor) = &udp.visitor
            && self.visitors.get(visitor) == Some(&place.flow)
        {
            self.visitors.remove(visitor);
        }
    }

    fn count_connect_error(&mut self, error: &io::Error) {
        if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) {
            self.counters.no_port += 1;
        }
    }
}

impl Socket {
    fn fd(&self) -> &OwnedFd {
        match self {
            Self::Tcp(fd) => fd,
            Self::Udp(udp) => &udp.fd,
            Self::Echo(echo) => &echo.fd,
        }
    }
}

impl<P: Iovecs> Sockets<P> for HostSockets {
    fn tcp_connect(&mut self, flow: FlowId, peer: SocketAddr) -> Result<Connect, HostError> {
        self.admit(flow)?;
        let opened = inet::open(peer.ip(), Kind::Stream).and_then(|socket| {
            tune_stream(&socket)?;
            let connected = inet::connect(socket.as_fd(), peer)?;
            Ok((socket, connected))
        });
        let (socket, connected) = opened.map_err(|error| {
            self.count_connect_error(&error);
            told(&error)
        })?;
        self.keep(flow, Socket::Tcp(socket))?;
        Ok(if connected { Connect::Done } else { Connect::UnderWay })
    }

    fn tcp_accept(
        &mut self,
        forward: ForwardId,
        flow: FlowId,
    ) -> Result<Option<SocketAddr>, HostError> {
        // Looked at first: a connection that was taken would have to be closed.
        self.admit(flow)?;
        let Some(PublishedPort { socket, .. }) = self.forwards.get(usize::from(forward.0)) else {
            return Err(HostError::Other(libc::EBADF));
        };
        let (socket, peer) = match inet::accept(socket.as_fd()) {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(told(&error)),
        };
        tune_stream(&socket).map_err(|error| told(&error))?;
        self.keep(flow, Socket::Tcp(socket))?;
        Ok(Some(peer))
    }

    fn tcp_send(&mut self, flow: FlowId, parts: &[P]) -> Result<usize, HostError> {
        let socket = self.tcp(flow)?;
        let mut gather = Gather::new();
        for part in parts {
            part.gather(&mut gather);
            if gather.is_full() {
                break;
            }
        }
        taken(gather.send(socket.as_fd()))
    }

    fn tcp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<usize, HostError> {
        taken(inet::send(self.tcp(flow)?.as_fd(), bytes))
    }

    fn tcp_receive(&mut self, flow: FlowId, into: &mut [&mut [u8]]) -> Result<Received, HostError> {
        match inet::receive(self.tcp(flow)?.as_fd(), into) {
            Ok(0) => Ok(Received::End),
            Ok(count) => Ok(Received::Bytes(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(error) => Err(told(&error)),
        }
    }

    /// Zero exactly when the kernel calls the socket not writable, and then the kernel tells when it is again.
    fn tcp_send_space(&mut self, flow: FlowId) -> usize {
        let Ok(socket) = self.tcp(flow) else { return 0 };
        let socket = socket.as_fd();
        let (Ok(memory), Ok(unsent)) = (inet::send_memory(socket), inet::unsent(socket)) else {
            return 0;
        };
        let free = memory.limit.saturating_sub(memory.queued);
        let space = free.min(UNSENT_BYTES.saturating_sub(unsent));
        let writable = free >= memory.queued / 2 && unsent < UNSENT_BYTES;
        if !writable && !inet::ask_writable(socket) {
            return 0;
        }
        space.max(self.least_space) as usize
    }

    fn tcp_shutdown_write(&mut self, flow: FlowId) {
        if let Ok(socket) = self.tcp(flow) {
            // A connection that is lost is told by its next event.
            inet::shutdown_write(socket.as_fd()).ok();
        }
    }

    fn udp_open(&mut self, flow: FlowId, peer: SocketAddr) -> Result<(), HostError> {
        self.admit(flow)?;
        let udp = Udp::connect(peer).map_err(|error| {
            self.count_connect_error(&error);
            told(&error)
        })?;
        self.keep(flow, Socket::Udp(Box::new(udp)))
    }

    fn udp_accept(
        &mut self,
        forward: ForwardId,
        flow: FlowId,
    ) -> Result<Option<SocketAddr>, HostError> {
        self.accept_datagram(forward, flow)
    }

    fn udp_send(&mut self, flow: FlowId, batch: &[Unsent<P>]) -> Result<(), Unsendable> {
        self.send_datagrams(flow, batch)
    }

    fn udp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<(), HostError> {
        self.send_datagram(flow, bytes)
    }

    fn udp_receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<Datagrams>, HostError> {
        let mut overflow = self.take_overflow();
        let received = match self.find(flow) {
            Some(Socket::Udp(udp)) => udp.receive(into, &mut overflow),
            _ => Err(HostError::Other(libc::EBADF)),
        };
        self.overflow = overflow;
        received
    }

    fn echo_open(&mut self, flow: FlowId, peer: SocketAddr) -> Result<(), HostError> {
        self.admit(flow)?;
        let echo = Echo::connect(peer).map_err(|error| told(&error))?;
        self.keep(flow, Socket::Echo(Box::new(echo)))
    }

    fn echo_send(&mut self, flow: FlowId, sequence: u16, data: &[u8]) -> Result<(), HostError> {
        match self.find(flow) {
            Some(Socket::Echo(echo)) => echo.send(sequence, data),
            _ => Err(HostError::Other(libc::EBADF)),
        }
    }

    fn echo_receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<(u16, usize)>, HostError> {
        match self.find(flow) {
            Some(Socket::Echo(echo)) => echo.receive(into),
            _ => Err(HostError::Other(libc::EBADF)),
        }
    }

    fn take_error(&mut self, flow: FlowId) -> Option<HostError> {
        match self.find(flow)? {
            Socket::Tcp(fd) => pending_error(fd),
            Socket::Udp(udp) => udp.take_error(),
            Socket::Echo(echo) => sent_error(&echo.fd),
        }
    }

    fn close(&mut self, flow: FlowId, how: Close) {
        if self.find(flow).is_none() {
            return;
        }
        let Some(place) = self.place(flow).and_then(Option::take) else {
            return;
        };
        if let (Socket::Tcp(fd), Close::Reset) = (&place.socket, how) {
            // Without it the peer sees an orderly end, which is less and no harm.
            inet::reset_on_close(fd.as_fd()).ok();
        }
        self.forget(&place);
    }
}

fn tune_stream(socket: &OwnedFd) -> io::Result<()> {
    NumberOption::NO_DELAY.set(socket.as_fd(), 1)?;
    NumberOption::UNSENT_LOW_WATER.set(socket.as_fd(), UNSENT_BYTES.cast_signed())
}

/// The pending error of a socket, cleared.
fn pending_error(fd: &OwnedFd) -> Option<HostError> {
    match NumberOption::ERROR.of(fd.as_fd()) {
        Ok(0) | Err(_) => None,
        Ok(errno) => Some(told(&io::Error::from_raw_os_error(errno))),
    }
}

/// The oldest error of a socket that keeps them, or its pending one.
fn sent_error(fd: &OwnedFd) -> Option<HostError> {
    let Some(error) = inet::take_send_error(fd.as_fd()) else { return pending_error(fd) };
    // The same error waits there too, and would fail what is sent next.
    pending_error(fd);
    let mtu = u16::try_from(error.mtu).ok().filter(|&mtu| mtu > 0);
    Some(match told(&io::Error::from_raw_os_error(error.errno)) {
        HostError::TooLarge { .. } => HostError::TooLarge { mtu },
        other => other,
    })
}

fn taken(sent: io::Result<usize>) -> Result<usize, HostError> {
    match sent {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        sent => sent.map_err(|error| told(&error)),
    }
}

/// What `error` is to a guest.
fn told(error: &io::Error) -> HostError {
    match error.raw_os_error().unwrap_or(0) {
        libc::ECONNREFUSED => HostError::Refused,
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED | libc::ENOTCONN => HostError::Reset,
        libc::ENETUNREACH | libc::ENETDOWN | libc::ENONET => HostError::NetworkUnreachable,
        libc::EHOSTUNREACH | libc::EHOSTDOWN => HostError::HostUnreachable,
        libc::EACCES | libc::EPERM => HostError::Prohibited,
        libc::ETIMEDOUT => HostError::TimedOut,
        libc::EMSGSIZE => HostError::TooLarge { mtu: None },
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL => {
            HostError::NoRoom
        }
        other => HostError::Other(other),
    }
}
