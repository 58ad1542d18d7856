//! A raw image or block device: byte N of the disk is byte N of the file.
//!
//! Invariant: none beyond the file's own. The synchronous engine's disk; io_uring works on the file directly.

use std::fs::File;
use std::io::Result;
use std::sync::Arc;

use crate::memory::IoBuf;

use super::Disk;
use super::io::{Op, perform};

/// See the module header.
#[derive(Debug)]
pub struct Raw(Arc<File>);

impl Raw {
    /// A disk on `file`.
    #[must_use]
    pub fn new(file: Arc<File>) -> Self {
        Self(file)
    }
}

impl Disk for Raw {
    fn perform(&mut self, op: Op, offset: u64, bufs: &[IoBuf]) -> Result<()> {
        perform(&self.0, op, offset, bufs)
    }
}
