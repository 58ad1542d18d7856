//! The state machine of one device's initialization (VIRTIO 1.2 sections 2.1, 2.2 and 3.1.1), independent of the transport that
//! carries it.
//!
//! Invariant: what the driver set up is frozen in the step to DRIVER_OK, and nothing but a reset changes it afterwards. A write that
//! the state does not allow changes nothing and is counted. Pure: no I/O, no memory, no clock; its owner locks it.

use super::queue::QueueConfig;

/// ACKNOWLEDGE.
pub const ACKNOWLEDGE: u8 = 1;
/// DRIVER.
pub const DRIVER: u8 = 2;
/// DRIVER_OK.
pub const DRIVER_OK: u8 = 4;
/// FEATURES_OK.
pub const FEATURES_OK: u8 = 8;
/// DEVICE_NEEDS_RESET, which only the device sets; [`Lifecycle`] never holds it.
pub const DEVICE_NEEDS_RESET: u8 = 64;
/// FAILED.
pub const FAILED: u8 = 128;

/// VIRTIO_F_VERSION_1.
pub const F_VERSION_1: u64 = 1 << 32;

/// What the driver set up, as it was at DRIVER_OK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    features: u64,
    queues: Vec<Option<QueueConfig>>,
}

impl Frozen {
    /// Feature bits that both sides accepted.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// One entry per queue of the device; `None` where the driver did not enable it.
    #[must_use]
    pub fn queues(&self) -> &[Option<QueueConfig>] {
        &self.queues
    }
}

/// What a write of the status asks of the transport.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transition {
    /// Nothing.
    None,
    /// DRIVER_OK: start the device with this.
    Activate(Frozen),
    /// The driver lets go of the device: the state machine is as new.
    Reset,
}

/// Which of a queue's three addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// The descriptor table.
    Desc,
    /// The driver area: the available ring.
    Avail,
    /// The device area: the used ring.
    Used,
}

/// Which half of a 64-bit address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

/// One queue as far as the driver has set it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueSetup {
    /// Size and addresses; a size of 0 until the driver wrote one.
    pub config: QueueConfig,
    /// Whether the driver enabled it.
    pub ready: bool,
}

/// How far driver and device have got.
#[derive(Debug)]
pub struct Lifecycle {
    offered: u64,
    max_sizes: Vec<u16>,
    status: u8,
    accepted: u64,
    queues: Vec<QueueSetup>,
    refused: u64,
}

impl Lifecycle {
    /// A device that offers `features` and VERSION_1, with one queue per entry of `max_sizes`.
    #[must_use]
    pub fn new(features: u64, max_sizes: &[u16]) -> Self {
        Self {
            offered: features | F_VERSION_1,
            max_sizes: max_sizes.to_vec(),
            status: 0,
            accepted: 0,
            queues: vec![QueueSetup::default(); max_sizes.len()],
            refused: 0,
        }
    }

    /// The status bits that the driver set and the device took.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Feature bits that the driver wrote so far.
    #[must_use]
    pub fn driver_features(&self) -> u64 {
        self.accepted
    }

    /// The queues as the driver has set them up.
    #[must_use]
    pub fn queues(&self) -> &[QueueSetup] {
        &self.queues
    }

    /// Writes that were ignored because the state or the value did not allow them, since the device was made.
    #[must_use]
    pub fn refused_writes(&self) -> u64 {
        self.refused
    }

    /// Counts a write that was ignored.
    pub fn refuse(&mut self) {
        self.refused = self.refused.saturating_add(1);
    }

    /// Whether all of `bits` are set and the driver has not given up.
    #[must_use]
    pub fn has(&self, bits: u8) -> bool {
        self.status & (bits | FAILED) == bits
    }

