//! Where the tests' drivers keep what in the 32 MiB of their guests, and what lies around it.

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::Ring;

/// The end of the guest's RAM.
pub(crate) const RAM_END: u64 = 32 << 20;
/// From here on nothing of the guest's own lies in RAM.
pub(crate) const ARENA: u64 = 8 << 20;
/// Requests and answers of a driver.
pub(crate) const BUFFERS: u64 = 10 << 20;

const GUARD_BYTES: u64 = 512;
const GUARD: u8 = 0xcc;

/// The rings of queue `index`, with room around them.
pub(crate) fn ring(index: u64, size: u16) -> Ring {
    Ring::at(ARENA + 0x1_0000 * index + 0x1000, size)
}

/// Puts guards around `len_bytes` at `addr`, which no device may touch.
pub(crate) fn guard(script: &mut Script, addr: u64, len_bytes: u64) {
    script.fill(addr - GUARD_BYTES, GUARD_BYTES, GUARD);
    script.fill(addr + len_bytes, GUARD_BYTES, GUARD);
}

/// The guards around `len_bytes` at `addr` are as they were.
#[track_caller]
pub(crate) fn check_guard(script: &mut Script, addr: u64, len_bytes: u64) {
    script.filled(addr - GUARD_BYTES, GUARD_BYTES, GUARD);
    script.filled(addr + len_bytes, GUARD_BYTES, GUARD);
}
