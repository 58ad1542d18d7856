//! What the fuzz targets share: bytes read as a script, guest RAM, and files that cost little.
//!
//! Invariant: a script that has ended reads as zeroes, so that every prefix of an input is an input.
#![forbid(unsafe_code)]

pub mod resolvers;

use std::fs::File;
use std::sync::Arc;

use openshell_vmm::memory::{GuestAddress, GuestRam};

/// A fuzzer's bytes, taken from the front.
#[derive(Debug, Clone, Copy)]
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    /// Whether bytes are left.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        !self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// At most `len` of the next bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}

/// RAM from address 0 on.
///
/// # Panics
/// When the host refuses.
#[must_use]
pub fn ram(len_bytes: u64) -> Arc<GuestRam> {
    Arc::new(GuestRam::anonymous(&[(GuestAddress(0), len_bytes)]).expect("a small mapping"))
}

/// An unnamed file, in memory where the host has such a place.
///
/// # Panics
/// When the host refuses.
#[must_use]
pub fn file() -> File {
    tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).expect("a temporary file")
}
