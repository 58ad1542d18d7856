//! Dispatch of port and MMIO accesses to devices.
//!
//! Invariant: ranges never overlap and never change after the machine is built, so that a look-up takes no lock; a device locks
//! itself. vCPU threads call it.

use std::sync::Arc;

/// Why the guest asked the machine to end, as seen by a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// The guest asked for a reset (i8042 command, ACPI reset register).
    Reset,
    /// The guest asked for power-off (ACPI S5).
    PowerOff,
    /// The guest reported the exit status of its main process through the event device.
    Exit(GuestExit),
}

/// How the guest's main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestExit {
    /// It exited with this code.
    Code(u8),
    /// It was ended by this signal.
    Signal(u8),
}

/// What a register write asks of the machine.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: the guest goes on.
    None,
    /// The machine stops.
    Stop(StopCause),
}

/// A device with registers. Offsets are relative to the start of the range it is attached at.
///
/// Called on vCPU threads, on several at once.
pub trait BusDevice: Send + Sync {
    /// Fills all of `data`, whatever its length (1, 2, 4 or 8 bytes).
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes a write of `data`.
    fn write(&self, offset: u64, data: &[u8]) -> Effect;
}

/// Why a device could not be attached.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or wraps around.
    #[error("bus range {base:#x} plus {len:#x} is empty or wraps around")]
    BadRange {
        /// First address.
        base: u64,
        /// Length.
        len: u64,
    },
    /// The range overlaps one already attached.
    #[error("bus range {base:#x} plus {len:#x} overlaps another device")]
    Overlap {
        /// First address.
        base: u64,
        /// Length.
        len: u64,
    },
}

struct Slot {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Ranges of one address space (ports or physical memory) and the devices behind them.
#[derive(Default)]
pub struct Bus {
    slots: Vec<Slot>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.slots.iter().map(|slot| (slot.base, slot.last))).finish()
    }
}

impl Bus {
    /// Attaches `device` to `base..base + len`.
    ///
    /// # Errors
    /// [`BusError`] when the range is empty, wraps around or overlaps.
    pub fn attach(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|span| base.checked_add(span))
            .ok_or(BusError::BadRange { base, len })?;
        let at = self.slots.partition_point(|slot| slot.base <= base);
        let overlaps_before = at.checked_sub(1).is_some_and(|i| self.slots[i].last >= base);
        let overlaps_after = self.slots.get(at).is_some_and(|slot| slot.base <= last);
        if overlaps_before || overlaps_after {
            return Err(BusError::Overlap { base, len });
        }
        self.slots.insert(at, Slot { base, last, device });
        Ok(())
    }

    /// Reads; an address without a device, and an access that runs past its device, reads as all ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; an address without a device, and an access that runs past its device, is ignored.
    pub fn write(&self, addr: u64, data: &[u8]) -> Effect {
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => Effect::None,
        }
    }

    fn find(&self, addr: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let end = addr.checked_add(u64::try_from(len).ok()?.checked_sub(1)?)?;
        let at = self.slots.partition_point(|slot| slot.base <= addr).checked_sub(1)?;
        let slot = &self.slots[at];
        (end <= slot.last).then(|| (&*slot.device, addr - slot.base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + u8::try_from(offset).unwrap());
        }

        fn write(&self, _: u64, _: &[u8]) -> Effect {
            Effect::Stop(StopCause::Exit(GuestExit::Code(self.0)))
        }
    }

    #[test]
    fn an_access_reaches_the_device_that_holds_all_of_it() {
        let mut bus = Bus::default();
        bus.attach(0x100, 8, Arc::new(Echo(10))).unwrap();
        bus.attach(0x108, 8, Arc::new(Echo(20))).unwrap();
        for (addr, len, want) in [
            (0x100, 1, 10),
            (0x107, 1, 17),
            (0x108, 8, 20),
            (0x107, 2, 0xff),
            (0x110, 1, 0xff),
            (0xff, 1, 0xff),
            (u64::MAX, 2, 0xff),
        ] {
            let mut data = vec![0; len];
            bus.read(addr, &mut data);
            assert_eq!(data, vec![want; len], "{addr:#x}");
        }
        assert_eq!(bus.write(0x110, &[0]), Effect::None);
        assert_eq!(bus.write(0x108, &[0]), Effect::Stop(StopCause::Exit(GuestExit::Code(20))));
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::default();
        bus.attach(0x100, 0x10, Arc::new(Echo(0))).unwrap();
        for (base, len) in [(0xff, 2), (0x10f, 1), (0x100, 0x10), (0, 0x1000)] {
            let error = bus.attach(base, len, Arc::new(Echo(0)));
            assert_eq!(error, Err(BusError::Overlap { base, len }));
        }
        for (base, len) in [(0x200, 0), (u64::MAX, 2)] {
            let error = bus.attach(base, len, Arc::new(Echo(0)));
            assert_eq!(error, Err(BusError::BadRange { base, len }));
        }
        bus.attach(u64::MAX, 1, Arc::new(Echo(0))).unwrap();
    }
}
