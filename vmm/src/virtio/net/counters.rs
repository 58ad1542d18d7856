//! What passed the device, and what it dropped.

use crate::net::vnet_header::Malformed;

/// Totals since the device was made; they stay at their largest value rather than start again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames taken from the driver.
    pub transmitted_frames: u64,
    /// Their bytes, without the headers in front.
    pub transmitted_bytes: u64,
    /// Frames given to the driver.
    pub received_frames: u64,
    /// Their bytes, without the headers in front.
    pub received_bytes: u64,
    /// The driver had no buffer, and the frame waited.
    pub receive_waits: u64,
    /// Dropped: from the driver, shorter than headers are.
    pub too_short: u64,
    /// Dropped: from the driver, longer than a packet or than the MTU.
    pub too_long: u64,
    /// Dropped: from the driver, with checksum fields that do not fit.
    pub bad_checksum_fields: u64,
    /// Dropped: from the driver, with segmentation fields that do not fit.
    pub bad_segmentation_fields: u64,
    /// Dropped: from the driver, with a header length that does not fit.
    pub bad_header_length: u64,
    /// Dropped: for the driver, larger than all its buffers.
    pub no_buffer_so_large: u64,
    /// Dropped: for the driver, asking for an offload that it no longer takes.
    pub offload_not_taken: u64,
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
