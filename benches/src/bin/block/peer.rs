//! The same load straight on the host's io_uring: what a disk could do at most if the device cost nothing.
//!
//! Invariant: ring flags, fixed file, operations and buffers are as the device's engine has them; one thread does it all, and nothing is
//! registered or polled that the engine does not register or poll.

#![expect(unsafe_code, reason = "entries name memory and files for the kernel")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};
use openshell_vmm::memory::{GuestAddress, GuestRam};

use crate::guest::{DATA, DATA_STRIDE, RAM_BYTES};
use crate::load::{Io, Kind, Load, Pace, Shape, Turn};
use crate::sys;

const ENTRIES: u32 = 64;
const DISK: Fixed = Fixed(0);

/// A ring on one file.
pub(crate) struct Peer {
    ring: IoUring,
    ram: GuestRam,
    len_bytes: u64,
    thread: i32,
    _file: File,
}

impl Peer {
    /// A ring on `file` of `len_bytes`, to be used by the calling thread.
    pub(crate) fn new(file: File, len_bytes: u64) -> Result<Self> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(ENTRIES)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let ram = GuestRam::anonymous(&[(GuestAddress(0), RAM_BYTES)])?;
        ram.write(GuestAddress(0), &vec![0; usize::try_from(RAM_BYTES)?])?;
        Ok(Self { ring, ram, len_bytes, thread: sys::this_thread(), _file: file })
    }

    /// Does `shape` for `span`.
    pub(crate) fn turn(&mut self, shape: Shape, seed: u64, span: Duration) -> Result<Turn> {
        let mut load = Load::new(shape, self.len_bytes, seed);
        let before = sys::cpu_time(self.thread)?;
        let mut pace = Pace::new(shape.depth, span);
        let mut in_flight = shape.depth;
        let mut free: Vec<usize> = (0..shape.depth).collect();
        while in_flight > 0 {
            for slot in free.drain(..) {
                pace.start(slot);
                self.push(slot, load.next(), shape.len_bytes)?;
            }
            self.ring.submit_and_wait(1)?;
            let more = pace.tick();
            for completion in self.ring.completion() {
                let slot = usize::try_from(completion.user_data())?;
                ensure!(completion.result() >= 0, "an operation failed: {}", completion.result());
                pace.end(slot);
                if more {
                    free.push(slot);
                } else {
                    in_flight -= 1;
                }
            }
        }
        let cpu = sys::cpu_time(self.thread)?.saturating_sub(before);
        Ok(pace.turn(cpu, None))
    }

    fn push(&mut self, slot: usize, io: Io, len_bytes: u32) -> Result<()> {
        let data = GuestAddress(DATA + slot as u64 * DATA_STRIDE);
        let base = self.ram.io_buf(data, len_bytes)?.as_mut_ptr();
        let entry = match io.kind {
            Kind::Read => opcode::Read::new(DISK, base, len_bytes).offset(io.offset).build(),
            Kind::Write => opcode::Write::new(DISK, base, len_bytes).offset(io.offset).build(),
            Kind::Flush => opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.user_data(slot as u64);
        // SAFETY: the buffer lies in `ram`, which lives as long as the ring, and a turn ends only when nothing is in flight.
        unsafe { self.ring.submission().push(&entry) }?;
        Ok(())
    }
}
