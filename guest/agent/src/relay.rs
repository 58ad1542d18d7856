//! Carries the streams of one process, and tells how it ended.
//!
//! Runs on the session's thread, which sleeps in poll only. Invariant: of each stream at most a window is held; a process's output is
//! sent completely before its end is; a process whose host has gone is ended with all that it started in its session.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use openshell_agent_proto::{
    Decoder, Exit, Failure, FailureKind, FromGuest, FromHost, ReceiveWindow, Room, SendWindow,
    Signal, Size, Stream, WireError,
};
use openshell_init::terminal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal as Named, kill_process};

use crate::channel::{Wire, until};
use crate::exec::Started;
use crate::watched::Watched;

/// How long a process whose host has gone may take to end in order.
const AFTER_HANGUP: Duration = Duration::from_secs(2);
/// How long a terminal that a background process keeps open is read after the end of the process.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// A process and its session.
#[derive(Debug)]
pub struct Relay<'w> {
    wire: &'w mut Wire,
    decoder: &'w mut Decoder,
    process: Watched,
    exit: Option<Exit>,
    input: Input,
    outputs: [Output; 2],
    is_terminal: bool,
}

#[derive(Debug, Default)]
struct Input {
    to: Option<OwnedFd>,
    held: Vec<u8>,
    written: usize,
    window: ReceiveWindow,
    ended: bool,
}

#[derive(Debug)]
struct Output {
    stream: Stream,
    from: Option<OwnedFd>,
    room: Room,
    window: SendWindow,
    /// What is still to be read when the process has ended; others may hold the pipe.
    left: Option<u64>,
}

/// What one look at a stream brought.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    More,
    Nothing,
}

impl<'w> Relay<'w> {
    /// Takes a process that was just started.
    #[must_use]
    pub fn new(started: Started, wire: &'w mut Wire, decoder: &'w mut Decoder) -> Self {
        let pid = started.process.pid().as_raw_nonzero().get();
        wire.send(&FromGuest::Started(pid.cast_unsigned()));
        let output = |stream, from| {
            let (room, window) = (Room::default(), SendWindow::default());
            Output { stream, from, room, window, left: None }
        };
        Self {
            wire,
            decoder,
            process: started.process,
            exit: None,
            input: Input { to: started.input, ..Input::default() },
            outputs: [output(Stream::Output, started.output), output(Stream::Error, started.error)],
            is_terminal: started.is_terminal,
        }
    }

    /// Runs to the end of the process or of the host's interest.
    ///
    /// # Errors
    /// What the host is to be told; nothing when it has gone.
    pub fn run(mut self) -> Result<(), Option<Failure>> {
        let detached = self.outputs.iter().all(|output| output.from.is_none());
        let result = self.carry();
        if result.is_err() && self.exit.is_none() {
            if detached {
                self.process.wait_for_end(None);
                self.exit = self.process.exit();
            } else {
                self.end_all();
            }
        }
        match result {
            Ok(exit) => {
                self.wire.send(&FromGuest::Exited(exit));
                Ok(())
            }
            Err(Broken::Gone) => Err(None),
            Err(Broken::Protocol(error)) => {
                Err(Some(Failure::new(FailureKind::Protocol, error.to_string())))
            }
        }
    }

    fn carry(&mut self) -> Result<Exit, Broken> {
        loop {
            // What has arrived already comes first: it may have arrived with the request.
            while self.take_frame()? == Look::More {}
            self.input.pass_on(self.wire);
            self.wire.flush()?;
            let idle = self.read_outputs();
            if let Some(exit) = self.exit
                && self.outputs.iter().all(|output| output.from.is_none())
            {
                return Ok(exit);
            }
            if idle {
                self.wait()?;
            }
        }
    }

    /// Reads outputs as far as there is credit; whether there is nothing more to read now.
    fn read_outputs(&mut self) -> bool {
        let mut idle = true;
        for output in &mut self.outputs {
            if output.can_send(self.wire) && output.read(self.wire) == Look::More {
                idle = false;
            }
        }
        idle
    }

