//! The thread that carries the streams.
//!
//! Invariant: it sleeps in poll only. What the guest sends is checked by the protocol; one that does not keep to it has its connection
//! closed, and nothing else. It makes no call outside of `Role::Streams`.

use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openshell_agent_proto::{DATA_MAX, Exit, FromGuest, FromHost, Room, SendWindow, Size, Stream};

use super::client::{Client, Wish};
use super::outputs::Outputs;
use crate::agent::{AgentError, Connection};
use crate::config::plan::StreamsPlan;
use crate::sys::console_io;
use crate::sys::poll::{self, Wanted};
use crate::sys::signal::EndingSignals;
use crate::sys::tty::{self, RawMode};

/// Who may be attached at a time.
const CLIENTS_MAX: usize = 16;
/// How long who has attached may take to read the end, and everybody that of a machine that was ended from outside.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Server {
    guest: Guest,
    attach: UnixListener,
    outputs: Outputs,
    input: Input,
    tty: bool,
    /// What who has attached says of the terminal before there is one.
    size: Option<Size>,
    resizes: Option<EndingSignals>,
    raw: Option<RawMode>,
    exit: Option<Exit>,
    started: Arc<AtomicBool>,
    /// Readable when the machine has come to its end.
    ended: Option<PipeReader>,
    /// Until when who has attached, and until when everybody, may read.
    ends: [Option<Instant>; 2],
}

#[derive(Debug)]
enum Guest {
    /// It has not come.
    Awaited(UnixListener),
    Here(Connection),
    /// Nothing comes from it any more.
    Over,
}

/// The input of the main process.
#[derive(Debug)]
struct Input {
    /// There is one, and it has not ended.
    open: bool,
    /// Standard input of this process gives it.
    own: bool,
    room: Room,
    window: SendWindow,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Ended,
    Guest,
    Attach,
    Input,
    Resize,
    Own,
    Client(usize),
}

impl Server {
    pub(super) fn new(
        plan: StreamsPlan,
        resizes: Option<EndingSignals>,
        started: Arc<AtomicBool>,
        ended: PipeReader,
    ) -> io::Result<Self> {
        plan.guest.set_nonblocking(true)?;
        plan.attach.set_nonblocking(true)?;
        let StreamsPlan { input, own, tty, .. } = plan;
        Ok(Self {
            guest: Guest::Awaited(plan.guest),
            attach: plan.attach,
            outputs: Outputs::new(plan.log, own),
            input: Input {
                open: input,
                own: own && input,
                room: Room::default(),
                window: SendWindow::default(),
            },
            tty,
            size: None,
            resizes,
            raw: None,
            exit: None,
            started,
            ended: Some(ended),
            ends: [None; 2],
        })
    }

    /// Carries until the main process and everybody who reads have come to their end.
    pub(super) fn run(mut self) {
        while !self.is_done() {
            // Without its descriptors the thread has nothing to do; the machine goes on.
            let Ok(events) = self.wait() else { return };
            for event in events {
                self.happened(event);
            }
            self.hear_guest();
            self.hear_clients();
            self.give_input();
            for at in 0..2 {
                if !self.outputs.write_own(at) {
                    self.lost(at);
                }
            }
            self.outputs.pass_on(matches!(self.guest, Guest::Over), self.exit);
            self.answer_guest();
        }
    }

    fn is_done(&mut self) -> bool {
        let now = Instant::now();
        let [clients, everybody] = self.ends.map(|ends| ends.is_some_and(|ends| ends <= now));
        if clients {
            self.outputs.clients.clear();
            self.ends[0] = None;
        }
        let over = matches!(self.guest, Guest::Over);
        let all = self.outputs.own_done() && self.outputs.clients.is_empty();
        over && (all || everybody)
    }

