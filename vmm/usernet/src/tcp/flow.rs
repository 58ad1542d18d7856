//! What is kept of one connection.

use std::num::NonZeroU64;

use super::seq::Seq;
use super::service::Service;
use crate::Instant;
use crate::ring::Ring;
use crate::timers::TimerId;

/// No such moment.
pub(super) const NEVER: Instant = Instant::from_nanos(u64::MAX);

/// How far a connection has come. Its two directions end on their own: see [`Flow::guest_fin`] and [`Flow::host_end`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The guest has asked; the host's connect is under way.
    Connecting,
    /// The host has asked; the guest has not answered.
    SynSent,
    /// Both ends stand; the guest has not acknowledged ours.
    SynReceived,
    /// Bytes go both ways, or what is left of them.
    Established,
    /// All is said and the socket is closed; the guest may repeat its last segment.
    TimeWait,
    /// To be taken out of the table.
    Gone,
}

/// How the guest's direction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestFin {
    /// It does not.
    None,
    /// Its FIN waits behind bytes that the socket has not taken.
    Waiting,
    /// The host's socket knows.
    Taken,
}

/// How the host's direction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostEnd {
    /// It does not.
    None,
    /// The peer has ended it: a FIN follows the last byte.
    Ended,
    /// The connection is lost: a reset follows the last byte.
    Lost,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Flow<P> {
    pub(super) state: State,
    pub(super) guest_fin: GuestFin,
    pub(super) host_end: HostEnd,
    /// The host asked for it.
    pub(super) inbound: bool,

    /// The largest segment for the guest, in bytes of payload.
    pub(super) mss: u16,
    /// By how much the guest's windows are shifted, and ours.
    pub(super) guest_scale: u8,
    pub(super) our_scale: u8,

    /// What the guest sends next, behind everything in `queue`.
    pub(super) expected: Seq,
    /// What may be acknowledged: everything before it is taken by the socket or kept until it is.
    pub(super) ackable: Seq,
    /// What was acknowledged last.
    pub(super) told: Seq,
    /// The furthest right edge that was told.
    pub(super) edge: Seq,
    /// The right edge that could be told.
    pub(super) goal_edge: Seq,
    /// The window when it was last measured, in bytes.
    pub(super) goal: u32,
    /// In order, and not taken by the host's socket yet.
    pub(super) queue: Vec<P>,
    pub(super) queue_bytes: u32,
    /// How many of `queue` count as parked.
    pub(super) parked: u16,
    /// The socket takes nothing until it says so.
    pub(super) host_full: bool,
    /// The socket says that it takes something, which may be news: it is looked at when the turn's frames are sent.
    pub(super) look: bool,

    /// The oldest byte that the guest has not acknowledged; the ring begins with it.
    pub(super) una: Seq,
    /// What is sent next.
    pub(super) next: Seq,
    /// Behind everything that was ever sent.
    pub(super) max: Seq,
    /// The guest's window in bytes from `una` on, and the segment that told it.
    pub(super) window: u32,
    pub(super) window_sequence: Seq,
    pub(super) window_ack: Seq,
    /// After a loss, how many bytes may be under way.
    pub(super) burst: u32,
    /// Where recovery from a loss ends.
    pub(super) recover: Option<Seq>,
    pub(super) duplicates: u8,
    /// How often the oldest byte was sent again, or a SYN.
    pub(super) tries: u8,
    pub(super) ring: Ring,
    /// The socket may have something to read.
    pub(super) readable: bool,
    /// Our FIN was sent, and was it before the guest's?
    pub(super) fin_sent: bool,
    pub(super) closed_first: bool,

    /// It is in the queue of those that are served.
    pub(super) queued: bool,
    /// It is in the list of those that the end of a turn looks at.
    pub(super) dirty: bool,
    /// An acknowledgment is owed, whatever else is true.
    pub(super) ack_due: bool,
    /// Our SYN, or its acknowledgment of the guest's, is to be sent.
    pub(super) syn_due: bool,

    /// What is due towards the guest: to send again, to probe, to give up.
    pub(super) deadline: Instant,
    /// When the socket's free space is looked at again.
    pub(super) poll_at: Instant,
    pub(super) polls: u8,
    pub(super) timer: Option<TimerId>,
    pub(super) last_used: Instant,
    /// Its place among the pending.
    pub(super) pending: Option<NonZeroU64>,
    /// What serves it, when that is not a socket.
    pub(super) service: Option<Box<Service>>,
}

impl<P> Flow<P> {
    /// A connection that is about to begin at `first` on our side and at `guest` on the guest's.
    pub(super) fn new(state: State, first: Seq, now: Instant) -> Self {
        Self {
            state,
            guest_fin: GuestFin::None,
            host_end: HostEnd::None,
            inbound: false,
            mss: 536,
            guest_scale: 0,
            our_scale: 0,
            expected: Seq(0),
            ackable: Seq(0),
            told: Seq(0),
            edge: Seq(0),
            goal_edge: Seq(0),
            goal: 0,
            queue: Vec::new(),
            queue_bytes: 0,
            parked: 0,
            host_full: false,
            look: false,
            una: first,
            next: first,
            max: first,
            window: 0,
            window_sequence: Seq(0),
            window_ack: Seq(0),
            burst: u32::MAX,
            recover: None,
            duplicates: 0,
            tries: 0,
            ring: Ring::default(),
            readable: false,
            fin_sent: false,
            closed_first: false,
            queued: false,
            dirty: false,
            ack_due: false,
            syn_due: false,
            deadline: NEVER,
            poll_at: NEVER,
            polls: 0,
            timer: None,
            last_used: now,
            pending: None,
            service: None,
        }
    }

    /// Bytes of the ring that were sent and may be under way.
    pub(super) fn in_flight(&self) -> usize {
        (self.next.ahead_of(self.una) as usize).min(self.ring.len())
    }

    /// Bytes that may be under way, from `una` on.
    pub(super) fn allowance(&self) -> usize {
        self.window.min(self.burst) as usize
    }

    /// Whether anything that was sent is not acknowledged.
    pub(super) fn is_outstanding(&self) -> bool {
        self.max != self.una
    }

    /// Whether there is something for the guest that was not sent.
    pub(super) fn has_unsent(&self) -> bool {
        match self.host_end {
            _ if self.in_flight() < self.ring.len() => true,
            HostEnd::None => false,
            HostEnd::Ended => {
                self.next == self.una + self.ring_len() && !self.fin_is_acknowledged()
            }
            HostEnd::Lost => true,
        }
    }

    /// Whether the guest has acknowledged all, the FIN included.
    pub(super) fn fin_is_acknowledged(&self) -> bool {
        self.fin_sent && self.ring.is_empty() && !self.is_outstanding()
    }

    /// A ring is at most a few MiB long.
    pub(super) fn ring_len(&self) -> u32 {
        u32::try_from(self.ring.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand idle connections are to cost little: what only busy ones need is behind a pointer.
    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Flow<()>>() <= 184, "{} bytes", size_of::<Flow<()>>());
    }
}
