//! virtio-vsock (VIRTIO 1.2 section 5.10): stream sockets between the guest and Unix sockets of the host.
//!
//! A guest that connects to port N of the host reaches the listener at `PATH_N`; a host program connects to `PATH`, writes
//! `CONNECT N\n` and reads `OK P\n` when the guest accepts on its port N. Invariant: memory is bounded by the number of streams and
//! the credit given to them; nothing the guest sends can make it grow. One worker thread owns queues and sockets while the device
//! is active.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guest;
mod host;
mod listener;
mod mux;
mod packet;
mod stream;
mod worker;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::plan::VsockPlan;
use crate::jail::{Jail, Role};

use super::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::{ActivateError, Activation, DeviceKind, VirtioDevice};

pub use listener::{BindError, HostSocket};

/// VIRTIO_VSOCK_F_STREAM.
const F_STREAM: u64 = 1 << 0;

/// Receive, transmit, events. Linux fills the receive queue when it finds the device, and each buffer is a page of the guest's that
/// is touched for the first time then: a quarter of the entries saves 3 M instructions of a boot, and `cp` and `exec` are as fast.
const QUEUE_SIZES: [u16; 3] = [64, 256, 64];

/// Why the device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Not one of [`VsockPlan::GUEST_CIDS`].
    #[error("vsock context id {0} is not one a guest can have")]
    GuestCid(u64),
    /// The host has no descriptors or threads left.
    #[error("cannot set up the vsock worker")]
    Worker(#[source] io::Error),
}

/// The vsock device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    doorbells: [EventFd; 3],
    mailbox: EventFd,
    commands: Sender<worker::Command>,
    worker: Option<JoinHandle<HostSocket>>,
    active: bool,
}

impl Vsock {
    /// Starts the device's worker, which waits for a driver. Host programs may connect to `socket` at once; they are served when the
    /// guest's driver is ready.
    ///
    /// # Errors
    /// [`VsockError`].
    pub fn new(socket: HostSocket, plan: &VsockPlan, jail: Jail) -> Result<Self, VsockError> {
        let guest_cid = plan.guest_cid;
        if !VsockPlan::GUEST_CIDS.contains(&guest_cid) {
            return Err(VsockError::GuestCid(guest_cid));
        }
        Self::start(socket, guest_cid, jail).map_err(VsockError::Worker)
    }

    fn start(socket: HostSocket, guest_cid: u64, jail: Jail) -> io::Result<Self> {
        let eventfd = || EventFd::new(EFD_NONBLOCK);
        let doorbells = [eventfd()?, eventfd()?, eventfd()?];
        let mailbox = eventfd()?;
        let (commands, receiver) = channel();
        let worker = worker::Worker {
            host: host::Host::new(socket, guest_cid)?,
            guest_cid,
            commands: receiver,
            mailbox: mailbox.try_clone()?,
            bells: [doorbells[0].try_clone()?, doorbells[1].try_clone()?],
            guest: None,
        };
        worker.watch()?;
        let thread = jail.spawn(Role::Vsock, "vsock", move || worker.run())?;
        let worker = Some(thread);
        Ok(Self { guest_cid, doorbells, mailbox, commands, worker, active: false })
    }

    /// False when the worker has ended.
    fn command(&self, command: worker::Command) -> bool {
        self.commands.send(command).is_ok() && self.mailbox.write(1).is_ok()
    }

    fn join(&mut self) -> io::Result<()> {
        let Some(worker) = self.worker.take() else { return Ok(()) };
        self.command(worker::Command::Stop);
        self.active = false;
        let socket = worker.join().map_err(|_| io::Error::other("the vsock worker panicked"))?;
        drop(socket);
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        F_STREAM | F_INDIRECT_DESC | F_EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.guest_cid.to_le_bytes();
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = config.into_iter().skip(skip).chain(std::iter::repeat(0));
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = value;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        for (index, queue) in (0..2).zip(&activation.queues) {
            if queue.is_none() {
                return Err(ActivateError::MissingQueue(index));
            }
        }
        let guest = guest::Guest::new(activation).ok_or(ActivateError::MissingQueue(1))?;
        if !self.command(worker::Command::Activate(Box::new(guest))) {
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
        if self.command(worker::Command::Reset(done)) {
            // Fails only when the worker has ended, and then nothing touches the queues either.
            wait.recv().ok();
        }
    }

    fn shutdown(&mut self) -> io::Result<()> {
        self.join()
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // Whoever wants to know how it ended calls `shutdown`.
        drop(self.join());
    }
}
