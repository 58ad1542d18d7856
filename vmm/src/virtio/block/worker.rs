//! The worker of one queue: pops chains, keeps the engine busy, answers.
//!
//! Invariant: after it acknowledged a reset it touches neither queue nor guest memory until it is activated again. It never sleeps
//! without the doorbell, a completion, a limit's deadline or its mailbox being able to wake it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::io::{Done, Engine, Op, Wake};
use crate::disk::limits::Limiter;
use crate::event::Patience;
use crate::memory::{GuestRam, IoBuf};
use crate::virtio::{Chain, Completion, Interrupt, Queue, QueueError, Tail};

use super::mailbox::{Command, Mailbox};
use super::request::{Extent, Geometry, ID_BYTES, Request, RequestError, STATUS_OK};

/// Chains taken before they are submitted and completions are answered. Where the page cache answers at once, the driver then works on
/// one batch while the next is served, instead of both taking turns at the whole queue.
const BATCH: usize = 32;

/// Looks at the ring between two readings of the clock.
const GLANCES: u32 = 32;

/// What a worker has while its driver is ready.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) queue: Queue,
    pub(super) interrupt: Interrupt,
    pub(super) ram: Arc<GuestRam>,
    /// The driver cannot flush, so that every write must be durable when it ends.
    pub(super) write_through: bool,
}

/// A request that the engine has.
#[derive(Debug)]
pub(super) struct Pending {
    tail: Tail,
    data_bytes: u32,
    /// What is left of a request for ranges: apart, so that reads and writes stay small in the engine's slots.
    ranges: Option<Box<Ranges>>,
}

#[derive(Debug)]
struct Ranges {
    /// Last one first.
    rest: Vec<Extent>,
    discard: bool,
    /// What was done must still be made durable.
    sync: bool,
}

/// What every worker of a disk knows of it.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) geometry: Geometry,
    pub(super) id: [u8; ID_BYTES],
    pub(super) limiter: Option<Arc<Mutex<Limiter>>>,
    pub(super) started: Instant,
    /// The driver has changed the disk, through whichever queue.
    pub(super) changed: Arc<AtomicBool>,
}

/// What follows from a request.
enum Next {
    Submit { op: Op, offset: u64, data_bytes: u32 },
    Ranges { extents: Vec<Extent>, discard: bool },
    Answer { data_bytes: u32 },
}

/// Why the worker stopped taking chains.
enum Pause {
    Empty,
    /// The ring is empty and the doorbell still off: more may come in this time.
    Look(Duration),
    Busy,
    Batch,
    Limited(Duration),
}

