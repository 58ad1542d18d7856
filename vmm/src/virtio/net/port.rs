//! The device as its thread sees it: a link that comes and goes with the driver, and the orders of the device's owner.
//!
//! Invariant: queues are let go only in [`PacketLink::finish_reset`], after whoever drives the port has dropped every payload; only then the
//! owner goes on. All its sources are edge-triggered eventfds that nobody reads.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError};

use openshell_usernet::link::HEAD_LEN;
use openshell_usernet::{Frame, Link, LinkFull, Offload, Offloads};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::net::{LinkEvent, PacketLink, Source};

use super::counters::Counters;
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

/// The device's end of its thread.
pub struct Port {
    commands: Receiver<Command>,
    sources: Arc<Sources>,
    link: Option<Box<QueueLink>>,
    /// Of the drivers before.
    before: Counters,
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
        Self {
            commands,
            sources,
            link: None,
            before: Counters::default(),
            waiting: None,
            ended: false,
        }
    }

    /// What passed so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.link.as_ref().map_or(self.before, |link| self.before.and(link.counters()))
    }

    /// Whether there is a driver.
    pub(super) fn is_active(&self) -> bool {
        self.link.is_some()
    }

    /// Whether the owner waits for [`PacketLink::finish_reset`].
    pub(super) fn is_resetting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Sleeps until there is a command and obeys it.
    pub(super) fn wait(&mut self) -> LinkEvent {
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

    fn obey_all(&mut self) -> LinkEvent {
        loop {
            match self.commands.try_recv() {
                Ok(command) => match self.obey(command) {
                    LinkEvent::Frames | LinkEvent::Room => {}
                    event => return event,
                },
                Err(TryRecvError::Empty) => return LinkEvent::Room,
                Err(TryRecvError::Disconnected) => return self.end(),
            }
        }
    }

    fn obey(&mut self, command: Command) -> LinkEvent {
        match command {
            Command::Activate(link) => {
                self.link = Some(link);
                LinkEvent::Room
            }
            Command::Reset(done) => {
                self.waiting = Some(done);
                LinkEvent::Reset
            }
            Command::Stop => self.end(),
        }
    }

    fn end(&mut self) -> LinkEvent {
        self.ended = true;
        LinkEvent::Ended
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

impl PacketLink for Port {
    fn sources(&self) -> Vec<Source> {
        let source = |(number, source): (u8, &EventFd)| Source { number, fd: source.as_raw_fd() };
        (0..).zip(&self.sources.0).map(source).collect()
    }

    fn on_ready(&mut self, number: u8, _writable: bool) -> io::Result<LinkEvent> {
        let queue = usize::from(number);
        if queue >= QUEUES {
            return Ok(self.obey_all());
        }
        let mut bells = [false; QUEUES];
        if let Some(bell) = bells.get_mut(queue) {
            *bell = true;
        }
        let room = self.link.as_mut().is_some_and(|link| link.on_bells(bells));
        Ok(if room { LinkEvent::Room } else { LinkEvent::Frames })
    }

    fn next_frame<'a>(&mut self, head: &'a mut [u8; HEAD_LEN]) -> Option<Frame<'a, GuestBytes>> {
        self.link.as_mut()?.next_frame(head)
    }

    fn end_turn(&mut self) -> bool {
        self.link.as_mut().is_some_and(|link| link.end_turn())
    }

    fn has_ended(&self) -> bool {
        self.ended
    }

    fn finish_reset(&mut self) {
        self.before = self.counters();
        self.link = None;
        if let Some(waiting) = self.waiting.take() {
            // Nobody waits any more when this fails.
            waiting.send(()).ok();
        }
    }
}
