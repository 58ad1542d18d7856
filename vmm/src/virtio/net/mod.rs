//! virtio-net (VIRTIO 1.2 section 5.1): the guest's network card, and the queues behind it as a link of the user-mode stack.
//!
//! Invariant: the device itself moves no packets. Between activation and reset its queues belong to the net thread, and a reset returns
//! only when that thread has dropped every byte of the guest that it held. The transport calls the device on vCPU threads.

mod control;
mod counters;
mod drain;
pub mod features;
mod link;
mod port;
mod receive;
pub mod state;
mod transmit;
mod worker;

#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use crate::jail::{Jail, Role};

use super::{ActivateError, Activation, DeviceKind, VirtioDevice};
use port::{Command, Sources};
use state::NetState;

pub use counters::Counters;
pub use link::QueueLink;
pub use port::Port;
pub use transmit::GuestBytes;
pub use worker::{Prepare, Serve};

/// What the guest sees of its card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u16,
    /// Feature bits offered, of [`features::ALL`].
    pub features: u64,
    /// Descriptors of the receive and of the transmit queue: a power of two, 256 to 1024 in a machine.
    pub ring_size: u16,
}

/// Descriptors of the control queue, which holds one command at a time.
const CONTROL_RING: u16 = 64;

/// A virtio-net device.
#[derive(Debug)]
pub struct Net {
    card: Card,
    queue_sizes: [u16; 3],
    sources: Arc<Sources>,
    commands: Sender<Command>,
    worker: Option<JoinHandle<()>>,
    link_up: Arc<AtomicBool>,
    active: bool,
}

impl Net {
    /// Starts the device's thread, which sleeps until a driver is ready, and calls `prepare` and is confined only then.
    ///
    /// # Errors
    /// What the host said: it has no descriptors or threads left.
    pub fn new(card: Card, prepare: Prepare, jail: Jail) -> io::Result<Self> {
        let sources = Arc::new(Sources::new()?);
        let (commands, receiver) = channel();
        let link_up = Arc::new(AtomicBool::new(true));
        let port = Port::new(receiver, Arc::clone(&sources));
        let shared = Arc::clone(&link_up);
        let wait = move || worker::wait(port, prepare);
        let body = move |ready| worker::run(ready, &shared);
        let thread = jail.spawn_waiting(Role::Net, "net", wait, body)?;
        let card = Card { features: features::consistent(card.features & features::ALL), ..card };
        Ok(Self {
            card,
            queue_sizes: [card.ring_size, card.ring_size, CONTROL_RING],
            sources,
            commands,
            worker: Some(thread),
            link_up,
            active: false,
        })
    }

    /// What a snapshot keeps of the device apart from its queues.
    #[must_use]
    pub fn save(&self) -> NetState {
        NetState {
            version: NetState::VERSION,
            features: self.card.features,
            mtu: self.card.mtu,
            ring_size: self.card.ring_size,
            link_up: self.link_up.load(Ordering::SeqCst),
        }
    }

    /// False when the thread has ended.
    fn command(&self, command: Command) -> bool {
        self.commands.send(command).is_ok() && self.sources.post()
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        self.card.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        // The control queue is there only where it is offered.
        let queues = if self.card.features & features::CTRL_VQ == 0 { 2 } else { 3 };
        self.queue_sizes.get(..queues).unwrap_or(&self.queue_sizes)
    }

    fn doorbells(&self) -> &[EventFd] {
        self.sources.bells(self.queue_max_sizes().len())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let up = self.link_up.load(Ordering::SeqCst);
        features::read_config(self.card.mac, self.card.mtu, up, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let link = QueueLink::new(activation, self.card.mtu)?;
        if !self.command(Command::Activate(Box::new(link))) {
            return Err(ActivateError::WorkerGone);
        }
        self.active = true;
        Ok(())
    }

    fn reset(&mut self) {
        if !std::mem::take(&mut self.active) {
            return;
        }
        let (done, wait) = sync_channel(1);
        if self.command(Command::Reset(done)) {
            // Fails only when the thread has ended, and then nothing touches the queues either.
            wait.recv().ok();
        }
    }

    fn shutdown(&mut self) -> io::Result<()> {
        let Some(worker) = self.worker.take() else { return Ok(()) };
        self.active = false;
        self.command(Command::Stop);
        worker.join().map_err(|_| io::Error::other("the net thread panicked"))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Whoever wants to know how it ended calls `shutdown`.
        drop(self.shutdown());
    }
}
