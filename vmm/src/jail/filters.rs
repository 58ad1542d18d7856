//! The system calls of each role, as tables: what is not listed ends the process.
//!
//! Invariant: no table holds a call that opens a file by name, starts a process or a thread, or makes memory executable. Every entry says
//! who makes the call. Pure data; `assemble` makes a program of it.

use std::ffi::c_long;

use kvm_bindings::{KVMIO, kvm_mp_state, kvm_regs, kvm_sregs};
use libc::{
    SYS_accept4, SYS_bind, SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_close, SYS_connect,
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_wait, SYS_exit, SYS_exit_group, SYS_fallocate,
    SYS_fcntl, SYS_fdatasync, SYS_flock, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_getpid,
    SYS_getrandom, SYS_getsockname, SYS_getsockopt, SYS_inotify_add_watch, SYS_io_uring_enter,
    SYS_io_uring_register, SYS_ioctl, SYS_lseek, SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap,
    SYS_munmap, SYS_newfstatat, SYS_openat, SYS_poll, SYS_ppoll, SYS_preadv, SYS_pwritev2,
    SYS_read, SYS_readlink, SYS_readv, SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg,
    SYS_restart_syscall, SYS_rmdir, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_sched_yield, SYS_sendmmsg, SYS_sendmsg, SYS_sendto, SYS_setsockopt, SYS_shutdown,
    SYS_sigaltstack, SYS_socket, SYS_statx, SYS_tgkill, SYS_timerfd_settime, SYS_unlink, SYS_write,
    SYS_writev,
};

use super::Role;

/// A condition on one argument, of which the low 32 bits are looked at (every argument checked here is an `int` to the kernel, or
/// has no meaning beyond them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Argument number, value.
    Is(u8, u32),
    /// Argument number, mask, value of the masked bits.
    Masked(u8, u32, u32),
    /// Argument number: this process's id.
    OwnProcess(u8),
    /// Argument number: the signal that makes a vCPU leave the guest.
    KickSignal(u8),
}

impl Check {
    /// The argument's number, the bits of it that count, and their value.
    pub(super) fn parts(self) -> (u8, u32, u32) {
        match self {
            Self::Is(argument, value) => (argument, u32::MAX, value),
            Self::Masked(argument, mask, value) => (argument, mask, value),
            Self::OwnProcess(argument) => (argument, u32::MAX, std::process::id()),
            Self::KickSignal(argument) => (argument, u32::MAX, libc::SIGRTMIN().cast_unsigned()),
        }
    }
}

use Check::{Is, KickSignal, Masked, OwnProcess};

/// A call that is allowed, always or when all checks of one of `any_of` hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) call: c_long,
    pub(super) any_of: &'static [&'static [Check]],
}

const fn always(call: c_long) -> Entry {
    Entry { call, any_of: &[] }
}

const fn when(call: c_long, any_of: &'static [&'static [Check]]) -> Entry {
    Entry { call, any_of }
}

/// The tables of a role. One that comes earlier is matched earlier where both name a call.
pub(super) const fn tables(role: Role) -> [&'static [Entry]; 3] {
    let own = match role {
        Role::Main => MAIN,
        Role::Vcpu => VCPU,
        Role::Block => BLOCK,
        Role::Vsock => VSOCK,
        Role::Net => NET,
        Role::Control => CONTROL,
        Role::Streams => STREAMS,
        Role::Watch => WATCH,
    };
    [own, EVERY, if cfg!(debug_assertions) { DEBUG } else { &[] }]
}

/// How many calls a role may have at most, so that a table does not grow unseen.
#[cfg(test)]
pub(super) const fn budget(role: Role) -> usize {
    match role {
        Role::Main => 34,
        Role::Vcpu => 20,
        Role::Block => 25,
        Role::Vsock => 30,
        Role::Net => 46,
        Role::Control => 30,
        Role::Streams => 30,
        Role::Watch => 30,
    }
}

const STDIN: u32 = libc::STDIN_FILENO.cast_unsigned();
const NOT_READ_WRITE: u32 = !(libc::PROT_READ | libc::PROT_WRITE).cast_unsigned();
const PRIVATE_ANONYMOUS: u32 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned();
const MAP_KIND: u32 = PRIVATE_ANONYMOUS | libc::MAP_TYPE.cast_unsigned();
const FUTEX_COMMAND: u32 = libc::FUTEX_CMD_MASK.cast_unsigned();