    /// Sleeps until something happens, and takes notice of the end of the process.
    fn wait(&mut self) -> Result<(), Broken> {
        let closing = self.exit.is_some() && self.is_terminal;
        let ends = closing.then(|| Instant::now() + LAST_WORDS);
        let writing = if self.wire.is_waiting() { PollFlags::OUT } else { PollFlags::empty() };
        let reading = if self.wire.is_full() { PollFlags::empty() } else { PollFlags::IN };
        let mut polled = vec![PollFd::new(&*self.wire, reading | writing)];
        let child_at = self.exit.is_none().then(|| {
            polled.push(PollFd::new(&self.process, PollFlags::IN));
            polled.len() - 1
        });
        for output in &self.outputs {
            if let Some(from) = output.from.as_ref().filter(|_| output.can_send(self.wire)) {
                polled.push(PollFd::new(from, PollFlags::IN));
            }
        }
        if let Some(to) = self.input.to.as_ref().filter(|_| self.input.is_holding()) {
            polled.push(PollFd::new(to, PollFlags::OUT));
        }
        let count = match poll(&mut polled, until(ends).as_ref()) {
            Err(Errno::INTR) => return Ok(()),
            count => count?,
        };
        let readable =
            polled[0].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        let has_ended = child_at.is_some_and(|at| !polled[at].revents().is_empty());
        drop(polled);
        if readable {
            self.wire.receive(self.decoder)?;
        }
        if has_ended {
            self.reap();
        }
        if count == 0 && closing && !self.wire.is_full() {
            // A terminal that is quiet now has shown what the process wrote; others keep it open.
            for output in &mut self.outputs {
                if output.window.left() > 0 {
                    output.close(self.wire);
                }
            }
        }
        Ok(())
    }

    fn reap(&mut self) {
        self.exit = self.process.exit();
        if self.exit.is_none() {
            return;
        }
        for output in &mut self.outputs {
            let Some(from) = output.from.as_ref().filter(|_| !self.is_terminal) else { continue };
            let left = rustix::io::ioctl_fionread(from).unwrap_or(0);
            output.left = Some(left);
            if left == 0 {
                output.close(self.wire);
            }
        }
    }

    fn take_frame(&mut self) -> Result<Look, Broken> {
        let Some(frame) = self.decoder.next::<FromHost<'_>>()? else { return Ok(Look::Nothing) };
        match frame {
            FromHost::Data(Stream::Input, bytes) => self.input.take(bytes, self.wire)?,
            FromHost::End(Stream::Input) => self.input.ended = true,
            FromHost::Credit(Stream::Output, bytes) => self.outputs[0].window.credit(bytes)?,
            FromHost::Credit(Stream::Error, bytes) => self.outputs[1].window.credit(bytes)?,
            // Nobody reads it any more: whoever writes it is told so. A terminal has other ways.
            FromHost::End(stream @ (Stream::Output | Stream::Error)) if !self.is_terminal => {
                self.outputs[usize::from(stream == Stream::Error)].close(self.wire);
            }
            FromHost::End(_) => {}
            FromHost::Resize(Size { columns, rows }) => {
                if let Some(terminal) = self.outputs[0].from.as_ref().filter(|_| self.is_terminal) {
                    // A terminal whose programs have gone has no size any more.
                    _ = terminal::resize(terminal, (columns, rows));
                }
            }
            FromHost::Signal(signal) => self.signal(signal),
            _ => return Err(WireError::Value("frame of a running process").into()),
        }
        Ok(Look::More)
    }

    fn signal(&self, signal: Signal) {
        if self.exit.is_some() {
            return;
        }
        if let Some(signal) = Named::from_named_raw(signal.number()) {
            self.process.signal(signal);
        }
    }

