//! What passed the device, and what it dropped.

use crate::net::vnet_header::Malformed;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Totals since the device was made; they stay at their largest value rather than start again.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// All of them with their names, in a fixed order.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }

            /// These and those of another driver.
            #[must_use]
            pub const fn and(&self, others: &Self) -> Self {
                Self { $($name: self.$name.saturating_add(others.$name),)+ }
            }
        }
    };
}

counters! {
    /// Frames taken from the driver.
    transmitted_frames,
    /// Their bytes, without the headers in front.
    transmitted_bytes,
    /// Frames given to the driver.
    received_frames,
    /// Their bytes, without the headers in front.
    received_bytes,
    /// The driver had no buffer, and the frame waited.
    receive_waits,
    /// Dropped: from the driver, shorter than headers are.
    too_short,
    /// Dropped: from the driver, longer than a packet or than the MTU.
    too_long,
    /// Dropped: from the driver, with checksum fields that do not fit.
    bad_checksum_fields,
    /// Dropped: from the driver, with segmentation fields that do not fit.
    bad_segmentation_fields,
    /// Dropped: from the driver, with a header length that does not fit.
    bad_header_length,
    /// Dropped: for the driver, larger than all its buffers.
    no_buffer_so_large,
    /// Dropped: for the driver, asking for an offload that it no longer takes.
    offload_not_taken,
}

fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

impl Counters {
    pub(super) fn transmitted(&mut self, bytes: usize) {
        count(&mut self.transmitted_frames);
        self.transmitted_bytes = self.transmitted_bytes.saturating_add(bytes as u64);
    }

    pub(super) fn received(&mut self, bytes: usize) {
        count(&mut self.received_frames);
        self.received_bytes = self.received_bytes.saturating_add(bytes as u64);
    }

    pub(super) fn malformed(&mut self, malformed: Malformed) {
        count(match malformed {
            Malformed::TooShort => &mut self.too_short,
            Malformed::TooLong => &mut self.too_long,
            Malformed::Checksum => &mut self.bad_checksum_fields,
            Malformed::Segmentation => &mut self.bad_segmentation_fields,
            Malformed::HeaderLength => &mut self.bad_header_length,
        });
    }

    pub(super) fn waited(&mut self) {
        count(&mut self.receive_waits);
    }

    pub(super) fn too_large(&mut self) {
        count(&mut self.no_buffer_so_large);
    }

    pub(super) fn not_taken(&mut self) {
        count(&mut self.offload_not_taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_two_drivers_are_added() {
        let mut first = Counters::default();
        first.transmitted(5);
        first.waited();
        let second = Counters { transmitted_bytes: u64::MAX, ..first };
        let both: Vec<_> = first.and(&second).named().filter(|&(_, count)| count > 0).collect();
        let want =
            [("transmitted_frames", 2), ("transmitted_bytes", u64::MAX), ("receive_waits", 2)];
        assert_eq!(both, want);
    }
}