#[derive(Debug)]
pub(super) struct Worker {
    engine: Engine<Pending>,
    mailbox: Arc<Mailbox>,
    shared: Shared,
    patience: Patience,
    active: Option<Box<Active>>,
    done: Vec<Done<Pending>>,
    bufs: Vec<IoBuf>,
    /// Answers that the driver does not see yet: they become visible together.
    answers: Vec<Completion>,
    /// Something was put on the used ring since the last interrupt decision.
    answered: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl Worker {
    pub(super) fn new(engine: Engine<Pending>, mailbox: Arc<Mailbox>, shared: Shared) -> Self {
        Self {
            engine,
            mailbox,
            shared,
            patience: Patience::of_this_host(),
            active: None,
            done: Vec::new(),
            bufs: Vec::new(),
            answers: Vec::new(),
            answered: false,
        }
    }

    /// Runs until told to stop, or until the host refuses to let it wait; the device then needs a reset and cannot be activated.
    pub(super) fn run(mut self) {
        if let Err(error) = self.serve() {
            drop(error);
            if let Some(active) = &self.active {
                active.interrupt.fail_device();
            }
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        self.engine.start()?;
        let mut wake = Wake { mailbox: true, doorbell: false };
        loop {
            if wake.mailbox && self.obey()? {
                return Ok(());
            }
            let timeout = self.serve_queue();
            wake = self.engine.wait(timeout, &mut self.done)?;
            self.settle();
        }
    }

    /// True when the worker must end.
    fn obey(&mut self) -> io::Result<bool> {
        while let Some(command) = self.mailbox.take() {
            match command {
                Command::Activate(active) => {
                    self.engine.hold(Arc::clone(&active.ram));
                    self.active = Some(active);
                }
                Command::Reset(reply) => {
                    self.let_go()?;
                    reply.send(Ok(()));
                }
                Command::Stop { flush, reply } => {
                    self.let_go()?;
                    // A flush costs a barrier on the host's disk even for a clean file: a machine that wrote nothing does without.
                    let flush = flush && self.shared.changed.load(Ordering::Relaxed);
                    let flushed = if flush { self.flush() } else { Ok(()) };
                    reply.send(flushed);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Reaps what is under way without telling the driver, who let go of the queue.
    fn let_go(&mut self) -> io::Result<()> {
        while self.engine.in_flight() > 0 {
            self.engine.wait(None, &mut self.done)?;
            self.done.clear();
        }
        self.active = None;
        self.answers.clear();
        self.answered = false;
        self.engine.release();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let tail = Chain::new(0, Vec::new(), Vec::new()).into_tail();
        let pending = Pending { tail, data_bytes: 0, ranges: None };
        self.engine.submit(Op::Flush, 0, &[], pending);
        loop {
            self.engine.wait(None, &mut self.done)?;
            if let Some(done) = self.done.pop() {
                return done.result;
            }
        }
    }

    /// Takes chains until there is a reason to wait, decides on the interrupts, and says how long to wait.
    fn serve_queue(&mut self) -> Option<Duration> {
        let mut active = self.active.take()?;
        match self.serve_active(&mut active) {
            Ok(timeout) => {
                self.active = Some(active);
                timeout
            }
            Err(_) => {
                // The rings cannot be trusted: nothing is taken or answered before a reset. The engine still holds the memory.
                active.interrupt.fail_device();
                None
            }
        }
    }

    fn serve_active(&mut self, active: &mut Active) -> Result<Option<Duration>, QueueError> {
        loop {
            let paused = self.take_chains(active);
            self.publish(active);
            if std::mem::take(&mut self.answered) && active.queue.wants_interrupt() {
                active.interrupt.raise_queue();
            }
            match paused? {
                Pause::Empty | Pause::Busy => return Ok(None),
                Pause::Batch => return Ok(Some(Duration::ZERO)),
                Pause::Limited(delay) => return Ok(Some(delay)),
                Pause::Look(limit) => {
                    let found = look(&mut active.queue, limit)?;
                    self.patience.looked(found);
                }
            }
        }
    }

    fn take_chains(&mut self, active: &mut Active) -> Result<Pause, QueueError> {
        active.queue.disable_doorbell();
        let mut budget = BATCH;
        loop {
            if self.engine.in_flight() >= self.engine.depth() {
                return Ok(Pause::Busy);
            }
            if budget == 0 {
                return Ok(Pause::Batch);
            }
            if let Some(delay) = self.delay() {
                return Ok(Pause::Limited(delay));
            }
            match active.queue.pop()? {
                Some(chain) => {
                    budget -= 1;
                    self.take_one(active, chain);
                }
                None => {
                    if self.engine.in_flight() == 0
                        && let Some(limit) = self.patience.next_look()
                    {
                        return Ok(Pause::Look(limit));
                    }
                    if !active.queue.enable_doorbell()? {
                        return Ok(Pause::Empty);
                    }
                    active.queue.disable_doorbell();
                }
            }
        }
    }

    fn take_one(&mut self, active: &Active, chain: Chain) {
        let next = self.decide(active, &chain);
        let tail = chain.into_tail();
        match next {
            Ok(Next::Submit { op, offset, data_bytes }) => {
                let pending = Pending { tail, data_bytes, ranges: None };
                self.engine.submit(op, offset, &self.bufs, pending);
            }
            Ok(Next::Ranges { mut extents, discard }) => {
                extents.retain(|extent| extent.len_bytes > 0);
                extents.reverse();
                let sync = active.write_through && !extents.is_empty();
                let ranges = Some(Box::new(Ranges { rest: extents, discard, sync }));
                self.advance(active, Pending { tail, data_bytes: 0, ranges });
            }
            Ok(Next::Answer { data_bytes }) => self.answer(active, tail, STATUS_OK, data_bytes),
            Err(error) => self.answer(active, tail, error.status(), 0),
        }
    }

    /// What to do about `chain`; its data buffers are left in `self.bufs`.
    fn decide(&mut self, active: &Active, chain: &Chain) -> Result<Next, RequestError> {
        let parsed = Request::parse(chain, &active.ram, self.shared.geometry);
        self.charge(parsed.as_ref().map_or(0, Request::len_bytes));
        let request = parsed?;
        self.note_change(&request);
        self.bufs.clear();
        request.buffers(chain, &active.ram, &mut self.bufs)?;
        Ok(match request {
            Request::Read { len_bytes: 0, .. } | Request::Write { len_bytes: 0, .. } => {
                Next::Answer { data_bytes: 0 }
            }
            Request::Read { offset, len_bytes } => {
                Next::Submit { op: Op::Read, offset, data_bytes: len_bytes }
            }
            Request::Write { offset, .. } => {
                let op = Op::Write { durable: active.write_through };
                Next::Submit { op, offset, data_bytes: 0 }
            }
            // Nothing of ours can be waiting to reach a disk that was opened read-only.
            Request::Flush if self.shared.geometry.read_only => Next::Answer { data_bytes: 0 },
            Request::Flush => Next::Submit { op: Op::Flush, offset: 0, data_bytes: 0 },
            Request::Identify => self.identify(active, chain)?,
            Request::Discard(extents) => Next::Ranges { extents, discard: true },
            Request::Zero(extents) => Next::Ranges { extents, discard: false },
        })
    }

    fn note_change(&self, request: &Request) {
        let changes =
            matches!(request, Request::Write { .. } | Request::Discard(_) | Request::Zero(_));
        // Looked at first, so that the flag's cache line stays shared among the workers.
        if changes && !self.shared.changed.load(Ordering::Relaxed) {
            self.shared.changed.store(true, Ordering::Relaxed);
        }
    }

    fn identify(&self, active: &Active, chain: &Chain) -> Result<Next, RequestError> {
        let room = chain.writable_len().saturating_sub(1);
        let len = usize::try_from(room).unwrap_or(usize::MAX).min(ID_BYTES);
        let id = self.shared.id.get(..len).unwrap_or(&self.shared.id);
        chain.write(&active.ram, 0, id).map_err(RequestError::ShortChain)?;
        Ok(Next::Answer { data_bytes: u32::try_from(len).unwrap_or(0) })
    }

    /// Submits a request's next range, or answers it when none is left.
    fn advance(&mut self, active: &Active, mut pending: Pending) {
        let Some(ranges) = &mut pending.ranges else {
            return self.answer(active, pending.tail, STATUS_OK, pending.data_bytes);
        };
        let Some(extent) = ranges.rest.pop() else {
            if std::mem::take(&mut ranges.sync) {
                self.engine.submit(Op::Flush, 0, &[], pending);
                return;
            }
            return self.answer(active, pending.tail, STATUS_OK, pending.data_bytes);
        };
        let len_bytes = extent.len_bytes;
        let op = if ranges.discard {
            Op::Discard { len_bytes }
        } else {
            Op::Zero { len_bytes, unmap: extent.unmap }
        };
        self.engine.submit(op, extent.offset, &[], pending);
    }

    /// Answers what has ended.
    fn settle(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        let mut active = self.active.take();
        for Done { payload, result } in done.drain(..) {
            // Without a queue the rings were found broken: the request goes nowhere.
            let Some(active) = &active else { continue };
            match result {
                Ok(()) => self.advance(active, payload),
                Err(error) => {
                    let status = RequestError::Disk(error).status();
                    self.answer(active, payload.tail, status, 0);
                }
            }
        }
        self.done = done;
        if let Some(active) = &mut active {
            self.publish(active);
        }
        self.active = active;
    }

    /// The status goes into the last writable byte, after `data_bytes` of data that were written before it.
    fn answer(&mut self, active: &Active, tail: Tail, status: u8, data_bytes: u32) {
        self.answers.push(tail.complete(&active.ram, status, data_bytes));
    }

    fn publish(&mut self, active: &mut Active) {
        if !self.answers.is_empty() {
            active.queue.complete_all(self.answers.drain(..));
            self.answered = true;
        }
    }

    fn delay(&self) -> Option<Duration> {
        let limiter = self.shared.limiter.as_ref()?;
        let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.delay(self.shared.started.elapsed())
    }

    fn charge(&self, len_bytes: u64) {
        if let Some(limiter) = &self.shared.limiter {
            limiter.lock().unwrap_or_else(PoisonError::into_inner).charge(len_bytes);
        }
    }
}

/// Whether a chain comes within `limit`.
fn look(queue: &mut Queue, limit: Duration) -> Result<bool, QueueError> {
    let start = Instant::now();
    loop {
        for _ in 0..GLANCES {
            if queue.has_chain()? {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= limit {
            return Ok(false);
        }
    }
}
