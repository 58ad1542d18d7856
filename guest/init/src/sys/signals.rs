//! Signals as a descriptor to be read, and the mask that makes them come that way.

#![expect(unsafe_code, reason = "signal sets and signalfd are system calls")]

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::io::Errno;

/// Makes `signals` come through the returned descriptor only, without blocking reads.
///
/// # Errors
/// What the kernel says.
pub fn divert(signals: &[libc::c_int]) -> Result<OwnedFd, Errno> {
    let set = set_of(signals);
    mask(&set)?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set lives across the call, and -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, flags) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets every signal through again: what a new program expects. Async-signal-safe.
///
/// # Errors
/// What the kernel says.
pub fn undivert() -> Result<(), Errno> {
    mask(&set_of(&[]))
}

/// Sends a signal to every process but this one.
///
/// # Errors
/// `ESRCH` when there is none.
pub fn signal_all(signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: plain integers; PID 1 itself is never meant by -1.
    match unsafe { libc::kill(-1, signal) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Bytes of one report of [`divert`]'s descriptor.
pub const REPORT_LEN: usize = size_of::<libc::signalfd_siginfo>();

fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the call initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it was just initialised.
    let mut set = unsafe { set.assume_init() };
    for &signal in signals {
        // SAFETY: the set is initialised; a number that is no signal is refused.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

fn mask(set: &libc::sigset_t) -> Result<(), Errno> {
    let old = std::ptr::null_mut();
    // SAFETY: the set lives across the call, and the old mask is not asked for.
    match unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, old) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