/// What the language, the C library and the end of a thread need.
const EVERY: &[Entry] = &[
    always(SYS_read),  // eventfds, signalfd, timerfds, standard input
    always(SYS_write), // eventfds, the console, last words on standard error
    always(SYS_close), // descriptors whose owner ends on the thread
    // Mutex, Condvar, join, the allocator's locks. Requeueing and priority inheritance are not among them.
    when(
        SYS_futex,
        &[
            &[Masked(1, FUTEX_COMMAND, libc::FUTEX_WAIT.cast_unsigned())],
            &[Masked(1, FUTEX_COMMAND, libc::FUTEX_WAKE.cast_unsigned())],
            &[Masked(1, FUTEX_COMMAND, libc::FUTEX_WAIT_BITSET.cast_unsigned())],
        ],
    ),
    always(SYS_clock_gettime), // Instant, where the clock source keeps the vDSO from answering
    always(SYS_brk),           // the allocator: the first heap
    // The allocator: other heaps and large blocks.
    when(SYS_mmap, &[&[Masked(2, NOT_READ_WRITE, 0), Masked(3, MAP_KIND, PRIVATE_ANONYMOUS)]]),
    when(SYS_mprotect, &[&[Masked(2, NOT_READ_WRITE, 0)]]), // the allocator: a heap grows
    always(SYS_mremap),                                     // the allocator: a large block grows
    always(SYS_munmap), // the allocator; a thread's signal stack when it ends
    when(SYS_madvise, &[&[Is(2, libc::MADV_DONTNEED.cast_unsigned())]]), // a thread's stack when it ends
    always(SYS_sigaltstack),    // a thread's signal stack when it ends
    always(SYS_rt_sigprocmask), // the C library around the end of a thread and around pthread_kill
    always(SYS_rt_sigreturn),   // the end of a signal handler
    always(SYS_exit),           // the end of a thread
    always(SYS_exit_group),     // the end of the process, also in the handler of a violation
    // sys::tty::restore, also in the handler of a violation.
    when(SYS_ioctl, &[&[Is(0, STDIN), Is(1, request(libc::TCSETS))]]),
];

/// Debug builds look at a descriptor before they close it.
const DEBUG: &[Entry] = &[when(SYS_fcntl, &[&[Is(1, libc::F_GETFD.cast_unsigned())]])];

const MAIN: &[Entry] = &[
    always(SYS_epoll_wait),      // the worker's loop
    always(SYS_epoll_ctl),       // event::Waiter: console input and output come and go
    always(SYS_poll),            // sys::console_io: whether the sink takes bytes
    always(SYS_timerfd_settime), // the serial port's burst timer
    // sys::signal::next_is_final
    when(
        SYS_rt_sigaction,
        &[
            &[Is(0, libc::SIGINT.cast_unsigned())],
            &[Is(0, libc::SIGTERM.cast_unsigned())],
            &[Is(0, libc::SIGHUP.cast_unsigned())],
        ],
    ),
    when(SYS_madvise, &[&[Is(2, libc::MADV_HUGEPAGE.cast_unsigned())]]), // memory: after the boot
    always(SYS_getpid),                                                  // pthread_kill
    when(SYS_tgkill, &[&[OwnProcess(0), KickSignal(2)]]),                // sys::kick
    always(SYS_sched_yield),     // mpsc, when a report is half sent
    always(SYS_restart_syscall), // poll, continued after a stop
    always(SYS_fdatasync),       // files written at the end, open since the start
    always(SYS_fsync),
    when(SYS_flock, &[&[Is(1, libc::LOCK_UN.cast_unsigned())]]), // Block::shutdown
    always(SYS_statx), // the vsock socket's name goes at the end, when it still is ours
    always(SYS_unlink),
    always(SYS_rmdir),     // a machine that leaves nothing, machines::remove_own
    always(SYS_ftruncate), // the other file of a logbook begins anew
    when(SYS_ioctl, &[&[Is(1, request(libc::TCGETS))]]), // isatty, for the report
];

