//! Figures of another process: processor time and memory.

#![expect(unsafe_code, reason = "the clock of another process and processor sets are system calls")]

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Processor time, user and system, of all threads of process `pid`.
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    clock(i32::try_from(pid).map_err(io::Error::other)?, 0)
}

/// Processor time of thread `tid` of this process.
pub(crate) fn thread_time(tid: i32) -> io::Result<Duration> {
    clock(tid, 4)
}

/// Whether `file` has something to read within `patience`.
pub(crate) fn is_readable(file: &impl AsRawFd, patience: Duration) -> io::Result<bool> {
    let mut wait = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: there is one structure, which outlives the call.
    match unsafe { libc::poll(&raw mut wait, 1, millis) } {
        -1 => Err(io::Error::last_os_error()),
        count => Ok(count > 0),
    }
}

/// The calling thread.
pub(crate) fn this_thread() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

fn clock(of: i32, per_thread: i32) -> io::Result<Duration> {
    // As the kernel makes clock numbers: the complement of the process or thread, which of them, "as the scheduler counts".
    let clock = (!of << 3) | per_thread | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure outlives the call, which writes it.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Ok(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// Resident memory of process `pid` in KiB.
pub(crate) fn resident_kib(pid: u32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok())
        .ok_or_else(|| io::Error::other("no VmRSS"))
}

/// Keeps this thread, and all that it starts, on processor `cpu`.
pub(crate) fn stay_on(cpu: usize) -> io::Result<()> {
    // SAFETY: a set of processors is plain bits, for which zeroes are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the macro checks the number against the set's size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set outlives the call, which reads it.
    let kept = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if kept == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets this process open as many files as it may.
pub(crate) fn open_many_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives the call, which writes it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the structure outlives the call, which reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// Segments that the connection behind `socket` sent again.
pub(crate) fn retransmits(socket: &impl AsRawFd) -> io::Result<u32> {
    // SAFETY: the structure is plain integers, for which zeroes are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: `info` has `len` bytes, which the kernel may write.
    let got = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut info).cast(), &raw mut len)
    };
    if got == 0 { Ok(info.tcpi_total_retrans) } else { Err(io::Error::last_os_error()) }
}
