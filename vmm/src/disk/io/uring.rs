//! The io_uring engine: one `io_uring_enter` submits a batch, waits, and is woken by completions and by the two signals alike.
//!
//! A filesystem that cannot write through its cache without waiting makes the kernel hand each such write to a thread of its own, which
//! costs ten times the copy: writes that need not be durable are then plain system calls, made while the rest of the batch is under way.
//!
//! Invariant: a slot's vector and payload are untouched between pushing its entry and reaping its completion, and the ring is drained
//! before they are freed. One thread owns it; the ring is made and restricted before that thread is confined.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags, SubmissionQueue};
use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, opcode};

use vmm_sys_util::eventfd::EventFd;

use crate::memory::{GuestRam, IoBuf};

use super::sync::{call, finish};
use super::transfer::{Iovec, Op, Step, Transfer};
use super::{DEPTH, Done, Signals, Wake};

/// Entries submitted per system call: a batch beyond it takes another call, and each page of entries costs memory.
const SUBMIT_ENTRIES: u32 = 64;
/// Room for every operation and both signals.
const COMPLETION_ENTRIES: u32 = 512;

/// IORING_ENTER_GETEVENTS: completions that are ready are handed out, also without waiting.
const ENTER_GETEVENTS: u32 = 1;

const DISK: Fixed = Fixed(0);
const DOORBELL: usize = 0;
const MAILBOX: usize = 1;
/// Signals take the numbers from here on; slots are below.
const SIGNAL_BASE: u64 = DEPTH as u64;

/// A batch of system calls that took longer than this was held up, by writeback or by the filesystem's journal and not by another thread.
const HELD_UP: Duration = Duration::from_millis(10);
/// Writes that go through the ring after that: reads that come with them then do not wait.
const WRITES_AFTER_HOLD_UP: u32 = 256;

/// How writes that need not be durable are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// The first one will show what the filesystem can do.
    Unknown,
    /// By the ring.
    Ring,
    /// By system calls, but for so many that go through the ring first.
    Calls { ring_first: u32 },
}

#[derive(Debug)]
struct Slot<T> {
    transfer: Transfer,
    payload: Option<T>,
}

/// See the module header.
pub struct Uring<T> {
    ring: IoUring,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    writes: Writes,
    /// Slots whose writes are made at the next wait.
    calls: Vec<usize>,
    signals: Signals,
    cells: Box<[u64; 2]>,
    armed: [bool; 2],
    started: bool,
    ram: Option<Arc<GuestRam>>,
    file: Arc<File>,
}