    /// Takes a write of the status: bits are added in their order, each only on top of the ones before it.
    pub fn write_status(&mut self, value: u8) -> Transition {
        if value == 0 {
            self.status = 0;
            self.accepted = 0;
            self.queues.fill(QueueSetup::default());
            return Transition::Reset;
        }
        // The driver writes back what it read, and may have read the bit that is the device's own.
        let value = value & !DEVICE_NEEDS_RESET;
        let unknown = value & !(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED) != 0;
        if unknown || value & self.status != self.status || self.status & FAILED != 0 {
            self.refuse();
            return Transition::None;
        }
        let added = value & !self.status;
        for (bit, needed) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, ACKNOWLEDGE | DRIVER),
            (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
            (FAILED, 0),
        ] {
            if added & bit == 0 {
                continue;
            }
            if self.has(needed) && (bit != FEATURES_OK || self.features_are_acceptable()) {
                self.status |= bit;
            } else {
                self.refuse();
            }
        }
        if added & DRIVER_OK != 0 && self.has(DRIVER_OK) {
            Transition::Activate(self.freeze())
        } else {
            Transition::None
        }
    }

    /// Bits `32 * window` to `32 * window + 31` of the features offered.
    #[must_use]
    pub fn device_features(&self, window: u32) -> u32 {
        let [low, high] = halves(self.offered);
        match window {
            0 => low,
            1 => high,
            _ => 0,
        }
    }

    /// Takes bits `32 * window` to `32 * window + 31` of the features the driver wants: between DRIVER and FEATURES_OK.
    pub fn write_driver_features(&mut self, window: u32, value: u32) {
        let half = match window {
            0 => Half::Low,
            1 => Half::High,
            // There are no such bits: a driver that clears them all does no harm.
            _ if value == 0 => return,
            _ => return self.refuse(),
        };
        if self.has(ACKNOWLEDGE | DRIVER) && !self.has(FEATURES_OK) {
            self.accepted = with_half(self.accepted, half, value);
        } else {
            self.refuse();
        }
    }

    /// The largest size of queue `index`; 0 when there is no such queue.
    #[must_use]
    pub fn queue_max_size(&self, index: u32) -> u16 {
        usize::try_from(index).ok().and_then(|i| self.max_sizes.get(i)).copied().unwrap_or(0)
    }

    /// Whether the driver enabled queue `index`.
    #[must_use]
    pub fn queue_ready(&self, index: u32) -> bool {
        usize::try_from(index).ok().and_then(|i| self.queues.get(i)).is_some_and(|q| q.ready)
    }

    /// Takes queue `index`'s size: a power of two up to its maximum.
    pub fn write_queue_size(&mut self, index: u32, value: u32) {
        let max = self.queue_max_size(index);
        let size = u16::try_from(value).ok().filter(|s| s.is_power_of_two() && *s <= max);
        match (size, self.open_queue(index)) {
            (Some(size), Some(queue)) => queue.config.size = size,
            _ => self.refuse(),
        }
    }

    /// Takes half of one of queue `index`'s addresses.
    pub fn write_queue_address(&mut self, index: u32, ring: Ring, half: Half, value: u32) {
        let Some(queue) = self.open_queue(index) else {
            return self.refuse();
        };
        let addr = match ring {
            Ring::Desc => &mut queue.config.desc,
            Ring::Avail => &mut queue.config.avail,
            Ring::Used => &mut queue.config.used,
        };
        *addr = with_half(*addr, half, value);
    }

    /// Enables queue `index` with 1, which closes its registers; disables it with 0. Not after DRIVER_OK.
    pub fn write_queue_ready(&mut self, index: u32, value: u32) {
        let open = self.queues_are_open();
        let queue = usize::try_from(index).ok().and_then(|i| self.queues.get_mut(i));
        match (queue, value) {
            (Some(queue), 0) if open => queue.ready = false,
            (Some(queue), 1) if open && queue.config.size != 0 => queue.ready = true,
            // A driver that takes its queues down after a reset clears what is clear already.
            (Some(queue), 0) if !queue.ready => {}
            _ => self.refuse(),
        }
    }

    fn queues_are_open(&self) -> bool {
        self.has(FEATURES_OK) && !self.has(DRIVER_OK)
    }

    /// Queue `index` if its size and addresses may be written now.
    fn open_queue(&mut self, index: u32) -> Option<&mut QueueSetup> {
        if !self.queues_are_open() {
            return None;
        }
        let queue = self.queues.get_mut(usize::try_from(index).ok()?)?;
        (!queue.ready).then_some(queue)
    }

    fn features_are_acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0
    }

    fn freeze(&self) -> Frozen {
        let queues = self.queues.iter().map(|queue| queue.ready.then_some(queue.config)).collect();
        Frozen { features: self.accepted, queues }
    }
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

