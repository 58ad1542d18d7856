//! Network namespaces of a test's own, each kept by a process that ends with the test.
//!
//! Invariant: nothing is named and nothing outside is changed: a namespace goes when its holder does, and the holder goes when the test
//! ends in whatever way, because its standard input ends then.

#![expect(unsafe_code, reason = "setns is a system call")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(10);

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
}

impl Namespace {
    /// A namespace with nothing in it but its loopback, which is up.
    ///
    /// # Errors
    /// What the host said, and which program said it.
    pub fn new() -> io::Result<Self> {
        // The holder has no capability: a program with few of them may then look at the namespace through it.
        let holder = Command::new("unshare")
            .args(["--net", "setpriv", "--inh-caps=-all", "--bounding-set=-all", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let namespace = Self { holder };
        let ours = fs::read_link("/proc/self/ns/net")?;
        let deadline = Instant::now() + DEADLINE;
        while fs::read_link(namespace.path())? == ours {
            if Instant::now() > deadline {
                return Err(io::Error::other("unshare --net made no namespace"));
            }
            std::thread::yield_now();
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// `program`, to be started inside.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `ip` inside, with these words.
    ///
    /// # Errors
    /// What it said.
    pub fn ip(&self, words: &str) -> io::Result<()> {
        self.run("ip", words)
    }

    /// Runs a program inside, with these words, to its end.
    ///
    /// # Errors
    /// What it said.
    pub fn run(&self, program: &str, words: &str) -> io::Result<()> {
        let output = self.command(program).args(words.split_ascii_whitespace()).output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(io::Error::other(format!("{program} {words}: {said}")))
    }

    /// Does `work` on a thread that is inside: what it opens stays there.
    ///
    /// # Panics
    /// When `work` does, or when the host lets nobody in.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).expect("the holder lives as long as this");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: takes numbers only; it moves this thread alone.
                let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(entered, 0, "setns: {}", io::Error::last_os_error());
                work()
            });
            match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Sets what the closing of a socket does.
///
/// # Errors
/// What the host said.
pub fn set_linger(socket: std::os::fd::RawFd, linger: libc::linger) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&linger)).map_err(io::Error::other)?;
    let value = (&raw const linger).cast();
    // SAFETY: `linger` has `len` bytes, which the kernel reads.
    let set = unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_LINGER, value, len) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets so many connections wait at a listener, as far as its namespace does.
///
/// # Errors
/// What the host said.
pub fn set_backlog(listener: std::os::fd::RawFd, count: u16) -> io::Result<()> {
    // SAFETY: takes numbers only.
    let set = unsafe { libc::listen(listener, count.into()) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Begins to connect to an IPv4 address and does not wait for what becomes of it.
///
/// # Errors
/// What the host said at once.
pub fn begin_connect(to: std::net::SocketAddr) -> io::Result<OwnedFd> {
    let std::net::SocketAddr::V4(to) = to else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).map_err(io::Error::other)?,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
        sin_zero: [0; 8],
    };
    let len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: `address` has `len` bytes, which the kernel reads.
    unsafe { libc::connect(fd, (&raw const address).cast(), len) };
    Ok(socket)
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}
