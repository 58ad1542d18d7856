//! Puts filters on, and ends the process on a violation.
//!
//! Invariant: a violation traps into a handler that gives the terminal back, says which call it was and ends the process; nothing else of
//! the program runs after it on that thread. Where the handler can't run, the kernel kills. Any thread.

#![expect(unsafe_code, reason = "prctl, sigaction and a signal handler are raw")]

use std::cell::Cell;
use std::ffi::c_int;
use std::io;
use std::sync::OnceLock;

use libc::sock_filter;

use crate::sys::tty;

use super::assemble::{self, TooLarge};
use super::{Role, filters};

const NAME_BYTES: usize = 16;

thread_local! {
    /// The thread's name for the handler: its bytes and their number.
    static NAME: Cell<([u8; NAME_BYTES], usize)> = const { Cell::new(([0; NAME_BYTES], 0)) };
}

/// The program of `role`; assembled once in the life of the process.
///
/// # Errors
/// When its table is too large.
pub(super) fn program(role: Role) -> io::Result<&'static [sock_filter]> {
    static PROGRAMS: [OnceLock<Result<Vec<sock_filter>, TooLarge>>; 8] =
        [const { OnceLock::new() }; 8];
    let slot = match role {
        Role::Main => 0,
        Role::Vcpu => 1,
        Role::Block => 2,
        Role::Vsock => 3,
        Role::Net => 4,
        Role::Watch => 5,
        Role::Control => 6,
        Role::Streams => 7,
    };
    let assembled = PROGRAMS[slot]
        .get_or_init(|| assemble::program(filters::tables(role).into_iter().flatten()));
    match assembled {
        Ok(program) => Ok(program),
        Err(error) => Err(io::Error::other(*error)),
    }
}

/// Makes the process ready for filters: the handler of violations, and an allocator that stays within them. Once per process.
///
/// # Errors
/// What the host said, also when its kernel has no such filters.
pub(super) fn prepare_process() -> io::Result<()> {
    static PREPARED: OnceLock<Result<(), i32>> = OnceLock::new();
    PREPARED
        .get_or_init(|| {
            keep_heaps_whole();
            find_action().and_then(|()| install_handler())
        })
        .map_err(io::Error::from_raw_os_error)
}

/// Keeps the C library from giving parts of a thread's heap back: before it first does, it opens a file under /proc.
fn keep_heaps_whole() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers only; other threads' use of the allocator is excluded by its own lock.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, c_int::MAX)
    };
}

fn find_action() -> Result<(), i32> {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: `action` is read, 4 bytes.
    let found = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    };
    if found == 0 { Ok(()) } else { Err(last_errno()) }
}

fn install_handler() -> Result<(), i32> {
    // SAFETY: sigaction is a plain C struct, for which all zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = violation as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the mask is written.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    // SAFETY: `action` is read and names a handler of the right signature; the old action is not asked for.
    let set = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if set == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// No program that this thread, or one that it starts, could execute has more privileges than it has.
///
/// # Errors
/// What the host said.
pub(super) fn forbid_new_privileges() -> io::Result<()> {
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts `program` on the calling thread, for good.
///
/// # Errors
/// What the host said.
pub(super) fn install(program: &[sock_filter]) -> io::Result<()> {
    remember_name();
    // The allocator picks a thread's heap at its first use, and counts processors for that.
    std::hint::black_box(Vec::<u8>::with_capacity(64));
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The kernel only reads the instructions.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: `program` names as many instructions as it says, alive across the call, in which the kernel copies them.
    if unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn remember_name() {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?").as_bytes();
    let mut bytes = [0; NAME_BYTES];
    let len = name.len().min(NAME_BYTES);
    bytes[..len].copy_from_slice(&name[..len]);
    NAME.set((bytes, len));
}

/// Ends the process, because a thread could not be confined.
pub(super) fn end_unconfined() -> ! {
    end(b"openshell-vmm: a thread could not be confined\n", 125)
}

/// What a SIGSYS tells (`_sigsys` of the kernel's siginfo).
#[repr(C)]
struct ViolationInfo {
    signal: c_int,
    errno: c_int,
    code: c_int,
    address: usize,
    call: c_int,
    architecture: u32,
}

extern "C" fn violation(_: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let info = info.cast::<ViolationInfo>();
    // SAFETY: the kernel passes a siginfo to a SA_SIGINFO handler, longer than this prefix and laid out so for SIGSYS.
    let call = unsafe { (*info).call };
    let (name, len) = NAME.get();
    let mut line = Line::default();
    line.push(b"openshell-vmm: thread ");
    line.push(name.get(..len).unwrap_or_default());
    if i64::from(call) == libc::SYS_gettid {
        // Nothing of ours asks for it: it is how abort(3) begins, after a panic said why.
        line.push(b" aborted\n");
        end(line.bytes(), 128 + libc::SIGABRT);
    }
    line.push(b" made forbidden system call ");
    line.push_number(call.unsigned_abs());
    line.push(b"\n");
    end(line.bytes(), 128 + libc::SIGSYS);
}

/// Gives the terminal back, writes `line` to standard error and ends the process. Async-signal-safe.
fn end(line: &[u8], code: c_int) -> ! {
    tty::restore();
    // SAFETY: `line` is read, all of its length; there is nothing to do about a failure.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    // SAFETY: `_exit` is async-signal-safe and does not return.
    unsafe { libc::_exit(code) }
}

/// A line of text built without the allocator; what does not fit is left out.
struct Line {
    text: [u8; 96],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { text: [0; 96], len: 0 }
    }
}

impl Line {
    fn push(&mut self, bytes: &[u8]) {
        for (to, from) in self.text.iter_mut().skip(self.len).zip(bytes) {
            *to = *from;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut divisor = 1_000_000_000;
        while divisor > 1 && number < divisor {
            divisor /= 10;
        }
        while divisor > 0 {
            self.push(&[b'0' + u8::try_from(number / divisor % 10).unwrap_or(0)]);
            divisor /= 10;
        }
    }

    fn bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}
