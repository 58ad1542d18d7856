//! The net thread: one epoll for everything, turn after turn, around [`openshell_usernet::Stack`].
//!
//! A turn is: what is asked of the thread, timers, frames from the guest, sockets, the flush, the link's end of turn. Invariants: the
//! thread waits in its epoll and nowhere else; what outlives a stack, published ports above all, is in the [`Host`], so that a stack that
//! panicked is followed by another.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant as HostInstant};

use openshell_usernet::dns::DnsCounters;
use openshell_usernet::link::HEAD_LEN;
use openshell_usernet::policy::{Denied, Policy};
use openshell_usernet::sockets::{ForwardId, Readiness};
use openshell_usernet::{Config, Counters, FlowId, Instant, Io, Payload, Stack};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::config::net_plan::CaptureFiles;
use crate::config::publish::PublishedPort;
use crate::event::Patience;
use crate::sys::random;

use super::addresses::Addresses;
use super::link::{LinkEvent, PacketLink};
use super::port::{Limits, Port, Recorder};
use super::refusals::RefusalLog;
use super::sockets::{HostSockets, SocketCounters};

/// Events taken from the kernel at once.
const EVENT_BATCH: usize = 256;
/// Frames and their bytes taken from the guest in one turn, so that sockets have theirs.
const FRAME_BATCH: usize = 256;
const FRAME_BATCH_BYTES: usize = 1 << 20;
/// Between two looks at the file of resolvers for want of a resolver.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What an event is about: the upper byte of its data, which [`FlowId::to_bits`] leaves free.
mod kind {
    pub(super) const FLOW: u8 = 0;
    pub(super) const LINK: u8 = 1;
    pub(super) const BELL: u8 = 2;
    pub(super) const FORWARD: u8 = 3;
    pub(super) const ADDRESSES: u8 = 4;
}

const KIND_SHIFT: u32 = 56;

/// What a host side is made of.
#[derive(Debug)]
pub struct Setup {
    /// What the stack is told; its forwards are those of `ports`.
    pub config: Config,
    /// Published ports.
    pub ports: Vec<PublishedPort>,
    /// Sockets at most.
    pub sockets: usize,
    /// Where refusals are written.
    pub log: Option<RefusalLog>,
    /// Where frames are written.
    pub capture: Option<CaptureFiles>,
    /// What may pass.
    pub limits: Limits,
    /// The host's resolvers, until others are told.
    pub resolvers: Vec<SocketAddr>,
}

/// What is asked of the thread.
#[derive(Debug)]
pub(super) enum Command {
    /// End.
    Stop,
    /// Say what happened so far.
    Tell(SyncSender<Report>),
    /// The host's resolvers are these now.
    Resolvers(Vec<SocketAddr>),
    /// The guest may reach this now.
    Policy(Arc<Policy>),
    /// The file of rules has changed, and cannot be read for this reason.
    NoPolicy(String),
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// In the stack; one that panicked took its counts along.
    pub stack: Counters,
    /// At its sockets.
    pub sockets: SocketCounters,
    /// Sockets open now.
    pub open_sockets: usize,
    /// Changes of the file of rules that could not be read.
    pub policy_faults: u64,
    /// Refusals of each kind; the index is that of [`Denied::kind`].
    pub refusals: [u64; Denied::KINDS],
    /// What happened to names.
    pub names: DnsCounters,
}

/// How a stack's service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// There was no way to the guest any more.
    LinkEnded,
}

/// The way to the thread from others.
#[derive(Debug, Clone)]
pub struct Commands {
    sender: Sender<Command>,
    bell: Arc<EventFd>,
    /// Rung when names cannot be resolved: the host's resolvers may have changed unseen.
    pub(super) again: Arc<EventFd>,
}

impl Commands {
    /// Tells the thread which resolvers the host has now.
    pub fn set_resolvers(&self, resolvers: Vec<SocketAddr>) {
        self.send(Command::Resolvers(resolvers));
    }

    /// Tells the thread what the guest may reach now. Flows that it may not keep end.
    pub fn set_policy(&self, policy: Arc<Policy>) {
        self.send(Command::Policy(policy));
    }

    /// Tells the thread that there are other rules, which cannot be read; those that are there stay.
    pub fn policy_failed(&self, why: String) {
        self.send(Command::NoPolicy(why));
    }

    /// What happened so far; `None` when the thread has ended, or answers nothing for five seconds.
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

    /// Commands, and where they arrive.
    #[cfg(test)]
    pub(super) fn pair() -> (Self, Receiver<Command>) {
        let (sender, receiver) = channel();
        let eventfd = || Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        (Self { sender, bell: eventfd(), again: eventfd() }, receiver)
    }

    fn send(&self, command: Command) {
        // A thread that has ended needs neither.
        if self.sender.send(command).is_ok() {
            self.bell.write(1).ok();
        }
    }
}