fn with_half(value: u64, half: Half, bits: u32) -> u64 {
    let [low, high] = halves(value);
    let (low, high) = match half {
        Half::Low => (bits, high),
        Half::High => (low, bits),
    };
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const F_OFFERED: u64 = 1 << 5 | 1 << 29;

    fn lifecycle() -> Lifecycle {
        Lifecycle::new(F_OFFERED, &[256, 64])
    }

    /// A device whose driver has written `statuses`, with acceptable features once they may be written.
    fn after(statuses: &[u8]) -> Lifecycle {
        let mut lifecycle = lifecycle();
        for &status in statuses {
            drop(lifecycle.write_status(status));
            if lifecycle.status() == 3 {
                lifecycle.write_driver_features(1, 1);
            }
        }
        lifecycle
    }

    #[test]
    fn each_status_write_from_each_state() {
        // (writes before, write, status after, whether it activates)
        let rows: &[(&[u8], u8, u8, bool)] = &[
            (&[], 1, 1, false),
            (&[], 2, 0, false),
            (&[], 3, 3, false),
            (&[], 4, 0, false),
            (&[], 8, 0, false),
            // Features were not written, so that VERSION_1 is missing.
            (&[], 15, 3, false),
            (&[], 16, 0, false),
            (&[], 128, 128, false),
            (&[1], 1, 1, false),
            (&[1], 3, 3, false),
            (&[1], 2, 1, false),
            (&[1], 9, 1, false),
            (&[1], 5, 1, false),
            (&[1, 3], 11, 11, false),
            (&[1, 3], 7, 3, false),
            (&[1, 3], 15, 15, true),
            (&[1, 3], 1, 3, false),
            (&[1, 3, 11], 15, 15, true),
            (&[1, 3, 11], 15 | 64, 15, true),
            (&[1, 3, 11], 7, 11, false),
            (&[1, 3, 11], 15 | 32, 11, false),
            (&[1, 3, 11], 11 | 128, 11 | 128, false),
            (&[1, 3, 11, 15], 15, 15, false),
            (&[1, 3, 11, 15], 15 | 64, 15, false),
            (&[1, 3, 11, 15], 11, 15, false),
            (&[1, 3, 11, 15], 15 | 128, 15 | 128, false),
            (&[128], 129, 128, false),
            (&[1, 3, 11, 11 | 128], 15 | 128, 11 | 128, false),
            // DRIVER_OK and giving up at once: the device is not started.
            (&[1, 3, 11], 15 | 128, 15 | 128, false),
        ];
        for &(before, write, status, activates) in rows {
            let mut lifecycle = after(before);
            let transition = lifecycle.write_status(write);
            assert_eq!(lifecycle.status(), status, "{before:?} {write:#x}");
            assert_eq!(
                matches!(transition, Transition::Activate(_)),
                activates,
                "{before:?} {write}"
            );
            assert_ne!(transition, Transition::Reset);
            assert_eq!(lifecycle.write_status(0), Transition::Reset);
            assert_eq!((lifecycle.status(), lifecycle.driver_features()), (0, 0));
            assert!(lifecycle.queues().iter().all(|queue| *queue == QueueSetup::default()));
        }
    }

    #[test]
    fn features_are_offered_in_windows_and_taken_only_when_known_with_version_1() {
        let offered = [1 << 5 | 1 << 29, 1, 0, 0];
        for (window, want) in (0..).zip(offered) {
            assert_eq!(lifecycle().device_features(window), want);
        }
        for (low, high, accepted) in [
            (0, 1, true),
            (1 << 5, 1, true),
            (1 << 5 | 1 << 29, 1, true),
            (1 << 5, 0, false),
            (1 << 6, 1, false),
            (0, 3, false),
        ] {
            let mut lifecycle = lifecycle();
            drop(lifecycle.write_status(3));
            lifecycle.write_driver_features(0, low);
            lifecycle.write_driver_features(1, high);
            drop(lifecycle.write_status(11));
            assert_eq!(lifecycle.has(FEATURES_OK), accepted, "{low:#x} {high:#x}");
            assert_eq!(lifecycle.refused_writes(), u64::from(!accepted));
        }
    }

    #[test]
    fn features_are_written_only_between_driver_and_features_ok() {
        for (before, open) in [
            (&[][..], false),
            (&[1], false),
            (&[1, 3], true),
            (&[1, 3, 11], false),
            (&[3, 11, 15], false),
        ] {
            let mut lifecycle = after(before);
            let old = lifecycle.driver_features();
            lifecycle.write_driver_features(0, 1 << 29);
            let want = if open { old | 1 << 29 } else { old };
            assert_eq!(lifecycle.driver_features(), want, "{before:?}");
        }
    }

    #[test]
    fn queues_are_set_up_only_between_features_ok_and_driver_ok() {
        for (before, open) in [
            (&[][..], false),
            (&[1, 3], false),
            (&[1, 3, 11], true),
            (&[1, 3, 11, 11 | 128], false),
            (&[1, 3, 11, 15], false),
        ] {
            let mut lifecycle = after(before);
            lifecycle.write_queue_size(1, 32);
            lifecycle.write_queue_address(1, Ring::Desc, Half::Low, 0x1000);
            lifecycle.write_queue_address(1, Ring::Desc, Half::High, 1);
            lifecycle.write_queue_address(1, Ring::Avail, Half::Low, 0x2000);
            lifecycle.write_queue_address(1, Ring::Used, Half::Low, 0x3000);
            lifecycle.write_queue_ready(1, 1);
            let config = QueueConfig { size: 32, desc: 0x1_0000_1000, avail: 0x2000, used: 0x3000 };
            let want =
                if open { QueueSetup { config, ready: true } } else { QueueSetup::default() };
            assert_eq!(lifecycle.queues(), [QueueSetup::default(), want], "{before:?}");
            assert_eq!(lifecycle.refused_writes() == 0, open);
            if open {
                let frozen = lifecycle.write_status(15);
                let queues = vec![None, Some(config)];
                assert_eq!(frozen, Transition::Activate(Frozen { features: F_VERSION_1, queues }));
            }
        }
    }

    #[test]
    fn a_ready_queue_is_closed_until_it_is_disabled() {
        let mut lifecycle = after(&[1, 3, 11]);
        lifecycle.write_queue_ready(0, 1);
        assert!(!lifecycle.queue_ready(0), "a queue without a size is not enabled");
        for (value, size) in [(3, 0), (0, 0), (512, 0), (65536 + 8, 0), (256, 256), (8, 8)] {
            lifecycle.write_queue_size(0, value);
            assert_eq!(lifecycle.queues()[0].config.size, size);
        }
        lifecycle.write_queue_ready(0, 2);
        assert!(!lifecycle.queue_ready(0));
        lifecycle.write_queue_ready(0, 1);
        lifecycle.write_queue_size(0, 16);
        lifecycle.write_queue_address(0, Ring::Used, Half::Low, 1);
        assert_eq!(lifecycle.queues()[0].config, QueueConfig { size: 8, ..QueueConfig::default() });
        lifecycle.write_queue_ready(0, 0);
        lifecycle.write_queue_size(0, 16);
        assert_eq!(lifecycle.queues()[0].config.size, 16);
        for index in [2, 65536, u32::MAX] {
            lifecycle.write_queue_size(index, 8);
            lifecycle.write_queue_ready(index, 1);
            assert!(!lifecycle.queue_ready(index) && lifecycle.queue_max_size(index) == 0);
        }
    }

    proptest! {
        #[test]
        fn nothing_changes_between_driver_ok_and_reset(
            writes in proptest::collection::vec((0..6_u8, 0..4_u32, any::<u32>()), 0..64),
        ) {
            let mut lifecycle = after(&[1, 3, 11]);
            lifecycle.write_queue_size(0, 64);
            lifecycle.write_queue_ready(0, 1);
            let Transition::Activate(frozen) = lifecycle.write_status(15) else {
                return Err(TestCaseError::fail("the set-up is valid"));
            };
            for (kind, index, value) in writes {
                match kind {
                    0 => lifecycle.write_queue_size(index, value),
                    1 => lifecycle.write_queue_ready(index, value & 1),
                    2 => lifecycle.write_queue_address(index, Ring::Used, Half::High, value),
                    3 => lifecycle.write_queue_address(index, Ring::Desc, Half::Low, value),
                    4 => lifecycle.write_driver_features(index, value),
                    _ => {
                        let status = value.to_le_bytes()[0].max(1);
                        prop_assert_eq!(lifecycle.write_status(status), Transition::None);
                    }
                }
                prop_assert_eq!(&lifecycle.freeze(), &frozen);
            }
        }
    }
}
