//! Calls that no role may make, for the tests: each is harmless where it is let through.

#![expect(unsafe_code, reason = "raw system calls are what is tested")]

use std::ffi::c_long;

const PAGE: usize = 4096;

/// The name of a case, the number of the call that ends it, and what makes the call.
pub(super) const FORBIDDEN: [(&str, c_long, fn()); 19] = [
    ("open", libc::SYS_openat, || drop(std::fs::File::open("/dev/null"))),
    ("create", libc::SYS_openat, || drop(std::fs::File::create("/nowhere/at/all"))),
    ("remove-dir", libc::SYS_rmdir, || drop(std::fs::remove_dir("/nowhere/at/all"))),
    ("rename", libc::SYS_rename, || drop(std::fs::rename("/nowhere/at/all", "/nowhere/else"))),
    ("thread", libc::SYS_clone3, || raw(libc::SYS_clone3, [0; 6], false)),
    ("fork", libc::SYS_fork, || raw(libc::SYS_fork, [0; 6], true)),
    ("exec", libc::SYS_execve, || raw(libc::SYS_execve, [0; 6], false)),
    ("ptrace", libc::SYS_ptrace, || raw(libc::SYS_ptrace, [u64::MAX, 0, 0, 0, 0, 0], false)),
    ("inet", libc::SYS_socket, || drop(std::net::UdpSocket::bind("127.0.0.1:0"))),
    ("packet-socket", libc::SYS_socket, || other_socket(libc::AF_PACKET, libc::SOCK_RAW)),
    ("netlink-socket", libc::SYS_socket, || other_socket(libc::AF_NETLINK, libc::SOCK_RAW)),
    ("exec-map", libc::SYS_mmap, exec_map),
    ("exec-protect", libc::SYS_mprotect, exec_protect),
    ("file-map", libc::SYS_mmap, || raw(libc::SYS_mmap, [0, 4096, 1, 2, u64::MAX, 0], false)),
    ("terminal-input", libc::SYS_ioctl, || {
        raw(libc::SYS_ioctl, [99, libc::TIOCSTI, 0, 0, 0, 0], false);
    }),
    ("futex-requeue", libc::SYS_futex, || raw(libc::SYS_futex, [0, 3, 0, 0, 0, 0], false)),
    ("signal-another", libc::SYS_tgkill, || raw(libc::SYS_tgkill, [1, 1, 0, 0, 0, 0], false)),
    ("io-uring", libc::SYS_io_uring_setup, || raw(libc::SYS_io_uring_setup, [0; 6], false)),
    ("no-new-filter", libc::SYS_seccomp, || {
        raw(libc::SYS_seccomp, [u64::MAX, 0, 0, 0, 0, 0], false);
    }),
];

/// Makes the call; `in_child` tells that it returns twice, and that the second one must go no further.
fn raw(number: c_long, arguments: [u64; 6], in_child: bool) {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the arguments above are numbers, or null pointers that the kernel refuses; none names memory of ours.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if in_child && result == 0 {
        // SAFETY: takes a number, does not return, and runs nothing of the parent's.
        unsafe { libc::_exit(0) };
    }
}

fn other_socket(family: libc::c_int, kind: libc::c_int) {
    let arguments = [u64::from(family.unsigned_abs()), u64::from(kind.unsigned_abs()), 0, 0, 0, 0];
    raw(libc::SYS_socket, arguments, false);
}

fn exec_map() {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0) };
}

fn exec_protect() {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: as above.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, flags, -1, 0) };
    // SAFETY: `page` is this function's own, or the error value, which no mapping has.
    unsafe { libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_EXEC) };
}
