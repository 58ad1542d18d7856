//! The host's end of the serial console: standard streams, a file or a machine's log.
//!
//! Invariant: what the guest printed reaches the sink in order or, when the sink is slower than the guest, waits in the serial port's
//! bounded buffer; the event loop never blocks on either direction. Only the event loop's thread uses it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use crate::config::plan::ConsolePlan;
use crate::console_tail::ConsoleTail;
use crate::devices::serial::Serial;
use crate::event::Waiter;
use crate::logbook::{Logbook, Source};
use crate::sys::tty::RawMode;
use crate::sys::{console_io, tty};
use crate::trace::{Marks, Phase};

use super::Token;

/// Ctrl-]: the keyboard goes back to the host, the guest goes on.
const DETACH_KEY: u8 = 0x1d;
/// A pipe that is reported writable takes at least this much without blocking (POSIX PIPE_BUF).
const SAFE_WRITE_BYTES: usize = 4096;
/// The end of what a console printed that nobody looked at.
const UNSEEN_MAX: usize = 64 << 10;
const INPUT_CHUNK: usize = 4096;
/// How long a sink that takes nothing can hold up the end of the machine.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The host's end of the console.
#[derive(Debug)]
pub(super) struct Console {
    serial: Arc<Serial>,
    sink: Option<Sink>,
    input: Option<Input>,
    /// Output taken from the port and not yet written.
    pending: Vec<u8>,
    tail: ConsoleTail,
    /// Where output is kept as well.
    log: Option<Logbook>,
    /// The end of what will be shown when there has been no main process.
    unseen: Option<Vec<u8>>,
    marks: Arc<Marks>,
    /// The sink's descriptor while it takes nothing. Only then the port's output is not waited for.
    full_sink: Option<RawFd>,
}

#[derive(Debug)]
enum Sink {
    Stdout,
    File(File),
}

impl Sink {
    fn fd(&self) -> RawFd {
        match self {
            Self::Stdout => libc::STDOUT_FILENO,
            Self::File(file) => file.as_raw_fd(),
        }
    }
}

#[derive(Debug)]
struct Input {
    raw: Option<RawMode>,
    /// Read and not yet taken by the port.
    pending: Vec<u8>,
    /// A regular file can't be waited for: it is read whenever there is room.
    always_ready: bool,
    waiting: bool,
}

impl Console {
    /// Connects `serial` as `plan` says and registers with `waiter`.
    ///
    /// # Errors
    /// What the host said about the terminal or the descriptors.
    pub(super) fn open(
        plan: ConsolePlan,
        serial: Arc<Serial>,
        marks: Arc<Marks>,
        waiter: &Waiter,
    ) -> io::Result<Self> {
        waiter.add_readable(serial.output_fd(), Token::SerialOutput as u64)?;
        let (mut kept, mut unseen) = (None, None);
        let (sink, input) = match plan {
            ConsolePlan::Stdio => (Some(Sink::Stdout), Some(Input::open(waiter)?)),
            ConsolePlan::Logged { log, output } => {
                kept = Some(log);
                unseen = output.then(Vec::new);
                (None, None)
            }
            ConsolePlan::File(file) => (Some(Sink::File(file)), None),
            ConsolePlan::None => (None, None),
        };
        if input.is_some() {
            let wanted = serial.input_wanted().as_raw_fd();
            waiter.add_readable(wanted, Token::InputWanted as u64)?;
        }
        Ok(Self {
            serial,
            sink,
            input,
            pending: Vec::new(),
            tail: ConsoleTail::default(),
            log: kept,
            unseen,
            marks,
            full_sink: None,
        })
    }

    /// The last lines that the guest printed.
    pub(super) fn tail(&self) -> &ConsoleTail {
        &self.tail
    }

    /// The port has output, or the sink takes bytes again.
    pub(super) fn forward_output(&mut self, waiter: &Waiter) {
        if self.pending.is_empty() {
            self.serial.take_output(&mut self.pending);
            let pending = std::mem::take(&mut self.pending);
            self.keep(&pending);
            self.pending = pending;
        }
        let emptied = self.write_pending(Duration::ZERO);
        self.wait_for_sink(!emptied, waiter);
    }

    /// Standard input has bytes or has ended.
    pub(super) fn input_ready(&mut self, waiter: &Waiter) {
        let Some(input) = &mut self.input else {
            return;
        };
        match input.read() {
            Ok(true) => self.offer_input(waiter),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(false) | Err(_) => self.close_input(waiter),
        }
    }

    /// The port has room for what it refused before.
    pub(super) fn input_wanted(&mut self, waiter: &Waiter) {
        self.serial.input_wanted().read().ok();
        self.offer_input(waiter);
    }

