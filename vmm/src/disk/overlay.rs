//! A copy-on-write disk: a base that is only ever read, and a sparse delta file with what the guest wrote.
//!
//! Invariant: a bit of the delta's map reaches stable storage only after the data it stands for (flush: data, sync, map, sync), so that
//! after a crash the disk holds everything flushed and never a block of something else. The worker of the disk's only queue runs it, one
//! operation at a time (the synchronous engine), which is what serialises writes to one block. Format: [`format`].

pub mod format;
mod map;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Result;
use std::sync::Arc;

use crate::memory::IoBuf;

use super::io::Op;
use super::{Disk, Raw};
use format::{BLOCK_BYTES, BLOCK_LEN, Layout, OverlayError};
use map::Map;

/// See the module header.
#[derive(Debug)]
pub struct Overlay<D = Raw> {
    base: Raw,
    delta: D,
    layout: Layout,
    map: Map,
    parts: Vec<IoBuf>,
}

impl Overlay {
    /// Opens the disk of `len_bytes` that `delta` makes of `base`; an empty `delta` becomes a new one.
    ///
    /// # Errors
    /// [`OverlayError`] when the delta is damaged, not one, or belongs to another base.
    pub fn open(
        base: &Arc<File>,
        delta: File,
        len_bytes: u64,
    ) -> std::result::Result<Self, OverlayError> {
        let layout = Layout::new(len_bytes)?;
        let map = format::open(base, &delta, layout)?;
        Ok(Self::new(Raw::new(Arc::clone(base)), Raw::new(Arc::new(delta)), layout, map))
    }
}

impl<D: Disk> Overlay<D> {
    fn new(base: Raw, delta: D, layout: Layout, map: Map) -> Self {
        Self { base, delta, layout, map, parts: Vec::new() }
    }

    fn read(&mut self, offset: u64, bufs: &[IoBuf]) -> Result<()> {
        let len_bytes = total(bufs);
        let mut done = 0;
        while done < len_bytes {
            let at = offset + done;
            let (in_delta, run) = self.map.run(at, len_bytes - done);
            cut(bufs, done, run, &mut self.parts);
            if in_delta {
                self.delta.perform(Op::Read, self.layout.data_at(at), &self.parts)?;
            } else {
                self.base.perform(Op::Read, at, &self.parts)?;
            }
            done += run;
        }
        Ok(())
    }

    fn write(&mut self, durable: bool, offset: u64, bufs: &[IoBuf]) -> Result<()> {
        let len_bytes = total(bufs);
        if len_bytes == 0 {
            return Ok(());
        }
        self.copy_edges(offset, len_bytes)?;
        self.delta.perform(Op::Write { durable: false }, self.layout.data_at(offset), bufs)?;
        self.map.set(offset, len_bytes);
        if durable { self.flush() } else { Ok(()) }
    }

    fn zero(&mut self, offset: u64, len_bytes: u64, unmap: bool) -> Result<()> {
        if len_bytes == 0 {
            return Ok(());
        }
        self.copy_edges(offset, len_bytes)?;
        let at = self.layout.data_at(offset);
        self.delta.perform(Op::Zero { len_bytes, unmap }, at, &[])?;
        self.map.set(offset, len_bytes);
        Ok(())
    }

    /// Blocks that the base still has keep reading as the base: the device promises nothing about them, and the delta does not grow.
    fn discard(&mut self, offset: u64, len_bytes: u64) -> Result<()> {
        self.delta.perform(Op::Discard { len_bytes }, self.layout.data_at(offset), &[])
    }

    fn flush(&mut self) -> Result<()> {
        self.delta.perform(Op::Flush, 0, &[])?;
        if !self.map.is_dirty() {
            return Ok(());
        }
        for index in self.map.dirty_pages() {
            let at = self.layout.map_at(index);
            let mut page = self.map.page(index);
            self.delta.perform(Op::Write { durable: false }, at, &[IoBuf::staging(&mut page)])?;
        }
        self.delta.perform(Op::Flush, 0, &[])?;
        // Only now: a failure leaves the pages to the next flush.
        self.map.clean();
        Ok(())
    }

    /// Brings what the base has in the first and last block of a range, outside it, into the delta.
    fn copy_edges(&mut self, offset: u64, len_bytes: u64) -> Result<()> {
        let end = offset + len_bytes;
        let first = offset - offset % BLOCK_BYTES;
        let last_end = end.next_multiple_of(BLOCK_BYTES).min(self.layout.len_bytes);
        if !self.map.is_set(first) {
            self.copy_up(first, offset)?;
        }
        if !self.map.is_set(end - 1) {
            self.copy_up(end, last_end)?;
        }
        Ok(())
    }

    fn copy_up(&mut self, from: u64, to: u64) -> Result<()> {
        let mut block = [0; BLOCK_LEN];
        let len = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
        let Some(piece) = block.get_mut(..len).filter(|piece| !piece.is_empty()) else {
            return Ok(());
        };
        let bufs = [IoBuf::staging(piece)];
        self.base.perform(Op::Read, from, &bufs)?;
        self.delta.perform(Op::Write { durable: false }, self.layout.data_at(from), &bufs)
    }
}

impl<D: Disk> Disk for Overlay<D> {
    fn perform(&mut self, op: Op, offset: u64, bufs: &[IoBuf]) -> Result<()> {
        match op {
            Op::Read => self.read(offset, bufs),
            Op::Write { durable } => self.write(durable, offset, bufs),
            Op::Flush => self.flush(),
            Op::Discard { len_bytes } => self.discard(offset, len_bytes),
            Op::Zero { len_bytes, unmap } => self.zero(offset, len_bytes, unmap),
        }
    }
}

fn total(bufs: &[IoBuf]) -> u64 {
    bufs.iter().map(|buf| buf.len_bytes() as u64).sum()
}

/// The part of `bufs` that starts `skip` bytes in and is `len_bytes` long.
fn cut(bufs: &[IoBuf], skip: u64, len_bytes: u64, out: &mut Vec<IoBuf>) {
    out.clear();
    let (mut skip, mut left) = (skip, len_bytes);
    for buf in bufs {
        let here = buf.len_bytes() as u64;
        let from = skip.min(here);
        let take = left.min(here - from);
        skip -= from;
        left -= take;
        let range = (usize::try_from(from), usize::try_from(take));
        if let (Ok(from), Ok(take @ 1..)) = range {
            out.extend(buf.part(from, take));
        }
    }
}
