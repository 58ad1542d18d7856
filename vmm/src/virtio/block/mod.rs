//! virtio-blk (VIRTIO 1.2 section 5.2): one disk, one worker thread and one I/O engine per queue.
//!
//! Invariant: the device itself does no I/O; between activation and reset each queue belongs to its worker, and a reset returns only
//! when every worker has reaped what it started. The transport calls it on vCPU threads, the machine's start and stop on the main thread.

mod config;
mod mailbox;
pub mod request;
pub mod state;
mod worker;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::config::plan::{DiskPlan, OverlayPlan};
use crate::disk::io::{Blocking, Engine, Signals, Uring};
use crate::disk::limits::Limiter;
use crate::disk::overlay::format::OverlayError;
use crate::disk::{Disk, Overlay, Raw};
use crate::jail::{Jail, Role};
use crate::memory::GuestRam;

use super::{ActivateError, Activation, DeviceKind, Interrupt, Queue, VirtioDevice};
use mailbox::{Answer, Command, Mailbox, Reply};
use request::{Geometry, ID_BYTES, SECTOR_BYTES};
use state::BlockState;
use worker::{Active, Pending, Shared, Worker};

/// Which way disks do their I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring where the host allows it, system calls that wait otherwise.
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// System calls that wait.
    Blocking,
}

/// Why a block device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Host resources ran out before the image was touched.
    #[error("cannot set up the disk {path}")]
    Setup {
        /// The image as the user wrote it.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The overlay cannot be used.
    #[error("cannot use the overlay {path}")]
    Overlay {
        /// The overlay as the user wrote it.
        path: PathBuf,
        /// Why.
        #[source]
        source: OverlayError,
    },
}

/// A virtio-blk device.
#[derive(Debug)]
pub struct Block {
    geometry: Geometry,
    features: u64,
    config: Vec<u8>,
    queue_sizes: Vec<u16>,
    doorbells: Vec<EventFd>,
    workers: Vec<Running>,
    active: bool,
    /// Nothing needs to be durable.
    volatile: bool,
    /// Keeps the lock on the image for as long as the device lives.
    file: Option<Arc<File>>,
}

#[derive(Debug)]
struct Running {
    mailbox: Arc<Mailbox>,
    thread: JoinHandle<()>,
}

impl Block {
    /// Disk number `index` of the machine, with `queues` queues (1 to 32; an overlay has one): starts the workers, which stay idle until
    /// activation.
    ///
    /// # Errors
    /// [`BlockError`] when the host refuses descriptors, memory or threads, or the overlay does not fit its base.
    pub fn new(
        index: usize,
        plan: DiskPlan,
        queues: u16,
        engine: EngineKind,
        jail: Jail,
    ) -> Result<Self, BlockError> {
        let DiskPlan { path, file, read_only, len_bytes, overlay, limits, volatile } = plan;
        let file = Arc::new(file);
        let setup = |source| BlockError::Setup { path: path.clone(), source };
        let queues = if overlay.is_some() { 1 } else { queues };
        let limiter = Limiter::new(&limits, Duration::ZERO);
        let shared = Shared {
            geometry: Geometry { sectors: len_bytes / u64::from(SECTOR_BYTES), read_only },
            id: identity(overlay.as_ref().map_or(&file, |overlay| &overlay.file)).map_err(setup)?,
            limiter: limiter.map(|limiter| Arc::new(Mutex::new(limiter))),
            started: Instant::now(),
            changed: Arc::default(),
        };
        let mut device = Self::idle(&shared, queues, volatile);
        match overlay {
            None => {
                for queue in 0..queues {
                    let signals = device.add_signals().map_err(setup)?;
                    let engine = raw_engine(&file, engine, signals).map_err(setup)?;
                    device.add_worker(index, queue, engine, &shared, jail).map_err(setup)?;
                }
            }
            Some(OverlayPlan { path: delta, file: delta_file }) => {
                let disk = Overlay::open(&file, delta_file, len_bytes)
                    .map_err(|source| BlockError::Overlay { path: delta, source })?;
                let signals = device.add_signals().map_err(setup)?;
                let engine = Engine::Blocking(Blocking::new(Box::new(disk), signals));
                device.add_worker(index, 0, engine, &shared, jail).map_err(setup)?;
            }
        }
        device.file = Some(file);
        Ok(device)
    }

    fn idle(shared: &Shared, queues: u16, volatile: bool) -> Self {
        let Geometry { sectors, read_only } = shared.geometry;
        let features = config::features(read_only, queues);
        Self {
            geometry: shared.geometry,
            features: if volatile { features & !(1 << config::FLUSH) } else { features },
            volatile,
            config: config::space(sectors, read_only, queues).to_vec(),
            queue_sizes: vec![config::queue_size(read_only); usize::from(queues)],
            doorbells: Vec::new(),
            workers: Vec::new(),
            active: false,
            file: None,
        }
    }

    /// Whether every write is durable when it ends, with these features negotiated: a driver that cannot ask for it relies on it.
    fn writes_through(&self, features: u64) -> bool {
        !self.volatile && features & (1 << config::FLUSH) == 0
    }

