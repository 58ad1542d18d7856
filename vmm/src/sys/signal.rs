//! Signals that end the process, as a file descriptor first and as a last resort second.
//!
//! Invariant: the first signal is never lost and stops the machine in order; a second one ends the process at once, with the terminal given
//! back.

#![expect(unsafe_code, reason = "signalfd and signal handlers are raw")]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vmm_sys_util::signal::{create_sigset, register_signal_handler, unblock_signal};

use super::tty;

/// What ends the machine.
const ENDING: [c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Blocks `signals` on this thread, and on those that it starts later.
fn block(signals: &[c_int]) -> io::Result<libc::sigset_t> {
    let set = create_sigset(signals).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
    // SAFETY: `set` is read; the old mask is not asked for.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if error == 0 { Ok(set) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// The ending signals as a readable file descriptor. Made before any other thread, so that all threads have them blocked.
#[derive(Debug)]
pub struct EndingSignals {
    fd: OwnedFd,
}

impl EndingSignals {
    /// Blocks the signals on this thread, and on those that it starts later, and opens the descriptor.
    ///
    /// # Errors
    /// What the host said.
    pub fn open() -> io::Result<Self> {
        Self::open_with(&[])
    }

    /// As [`Self::open`], for other signals too.
    ///
    /// # Errors
    /// What the host said.
    pub fn open_with(others: &[c_int]) -> io::Result<Self> {
        Self::of(&[&ENDING, others].concat())
    }

    fn of(signals: &[c_int]) -> io::Result<Self> {
        let set = block(signals)?;
        // SAFETY: `set` is read; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Changes of the terminal's size alone, the same way: to be made before any other thread, too.
    ///
    /// # Errors
    /// What the host said.
    pub fn resizes() -> io::Result<Self> {
        Self::of(&[libc::SIGWINCH])
    }

    /// The signal that came, or `None` when none has.
    #[must_use]
    pub fn take(&self) -> Option<c_int> {
        // SAFETY: signalfd_siginfo is a plain C struct of integers, for which all zeroes is a valid value.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let len = size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` is `len` bytes long and is written.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut info).cast(), len) };
        if usize::try_from(read).ok()? != len {
            return None;
        }
        c_int::try_from(info.ssi_signo).ok()
    }

    /// From here on the next ending signal ends the process at once.
    pub fn next_is_final(&self) {
        for signal in ENDING {
            // When the handler can't be installed, the default action ends the process as well.
            register_signal_handler(signal, end_now).ok();
            unblock_signal(signal).ok();
        }
    }
}

impl AsFd for EndingSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for EndingSignals {
    fn as_raw_fd(&self) -> c_int {
        self.fd.as_raw_fd()
    }
}

extern "C" fn end_now(signal: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    tty::restore();
    // SAFETY: `_exit` is async-signal-safe and does not return.
    unsafe { libc::_exit(128 + signal) };
}