    fn wait(&self) -> io::Result<Vec<Event>> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let own = [stdout.as_fd(), stderr.as_fd()];
        let read = |fd| Wanted { fd, read: true, write: false };
        let mut wanted = Vec::with_capacity(8);
        wanted.extend(self.ended.as_ref().map(|ended| (Event::Ended, read(ended.as_fd()))));
        let mut takes = true;
        match &self.guest {
            Guest::Awaited(listener) => wanted.push((Event::Guest, read(listener.as_fd()))),
            Guest::Here(connection) => {
                takes = !connection.is_full();
                wanted.push((Event::Guest, connection.wanted()));
                let has_started = self.started.load(Ordering::SeqCst);
                if self.input.own && takes && has_started && self.input.window.left() > 0 {
                    wanted.push((Event::Input, read(stdin.as_fd())));
                }
            }
            Guest::Over => {}
        }
        if let Some(resizes) = &self.resizes {
            wanted.push((Event::Resize, read(resizes.as_fd())));
        }
        if self.outputs.clients.len() < CLIENTS_MAX && !matches!(self.guest, Guest::Over) {
            wanted.push((Event::Attach, read(self.attach.as_fd())));
        }
        for at in (0..2).filter(|at| self.outputs.waits(*at)) {
            wanted.push((Event::Own, Wanted { fd: own[at], read: false, write: true }));
        }
        // What they want may be for the guest.
        let clients = self.outputs.clients.iter().enumerate().filter(|_| takes);
        wanted.extend(clients.map(|(at, client)| (Event::Client(at), client.connection.wanted())));
        let polled: Vec<_> = wanted.iter().map(|(_, wanted)| *wanted).collect();
        let ends = self.ends.into_iter().flatten().min();
        let ready = poll::wait(&polled, ends)?;
        let ready = wanted.iter().zip(ready).filter(|(_, ready)| *ready);
        Ok(ready.map(|((event, _), _)| *event).collect())
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Ended => self.machine_over(),
            Event::Guest => match &mut self.guest {
                Guest::Awaited(_) => self.accept_guest(),
                Guest::Here(connection) => {
                    if connection.receive().is_err() {
                        self.guest_over();
                    }
                }
                Guest::Over => {}
            },
            Event::Attach => {
                if let Ok((socket, _)) = self.attach.accept()
                    && socket.set_nonblocking(true).is_ok()
                {
                    self.outputs.clients.push(Client::new(socket));
                }
            }
            Event::Input => self.read_input(),
            Event::Resize => {
                while self.resizes.as_ref().and_then(EndingSignals::take).is_some() {}
                self.resize();
            }
            // Written below, with what else has come.
            Event::Own => {}
            Event::Client(at) => {
                if let Some(client) = self.outputs.clients.get_mut(at) {
                    client.gone |= client.connection.receive().is_err();
                }
            }
        }
    }

    fn accept_guest(&mut self) {
        let Guest::Awaited(listener) = &self.guest else { return };
        let Ok((socket, _)) = listener.accept() else { return };
        if socket.set_nonblocking(true).is_err() {
            return self.guest_over();
        }
        let mut connection = Connection::of(socket);
        connection.request(&FromHost::Attach { input: self.input.open });
        if let Some(size) = self.size {
            connection.send(&FromHost::Resize(size));
        }
        // Whoever comes later is not the one that the guest's first process has begun.
        self.guest = Guest::Here(connection);
    }

    /// The machine has come to its end: what the guest has sent is there already.
    fn machine_over(&mut self) {
        self.ended = None;
        self.accept_guest();
        while let Guest::Here(connection) = &mut self.guest
            && matches!(connection.receive(), Ok(true))
        {
            self.hear_guest();
        }
        self.guest_over();
        if self.exit.is_none() {
            self.ends = [Some(Instant::now() + LAST_WORDS); 2];
        }
    }

    /// Nothing comes from the guest any more.
    fn guest_over(&mut self) {
        self.guest = Guest::Over;
        self.input.open = false;
        self.raw = None;
        self.ends[0].get_or_insert(Instant::now() + LAST_WORDS);
    }

    fn hear_guest(&mut self) {
        loop {
            match self.guest_frame() {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => return self.guest_over(),
            }
        }
    }

    /// Takes a frame of the guest's; whether there was one.
    fn guest_frame(&mut self) -> Result<bool, AgentError> {
        let Guest::Here(connection) = &mut self.guest else { return Ok(false) };
        let Some(frame) = connection.decoder.next::<FromGuest<'_>>()? else { return Ok(false) };
        match frame {
            FromGuest::Welcome(_) | FromGuest::End(_) => {}
            FromGuest::Started(_) => self.started(),
            FromGuest::Data(stream @ (Stream::Output | Stream::Error), bytes) => {
                let at = usize::from(stream == Stream::Error);
                self.outputs.take(at, bytes)?;
                if !self.outputs.write_own(at) {
                    self.lost(at);
                }
            }
            FromGuest::Credit(Stream::Input, bytes) => self.input.window.credit(bytes)?,
            FromGuest::Exited(exit) => {
                self.exit = Some(exit);
                self.guest_over();
            }
            _ => return Err(AgentError::Unexpected { what: "frame of the main process" }),
        }
        Ok(true)
    }

    fn started(&mut self) {
        self.started.store(true, Ordering::SeqCst);
        if self.tty && self.input.own && self.raw.is_none() {
            // Without it the terminal stays as it is, and keys come line by line.
            self.raw = RawMode::enter().ok().flatten();
        }
        self.resize();
    }

    /// Tells the guest how large this process's terminal is.
    fn resize(&mut self) {
        if let (Guest::Here(guest), Some(_)) = (&mut self.guest, &self.resizes)
            && let Some((columns, rows)) = tty::size(1).or_else(|| tty::size(0))
        {
            guest.send(&FromHost::Resize(Size { columns, rows }));
        }
    }

    /// Nobody reads a stream of this process any more. As in a pipe of processes, who writes it is told.
    fn lost(&mut self, at: usize) {
        if let (Guest::Here(guest), false) = (&mut self.guest, self.tty) {
            guest.send(&FromHost::End([Stream::Output, Stream::Error][at]));
        }
    }

    fn read_input(&mut self) {
        let Guest::Here(guest) = &mut self.guest else { return };
        let Input { room, window, .. } = &mut self.input;
        match room.read(window.left(), |bytes| console_io::read(libc::STDIN_FILENO, bytes)) {
            Ok(bytes) if !bytes.is_empty() => {
                guest.send(&FromHost::Data(Stream::Input, bytes));
                window.sent(bytes.len());
            }
            Err(error) if is_temporary(&error) => {}
            Ok(_) | Err(_) => {
                self.input.own = false;
                self.end_input();
            }
        }
    }

    /// The main process comes to the end of its input. A terminal has none.
    fn end_input(&mut self) {
        if let (Guest::Here(guest), false) = (&mut self.guest, self.tty)
            && std::mem::replace(&mut self.input.open, false)
        {
            guest.send(&FromHost::End(Stream::Input));
        }
    }

    fn hear_clients(&mut self) {
        for at in 0..self.outputs.clients.len() {
            loop {
                let others = self.outputs.clients.iter().enumerate();
                let given = others
                    .filter(|(other, _)| *other != at)
                    .any(|(_, other)| other.gives && !other.gone);
                let client = &mut self.outputs.clients[at];
                let wish = match client.hear(given || self.input.own) {
                    Ok(Some(wish)) => wish,
                    Ok(None) => break,
                    Err(_) => {
                        client.gone = true;
                        break;
                    }
                };
                match (wish, &mut self.guest) {
                    (Wish::Signal(signal), Guest::Here(guest)) => {
                        guest.send(&FromHost::Signal(signal));
                    }
                    (Wish::Resize(size), Guest::Here(guest)) => guest.send(&FromHost::Resize(size)),
                    (Wish::Resize(size), Guest::Awaited(_)) => self.size = Some(size),
                    _ => {}
                }
            }
        }
    }

    /// Passes on what the one who has attached for it gives; a process without an input loses it.
    fn give_input(&mut self) {
        let Some(client) = self.outputs.clients.iter_mut().find(|client| client.gives) else {
            return;
        };
        if !self.input.open {
            return client.input_used(client.input.len());
        }
        let Guest::Here(guest) = &mut self.guest else { return };
        while !client.input.is_empty() && self.input.window.left() > 0 && !guest.is_full() {
            let len = client.input.len().min(self.input.window.left()).min(DATA_MAX);
            guest.send(&FromHost::Data(Stream::Input, &client.input.left()[..len]));
            self.input.window.sent(len);
            client.input_used(len);
        }
        if client.input_ended && client.input.is_empty() {
            self.end_input();
        }
    }

    fn answer_guest(&mut self) {
        for (at, stream) in [Stream::Output, Stream::Error].into_iter().enumerate() {
            let credit = self.outputs.credit(at);
            if let (Guest::Here(guest), Some(bytes)) = (&mut self.guest, credit) {
                guest.send(&FromHost::Credit(stream, bytes));
            }
        }
        if let Guest::Here(guest) = &mut self.guest
            && guest.flush().is_err()
        {
            self.guest_over();
        }
    }
}

pub(super) fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}
