//! The terminal in raw mode, given back on every way out of the process.
//!
//! Invariant: while a [`RawMode`] lives, [`restore`] can be called from any thread or signal handler and leaves the terminal as it was found.

#![expect(unsafe_code, reason = "termios is raw, and is restored inside signal handlers")]

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

struct Saved {
    termios: UnsafeCell<libc::termios>,
    valid: AtomicBool,
}

// SAFETY: `termios` is written only by `RawMode::enter` while `valid` is false, and read only while it is true.
unsafe impl Sync for Saved {}

static SAVED: Saved = Saved {
    // SAFETY: termios is a plain C struct of integers, for which all zeroes is a valid value.
    termios: UnsafeCell::new(unsafe { std::mem::zeroed() }),
    valid: AtomicBool::new(false),
};

/// Standard input in raw mode until it is dropped.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts standard input into raw mode; `None` when it is not a terminal or is in raw mode by us already.
    ///
    /// # Errors
    /// What the host said.
    pub fn enter() -> io::Result<Option<Self>> {
        if !is_terminal(libc::STDIN_FILENO) || SAVED.valid.load(Ordering::SeqCst) {
            return Ok(None);
        }
        // SAFETY: as for the static: all zeroes is a valid termios.
        let mut now: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `now` is written.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut now) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `valid` is false, so that nobody reads it.
        unsafe { *SAVED.termios.get() = now };
        SAVED.valid.store(true, Ordering::SeqCst);
        let guard = Self(());
        // SAFETY: `now` is a valid termios and is changed in place.
        unsafe { libc::cfmakeraw(&raw mut now) };
        // SAFETY: `now` is read.
        if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const now) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Some(guard))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was found; does nothing when it is not in raw mode. Async-signal-safe.
pub fn restore() {
    if SAVED.valid.swap(false, Ordering::SeqCst) {
        // SAFETY: `valid` was true, so that `termios` was written and nobody writes it now; tcsetattr is async-signal-safe.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, SAVED.termios.get()) };
    }
}

/// Whether `fd` is a terminal.
#[must_use]
pub fn is_terminal(fd: RawFd) -> bool {
    // SAFETY: isatty takes any number.
    unsafe { libc::isatty(fd) == 1 }
}

/// Columns and rows of a terminal; `None` when `fd` is none, or does not know.
#[must_use]
pub fn size(fd: RawFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes a winsize, which lives across the call.
    let done = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) } == 0;
    (done && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