impl<T> std::fmt::Debug for Uring<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl<T> Uring<T> {
    /// Makes a ring that can only work on `file` and the signals.
    ///
    /// # Errors
    /// What the host said when it refused the ring, its restrictions or its files: use [`super::Blocking`] then.
    pub fn new(file: Arc<File>, signals: Signals) -> io::Result<Self> {
        let ring = build()?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let submitter = ring.submitter();
        submitter.register_files(&[
            file.as_raw_fd(),
            signals.doorbell.as_raw_fd(),
            signals.mailbox.as_raw_fd(),
        ])?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Read::CODE),
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_allowed(Flags::FIXED_FILE.bits()),
            Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()),
        ])?;
        Ok(Self {
            ring,
            slots: Vec::with_capacity(DEPTH),
            free: Vec::with_capacity(DEPTH),
            writes: Writes::Unknown,
            calls: Vec::new(),
            signals,
            cells: Box::new([0; 2]),
            armed: [false; 2],
            started: false,
            ram: None,
            file,
        })
    }

    pub(super) fn mailbox(&self) -> &EventFd {
        &self.signals.mailbox
    }

    pub(super) fn start(&mut self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()?;
        self.started = true;
        Ok(())
    }

    pub(super) fn hold(&mut self, ram: Arc<GuestRam>) {
        self.ram = Some(ram);
    }

    pub(super) fn release(&mut self) {
        self.ram = None;
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn submit(&mut self, op: Op, offset: u64, bufs: &[IoBuf], payload: T) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { transfer: Transfer::default(), payload: None });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.transfer.start(op, offset, bufs);
        slot.payload = Some(payload);
        if op == (Op::Write { durable: false }) && self.is_a_call(index) {
            self.calls.push(index);
            return;
        }
        let entry = entry(&self.slots[index].transfer.step(), index);
        let (submitter, mut queue, _) = self.ring.split();
        // An entry that does not fit stays out only when the kernel refuses the whole batch, which `wait` reports.
        push(&submitter, &mut queue, &entry);
    }

    /// Whether the write in this slot is a system call of its own.
    fn is_a_call(&mut self, index: usize) -> bool {
        match &mut self.writes {
            Writes::Ring => false,
            Writes::Calls { ring_first: 0 } => true,
            Writes::Calls { ring_first } => {
                *ring_first -= 1;
                false
            }
            Writes::Unknown => {
                // Written twice where it is written now: it says the same, and nothing else of the driver's may be in these bytes
                // before it ended.
                let step = self.slots[index].transfer.step();
                let refused = call(&self.file, &step, libc::RWF_NOWAIT) == -libc::EOPNOTSUPP;
                self.writes = if refused { Writes::Calls { ring_first: 0 } } else { Writes::Ring };
                refused
            }
        }
    }

    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        done: &mut Vec<Done<T>>,
    ) -> io::Result<Wake> {
        self.arm(DOORBELL);
        self.arm(MAILBOX);
        if !self.calls.is_empty() {
            self.enter(Some(Duration::ZERO))?;
            self.make_calls(done);
            return self.reap(done);
        }
        loop {
            self.enter(timeout)?;
            let wake = self.reap(done)?;
            if wake != Wake::default() || !done.is_empty() || timeout.is_some() {
                return Ok(wake);
            }
        }
    }

    fn arm(&mut self, signal: usize) {
        if self.armed[signal] {
            return;
        }
        let file = if signal == DOORBELL { Fixed(1) } else { Fixed(2) };
        let cell: *mut u64 = &raw mut self.cells[signal];
        let entry =
            opcode::Read::new(file, cell.cast(), 8).build().user_data(SIGNAL_BASE + signal as u64);
        let (submitter, mut queue, _) = self.ring.split();
        push(&submitter, &mut queue, &entry);
        self.armed[signal] = true;
    }

    fn make_calls(&mut self, done: &mut Vec<Done<T>>) {
        let start = Instant::now();
        for index in self.calls.drain(..) {
            let slot = &mut self.slots[index];
            let result = finish(&self.file, &mut slot.transfer);
            self.free.push(index);
            if let Some(payload) = slot.payload.take() {
                done.push(Done { payload, result });
            }
        }
        if start.elapsed() > HELD_UP {
            self.writes = Writes::Calls { ring_first: WRITES_AFTER_HOLD_UP };
        }
    }

    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let entries = u32::try_from(self.ring.submission().len()).unwrap_or(u32::MAX);
        let submitter = self.ring.submitter();
        let entered = match timeout {
            None => submitter.submit_and_wait(1),
            Some(Duration::ZERO) => {
                // SAFETY: no argument is passed, and every entry in the queue was pushed under the rules of `push`.
                unsafe { submitter.enter::<libc::sigset_t>(entries, 0, ENTER_GETEVENTS, None) }
            }
            Some(limit) => {
                let limit = Timespec::from(limit);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // A full completion queue and a shortage of memory pass when completions are reaped.
                Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn reap(&mut self, done: &mut Vec<Done<T>>) -> io::Result<Wake> {
        let mut wake = Wake::default();
        let (submitter, mut queue, completions) = self.ring.split();
        for completion in completions {
            let result = completion.result();
            let index = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            if index == DEPTH + DOORBELL || index == DEPTH + MAILBOX {
                let signal = index - DEPTH;
                self.armed[signal] = false;
                // A signal that cannot be read would leave the worker deaf.
                if result < 0 && -result != libc::EINTR && -result != libc::EAGAIN {
                    return Err(io::Error::from_raw_os_error(-result));
                }
                wake.doorbell |= signal == DOORBELL;
                wake.mailbox |= signal == MAILBOX;
                continue;
            }
            let slot = &mut self.slots[index];
            match slot.transfer.advance(result) {
                None => push(&submitter, &mut queue, &entry(&slot.transfer.step(), index)),
                Some(result) => {
                    self.free.push(index);
                    if let Some(payload) = slot.payload.take() {
                        done.push(Done { payload, result });
                    }
                }
            }
        }
        Ok(wake)
    }

    fn drain(&mut self) -> io::Result<()> {
        let mut done = Vec::new();
        self.make_calls(&mut done);
        // Nothing else ends a read of an eventfd that nobody will ring again.
        for (signal, event) in [&self.signals.doorbell, &self.signals.mailbox].iter().enumerate() {
            if self.armed[signal] {
                event.write(1)?;
            }
        }
        while self.in_flight() > 0 || self.armed != [false; 2] {
            self.enter(None)?;
            self.reap(&mut done)?;
            done.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
impl<T> Uring<T> {
    /// What the kernel says to an operation that is not allowed, and to an allowed one on a descriptor of the process.
    pub(super) fn try_foreign_entries(&mut self) -> [i32; 2] {
        use std::os::fd::RawFd;
        let raw: RawFd = self.signals.doorbell.as_raw_fd();
        let entries = [
            opcode::Close::new(io_uring::types::Fd(raw)).build(),
            opcode::Read::new(io_uring::types::Fd(raw), self.cells.as_mut_ptr().cast(), 8).build(),
        ];
        entries.map(|entry| {
            let (submitter, mut queue, _) = self.ring.split();
            push(&submitter, &mut queue, &entry);
            drop(queue);
            self.enter(None).expect("the ring works");
            self.ring.completion().next().expect("an answer").result()
        })
    }
}

impl<T> Drop for Uring<T> {
    fn drop(&mut self) {
        if self.started && self.drain().is_err() {
            // The kernel may still write to all of it: it is never freed.
            std::mem::take(&mut self.slots).leak();
            Box::leak(std::mem::replace(&mut self.cells, Box::new([0; 2])));
            self.ram.take().map(Arc::into_raw);
        }
    }
}

/// The newest set of flags the kernel knows: completions are then reaped without interrupting the worker.
fn build() -> io::Result<IoUring> {
    let refused = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let base = || {
        let mut builder = IoUring::builder();
        builder.setup_r_disabled().setup_cqsize(COMPLETION_ENTRIES).dontfork();
        builder
    };
    base()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(SUBMIT_ENTRIES)
        .or_else(|error| {
            if refused(&error) {
                base().setup_coop_taskrun().build(SUBMIT_ENTRIES)
            } else {
                Err(error)
            }
        })
        .or_else(|error| if refused(&error) { base().build(SUBMIT_ENTRIES) } else { Err(error) })
}

fn entry(step: &Step<'_>, index: usize) -> Entry {
    let entry = match *step {
        Step::Read { bufs: [buf], offset } => {
            opcode::Read::new(DISK, buf.base(), len_u32(buf)).offset(offset).build()
        }
        Step::Read { bufs, offset } => {
            opcode::Readv::new(DISK, bufs.as_ptr().cast(), count(bufs)).offset(offset).build()
        }
        Step::Write { bufs: [buf], offset, durable } => {
            opcode::Write::new(DISK, buf.base(), len_u32(buf))
                .offset(offset)
                .rw_flags(write_flags(durable))
                .build()
        }
        Step::Write { bufs, offset, durable } => {
            opcode::Writev::new(DISK, bufs.as_ptr().cast(), count(bufs))
                .offset(offset)
                .rw_flags(write_flags(durable))
                .build()
        }
        Step::Sync => opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build(),
        Step::Fallocate { mode, offset, len } => {
            opcode::Fallocate::new(DISK, len).offset(offset).mode(mode).build()
        }
        Step::Nothing => opcode::Readv::new(DISK, std::ptr::null(), 0).build(),
    };
    entry.user_data(index as u64)
}

fn len_u32(buf: &Iovec) -> u32 {
    // The rest of a longer buffer is a short transfer, which is resumed.
    u32::try_from(buf.len()).unwrap_or(1 << 30)
}

fn count(bufs: &[Iovec]) -> u32 {
    u32::try_from(bufs.len()).unwrap_or(u32::MAX)
}

fn write_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

fn push(submitter: &Submitter<'_>, queue: &mut SubmissionQueue<'_>, entry: &Entry) {
    // SAFETY: the entry names slot vectors, guest memory or signal cells, all owned by the `Uring` and kept until the completion is
    // reaped (`Drop` drains).
    while unsafe { queue.push(entry) }.is_err() {
        queue.sync();
        drop(submitter.submit());
        queue.sync();
    }
}
