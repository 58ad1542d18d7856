//! System calls of the benchmark: processor time of single threads, and sleep until a file can be read.

#![expect(unsafe_code, reason = "no crate in use wraps these calls")]

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Processor time that thread `tid` of this process has used.
pub(crate) fn cpu_time(tid: i32) -> io::Result<Duration> {
    // As the kernel makes clock numbers: the complement of the thread, "per thread" and "as the scheduler counts".
    let clock = (!tid << 3) | 4 | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure outlives the call, which writes it.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Ok(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// Returns when `file` can be read, or for no reason.
pub(crate) fn sleep_until_readable(file: &impl AsRawFd) -> io::Result<()> {
    let mut wanted = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the structure outlives the call, which writes it, and is the one that is counted.
    if unsafe { libc::poll(&raw mut wanted, 1, -1) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        error => Err(error),
    }
}

/// The calling thread.
pub(crate) fn this_thread() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// The thread of this process with the name given.
pub(crate) fn thread_named(name: &str) -> io::Result<i32> {
    for entry in std::fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        if std::fs::read_to_string(entry.path().join("comm"))?.trim() == name {
            let tid = entry.file_name().to_string_lossy().parse();
            return tid.map_err(io::Error::other);
        }
    }
    Err(io::Error::other(format!("no thread {name}")))
}
