//! The guest-physical map, the I/O ports and the interrupt lines of every machine.
//!
//! Invariant: what is fixed here is seen by guests and kept by snapshots: a value never changes meaning.

use crate::memory::GuestAddress;

/// RAM below 4 GiB ends here at the latest; what does not fit continues at [`HIGH_RAM_START`].
pub const HOLE_START: u64 = 0xc000_0000;
/// RAM above the hole.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// First virtio-mmio register block; device `n` is at `VIRTIO_MMIO_BASE + n * VIRTIO_MMIO_STRIDE`.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Length of one register block and distance of two.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// The I/O APIC's registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// The local APICs' registers.
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// One page that KVM on some processors needs for real mode.
pub const IDENTITY_MAP_ADDR: u64 = 0xfffb_c000;
/// Three pages that KVM on some processors needs for real mode.
pub const TSS_ADDR: usize = 0xfffb_d000;

/// Number of I/O APIC pins.
pub const GSI_COUNT: u32 = 24;
/// The first serial port's line.
pub const SERIAL_GSI: u32 = 4;
/// The line named by the ACPI tables as SCI, never raised.
pub const ACPI_SCI_GSI: u32 = 9;

/// 8250 serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// i8042 keyboard controller: data at this port, status and command at the port plus 4.
pub const I8042_PORT: u16 = 0x60;
/// ACPI sleep control register, 1 byte.
pub const ACPI_SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register, 1 byte.
pub const ACPI_SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register, 1 byte.
pub const ACPI_RESET_PORT: u16 = 0x602;
/// What to write to [`ACPI_RESET_PORT`].
pub const ACPI_RESET_VALUE: u8 = 1;
/// The SLP_TYP of S5 in `\_S5` and in the sleep control register.
pub const ACPI_S5_SLEEP_TYPE: u8 = 5;
/// The event device: boot marks and the guest's exit status.
pub const EVENT_PORT: u16 = 0x680;
/// Number of ports of the event device.
pub const EVENT_PORTS: u16 = 8;

/// One virtio-mmio transport's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioSlot {
    /// Guest-physical start of its registers.
    pub base: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

/// Number of virtio-mmio transports that a machine has room for.
pub const MMIO_SLOTS: usize = VIRTIO_GSIS.len();

const VIRTIO_GSIS: [u32; 18] = [5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// The place of virtio-mmio transport `index`, or `None` past the last one.
#[must_use]
pub fn mmio_slot(index: usize) -> Option<MmioSlot> {
    let gsi = *VIRTIO_GSIS.get(index)?;
    let base = VIRTIO_MMIO_BASE + (index as u64) * VIRTIO_MMIO_STRIDE;
    Some(MmioSlot { base, gsi })
}

/// Splits `memory_bytes` of RAM around the hole below 4 GiB: (start, length in bytes), ascending.
#[must_use]
pub fn ram_ranges(memory_bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = memory_bytes.min(HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if memory_bytes > low {
        ranges.push((GuestAddress(HIGH_RAM_START), memory_bytes - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        const GIB: u64 = 1 << 30;
        for (bytes, want) in [
            (GIB, vec![(GuestAddress(0), GIB)]),
            (3 * GIB, vec![(GuestAddress(0), 3 * GIB)]),
            (6 * GIB, vec![(GuestAddress(0), 3 * GIB), (GuestAddress(4 * GIB), 3 * GIB)]),
        ] {
            assert_eq!(ram_ranges(bytes), want);
        }
    }

    #[test]
    fn slots_have_lines_of_their_own_inside_the_hole() {
        let slots: Vec<_> = (0..MMIO_SLOTS).map(|i| mmio_slot(i).unwrap()).collect();
        for (i, slot) in slots.iter().enumerate() {
            assert!(slot.base >= HOLE_START && slot.base + VIRTIO_MMIO_STRIDE <= IOAPIC_BASE);
            assert!(slot.gsi < GSI_COUNT && ![SERIAL_GSI, ACPI_SCI_GSI].contains(&slot.gsi));
            assert!(
                slots[..i].iter().all(|other| other.gsi != slot.gsi && other.base != slot.base)
            );
        }
        assert_eq!(mmio_slot(MMIO_SLOTS), None);
    }
}
