//! The thread that serves the control socket.
//!
//! Invariant: at most [`CLIENTS_MAX`] clients, of each at most one line and one answer that wait; a client that reads nothing is dropped.
//! It makes no call outside of `Role::Control`.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::guest::{Answer, Question};
use super::protocol::{Ending, LINE_MAX, Reply, Request, parse};
use super::{Ask, News, Order, State};
use crate::event::Waiter;
use crate::trace::{Marks, Phase};

const CLIENTS_MAX: usize = 32;
/// Answers that a client has not read.
const OUTPUT_MAX: usize = 16 << 10;
/// How often a guest that does not listen yet is tried.
const RETRY: Duration = Duration::from_millis(100);
/// How long clients may take to read the last answer.
const LAST_WORDS: Duration = Duration::from_millis(500);

const LISTENER: u64 = 0;
const MAILBOX: u64 = 1;
const RETRY_TIMER: u64 = 2;
const GUEST: u64 = 3;
const FIRST_CLIENT: u64 = 16;

/// The way to the event loop.
#[derive(Debug)]
pub(super) struct Outward {
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) bell: EventFd,
}

/// The way from the event loop.
#[derive(Debug)]
pub(super) struct Inward {
    pub(super) news: mpsc::Receiver<News>,
    pub(super) mailbox: EventFd,
}

#[derive(Debug)]
pub(super) struct Server {
    listener: UnixListener,
    guest: PathBuf,
    outward: Outward,
    inward: Inward,
    marks: Arc<Marks>,
    waiter: Waiter,
    retry: TimerFd,
    clients: Vec<Client>,
    next_client: u64,
    state: State,
    question: Option<Question>,
    /// What waits for the question on its way.
    asks: Vec<Ask>,
}

#[derive(Debug)]
struct Client {
    id: u64,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// It wants to know of the end.
    waits: bool,
    /// Its request is with the event loop.
    pending: bool,
    gone: bool,
}

impl Outward {
    fn order(&self, order: Order) {
        // The event loop outlives this thread.
        self.orders.send(order).ok();
        self.bell.write(1).ok();
    }
}

impl Server {
    pub(super) fn new(
        listener: UnixListener,
        guest: PathBuf,
        outward: Outward,
        inward: Inward,
        marks: Arc<Marks>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let waiter = Waiter::new()?;
        let retry = TimerFd::new().map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        waiter.add_readable(listener.as_raw_fd(), LISTENER)?;
        waiter.add_readable(inward.mailbox.as_raw_fd(), MAILBOX)?;
        waiter.add_readable(retry.as_raw_fd(), RETRY_TIMER)?;
        Ok(Self {
            listener,
            guest,
            outward,
            inward,
            marks,
            waiter,
            retry,
            clients: Vec::new(),
            next_client: FIRST_CLIENT,
            state: State::Running,
            question: None,
            asks: Vec::new(),
        })
    }

    /// Serves until the machine has come to its end.
    pub(super) fn run(mut self) {
        let mut ready = Vec::new();
        loop {
            if self.waiter.wait(&mut ready).is_err() {
                // Without its descriptors the thread has nothing to do; the machine goes on.
                return;
            }
            for token in ready.drain(..) {
                match token {
                    LISTENER => self.accept(),
                    MAILBOX => {
                        if let Some(ending) = self.news() {
                            return self.last_words(&ending);
                        }
                    }
                    RETRY_TIMER => {
                        self.retry.wait().ok();
                        self.ask();
                    }
                    GUEST => self.guest_said(),
                    client => self.serve(client),
                }
            }
            self.forget_the_gone();
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= CLIENTS_MAX || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let id = self.next_client;
            self.next_client += 1;
            if self.waiter.add_readable(stream.as_raw_fd(), id).is_ok() {
                self.clients.push(Client {
                    id,
                    stream,
                    input: Vec::new(),
                    output: Vec::new(),
                    waits: false,
                    pending: false,
                    gone: false,
                });
            }
        }
    }

    /// Reads the event loop's news; the ending, if that is among them.
    fn news(&mut self) -> Option<Ending> {
        self.inward.mailbox.read().ok();
        while let Ok(news) = self.inward.news.try_recv() {
            match news {
                News::State(state) => self.state = state,
                News::Ask(ask) => {
                    self.asks.push(ask);
                    self.ask();
                }
                News::Done { client, result } => {
                    let reply = match result {
                        Ok(()) => Reply { state: Some(self.state.name().into()), ..Reply::done() },
                        Err(error) => Reply::refused(error),
                    };
                    if let Some(client) = self.clients.iter_mut().find(|it| it.id == client) {
                        client.pending = false;
                        client.answer(&reply);
                    }
                }
                News::Ended(ending) => return Some(ending),
            }
        }
        None
    }

