//! The device as its thread sees it: a link that comes and goes with the driver, and the orders of the device's owner.
//!
//! Invariant: queues are let go only in [`Port::finish_reset`], after whoever drives the port has dropped every payload; only then the
//! owner goes on. All its sources are edge-triggered eventfds that nobody reads.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError};

use openshell_usernet::link::HEAD_LEN;
use openshell_usernet::{Frame, Link, LinkFull, Offload, Offloads};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::link::{QUEUES, QueueLink};
use super::transmit::GuestBytes;

/// What the device's owner asks of the thread.
pub(super) enum Command {
    /// Serve this driver.
    Activate(Box<QueueLink>),
    /// Let go of the driver, then say so.
    Reset(SyncSender<()>),
    /// Let go of the driver and end.
    Stop,
}

/// Doorbells, by queue, and the mailbox behind them.
#[derive(Debug)]
pub(super) struct Sources([EventFd; QUEUES + 1]);

impl Sources {
    pub(super) fn new() -> io::Result<Self> {
        let eventfd = || EventFd::new(EFD_NONBLOCK);
        Ok(Self([eventfd()?, eventfd()?, eventfd()?, eventfd()?]))
    }

    /// The doorbells of the first `count` queues.
    pub(super) fn bells(&self, count: usize) -> &[EventFd] {
        self.0.get(..count.min(QUEUES)).unwrap_or_default()
    }

    /// Wakes the thread for a command.
    pub(super) fn post(&self) -> bool {
        self.0.last().is_some_and(|mailbox| mailbox.write(1).is_ok())
    }
}

/// What follows from an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortEvent {
    /// There may be frames.
    Frames,
    /// There may be frames, and a frame that found no room may find it now.
    Room,
    /// The driver is gone: every payload must be dropped, then [`Port::finish_reset`].
    Reset,
    /// The device is gone.
    Ended,
}

/// The device's end of its thread.
pub struct Port {
    commands: Receiver<Command>,
    sources: Arc<Sources>,
    link: Option<Box<QueueLink>>,
    /// Who waits for the reset under way.
    waiting: Option<SyncSender<()>>,
    ended: bool,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Port {
    pub(super) fn new(commands: Receiver<Command>, sources: Arc<Sources>) -> Self {
        Self { commands, sources, link: None, waiting: None, ended: false }
    }

    /// The descriptors to wait for until they are readable, edge-triggered, under their numbers.
    pub fn sources(&self) -> impl Iterator<Item = (u8, RawFd)> + '_ {
        (0..).zip(&self.sources.0).map(|(number, source)| (number, source.as_raw_fd()))
    }

    /// Source `number` became readable.
    pub fn on_ready(&mut self, number: u8) -> PortEvent {
        let queue = usize::from(number);
        if queue >= QUEUES {
            return self.obey_all();
        }
        let mut bells = [false; QUEUES];
        if let Some(bell) = bells.get_mut(queue) {
            *bell = true;
        }
        let room = self.link.as_mut().is_some_and(|link| link.on_bells(bells));
        if room { PortEvent::Room } else { PortEvent::Frames }
    }

    /// The next frame from the driver, its head copied into `head`; `None` when none waits.
    pub fn next_frame<'a>(
        &mut self,
        head: &'a mut [u8; HEAD_LEN],
    ) -> Option<Frame<'a, GuestBytes>> {
        self.link.as_mut()?.next_frame(head)
    }

    /// The turn is over: see [`QueueLink::end_turn`].
    pub fn end_turn(&mut self) -> bool {
        self.link.as_mut().is_some_and(|link| link.end_turn())
    }

    /// No payload is held any more: the queues are let go, and the owner may go on.
    pub fn finish_reset(&mut self) {
        self.link = None;
        if let Some(waiting) = self.waiting.take() {
            // Nobody waits any more when this fails.
            waiting.send(()).ok();
        }
    }

    /// Whether there is a driver.
    pub(super) fn is_active(&self) -> bool {
        self.link.is_some()
    }

    /// Whether the device is gone.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Sleeps until there is a command and obeys it.
    pub(super) fn wait(&mut self) -> PortEvent {
        match self.commands.recv() {
            Ok(command) => self.obey(command),
            Err(RecvError) => self.end(),
        }
    }

    /// Tells the driver that the configuration changed.
    pub(super) fn raise_config(&self) {
        if let Some(link) = &self.link {
            link.raise_config();
        }
    }

    fn obey_all(&mut self) -> PortEvent {
        loop {
            match self.commands.try_recv() {
                Ok(command) => match self.obey(command) {
                    PortEvent::Frames | PortEvent::Room => {}
                    event => return event,
                },
                Err(TryRecvError::Empty) => return PortEvent::Room,
                Err(TryRecvError::Disconnected) => return self.end(),
            }
        }
    }

    fn obey(&mut self, command: Command) -> PortEvent {
        match command {
            Command::Activate(link) => {
                self.link = Some(link);
                PortEvent::Room
            }
            Command::Reset(done) => {
                self.waiting = Some(done);
                PortEvent::Reset
            }
            Command::Stop => self.end(),
        }
    }

    fn end(&mut self) -> PortEvent {
        self.ended = true;
        PortEvent::Ended
    }
}

impl Link for Port {
    type Payload = GuestBytes;

    fn offloads(&self) -> Offloads {
        self.link.as_ref().map_or_else(Offloads::default, |link| link.offloads())
    }

    /// Without a driver the frame is lost, as on a cable that is not plugged in.
    fn send(&mut self, offload: Offload, head: &[u8], body: &[&[u8]]) -> Result<(), LinkFull> {
        self.link.as_mut().map_or(Ok(()), |link| link.send(offload, head, body))
    }
}