/// The host's side of a network, which outlives the stacks that it serves.
#[derive(Debug)]
pub struct Host {
    config: Config,
    sockets: HostSockets,
    epoll: Arc<Epoll>,
    commands: Receiver<Command>,
    bell: Arc<EventFd>,
    again: Arc<EventFd>,
    /// When it was rung last.
    asked: Option<Instant>,
    addresses: Option<Addresses>,
    resolvers: Vec<SocketAddr>,
    recorder: Option<Recorder>,
    log: Option<RefusalLog>,
    policy_faults: u64,
    limits: Limits,
    patience: Patience,
    began: HostInstant,
    /// Of the last stack.
    told: Report,
}

impl Host {
    /// The host's side, and the way to it.
    ///
    /// # Errors
    /// What the host said.
    pub fn new(setup: Setup) -> io::Result<(Self, Commands)> {
        let (sender, commands) = channel();
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let again = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let epoll = Arc::new(Epoll::new()?);
        let watch = |fd, kind, number, events| watch(&epoll, fd, kind, number, events);
        watch(bell.as_raw_fd(), kind::BELL, 0, EventSet::IN)?;
        let waits = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for (number, port) in setup.ports.iter().enumerate() {
            watch(port.socket.as_raw_fd(), kind::FORWARD, number as u64, waits)?;
        }
        // Without it a guest that names an address of the host is judged as if it were another's.
        let addresses = Addresses::open().ok();
        if let Some(addresses) = &addresses {
            watch(addresses.as_fd().as_raw_fd(), kind::ADDRESSES, 0, EventSet::IN)?;
        }
        let mtu = setup.config.mtu;
        let host = Self {
            config: setup.config,
            sockets: HostSockets::new(Arc::clone(&epoll), setup.sockets, mtu, setup.ports),
            epoll,
            commands,
            bell: Arc::clone(&bell),
            again: Arc::clone(&again),
            asked: None,
            addresses,
            resolvers: setup.resolvers,
            recorder: setup.capture.map(|files| Recorder::new(files, Instant::from_nanos(0))),
            log: setup.log,
            policy_faults: 0,
            limits: setup.limits,
            patience: Patience::of_this_host(),
            began: HostInstant::now(),
            told: Report::default(),
        };
        Ok((host, Commands { sender, bell, again }))
    }

    /// Drives a new stack on `link` until either ends. The sockets of a stack before it are closed.
    ///
    /// # Errors
    /// What the host said: an epoll instance that does not wait, or no random bytes.
    pub fn serve<L: PacketLink>(&mut self, link: &mut L) -> io::Result<End> {
        let both = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let sources = link.sources();
        for source in &sources {
            // Of a stack that panicked they are still there.
            self.epoll.ctl(ControlOperation::Delete, source.fd, EpollEvent::default()).ok();
            watch(&self.epoll, source.fd, kind::LINK, source.number.into(), both)?;
        }
        self.sockets.close_all();
        let mut recorder = self.recorder.take();
        let mut limits = self.limits.clone();
        // Somebody may have waited since before the epoll instance was asked.
        let waiting = (0..self.sockets.forwards().len()).map(forward_id).collect();
        let engine = Engine {
            stack: Stack::new(self.config.clone(), random::array()?),
            port: Port::new(link, &mut recorder, &mut limits, self.now()),
            host: self,
            frames: true,
            waiting,
        };
        let end = engine.run();
        self.recorder = recorder;
        for source in sources {
            self.epoll.ctl(ControlOperation::Delete, source.fd, EpollEvent::default()).ok();
        }
        self.sockets.close_all();
        end
    }

    /// What happened up to the end of the last service.
    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            sockets: *self.sockets.counters(),
            open_sockets: self.sockets.open_sockets(),
            policy_faults: self.policy_faults,
            ..self.told
        }
    }

    /// Has whoever follows the file of resolvers look at it, now and then.
    fn ask_resolvers(&mut self, now: Instant) {
        if self.asked.is_none_or(|asked| now.since(asked) >= ASK_AGAIN) {
            self.asked = Some(now);
            self.again.write(1).ok();
        }
    }

    fn now(&self) -> Instant {
        let nanos = self.began.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

fn watch(epoll: &Epoll, fd: i32, kind: u8, number: u64, events: EventSet) -> io::Result<()> {
    let token = u64::from(kind) << KIND_SHIFT | number;
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
}

/// A stack in service.
struct Engine<'a, L: PacketLink> {
    host: &'a mut Host,
    stack: Stack<L::Payload>,
    port: Port<'a, L>,
    /// There may be frames though no event says so.
    frames: bool,
    /// Ports at which somebody may wait, likewise.
    waiting: VecDeque<ForwardId>,
}

/// What one wait brought.
#[derive(Default)]
struct Ready {
    flows: Vec<(FlowId, Readiness)>,
    room: bool,
}

