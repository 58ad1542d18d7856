//! The register file of virtio-mmio version 2 (VIRTIO 1.2 section 4.2.2), as a table.
//!
//! Invariant: an access that the section does not allow (another width, between two registers, past the block) is no register.

use crate::virtio::lifecycle::{Half, Ring};

/// One 32-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    MagicValue,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    DeviceFeaturesSel,
    DriverFeatures,
    DriverFeaturesSel,
    QueueSel,
    QueueNumMax,
    QueueNum,
    QueueReady,
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
    QueueAddress(Ring, Half),
    ShmSel,
    /// A half of a shared memory region's length or base.
    ShmRegion,
    QueueReset,
    ConfigGeneration,
}

const REGISTERS: [(u64, Register); 29] = [
    (0x000, Register::MagicValue),
    (0x004, Register::Version),
    (0x008, Register::DeviceId),
    (0x00c, Register::VendorId),
    (0x010, Register::DeviceFeatures),
    (0x014, Register::DeviceFeaturesSel),
    (0x020, Register::DriverFeatures),
    (0x024, Register::DriverFeaturesSel),
    (0x030, Register::QueueSel),
    (0x034, Register::QueueNumMax),
    (0x038, Register::QueueNum),
    (0x044, Register::QueueReady),
    (0x050, Register::QueueNotify),
    (0x060, Register::InterruptStatus),
    (0x064, Register::InterruptAck),
    (0x070, Register::Status),
    (0x080, Register::QueueAddress(Ring::Desc, Half::Low)),
    (0x084, Register::QueueAddress(Ring::Desc, Half::High)),
    (0x090, Register::QueueAddress(Ring::Avail, Half::Low)),
    (0x094, Register::QueueAddress(Ring::Avail, Half::High)),
    (0x0a0, Register::QueueAddress(Ring::Used, Half::Low)),
    (0x0a4, Register::QueueAddress(Ring::Used, Half::High)),
    (0x0ac, Register::ShmSel),
    (0x0b0, Register::ShmRegion),
    (0x0b4, Register::ShmRegion),
    (0x0b8, Register::ShmRegion),
    (0x0bc, Register::ShmRegion),
    (0x0c0, Register::QueueReset),
    (0x0fc, Register::ConfigGeneration),
];

/// Where device configuration starts.
pub(super) const CONFIG_OFFSET: u64 = 0x100;
/// Length of the whole block.
pub(super) const BLOCK_BYTES: u64 = 0x1000;

/// What an access reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// A register, with four bytes.
    Register(Register),
    /// Device configuration from this offset on.
    Config(u64),
    /// Nothing.
    Nothing,
}

impl Target {
    /// What `len` bytes at `offset` reach.
    pub(super) fn at(offset: u64, len: usize) -> Self {
        if offset >= CONFIG_OFFSET {
            // 8-byte fields are read in halves or at once; both are on 4-byte boundaries.
            let align = match len {
                1 | 2 | 4 => len as u64,
                8 => 4,
                _ => return Self::Nothing,
            };
            let inside = BLOCK_BYTES.checked_sub(len as u64).is_some_and(|last| offset <= last);
            return if inside && offset.is_multiple_of(align) {
                Self::Config(offset - CONFIG_OFFSET)
            } else {
                Self::Nothing
            };
        }
        match REGISTERS.binary_search_by_key(&offset, |&(at, _)| at) {
            Ok(found) if len == 4 => Self::Register(REGISTERS[found].1),
            _ => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_is_found_at_its_offset_with_its_width_only() {
        for (offset, register) in REGISTERS {
            assert_eq!(Target::at(offset, 4), Target::Register(register), "{offset:#x}");
            for (offset, len) in [(offset, 1), (offset, 2), (offset, 8), (offset + 1, 4)] {
                assert_eq!(Target::at(offset, len), Target::Nothing, "{offset:#x} {len}");
            }
        }
        for gap in [0x18, 0x28, 0x3c, 0x40, 0x54, 0x74, 0x88, 0xa8, 0xc4, 0xf8] {
            assert_eq!(Target::at(gap, 4), Target::Nothing, "{gap:#x}");
        }
    }

    #[test]
    fn configuration_takes_natural_accesses_inside_the_block() {
        for (offset, len, want) in [
            (0x100, 1, Target::Config(0)),
            (0x101, 1, Target::Config(1)),
            (0x101, 2, Target::Nothing),
            (0x102, 2, Target::Config(2)),
            (0x102, 4, Target::Nothing),
            (0x104, 8, Target::Config(4)),
            (0x102, 8, Target::Nothing),
            (0xffc, 4, Target::Config(0xefc)),
            (0xffc, 8, Target::Nothing),
            (0xfff, 1, Target::Config(0xeff)),
            (0x1000, 1, Target::Nothing),
            (u64::MAX, 1, Target::Nothing),
            (0x100, 3, Target::Nothing),
            (0x100, 0, Target::Nothing),
            (0x100, 16, Target::Nothing),
        ] {
            assert_eq!(Target::at(offset, len), want, "{offset:#x} {len}");
        }
    }
}