const VCPU: &[Entry] = &[
    // First in the list, because every exit from the guest passes here.
    when(
        SYS_ioctl,
        &[
            &[Is(1, KVM_RUN)],
            &[Is(1, kvm_read::<kvm_regs>(0x81))], // KVM_GET_REGS
            &[Is(1, kvm_read::<kvm_sregs>(0x83))], // KVM_GET_SREGS
            &[Is(1, kvm_read::<kvm_mp_state>(0x98))], // KVM_GET_MP_STATE
            &[Is(1, KVM_KVMCLOCK_CTRL)],
        ],
    ),
    always(SYS_timerfd_settime), // the serial port's burst timer
    always(SYS_getrandom),       // virtio-rng
    always(SYS_sched_yield),     // mpsc, when two reports meet
];

const BLOCK: &[Entry] = &[
    always(SYS_io_uring_enter),
    // The ring is made disabled, and restricted; the thread that serves it must enable it.
    when(SYS_io_uring_register, &[&[Is(1, IORING_REGISTER_ENABLE_RINGS)]]),
    always(SYS_preadv), // the synchronous engine
    always(SYS_pwritev2),
    always(SYS_fdatasync),
    always(SYS_fallocate),       // discard and zeroing
    always(SYS_ppoll),           // the synchronous engine waits for its doorbell
    always(SYS_restart_syscall), // ppoll with a time-out, continued after a stop
];

const VSOCK: &[Entry] = &[
    always(SYS_epoll_wait), // the worker's loop
    always(SYS_epoll_ctl),
    always(SYS_accept4), // clients of the host
    // Connections to listeners of the host.
    when(
        SYS_socket,
        &[&[
            Is(0, libc::AF_UNIX.cast_unsigned()),
            Masked(1, SOCKET_KIND, libc::SOCK_STREAM.cast_unsigned()),
        ]],
    ),
    always(SYS_connect),
    always(SYS_recvfrom), // a client's first line
    always(SYS_recvmsg),  // payload, between socket and guest memory
    always(SYS_sendmsg),
    always(SYS_shutdown),
    when(SYS_ioctl, &[&[Is(1, request(libc::FIONBIO))]]), // set_nonblocking
    always(SYS_sched_yield),                              // mpsc, when a command is half sent
    always(SYS_getrandom),                                // the seed of a thread's first HashMap
];

const CONTROL: &[Entry] = &[
    always(SYS_epoll_wait), // the thread's loop
    always(SYS_epoll_ctl),
    always(SYS_accept4), // clients
    // A question to the guest, over the machine's own vsock socket.
    when(
        SYS_socket,
        &[&[
            Is(0, libc::AF_UNIX.cast_unsigned()),
            Masked(1, SOCKET_KIND, libc::SOCK_STREAM.cast_unsigned()),
        ]],
    ),
    always(SYS_connect),
    always(SYS_recvfrom),
    always(SYS_sendto),
    when(SYS_ioctl, &[&[Is(1, request(libc::FIONBIO))]]), // set_nonblocking
    always(SYS_timerfd_settime),                          // the next try
    always(SYS_sched_yield),                              // mpsc; the last words
];

const STREAMS: &[Entry] = &[
    always(SYS_poll), // the thread's loop: standard streams may be files, which an epoll set refuses
    always(SYS_restart_syscall), // poll, continued after a stop
    always(SYS_accept4), // the guest, and who attaches
    always(SYS_recvfrom),
    always(SYS_sendto),
    always(SYS_ftruncate), // the other file of a logbook begins anew
    when(
        SYS_ioctl,
        &[
            &[Is(1, request(libc::FIONBIO))],              // set_nonblocking
            &[Is(0, STDIN), Is(1, request(libc::TCGETS))], // sys::tty
            &[Is(1, request(libc::TIOCGWINSZ))],
        ],
    ),
];

