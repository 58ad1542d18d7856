//! The net thread: one epoll for everything, turn after turn, around [`openshell_usernet::Stack`].
//!
//! A turn is: what is asked of the thread, timers, frames from the guest, sockets, the flush, the link's end of turn. Invariants: the
//! thread waits in its epoll and nowhere else; a panic in a turn costs the guest its connections, a second one its link, and the machine
//! nothing.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant as HostInstant};

use openshell_usernet::link::HEAD_LEN;
use openshell_usernet::sockets::{ForwardId, Readiness};
use openshell_usernet::{Config, Counters, FlowId, Instant, Io, Payload, Stack};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::config::publish::PublishedPort;
use crate::jail::{Jail, Role};
use crate::sys::panics::contain;
use crate::sys::random;

use super::addresses::Addresses;
use super::link::{LinkEvent, PacketLink};
use super::sockets::{HostSockets, SocketCounters};

/// Events taken from the kernel at once.
const EVENT_BATCH: usize = 256;
/// Frames and their bytes taken from the guest in one turn, so that sockets have theirs.
const FRAME_BATCH: usize = 256;
const FRAME_BATCH_BYTES: usize = 1 << 20;
/// Times that a panicked stack is made anew.
const RESTARTS: u32 = 1;

/// What an event is about: the upper byte of its data, which [`FlowId::to_bits`] leaves free.
mod kind {
    pub(super) const FLOW: u8 = 0;
    pub(super) const LINK: u8 = 1;
    pub(super) const BELL: u8 = 2;
    pub(super) const FORWARD: u8 = 3;
    pub(super) const ADDRESSES: u8 = 4;
}

const KIND_SHIFT: u32 = 56;

/// What an engine is made of, besides its link.
#[derive(Debug)]
pub struct Setup {
    /// What the stack is told; its forwards are those of `ports`.
    pub config: Config,
    /// Published ports.
    pub ports: Vec<PublishedPort>,
    /// Sockets at most.
    pub sockets: usize,
}

/// What is asked of the thread.
#[derive(Debug)]
enum Command {
    /// End.
    Stop,
    /// Say what happened so far.
    Tell(SyncSender<Report>),
    /// The host's resolvers are these now.
    Resolvers(Vec<SocketAddr>),
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// In the stack.
    pub stack: Counters,
    /// At its sockets.
    pub sockets: SocketCounters,
    /// Sockets open now.
    pub open_sockets: usize,
    /// Times that the stack panicked.
    pub panics: u32,
}

/// How the thread ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// There was no way to the guest any more.
    LinkEnded,
    /// Its epoll instance failed.
    Failed,
}

/// The thread, as its owner has it. When this is dropped the thread ends.
#[derive(Debug)]
pub struct NetThread {
    thread: Option<JoinHandle<(End, Report)>>,
    commands: Commands,
}

/// The way to the thread; any number of them.
#[derive(Debug, Clone)]
pub struct Commands {
    sender: Sender<Command>,
    bell: Arc<EventFd>,
}

impl Commands {
    /// Tells the thread which resolvers the host has now.
    pub fn set_resolvers(&self, resolvers: Vec<SocketAddr>) {
        self.send(Command::Resolvers(resolvers));
    }

    /// What happened so far; `None` when the thread has ended.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let (sender, receiver) = sync_channel(1);
        self.send(Command::Tell(sender));
        receiver.recv_timeout(Duration::from_secs(5)).ok()
    }

    /// Tells the thread to end.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }

    fn send(&self, command: Command) {
        // A thread that has ended needs neither.
        if self.sender.send(command).is_ok() {
            self.bell.write(1).ok();
        }
    }
}

impl NetThread {
    /// Starts the thread with the filter of its role on.
    ///
    /// # Errors
    /// What the host said.
    pub fn spawn<L>(jail: Jail, name: &str, setup: Setup, link: L) -> io::Result<Self>
    where
        L: PacketLink + Send + 'static,
        L::Payload: Send,
    {
        let (sender, receiver) = channel();
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let engine = Engine::new(setup, link, receiver, Arc::clone(&bell))?;
        let thread = jail.spawn(Role::Net, name, move || engine.run())?;
        Ok(Self { thread: Some(thread), commands: Commands { sender, bell } })
    }

    /// The way to the thread.
    #[must_use]
    pub fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Whether the thread has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the thread and waits for it.
    #[must_use]
    pub fn stop(mut self) -> (End, Report) {
        self.join()
    }