impl<L: PacketLink> Engine<'_, L> {
    fn run(mut self) -> io::Result<End> {
        self.stack.set_resolvers(&self.host.resolvers);
        let end = self.turns();
        self.host.told = self.report();
        end
    }

    fn turns(&mut self) -> io::Result<End> {
        let mut events = [EpollEvent::default(); EVENT_BATCH];
        let mut ready = Ready::default();
        loop {
            let count = self.wait(&mut events)?;
            ready.flows.clear();
            ready.room = false;
            for event in events.iter().take(count) {
                if let Some(end) = self.sort(event, &mut ready) {
                    return Ok(end);
                }
            }
            self.turn(&mut ready);
            self.frames |= self.port.end_turn();
            if self.port.has_ended() {
                return Ok(End::LinkEnded);
            }
        }
    }

    fn wait(&mut self, events: &mut [EpollEvent]) -> io::Result<usize> {
        let timeout = self.timeout();
        if timeout != 0
            && let Some(limit) = self.host.patience.next_look()
        {
            let start = HostInstant::now();
            loop {
                let count = self.poll(0, events)?;
                if count > 0 {
                    self.host.patience.looked(true);
                    return Ok(count);
                }
                if start.elapsed() >= limit {
                    self.host.patience.looked(false);
                    break;
                }
            }
        }
        self.poll(timeout, events)
    }

    /// The number of events, which may be 0 before the time is up.
    fn poll(&self, timeout_ms: i32, events: &mut [EpollEvent]) -> io::Result<usize> {
        match self.host.epoll.wait(timeout_ms, events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            waited => waited,
        }
    }

    /// Milliseconds to wait at most; -1 without limit.
    fn timeout(&self) -> i32 {
        if self.frames || !self.waiting.is_empty() {
            return 0;
        }
        let deadlines = [self.stack.next_deadline(), self.port.deadline()];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return -1 };
        let wait = deadline.since(self.host.now());
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
            kind::FORWARD => self.waiting.push_back(forward_id(number.into())),
            _ => self.on_addresses(),
        }
        None
    }

    fn on_link(&mut self, number: u8, writable: bool, ready: &mut Ready) -> Option<End> {
        self.frames = true;
        match self.port.on_ready(number, writable) {
            Ok(LinkEvent::Frames) => {}
            Ok(LinkEvent::Room) => ready.room = true,
            Ok(LinkEvent::Reset) => {
                let now = self.host.now();
                let mut io = Io { link: &mut self.port, sockets: &mut self.host.sockets };
                self.stack.link_reset(now, &mut io);
                self.port.let_go();
                self.port.finish_reset();
            }
            Ok(LinkEvent::Ended) | Err(_) => return Some(End::LinkEnded),
        }
        None
    }

    /// Does what is asked of the thread.
    fn obey(&mut self) -> Option<End> {
        self.host.bell.read().ok();
        loop {
            match self.host.commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Some(End::Stopped),
                // Who asked may have gone.
                Ok(Command::Tell(to)) => drop(to.try_send(self.report())),
                Ok(Command::Resolvers(resolvers)) => {
                    self.stack.set_resolvers(&resolvers);
                    self.host.resolvers = resolvers;
                }
                Ok(Command::Policy(policy)) => self.on_policy(policy),
                Ok(Command::NoPolicy(why)) => {
                    self.host.policy_faults += 1;
                    let now = self.host.now();
                    if let Some(log) = &mut self.host.log {
                        log.note(now, &why);
                    }
                }
                Err(TryRecvError::Empty) => return None,
            }
        }
    }

    fn on_policy(&mut self, policy: Arc<Policy>) {
        self.host.config.policy = Arc::clone(&policy);
        let now = self.host.now();
        let mut io = Io { link: &mut self.port, sockets: &mut self.host.sockets };
        self.stack.set_policy(now, policy, &mut io);
    }

    fn on_addresses(&mut self) {
        let Some(addresses) = &mut self.host.addresses else { return };
        if addresses.read() {
            self.host.config.host_addresses = addresses.all().collect();
            let (now, owned) = (self.host.now(), self.host.config.host_addresses.clone());
            let mut io = Io { link: &mut self.port, sockets: &mut self.host.sockets };
            self.stack.set_host_addresses(now, owned, &mut io);
        }
    }

    fn turn(&mut self, ready: &mut Ready) {
        let now = self.host.now();
        let (frames, room) = self.port.begin_turn(now);
        self.frames |= frames;
        let mut io = Io { link: &mut self.port, sockets: &mut self.host.sockets };
        if self.stack.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.stack.run_timers(now, &mut io);
        }
        if ready.room || room {
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
        if self.stack.take_wants_resolvers() {
            self.host.ask_resolvers(now);
        }
        while let Some(refusal) = self.stack.take_refusal() {
            if let Some(log) = &mut self.host.log {
                log.refusal(&refusal);
            }
        }
    }

    fn report(&mut self) -> Report {
        Report {
            stack: *self.stack.counters(),
            refusals: *self.stack.refusals(),
            names: *self.stack.dns_counters(),
            ..self.host.report()
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

/// The port in place `number`, of which there are a few hundred at most.
fn forward_id(number: usize) -> ForwardId {
    ForwardId(u16::try_from(number).unwrap_or(u16::MAX))
}
