//! The signal that makes a vCPU thread leave KVM_RUN.
//!
//! Invariant: the handler touches one byte, `kvm_run.immediate_exit` of the processor that its own thread runs, and only while that
//! processor is registered.

#![expect(unsafe_code, reason = "signal handlers, thread ids and kvm_run are raw")]

use std::cell::Cell;
use std::ffi::c_int;
use std::io;
use std::time::Duration;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// Keeps a processor registered for kicks on the thread that made it.
#[derive(Debug)]
pub(crate) struct Registration {
    _not_send: std::marker::PhantomData<*mut u8>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}

/// Registers the byte that a kick of this thread raises. It must stay mapped until the registration is dropped.
pub(crate) fn register(immediate_exit: *mut u8) -> Registration {
    IMMEDIATE_EXIT.set(immediate_exit);
    Registration { _not_send: std::marker::PhantomData }
}

extern "C" fn handle(_: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let byte = IMMEDIATE_EXIT.get();
    if !byte.is_null() {
        // SAFETY: it points to `immediate_exit` of the processor that this very thread runs and owns; it was registered and not yet
        // unregistered.
        unsafe { byte.write_volatile(1) };
    }
}

/// Installs the handler; once per process, before the first vCPU thread.
///
/// # Errors
/// What the host said.
pub fn install() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), handle)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

pub(crate) fn send(thread: libc::pthread_t) {
    // SAFETY: the thread has not been joined (the caller holds its JoinHandle), so that its id is valid; the signal has a handler.
    unsafe { libc::pthread_kill(thread, SIGRTMIN()) };
}

pub(crate) fn cpu_time(thread: libc::pthread_t) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: the thread has not been joined, so that its id is valid; `clock` is written.
    if unsafe { libc::pthread_getcpuclockid(thread, &raw mut clock) } != 0 {
        return None;
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is written; a clock of a thread that has ended is refused.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}