    /// Ends the process and every other one of its session: asks, then insists. The main process ends when its first process says so.
    fn end_all(&mut self) {
        // Whoever reads or writes the terminal is told that it is gone.
        self.input.to = None;
        for output in &mut self.outputs {
            output.from = None;
        }
        if matches!(self.process, Watched::Main { .. }) {
            return self.process.wait_for_end(None);
        }
        for signal in [Named::HUP, Named::CONT] {
            self.process.signal(signal);
        }
        self.process.wait_for_end(Some(AFTER_HANGUP));
        // Members first: the number of the session is taken as long as its leader was not reaped.
        for pid in members(self.process.pid()) {
            _ = kill_process(pid, Named::KILL);
        }
        self.process.wait_for_end(None);
        self.exit = self.process.exit();
    }
}

/// Why a session cannot go on.
#[derive(Debug)]
enum Broken {
    Gone,
    Protocol(WireError),
}

impl From<Errno> for Broken {
    fn from(_: Errno) -> Self {
        Self::Gone
    }
}

impl From<WireError> for Broken {
    fn from(error: WireError) -> Self {
        Self::Protocol(error)
    }
}

impl Input {
    fn is_holding(&self) -> bool {
        self.written < self.held.len()
    }

    fn take(&mut self, bytes: &[u8], wire: &mut Wire) -> Result<(), WireError> {
        self.window.received(bytes.len())?;
        if self.ended {
            return Err(WireError::Value("input behind its end"));
        }
        match self.to {
            Some(_) => self.held.extend_from_slice(bytes),
            // Nobody reads it any more.
            None => self.give_credit(bytes.len(), wire),
        }
        Ok(())
    }

    /// Writes what the process takes; at the end of the input its pipe is closed.
    fn pass_on(&mut self, wire: &mut Wire) {
        while let Some(to) = self.to.as_ref().filter(|_| self.written < self.held.len()) {
            match rustix::io::write(to, &self.held[self.written..]) {
                Ok(len) => {
                    self.written += len;
                    self.give_credit(len, wire);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    let left = self.held.len() - self.written;
                    self.to = None;
                    self.give_credit(left, wire);
                }
            }
        }
        self.held.clear();
        self.written = 0;
        if self.ended {
            self.to = None;
        }
    }

    fn give_credit(&mut self, len: usize, wire: &mut Wire) {
        if let Some(bytes) = self.window.used(len) {
            wire.send(&FromGuest::Credit(Stream::Input, bytes));
        }
    }
}

impl Output {
    fn can_send(&self, wire: &Wire) -> bool {
        self.from.is_some() && self.window.left() > 0 && !wire.is_full()
    }

    fn read(&mut self, wire: &mut Wire) -> Look {
        let Some(from) = &self.from else { return Look::Nothing };
        let left = self.left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let limit = self.window.left().min(left);
        match self.room.read(limit, |bytes| rustix::io::read(from, bytes)) {
            Ok(bytes) if !bytes.is_empty() => {
                wire.send(&FromGuest::Data(self.stream, bytes));
                self.window.sent(bytes.len());
                self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                if self.left == Some(0) {
                    self.close(wire);
                }
                Look::More
            }
            Err(Errno::INTR) => Look::More,
            Err(Errno::AGAIN) => Look::Nothing,
            // A terminal without a program is an I/O error.
            Ok(_) | Err(_) => {
                self.close(wire);
                Look::Nothing
            }
        }
    }

    fn close(&mut self, wire: &mut Wire) {
        if self.from.take().is_some() {
            wire.send(&FromGuest::End(self.stream));
        }
    }
}

/// Processes of the session that `leader` leads.
fn members(leader: Pid) -> Vec<Pid> {
    let wanted = leader.as_raw_nonzero().get();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_member = |pid: &i32| {
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        session_of(&stat) == Some(wanted)
    };
    pids.filter(is_member).filter_map(Pid::from_raw).collect()
}

/// The session in a line of /proc/PID/stat: pid (name) state parent group session ... The name may hold anything.
fn session_of(stat: &[u8]) -> Option<i32> {
    let at = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(at + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found_behind_any_name() {
        assert_eq!(session_of(b"7 (a) b) S 1 2 3 4"), Some(3));
        for line in ["", "7 (a", "7 (a) S 1", "7 (a) S 1 2 x"] {
            assert_eq!(session_of(line.as_bytes()), None, "{line}");
        }
    }
}