    fn join(&mut self) -> (End, Report) {
        self.commands.stop();
        // A panic in the thread was contained, or has ended the process.
        self.thread
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or((End::Failed, Report::default()))
    }
}

impl Drop for NetThread {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.join();
        }
    }
}

/// What the thread owns.
struct Engine<L: PacketLink> {
    config: Config,
    stack: Stack<L::Payload>,
    link: L,
    sockets: HostSockets,
    epoll: Arc<Epoll>,
    commands: Receiver<Command>,
    bell: Arc<EventFd>,
    addresses: Option<Addresses>,
    began: HostInstant,
    /// There may be frames though no event says so.
    frames: bool,
    /// Ports at which somebody may wait, likewise.
    waiting: VecDeque<ForwardId>,
    panics: u32,
}

/// What one wait brought.
#[derive(Default)]
struct Ready {
    flows: Vec<(FlowId, Readiness)>,
    room: bool,
}

impl<L: PacketLink> Engine<L> {
    fn new(
        setup: Setup,
        link: L,
        commands: Receiver<Command>,
        bell: Arc<EventFd>,
    ) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        let watch = |fd, kind: u8, number: u64, events| {
            let token = u64::from(kind) << KIND_SHIFT | number;
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
        };
        let both = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        for source in link.sources() {
            watch(source.fd, kind::LINK, source.number.into(), both)?;
        }
        watch(bell.as_raw_fd(), kind::BELL, 0, EventSet::IN)?;
        let waits = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for (number, port) in setup.ports.iter().enumerate() {
            watch(port.socket.as_raw_fd(), kind::FORWARD, number as u64, waits)?;
        }
        // Without it the addresses of the host are what they were: the policy still knows the loopback.
        let addresses = Addresses::open().ok();
        if let Some(addresses) = &addresses {
            watch(addresses.as_fd().as_raw_fd(), kind::ADDRESSES, 0, EventSet::IN)?;
        }
        Ok(Self {
            stack: Stack::new(setup.config.clone(), key()?),
            config: setup.config,
            link,
            sockets: HostSockets::new(Arc::clone(&epoll), setup.sockets, setup.ports),
            epoll,
            commands,
            bell,
            addresses,
            began: HostInstant::now(),
            frames: true,
            waiting: VecDeque::new(),
            panics: 0,
        })
    }

    fn run(mut self) -> (End, Report) {
        let end = loop {
            match contain(|| self.turns()) {
                Ok(end) => break end,
                Err(_) => {
                    self.panics += 1;
                    if !self.start_again() {
                        break End::Failed;
                    }
                }
            }
        };
        (end, self.report())
    }

    /// After a panic: nothing of the stack is kept. False when that is not to be tried.
    fn start_again(&mut self) -> bool {
        if self.panics > RESTARTS {
            // What remains is a link that takes nothing, so that the guest's driver is answered.
            self.link.down();
        }
        let Ok(key) = key() else { return false };
        self.sockets.close_all();
        self.stack = Stack::new(self.config.clone(), key);
        self.frames = true;
        true
    }

    /// Whether the link is down for good.
    fn is_down(&self) -> bool {
        self.panics > RESTARTS
    }

    fn now(&self) -> Instant {
        let nanos = self.began.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn turns(&mut self) -> End {
        let mut events = [EpollEvent::default(); EVENT_BATCH];
        let mut ready = Ready::default();
        loop {
            let count = match self.epoll.wait(self.timeout(), &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                // An epoll instance that does not wait would be asked without end.
                Err(_) => return End::Failed,
            };
            ready.flows.clear();
            ready.room = false;
            for event in events.iter().take(count) {
                if let Some(end) = self.sort(event, &mut ready) {
                    return end;
                }
            }
            if self.is_down() {
                self.drop_frames();
            } else {
                self.turn(&mut ready);
            }
            self.frames |= self.link.end_turn();
            if self.link.has_ended() {
                return End::LinkEnded;
            }
        }
    }

    /// Milliseconds to wait at most; -1 without limit.
    fn timeout(&self) -> i32 {
        if self.frames || !self.waiting.is_empty() {
            return 0;
        }
        let Some(deadline) = self.stack.next_deadline().filter(|_| !self.is_down()) else {
            return -1;
        };
        let wait = deadline.since(self.now());
        // Rounded up: a wait that ends early would be waited again.
        i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    }

    /// Puts an event where the turn finds it, or obeys it at once.
    fn sort(&mut self, event: &EpollEvent, ready: &mut Ready) -> Option<End> {
        let (data, set) = (event.data(), event.event_set());
        let [number, .., about] = data.to_le_bytes();
        let readable = set.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP);
        let writable = set.contains(EventSet::OUT);
        let failed = set.contains(EventSet::ERROR);
        match about {
            kind::FLOW => {
                let readiness = Readiness { readable, writable, failed };
                ready.flows.push((FlowId::from_bits(data), readiness));
            }
            kind::LINK => return self.on_link(number, writable, ready),
            kind::BELL => return self.obey(),
            kind::FORWARD => self.waiting.push_back(ForwardId(number.into())),
            _ => self.on_addresses(),
        }
        None
    }

    fn on_link(&mut self, number: u8, writable: bool, ready: &mut Ready) -> Option<End> {
        self.frames = true;
        match self.link.on_ready(number, writable) {
            Ok(LinkEvent::Frames) => {}
            Ok(LinkEvent::Room) => ready.room = true,
            Ok(LinkEvent::Reset) => {
                let now = self.now();
                let mut io = Io { link: &mut self.link, sockets: &mut self.sockets };
                self.stack.link_reset(now, &mut io);
                self.link.finish_reset();
            }
            Ok(LinkEvent::Ended) | Err(_) => return Some(End::LinkEnded),
        }
        None
    }

    /// Does what is asked of the thread.
    fn obey(&mut self) -> Option<End> {
        self.bell.read().ok();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Some(End::Stopped),
                // Who asked may have gone.
                Ok(Command::Tell(to)) => drop(to.try_send(self.report())),
                Ok(Command::Resolvers(_resolvers)) => {}
                Err(TryRecvError::Empty) => return None,
            }
        }
    }

    fn on_addresses(&mut self) {
        let Some(addresses) = &mut self.addresses else { return };
        if addresses.read() {
            let _owned: Vec<IpAddr> = addresses.all().collect();
        }
    }

    fn turn(&mut self, ready: &mut Ready) {
        let now = self.now();
        let mut io = Io { link: &mut self.link, sockets: &mut self.sockets };
        if self.stack.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.stack.run_timers(now, &mut io);
        }
        if ready.room {
            self.stack.link_ready(now, &mut io);
        }
        if self.frames {
            self.frames = take_frames(&mut self.stack, now, &mut io);
        }
        for &(flow, readiness) in &ready.flows {
            self.stack.socket_ready(now, flow, readiness, &mut io);
        }
        while let Some(forward) = self.waiting.pop_front() {
            self.stack.forward_ready(now, forward, &mut io);
        }
        while let Some(flow) = io.sockets.take_woken() {
            let readiness = Readiness { readable: true, ..Readiness::default() };
            self.stack.socket_ready(now, flow, readiness, &mut io);
        }
        self.stack.flush(now, &mut io);
    }

    /// Takes what the guest sends and does nothing with it.
    fn drop_frames(&mut self) {
        let mut head = [0; HEAD_LEN];
        let mut left = FRAME_BATCH;
        while left > 0 && self.link.next_frame(&mut head).is_some() {
            left -= 1;
        }
        self.frames = left == 0;
        self.waiting.clear();
    }

    fn report(&self) -> Report {
        Report {
            stack: *self.stack.counters(),
            sockets: *self.sockets.counters(),
            open_sockets: self.sockets.open_sockets(),
            panics: self.panics,
        }
    }
}

/// Hands frames to the stack, as many as one turn may have. True when there may be more.
fn take_frames<L: PacketLink>(
    stack: &mut Stack<L::Payload>,
    now: Instant,
    io: &mut Io<'_, L, HostSockets>,
) -> bool {
    let mut head = [0; HEAD_LEN];
    let mut bytes = 0;
    for _ in 0..FRAME_BATCH {
        let Some(frame) = io.link.next_frame(&mut head) else { return false };
        bytes += frame.payload.len();
        stack.guest_frame(now, frame, io);
        if bytes >= FRAME_BATCH_BYTES {
            return true;
        }
    }
    true
}

/// A secret of the stack's.
fn key() -> io::Result<[u8; 16]> {
    let mut key = [0; 16];
    // So few bytes come all at once.
    random::fill(&mut key)?;
    Ok(key)
}
