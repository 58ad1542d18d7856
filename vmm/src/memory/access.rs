//! Checked windows into guest RAM: for rings, and for the kernel's I/O.
//!
//! Invariant: a [`Window`] covers memory that stays mapped while it lives, and every access through it is volatile or atomic, because the
//! guest is another writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::region::GuestRam;

/// A fixed range of guest RAM that both sides use while the machine runs.
#[derive(Debug)]
pub struct Window {
    _ram: Arc<GuestRam>,
    base: *mut u8,
    len: usize,
}

// SAFETY: the memory behind `base` is kept mapped by `_ram`, and all accesses are volatile or atomic, so that a window may be used
// from whichever thread owns it.
unsafe impl Send for Window {}

impl Window {
    pub(super) fn new(ram: Arc<GuestRam>, base: *mut u8, len: usize) -> Self {
        Self { _ram: ram, base, len }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    /// Loads a little-endian u16 with acquire ordering.
    ///
    /// # Panics
    /// When `offset` is odd or the value does not fit in the window: callers compute offsets from sizes checked when the window was made.
    #[must_use]
    pub fn load_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.atomic(offset).load(Ordering::Acquire))
    }

    /// Stores a little-endian u16 with release ordering.
    ///
    /// # Panics
    /// As [`Self::load_u16`].
    pub fn store_u16(&self, offset: usize, value: u16) {
        self.atomic(offset).store(value.to_le(), Ordering::Release);
    }

    /// Copies `N` bytes out once.
    ///
    /// # Panics
    /// When they do not fit in the window.
    #[must_use]
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let src = self.at(offset, N).cast::<[u8; N]>();
        // SAFETY: `at` checked that N bytes lie inside the window; byte arrays have no alignment and no invalid values.
        unsafe { src.read_volatile() }
    }

    /// Copies `N` bytes in.
    ///
    /// # Panics
    /// As [`Self::read`].
    pub fn write<const N: usize>(&self, offset: usize, value: [u8; N]) {
        let dst = self.at(offset, N).cast::<[u8; N]>();
        // SAFETY: as in `read`.
        unsafe { dst.write_volatile(value) };
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "window offset is computed from the checked size"
        );
        // SAFETY: the assertion keeps the result inside the window's single mapping.
        unsafe { self.base.add(offset) }
    }

    fn atomic(&self, offset: usize) -> &AtomicU16 {
        let ptr = self.at(offset, 2).cast::<u16>();
        assert!(ptr.is_aligned(), "ring fields are aligned because the ring is");
        // SAFETY: in bounds and aligned (checked above), mapped while `_ram` lives; the guest's accesses are those of another
        // processor, which atomics are made for.
        unsafe { AtomicU16::from_ptr(ptr) }
    }
}

/// A range of guest RAM for the kernel to read or write during one I/O operation.
///
/// It does not keep the RAM alive: whoever submits I/O on it holds the machine's [`GuestRam`] until that I/O is reaped.
#[derive(Debug, Clone, Copy)]
pub struct IoBuf {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: it is an address and a length; only `disk/io` hands them to the kernel, which does its own access checks.
unsafe impl Send for IoBuf {}

impl IoBuf {
    pub(super) fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len }
    }

    /// A range of ordinary memory, for staging copies.
    ///
    /// The caller keeps `bytes` alive and unmoved until the I/O on it is reaped.
    #[must_use]
    pub fn staging(bytes: &mut [u8]) -> Self {
        Self { ptr: bytes.as_mut_ptr(), len: bytes.len() }
    }

    /// The part of it that starts `from` bytes in, `len` bytes long; `None` when it ends before.
    #[must_use]
    pub fn part(&self, from: usize, len: usize) -> Option<Self> {
        let end = from.checked_add(len)?;
        (end <= self.len).then(|| Self { ptr: self.ptr.wrapping_add(from), len })
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    /// The first byte's host address, to be given to the kernel only.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.ptr
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestAddress;

    #[test]
    fn a_window_reads_what_the_guest_side_wrote() {
        let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), 2 << 20)]).unwrap());
        let window = ram.window(GuestAddress(0x100), 16, 16).unwrap();
        ram.write(GuestAddress(0x104), &[0x34, 0x12]).unwrap();
        assert_eq!(window.load_u16(4), 0x1234);
        window.store_u16(6, 0xbeef);
        assert_eq!(window.read::<4>(4), [0x34, 0x12, 0xef, 0xbe]);
    }

    #[test]
    #[should_panic(expected = "window offset")]
    fn a_window_refuses_what_lies_past_it() {
        let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), 2 << 20)]).unwrap());
        let window = ram.window(GuestAddress(0x100), 16, 16).unwrap();
        assert_eq!(window.read::<4>(13), [0; 4]);
    }
}
