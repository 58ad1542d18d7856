//! The worker thread: one epoll loop over doorbells, mailbox, listener and streams.
//!
//! Invariant: it waits in one place only, for events; a command is obeyed between two turns, so that whoever waits for its
//! acknowledgement waits for one bounded turn at most.

use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};

use vmm_sys_util::epoll::EpollEvent;
use vmm_sys_util::eventfd::EventFd;

use super::guest::Guest;
use super::host::{Host, token};
use super::listener::HostSocket;

/// Events taken from the kernel at once.
const EVENT_BATCH: usize = 64;

/// What the device's owner asks of the worker.
pub(super) enum Command {
    /// Serve this driver.
    Activate(Box<Guest>),
    /// Let go of the driver and close every stream, then say so.
    Reset(SyncSender<()>),
    /// As a reset, after what the guest sent is on its way; then end.
    Stop,
}

/// What the worker thread owns.
pub(super) struct Worker {
    pub(super) host: Host,
    pub(super) guest_cid: u64,
    pub(super) commands: Receiver<Command>,
    pub(super) mailbox: EventFd,
    /// Of the receive queue and of the transmit queue.
    pub(super) bells: [EventFd; 2],
    pub(super) guest: Option<Box<Guest>>,
}

impl Worker {
    /// Registers what the worker waits for.
    pub(super) fn watch(&self) -> std::io::Result<()> {
        self.host.watch(self.mailbox.as_raw_fd(), token::MAILBOX)?;
        self.host.watch(self.bells[0].as_raw_fd(), token::RX)?;
        self.host.watch(self.bells[1].as_raw_fd(), token::TX)
    }

    /// Runs until [`Command::Stop`], or until the device is dropped. The path of the listening socket is not removed here, so that
    /// this thread needs no right to remove files.
    pub(super) fn run(mut self) -> HostSocket {
        self.turns();
        self.host.into_socket()
    }

    fn turns(&mut self) {
        let mut events = [EpollEvent::default(); EVENT_BATCH];
        let mut busy = false;
        loop {
            // A wait that fails for good would spin: the device is as dead as its epoll instance.
            let Ok(count) = self.host.wait(busy, &mut events) else { return };
            for &event in events.iter().take(count) {
                match event.data() {
                    token::MAILBOX => {
                        if !self.obey() {
                            return;
                        }
                        // What is left of the batch may be about streams that are closed now; doorbells show again.
                        break;
                    }
                    token::RX => self.on_bell(0),
                    token::TX => self.on_bell(1),
                    _ => self.host.on_event(event),
                }
            }
            self.host.on_tick();
            busy = self.serve();
        }
    }

    fn serve(&mut self) -> bool {
        let Some(guest) = &mut self.guest else { return false };
        match guest.serve(&mut self.host) {
            Ok(more) => more,
            // The driver broke the rules: the queues must not be touched again before a reset.
            Err(_) => {
                self.fail();
                false
            }
        }
    }

    fn fail(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.fail();
        }
        self.close();
    }

    fn on_bell(&mut self, queue: usize) {
        // Non-blocking: a read that finds nothing means that the ring was counted already.
        drop(self.bells.get(queue).map(EventFd::read));
        match (&mut self.guest, queue) {
            (Some(guest), 0) => guest.on_receive_bell(),
            (Some(guest), _) => guest.on_transmit_bell(),
            (None, _) => {}
        }
    }

    /// False when the worker is to end.
    fn obey(&mut self) -> bool {
        drop(self.mailbox.read());
        loop {
            match self.commands.try_recv() {
                Ok(Command::Activate(guest)) => {
                    self.guest = Some(guest);
                    self.host.listen(true);
                }
                Ok(Command::Reset(done)) => {
                    self.guest = None;
                    self.close();
                    // Nobody waits any more when this fails.
                    done.send(()).ok();
                }
                Ok(Command::Stop) => {
                    if let Some(mut guest) = self.guest.take() {
                        // A driver that breaks the rules at the very end has nothing left to lose.
                        drop(guest.drain(&mut self.host));
                    }
                    self.close();
                    return false;
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn close(&mut self) {
        self.host.listen(false);
        self.host.close_all(self.guest_cid);
    }
}
