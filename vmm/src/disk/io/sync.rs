//! The synchronous engine: each operation is carried out by system calls when it is submitted.
//!
//! Invariant: the same [`Transfer`] machine as the ring's decides what is done and how it ends. The worker's thread runs it, and
//! waits in `ppoll`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::disk::Disk;
use crate::memory::{GuestRam, IoBuf};

use super::transfer::{Op, Step, Transfer};
use super::{Done, Signals, Wake};

/// See the module header.
#[derive(Debug)]
pub struct Blocking<T> {
    disk: Box<dyn Disk>,
    signals: Signals,
    ended: Vec<Done<T>>,
    ram: Option<Arc<GuestRam>>,
}

impl<T> Blocking<T> {
    /// An engine on `disk`.
    #[must_use]
    pub fn new(disk: Box<dyn Disk>, signals: Signals) -> Self {
        Self { disk, signals, ended: Vec::new(), ram: None }
    }

    pub(super) fn mailbox(&self) -> &EventFd {
        &self.signals.mailbox
    }

    pub(super) fn hold(&mut self, ram: Arc<GuestRam>) {
        self.ram = Some(ram);
    }

    pub(super) fn release(&mut self) {
        self.ram = None;
    }

    pub(super) fn in_flight(&self) -> usize {
        self.ended.len()
    }

    pub(super) fn submit(&mut self, op: Op, offset: u64, bufs: &[IoBuf], payload: T) {
        let result = self.disk.perform(op, offset, bufs);
        self.ended.push(Done { payload, result });
    }

    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        done: &mut Vec<Done<T>>,
    ) -> io::Result<Wake> {
        let timeout = if self.ended.is_empty() { timeout } else { Some(Duration::ZERO) };
        done.append(&mut self.ended);
        let [doorbell, mailbox] =
            poll_in([&self.signals.doorbell, &self.signals.mailbox], timeout)?;
        for (ready, event) in [(doorbell, &self.signals.doorbell), (mailbox, &self.signals.mailbox)]
        {
            if ready {
                event.read()?;
            }
        }
        Ok(Wake { doorbell, mailbox })
    }
}

/// Carries out one operation on `file`.
///
/// # Errors
/// What the host said; [`io::ErrorKind::UnexpectedEof`] when the file is shorter than the range.
pub fn perform(file: &File, op: Op, offset: u64, bufs: &[IoBuf]) -> io::Result<()> {
    let mut transfer = Transfer::default();
    transfer.start(op, offset, bufs);
    finish(file, &mut transfer)
}

/// Carries out what is left of `transfer`; errors as [`perform`].
pub(super) fn finish(file: &File, transfer: &mut Transfer) -> io::Result<()> {
    loop {
        let step = transfer.step();
        if matches!(step, Step::Nothing) {
            return Ok(());
        }
        let outcome = call(file, &step, 0);
        if let Some(result) = transfer.advance(outcome) {
            return result;
        }
    }
}

/// One system call: its result, or a negated errno. A write has the `RWF_` bits of `flags` besides its own.
pub(super) fn call(file: &File, step: &Step<'_>, flags: i32) -> i32 {
    let fd = file.as_raw_fd();
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let result = match *step {
        Step::Read { bufs, offset } => {
            let count = i32::try_from(bufs.len()).unwrap_or(i32::MAX);
            // SAFETY: the vectors are valid for the call, and they name guest memory that the caller keeps mapped or staging memory it
            // keeps borrowed; `Iovec` is a transparent `iovec`.
            unsafe { libc::preadv(fd, bufs.as_ptr().cast(), count, signed(offset)) }
        }
        Step::Write { bufs, offset, durable } => {
            let count = i32::try_from(bufs.len()).unwrap_or(i32::MAX);
            let flags = if durable { flags | libc::RWF_DSYNC } else { flags };
            // SAFETY: as for reading; the kernel only reads the memory.
            unsafe { libc::pwritev2(fd, bufs.as_ptr().cast(), count, signed(offset), flags) }
        }
        // SAFETY: takes a descriptor only, which `file` keeps open.
        Step::Sync => unsafe { libc::fdatasync(fd) as isize },
        Step::Fallocate { mode, offset, len } => {
            // SAFETY: takes numbers only; the kernel checks the range.
            unsafe { libc::fallocate(fd, mode, signed(offset), signed(len)) as isize }
        }
        Step::Nothing => 0,
    };
    if result < 0 {
        return -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    }
    i32::try_from(result).unwrap_or(i32::MAX)
}

fn poll_in(events: [&EventFd; 2], timeout: Option<Duration>) -> io::Result<[bool; 2]> {
    let mut fds = events.map(|event| libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let limit = timeout.map(|timeout| libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `fds` and the limit live across the call; a null limit and a null mask mean none.
    let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), 2, limit, std::ptr::null()) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted {
            Ok([false; 2])
        } else {
            Err(error)
        };
    }
    Ok(fds.map(|fd| fd.revents & libc::POLLIN != 0))
}