const NET: &[Entry] = &[
    always(SYS_epoll_create1), // the stack, when the first driver is ready
    always(SYS_epoll_wait),    // the thread's loop
    always(SYS_epoll_ctl),
    // net::sockets: streams, datagrams and echo requests of the internet; no listener, no other family.
    when(
        SYS_socket,
        &[
            &[Is(0, libc::AF_INET.cast_unsigned()), Masked(1, SOCKET_KIND, STREAM), Is(2, 0)],
            &[Is(0, libc::AF_INET.cast_unsigned()), Masked(1, SOCKET_KIND, DATAGRAM)],
            &[Is(0, libc::AF_INET.cast_unsigned()), Masked(1, SOCKET_KIND, RAW), Is(2, ICMP)],
            &[Is(0, libc::AF_INET6.cast_unsigned()), Masked(1, SOCKET_KIND, STREAM), Is(2, 0)],
            &[Is(0, libc::AF_INET6.cast_unsigned()), Masked(1, SOCKET_KIND, DATAGRAM)],
            &[Is(0, libc::AF_INET6.cast_unsigned()), Masked(1, SOCKET_KIND, RAW), Is(2, ICMPV6)],
        ],
    ),
    always(SYS_connect),
    always(SYS_bind), // a socket of its own for each sender of datagrams to a published port
    always(SYS_accept4),
    always(SYS_setsockopt),
    always(SYS_getsockopt),
    always(SYS_getsockname),
    always(SYS_recvmsg),
    always(SYS_sendmsg),
    always(SYS_recvmmsg), // several datagrams
    always(SYS_sendmmsg), // several datagrams
    always(SYS_sendto),   // send
    always(SYS_recvfrom),
    always(SYS_shutdown),
    always(SYS_ftruncate), // a file of a capture begins anew
    always(SYS_poll),      // sys::inet::ask_writable
    always(SYS_readv),     // a tap
    always(SYS_writev),    // a tap
    when(SYS_ioctl, &[&[Is(1, SIOCOUTQNSD)]]), // sys::inet::unsent
    always(SYS_getpid),    // net::sockets::echo: identifiers of raw sockets
    always(SYS_sched_yield), // mpsc, when a command is half sent
    always(SYS_getrandom), // the key of a stack that is made anew; the seed of a thread's first HashMap
];

const WATCH: &[Entry] = &[
    always(SYS_epoll_wait), // the thread's loop
    // The file itself, for reading: this thread has nothing from a guest.
    when(SYS_openat, &[&[Masked(2, NOT_READ_ONLY, 0)]]),
    always(SYS_inotify_add_watch), // the directory that a link leads to now
    always(SYS_readlink),          // canonicalize
    always(SYS_newfstatat),
    always(SYS_statx), // read_to_string: how much there is
    always(SYS_lseek),
    when(SYS_fcntl, &[&[Is(1, libc::F_GETFL.cast_unsigned())]]),
    always(SYS_clock_nanosleep), // what is written in several steps
    always(SYS_sched_yield),     // mpsc, when two commands meet
];

/// Flags of an open that does anything but read what is there.
const NOT_READ_ONLY: u32 = (libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_TMPFILE & !libc::O_DIRECTORY)
    .cast_unsigned();
const STREAM: u32 = libc::SOCK_STREAM.cast_unsigned();
const DATAGRAM: u32 = libc::SOCK_DGRAM.cast_unsigned();
const RAW: u32 = libc::SOCK_RAW.cast_unsigned();
const ICMP: u32 = libc::IPPROTO_ICMP.cast_unsigned();
const ICMPV6: u32 = libc::IPPROTO_ICMPV6.cast_unsigned();
/// linux/sockios.h.
const SIOCOUTQNSD: u32 = 0x894b;
/// The type of a socket without its flags.
const SOCKET_KIND: u32 = 0xf;
/// linux/io_uring.h.
const IORING_REGISTER_ENABLE_RINGS: u32 = 12;
/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u32 = KVMIO << 8 | 0x80;

/// `_IO(KVMIO, 0xad)`.
const KVM_KVMCLOCK_CTRL: u32 = KVMIO << 8 | 0xad;

/// `_IOR(KVMIO, number, T)`.
const fn kvm_read<T>(number: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "a size of 14 bits by the ABI")]
    let size = size_of::<T>() as u32;
    2 << 30 | size << 16 | KVMIO << 8 | number
}

/// An ioctl request as the kernel sees it, 32 bits.
const fn request(request: libc::Ioctl) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the kernel takes 32 bits")]
    let request = request as u32;
    request
}