    fn serve(&mut self, id: u64) {
        let Some(at) = self.clients.iter().position(|client| client.id == id) else { return };
        while let Some(line) = self.clients[at].line() {
            match parse(&line) {
                Ok(request) => self.obey(at, &request),
                Err(refusal) => self.clients[at].answer(&refusal),
            }
        }
    }

    fn obey(&mut self, at: usize, request: &Request) {
        let client = &mut self.clients[at];
        match *request {
            Request::Status => client.answer(&Reply {
                state: Some(self.state.name().into()),
                booted: Some(self.marks.at(Phase::Init).is_some()),
                ..Reply::done()
            }),
            Request::Wait => client.waits = true,
            Request::Pause | Request::Resume if client.pending => {
                client.answer(&Reply::refused("another request of this connection is under way"));
            }
            Request::Pause => {
                client.pending = true;
                self.outward.order(Order::Pause(client.id));
            }
            Request::Resume => {
                client.pending = true;
                self.outward.order(Order::Resume(client.id));
            }
            Request::Stop { signal, grace_ms } => {
                let grace = grace_ms.map(Duration::from_millis);
                self.outward.order(Order::Stop { signal, grace });
                client.answer(&Reply::done());
            }
            Request::Kill { signal: None | Some(libc::SIGKILL) } => {
                self.outward.order(Order::Kill);
                client.answer(&Reply::done());
            }
            Request::Kill { signal: Some(signal) } => {
                client.answer(&Reply::done());
                if self.asks.len() < CLIENTS_MAX {
                    self.asks.push(Ask::Signal(signal));
                }
                self.ask();
            }
        }
    }

    /// Goes on with the question on its way, or begins the next.
    fn ask(&mut self) {
        let now = Instant::now();
        if self.question.is_none() && !self.asks.is_empty() {
            self.question = Some(Question::new(self.asks.remove(0), now));
        }
        let Some(question) = &mut self.question else { return };
        let talks = question.fd().is_some();
        let answer = question.try_now(&self.guest, now);
        if let (false, Some(fd)) = (talks, question.fd())
            && self.waiter.add_readable(fd, GUEST).is_err()
        {
            self.question = None;
        }
        self.came(answer);
    }

    fn guest_said(&mut self) {
        let Some(question) = &mut self.question else { return };
        let fd = question.fd();
        let answer = question.hear();
        if let (Some(fd), None) = (fd, question.fd()) {
            // Closed already, and so out of the set; a number that is not in it is left alone.
            self.waiter.remove(fd);
        }
        self.came(answer);
    }

    fn came(&mut self, answer: Answer) {
        match answer {
            Answer::Pending => {}
            Answer::Retry => {
                self.retry.reset(RETRY, None).ok();
            }
            Answer::Agreed | Answer::GaveUp => {
                let asked = self.question.take().map(|question| question.ask);
                if let (Answer::Agreed, Some(Ask::Stop { .. })) = (answer, asked) {
                    self.outward.order(Order::Agreed);
                }
                if !self.asks.is_empty() {
                    self.ask();
                }
            }
        }
    }

    fn forget_the_gone(&mut self) {
        for client in &self.clients {
            if client.gone {
                self.waiter.remove(client.stream.as_raw_fd());
            }
        }
        self.clients.retain(|client| !client.gone);
    }

    /// Tells everybody who waits, and closes all connections.
    fn last_words(mut self, ending: &Ending) {
        let reply = Reply { ended: Some(ending.clone()), ..Reply::done() };
        for client in &mut self.clients {
            if client.waits || client.pending {
                client.answer(&reply);
            }
        }
        let ends = Instant::now() + LAST_WORDS;
        while self.clients.iter().any(|client| !client.output.is_empty() && !client.gone) {
            self.clients.iter_mut().for_each(Client::flush);
            if Instant::now() >= ends {
                return;
            }
            std::thread::yield_now();
        }
    }
}

impl Client {
    /// The next whole line, read from the socket as far as needed.
    fn line(&mut self) -> Option<Vec<u8>> {
        self.flush();
        loop {
            if let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.input.drain(..=end).collect();
                line.pop();
                return Some(line);
            }
            if self.input.len() > LINE_MAX {
                self.answer(&Reply::refused(format!("a request has at most {LINE_MAX} bytes")));
                self.gone = true;
            }
            if self.gone {
                return None;
            }
            let mut chunk = [0; 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => self.gone = true,
                Ok(len) => self.input.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }

    fn answer(&mut self, reply: &Reply) {
        self.output.extend(reply.line());
        self.flush();
        self.gone |= self.output.len() > OUTPUT_MAX;
    }

    fn flush(&mut self) {
        while !self.output.is_empty() && !self.gone {
            match self.stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }
}
