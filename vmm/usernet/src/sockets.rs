//! The host side: what the stack asks of sockets.
//!
//! Every call returns at once. A socket is named by its flow; its owner tells the stack when it can do more. `P` is what
//! payload from the guest consists of ([`crate::Payload`]).

use std::net::SocketAddr;

use crate::FlowId;

/// What the host said, as far as a guest can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// `ECONNREFUSED`.
    #[error("connection refused")]
    Refused,
    /// `ECONNRESET`, `EPIPE`, `ECONNABORTED`.
    #[error("connection reset")]
    Reset,
    /// `ENETUNREACH`, `ENETDOWN`.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// `EHOSTUNREACH`, `EHOSTDOWN`.
    #[error("host unreachable")]
    HostUnreachable,
    /// `EACCES`, `EPERM`: the host's own rules refuse it.
    #[error("refused by the host's rules")]
    Prohibited,
    /// `ETIMEDOUT`.
    #[error("timed out")]
    TimedOut,
    /// `EMSGSIZE`: the datagram exceeds the path's MTU, where that is known.
    #[error("message too large for the path")]
    TooLarge {
        /// The path's MTU in bytes.
        mtu: Option<u16>,
    },
    /// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`, `EADDRNOTAVAIL`: the host has no room.
    #[error("the host has no room for it")]
    NoRoom,
    /// Anything else.
    #[error("host error {0}")]
    Other(i32),
}

/// How far a connect has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connect {
    /// It stands.
    Done,
    /// [`Readiness::writable`] or [`Readiness::failed`] will tell.
    UnderWay,
}

/// What came of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes, at least one.
    Bytes(usize),
    /// The peer has ended its side.
    End,
    /// Nothing yet; [`Readiness::readable`] will tell.
    Nothing,
}

/// How a socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// What was sent still goes out.
    Orderly,
    /// The peer sees a reset.
    Reset,
}

/// What has become possible on a socket since it was last told (edge-triggered).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// There may be something to read, or the peer's end.
    pub readable: bool,
    /// It may take more, or a connect has been decided.
    pub writable: bool,
    /// There is an error to be fetched with [`Sockets::take_error`].
    pub failed: bool,
}

/// A port of the host that was published, in the order of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForwardId(pub u16);

/// Sockets of the host.
pub trait Sockets<P> {
    /// Opens a TCP socket for `flow` and begins to connect it.
    ///
    /// # Errors
    /// What the host said at once; there is no socket then.
    fn tcp_connect(&mut self, flow: FlowId, peer: SocketAddr) -> Result<Connect, HostError>;

    /// Takes a connection that waits at a published port and names it `flow`: the peer's address, or `None` when none waits.
    ///
    /// # Errors
    /// What the host said; there is no socket then.
    fn tcp_accept(
        &mut self,
        forward: ForwardId,
        flow: FlowId,
    ) -> Result<Option<SocketAddr>, HostError>;

    /// Sends the bytes of `parts` in their order, as many as the socket takes; how many that were. Zero: [`Readiness::writable`]
    /// will tell. The parts themselves are not changed.
    ///
    /// # Errors
    /// What the host said; the connection is lost then.
    fn tcp_send(&mut self, flow: FlowId, parts: &[P]) -> Result<usize, HostError>;

    /// As [`Self::tcp_send`], for bytes of the stack's own.
    ///
    /// # Errors
    /// As there.
    fn tcp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<usize, HostError>;

    /// Reads into `into`, one piece after the other.
    ///
    /// # Errors
    /// What the host said; the connection is lost then.
    fn tcp_receive(&mut self, flow: FlowId, into: &mut [&mut [u8]]) -> Result<Received, HostError>;

    /// Bytes that the socket takes at this moment without growing its backlog past its bound.
    fn tcp_send_space(&mut self, flow: FlowId) -> usize;

    /// Ends our side of the connection; reading goes on.
    fn tcp_shutdown_write(&mut self, flow: FlowId);

    /// Opens a UDP socket for `flow`, connected to `peer`.
    ///
    /// # Errors
    /// What the host said; there is no socket then.
    fn udp_open(&mut self, flow: FlowId, peer: SocketAddr) -> Result<(), HostError>;

    /// Names the sender of a datagram that waits at a published port `flow`, so that answers go back to it, and hands over that
    /// datagram by [`Self::udp_receive`]: its address, or `None` when none waits.
    ///
    /// # Errors
    /// What the host said.
    fn udp_accept(
        &mut self,
        forward: ForwardId,
        flow: FlowId,
    ) -> Result<Option<SocketAddr>, HostError>;

    /// Sends payloads in their order. What a socket does not take at this moment it drops, as UDP may.
    ///
    /// # Errors
    /// [`Unsendable`]: those before it were sent or dropped, those behind it were not tried; the socket stays.
    fn udp_send(&mut self, flow: FlowId, batch: &[Unsent<P>]) -> Result<(), Unsendable>;

    /// Sends one datagram of the stack's own, likewise.
    ///
    /// # Errors
    /// What the host said, of this datagram or of one before it; the socket stays.
    fn udp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<(), HostError>;

    /// Reads what waits: up to `into.len()` bytes of one datagram or of several equal ones. `None`: nothing waits.
    ///
    /// # Errors
    /// What the host said of a datagram that was sent; the socket stays, and there may be more to read.
    fn udp_receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<Datagrams>, HostError>;

    /// Opens an echo socket for `flow` to `peer`, whose port means nothing.
    ///
    /// # Errors
    /// [`HostError::Prohibited`] where the host lets this user send no echo requests.
    fn echo_open(&mut self, flow: FlowId, peer: SocketAddr) -> Result<(), HostError>;

    /// Sends an echo request with `sequence` and `data`.
    ///
    /// # Errors
    /// What the host said; the socket stays.
    fn echo_send(&mut self, flow: FlowId, sequence: u16, data: &[u8]) -> Result<(), HostError>;

    /// Reads an echo reply: its sequence number and how many bytes of data were written to `into`. `None`: nothing waits.
    ///
    /// # Errors
    /// What the host said; the socket stays.
    fn echo_receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<(u16, usize)>, HostError>;

    /// Fetches and clears the error of a socket.
    fn take_error(&mut self, flow: FlowId) -> Option<HostError>;

    /// Closes the socket of `flow`, if there is one.
    fn close(&mut self, flow: FlowId, how: Close);
}

/// A payload of the guest's on its way to a UDP socket.
#[derive(Debug)]
pub struct Unsent<P> {
    /// Its bytes.
    pub payload: P,
    /// Of several datagrams, the bytes of each but the last; `None`: it is one.
    pub segment: Option<u16>,
}

/// What became of one payload of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsendable {
    /// Its place in the batch.
    pub index: usize,
    /// What the host said, of it or of one before it.
    pub error: HostError,
}

/// What one [`Sockets::udp_receive`] brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagrams {
    /// Bytes read; 0 is an empty datagram.
    pub len: usize,
    /// Each datagram has this many bytes, the last one at most; `len` when there is one.
    pub segment: usize,
}
