//! What happened, in numbers. They only grow; nothing else depends on them.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Counts since the stack was made.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// All of them with their names, in a fixed order.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Frames from the guest.
    guest_frames,
    /// Their bytes.
    guest_bytes,
    /// Frames to the guest.
    host_frames,
    /// Their bytes.
    host_bytes,
    /// Frames from the guest that are not what they claim to be.
    malformed,
    /// Frames whose source is not the guest.
    spoofed,
    /// Frames to somebody else on the link.
    misdirected,
    /// Frames of protocols that nobody here speaks.
    unserved,
    /// Packets that had no hop left to go further.
    hops_exceeded,
    /// Connections that the guest asked for.
    tcp_opened,
    /// Connections that stood.
    tcp_established,
    /// Connections that came in at published ports.
    tcp_accepted,
    /// Connections that the host refused or could not make.
    tcp_failed,
    /// Resets to the guest.
    tcp_resets_sent,
    /// Resets from the guest.
    tcp_resets_received,
    /// Segments of connections that are not there.
    tcp_unknown,
    /// Pending connections that made room for others or took too long.
    tcp_pending_evicted,
    /// Connections that made room for others.
    tcp_evicted,
    /// Connections refused because the table was full.
    tcp_full,
    /// Frames sent again to the guest.
    tcp_retransmitted,
    /// Segments from the guest that came out of order.
    tcp_out_of_order,
    /// Segments from the guest that were dropped and will come again.
    tcp_dropped,
    /// Times that payload was held back for a full socket.
    tcp_parked,
    /// Times that the guest had no room for a frame.
    link_full,
    /// Datagrams to the guest that were dropped: too many waited, or no packet holds them.
    datagrams_dropped,
    /// UDP flows that the guest began.
    udp_opened,
    /// UDP flows that came in at published ports.
    udp_accepted,
    /// UDP flows that made room for others.
    udp_evicted,
    /// UDP flows that ended because nothing came for a while.
    udp_expired,
    /// UDP flows that could not be opened, or whose sockets went on failing.
    udp_failed,
    /// Datagrams of the guest that the host refused, at once or later.
    udp_send_errors,
    /// Echo requests that were answered here.
    echo_answered,
    /// Echo requests that went on to others.
    echo_sent,
    /// Echo replies of others.
    echo_received,
    /// Echo requests that exceeded their pace.
    echo_limited,
    /// Echo requests that the host did not send: it may not, or it had no room.
    echo_failed,
    /// Echo identifiers that made room for others.
    echo_evicted,
    /// ICMP errors to the guest.
    icmp_errors_sent,
    /// ICMP errors that exceeded their pace.
    icmp_errors_limited,
    /// Fragments from the guest that were dropped.
    fragments_dropped,
    /// Datagrams from the guest that came in fragments.
    fragments_joined,
    /// ARP requests and neighbor solicitations that were answered.
    neighbors_answered,
    /// DHCP messages that were answered.
    dhcp_answered,
    /// DHCP messages that were not.
    dhcp_ignored,
    /// Flows that ended because a new policy refuses them.
    policy_swept,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_has_a_name_of_its_own() {
        let counters = Counters { malformed: 7, ..Counters::default() };
        let names: BTreeSet<&str> = counters.named().map(|(name, _)| name).collect();
        assert_eq!(names.len(), counters.named().count());
        assert_eq!(counters.named().find(|(_, count)| *count > 0), Some(("malformed", 7)));
    }
}