    /// Offers what was read; input that can't be waited for is read on until the port is full.
    pub(super) fn offer_input(&mut self, waiter: &Waiter) {
        while let Some(input) = &mut self.input {
            let taken = self.serial.offer_input(&input.pending);
            input.pending.drain(..taken);
            let all_taken = input.pending.is_empty();
            if !input.always_ready {
                return input.wait(all_taken, waiter);
            }
            if !all_taken {
                return;
            }
            if !matches!(input.read(), Ok(true)) {
                self.close_input(waiter);
            }
        }
    }

    /// Writes what is left, and gives the terminal back. `seen`: there has been a main process, whose own output says what there is to say.
    pub(super) fn close(&mut self, seen: bool) {
        let mut unseen = Vec::new();
        self.serial.take_output(&mut unseen);
        self.keep(&unseen);
        self.pending.append(&mut unseen);
        if let Some(unseen) = self.unseen.take().filter(|_| !seen) {
            self.sink = Some(Sink::Stdout);
            self.pending = unseen;
        }
        self.write_pending(LAST_WORDS);
        self.input = None;
    }

    fn keep(&mut self, output: &[u8]) {
        self.tail.push(output);
        if let Some(unseen) = &mut self.unseen {
            unseen.extend_from_slice(output);
            unseen.drain(..unseen.len().saturating_sub(UNSEEN_MAX));
        }
        if let Some(log) = self.log.as_ref().filter(|_| !output.is_empty()) {
            let booted = self.marks.at(Phase::Init).is_some();
            log.add(if booted { Source::Guest } else { Source::Boot }, output);
        }
    }

    fn close_input(&mut self, waiter: &Waiter) {
        if let Some(mut input) = self.input.take() {
            input.wait(false, waiter);
        }
    }

    /// Writes until nothing is left or the sink takes nothing for `patience`; true when nothing is left.
    fn write_pending(&mut self, patience: Duration) -> bool {
        let Some(sink) = &self.sink else {
            self.pending.clear();
            return true;
        };
        let fd = sink.fd();
        while !self.pending.is_empty() {
            if !console_io::writable_within(fd, patience) {
                return false;
            }
            let chunk = &self.pending[..self.pending.len().min(SAFE_WRITE_BYTES)];
            match console_io::write(fd, chunk) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) => {}
                Err(_) => {
                    // Nobody reads any more. The guest goes on, and the tail still keeps its last words.
                    self.sink = None;
                    self.pending.clear();
                }
            }
        }
        true
    }

    /// Waits for the sink or for the port's output, one of them at a time. A sink that is lost while it was waited for leaves its descriptor
    /// behind, for the watch to be removed.
    fn wait_for_sink(&mut self, wait: bool, waiter: &Waiter) {
        let output = self.serial.output_fd();
        match (wait, self.full_sink) {
            (true, None) => {
                self.full_sink = self.sink.as_ref().map(Sink::fd);
                if let Some(fd) = self.full_sink {
                    waiter.remove(output);
                    waiter.add_writable(fd, Token::SinkReady as u64).ok();
                }
            }
            (false, Some(fd)) => {
                self.full_sink = None;
                waiter.remove(fd);
                waiter.add_readable(output, Token::SerialOutput as u64).ok();
            }
            (true, Some(_)) | (false, None) => {}
        }
    }
}

impl Input {
    fn open(waiter: &Waiter) -> io::Result<Self> {
        let raw = RawMode::enter()?;
        let mut input = Self { raw, pending: Vec::new(), always_ready: false, waiting: false };
        match waiter.add_readable(libc::STDIN_FILENO, Token::Input as u64) {
            Ok(()) => input.waiting = true,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => input.always_ready = true,
            // Standard input is closed: a console without a keyboard.
            Err(_) => {}
        }
        Ok(input)
    }

    /// Reads once; false at the end of the input or when the detach key was pressed.
    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0; INPUT_CHUNK];
        let len = console_io::read(libc::STDIN_FILENO, &mut chunk)?;
        let bytes = &chunk[..len];
        let detach = self.raw.as_ref().and_then(|_| bytes.iter().position(|&b| b == DETACH_KEY));
        self.pending.extend_from_slice(&bytes[..detach.unwrap_or(len)]);
        if detach.is_some() {
            tty::restore();
        }
        Ok(len > 0 && detach.is_none())
    }

    fn wait(&mut self, wait: bool, waiter: &Waiter) {
        if self.always_ready || self.waiting == wait {
            return;
        }
        if wait {
            waiter.add_readable(libc::STDIN_FILENO, Token::Input as u64).ok();
        } else {
            waiter.remove(libc::STDIN_FILENO);
        }
        self.waiting = wait;
    }
}
