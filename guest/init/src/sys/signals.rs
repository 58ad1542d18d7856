//! Signals as a descriptor to be read, and the mask that makes them come that way.

#![expect(unsafe_code, reason = "signal sets and signalfd are system calls")]

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::process::Pid;

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

/// Lets every signal through and gives each its default action: what a new program expects, and a shell cannot trap what it was started
/// to ignore. Handlers end with exec anyway, what is ignored does not. Async-signal-safe.
///
/// # Errors
/// What the kernel says.
pub fn restore() -> Result<(), Errno> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default action is no code of this program. Numbers that have no action to be set are refused, which changes nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
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

/// Sends a signal, also one of those without a name, to a child that was not reaped. One that has ended hears nothing.
pub fn send(child: Pid, signal: libc::c_int) {
    // SAFETY: plain integers; the number is the child's until it is reaped, which this thread does.
    unsafe { libc::kill(child.as_raw_nonzero().get(), signal) };
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn what_the_parent_ignores_or_blocks_reaches_no_process() {
        let mut command = Command::new("/bin/grep");
        command.args(["-E", "^Sig(Ign|Blk)", "/proc/self/status"]);
        let deafen = || {
            for signal in
                [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGCHLD, libc::SIGRTMAX()]
            {
                // SAFETY: to ignore a signal runs no code.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
            let mut set = MaybeUninit::uninit();
            // SAFETY: the call initialises the set.
            unsafe { libc::sigfillset(set.as_mut_ptr()) };
            // SAFETY: the set was just initialised, and the old mask is not asked for.
            unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) };
            Ok(())
        };
        // SAFETY: the closure makes system calls only and allocates nothing.
        unsafe { command.pre_exec(deafen) };
        // SAFETY: what runs makes system calls only.
        unsafe { command.pre_exec(|| Ok(restore()?)) };
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let masks: Vec<u64> = text
            .lines()
            .map(|line| u64::from_str_radix(line[7..].trim(), 16).unwrap())
            // Two below the first real-time signal are the C library's own, which nobody else may set.
            .map(|mask| mask & !(0b11 << 31))
            .collect();
        assert_eq!(masks, [0, 0], "{text}");
    }
}