    fn add_signals(&mut self) -> io::Result<Signals> {
        let signals = Signals { doorbell: EventFd::new(0)?, mailbox: EventFd::new(0)? };
        self.doorbells.push(signals.doorbell.try_clone()?);
        Ok(signals)
    }

    fn add_worker(
        &mut self,
        index: usize,
        queue: u16,
        engine: Engine<Pending>,
        shared: &Shared,
        jail: Jail,
    ) -> io::Result<()> {
        let mailbox = Arc::new(Mailbox::new(engine.mailbox().try_clone()?));
        let worker = Worker::new(engine, Arc::clone(&mailbox), shared.clone());
        let name = format!("blk{index}.{queue}");
        let thread = jail.spawn(Role::Block, &name, move || worker.run())?;
        self.workers.push(Running { mailbox, thread });
        Ok(())
    }

    /// What a snapshot keeps of the device.
    #[must_use]
    pub fn state(&self) -> BlockState {
        BlockState {
            version: BlockState::VERSION,
            sectors: self.geometry.sectors,
            features: self.features,
            queues: u16::try_from(self.queue_sizes.len()).unwrap_or(u16::MAX),
        }
    }

    fn stop_workers(&mut self) -> io::Result<()> {
        self.active = false;
        let mut outcome = Ok(());
        // The last one to stop flushes: by then no other worker writes any more.
        while let Some(Running { mailbox, thread }) = self.workers.pop() {
            let flush = self.workers.is_empty();
            let answered = ask(&mailbox, |reply| Command::Stop { flush, reply }).wait();
            outcome = outcome.and(answered);
            if thread.join().is_err() {
                outcome = outcome.and(Err(io::Error::other("the block worker panicked")));
            }
        }
        outcome
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // An orderly stop calls `shutdown`, which reports; a machine that fails while it is built ends here.
        drop(self.stop_workers());
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { features, queues, interrupt, ram } = activation;
        if queues.first().is_none_or(Option::is_none) {
            return Err(ActivateError::MissingQueue(0));
        }
        let write_through = self.writes_through(features);
        self.active = true;
        for (index, queue) in queues.into_iter().enumerate() {
            let Some(queue) = queue else { continue };
            let worker = self.workers.get(index).ok_or(ActivateError::WorkerGone)?;
            let active = start(queue, &interrupt, &ram, write_through);
            if !worker.mailbox.post(Command::Activate(Box::new(active))) {
                return Err(ActivateError::WorkerGone);
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        if !std::mem::take(&mut self.active) {
            return;
        }
        let answers: Vec<_> =
            self.workers.iter().map(|worker| ask(&worker.mailbox, Command::Reset)).collect();
        for answer in answers {
            // A worker that has ended holds nothing any more, which is what a reset asks for.
            drop(answer.wait());
        }
    }

    fn shutdown(&mut self) -> io::Result<()> {
        let stopped = self.stop_workers();
        if let Some(file) = self.file.take() {
            // The kernel takes a ring apart some time after the process has ended, and until then the ring keeps the open file and
            // its lock: the next machine would find the image in use. A lock that can't be given back goes then.
            file.unlock().ok();
        }
        stopped
    }
}

fn start(queue: Queue, interrupt: &Interrupt, ram: &Arc<GuestRam>, write_through: bool) -> Active {
    Active { queue, interrupt: interrupt.clone(), ram: Arc::clone(ram), write_through }
}

fn ask(mailbox: &Mailbox, command: impl FnOnce(Reply) -> Command) -> Answer {
    let (reply, answer) = Reply::new();
    // A refused command drops its reply, which answers.
    let _accepted = mailbox.post(command(reply));
    answer
}

fn raw_engine(file: &Arc<File>, kind: EngineKind, signals: Signals) -> io::Result<Engine<Pending>> {
    if kind != EngineKind::Blocking {
        let copy = Signals {
            doorbell: signals.doorbell.try_clone()?,
            mailbox: signals.mailbox.try_clone()?,
        };
        match Uring::new(Arc::clone(file), copy) {
            Ok(ring) => return Ok(Engine::Uring(Box::new(ring))),
            Err(error) if kind == EngineKind::IoUring => return Err(error),
            Err(_) => {}
        }
    }
    let disk: Box<dyn Disk> = Box::new(Raw::new(Arc::clone(file)));
    Ok(Engine::Blocking(Blocking::new(disk, signals)))
}

/// The identity string: stable for an image file on its filesystem, and silent about where that is.
fn identity(file: &File) -> io::Result<[u8; ID_BYTES]> {
    let meta = file.metadata()?;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for number in [meta.dev(), meta.rdev(), meta.ino()] {
        for byte in number.to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let mut id = [0; ID_BYTES];
    for (to, from) in id.iter_mut().zip(format!("osh-{hash:016x}").bytes()) {
        *to = from;
    }
    Ok(id)
}

#[cfg(test)]
mod tests;
