//! A stack between a host and a guest, and the world behind the host: three namespaces and a process.
//!
//! Invariant: nothing outlives this program. A namespace goes with the process that holds it, which goes when its standard input ends;
//! the stack is killed by the kernel when the thread that started it ends, which is the main one.

#![expect(unsafe_code, reason = "a child asks to die with its parent between fork and exec")]

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use openshell_tests::netns::Namespace;

use crate::process;
use crate::system::{Kind, System};

/// The tap in a guest.
pub(crate) const TAP: &str = "tap0";
/// Slots of its queue: the usual 1000 drop what a guest sends in one burst.
const TAP_QUEUE: u32 = 20_000;
/// The network between the host and the world.
pub(crate) const CONNECTED: &str = "198.51.100.0/24";
pub(crate) const HOST_GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// An address of the world's.
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// A network from which nothing ever answers.
pub(crate) const NOWHERE: &str = "203.0.113.0/24";
/// How long anything may take that is to succeed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The rig, taken down when dropped.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) system: System,
    pub(crate) guest: Namespace,
    pub(crate) host: Namespace,
    pub(crate) world: Namespace,
    stack: Option<Child>,
    directory: tempfile::TempDir,
}

impl Rig {
    /// Starts `system` and waits until its guest reaches the host.
    pub(crate) fn open(system: &System, mtu: u16, cpus: Option<&str>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        let (guest, host, world) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        let mut rig = Self { system: system.clone(), guest, host, world, stack: None, directory };
        rig.set_congestion("reno", "reno")?;
        rig.connect_host_and_world()?;
        rig.start(mtu, cpus).and_then(|()| rig.await_guest(mtu)).with_context(|| {
            let said = fs::read_to_string(rig.log()).unwrap_or_default();
            format!("{} does not run:\n{said}", system.name)
        })?;
        Ok(rig)
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// The namespace of clients.
    pub(crate) fn near(&self) -> &Namespace {
        if self.system.kind == Kind::Loopback { &self.host } else { &self.guest }
    }

    /// Processor time of the stack so far; none where there is no stack.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        self.stack.as_ref().map_or(Ok(Duration::ZERO), |stack| Ok(process::cpu_time(stack.id())?))
    }

    /// Memory of the stack that is resident, in KiB; `None` where there is no stack.
    pub(crate) fn resident_kib(&self) -> Result<Option<u64>> {
        self.stack.as_ref().map(|stack| Ok(process::resident_kib(stack.id())?)).transpose()
    }

    /// Sets how new connections find their rate.
    pub(crate) fn set_congestion(&self, guest: &str, host: &str) -> Result<()> {
        let key = "net.ipv4.tcp_congestion_control";
        self.guest.run("sysctl", &format!("-qw {key}={guest}"))?;
        for namespace in [&self.host, &self.world] {
            namespace.run("sysctl", &format!("-qw {key}={host}"))?;
        }
        Ok(())
    }

    /// Frames that the guest's tap queue dropped so far.
    pub(crate) fn tap_drops(&self) -> Result<u64> {
        let output = self.guest.command("ip").args(["-j", "-s", "link", "show", TAP]).output()?;
        let links: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        links[0]["stats64"]["tx"]["dropped"].as_u64().context("no counter of dropped frames")
    }

    /// A listener on the host's loopback, and how the guest reaches it.
    pub(crate) fn listen(&self) -> Result<(TcpListener, SocketAddr)> {
        let listener = self.host.inside(|| TcpListener::bind("127.0.0.1:0"))?;
        let port = listener.local_addr()?.port();
        Ok((listener, (self.system.host_address(), port).into()))
    }

    fn connect_host_and_world(&self) -> Result<()> {
        let world = self.world.path();
        let pid = world.components().nth(2).context("a path in /proc")?.as_os_str();
        let pid = pid.to_string_lossy();
        self.host.ip(&format!("link add up0 type veth peer name down0 netns {pid}"))?;
        for words in ["addr add 198.51.100.2/24 dev up0", "link set up0 up"] {
            self.host.ip(words)?;
        }
        for words in [
            "addr add 198.51.100.1/24 dev down0",
            "addr add 198.51.100.9/24 dev down0",
            "link set down0 up",
            "route add blackhole 203.0.113.0/24",
        ] {
            self.world.ip(words)?;
        }
        self.world.run("sysctl", "-qw net.ipv4.ip_forward=1")?;
        self.host.ip("route add default via 198.51.100.1")?;
        for namespace in [&self.host, &self.world, &self.guest] {
            for key in ["tcp_rmem", "tcp_wmem"] {
                let value = format!("net.ipv4.{key}=4096 131072 33554432");
                let status = namespace.command("sysctl").arg("-qw").arg(&value).status()?;
                ensure!(status.success(), "cannot set {value}");
            }
        }
        Ok(())
    }

    fn start(&mut self, mtu: u16, cpus: Option<&str>) -> Result<()> {
        let made = self.system.command(&self.host, &self.guest, mtu, cpus, self.directory.path());
        let Some(mut command) = made else { return Ok(()) };
        let log = File::create(self.log())?;
        command.stdout(log.try_clone()?).stderr(log);
        // SAFETY: between fork and exec it makes one system call and takes no lock and no memory.
        unsafe { command.pre_exec(die_with_parent) };
        self.stack = Some(command.spawn()?);
        Ok(())
    }

    fn check_alive(&mut self, deadline: Instant) -> Result<()> {
        if let Some(stack) = &mut self.stack
            && let Some(status) = stack.try_wait()?
        {
            bail!("it ended with {status}");
        }
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}");
        Ok(())
    }

    /// Until the guest has a tap with an address and a connection to the host carries a byte.
    fn await_guest(&mut self, mtu: u16) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        if self.system.kind != Kind::Loopback {
            let made = format!("link show dev {TAP}");
            while self.guest.ip(&made).is_err() {
                self.check_alive(deadline)?;
                std::thread::sleep(Duration::from_millis(10));
            }
            self.guest.ip(&format!("link set {TAP} txqueuelen {TAP_QUEUE}"))?;
            if self.system.is_ours() {
                self.guest.ip(&format!("addr add 192.168.127.2/24 dev {TAP}"))?;
                self.guest.ip(&format!("link set {TAP} up"))?;
                self.guest.ip("route add default via 192.168.127.1")?;
            } else {
                while self.guest.ip("route get 198.51.100.9").is_err() {
                    self.check_alive(deadline)?;
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            self.guest.ip(&format!("link set {TAP} mtu {mtu}"))?;
        }
        let (listener, at) = self.listen()?;
        listener.set_nonblocking(true)?;
        loop {
            self.check_alive(deadline)?;
            let attempt = Duration::from_millis(500);
            let Ok(mut near) = self.near().inside(|| TcpStream::connect_timeout(&at, attempt))
            else {
                continue;
            };
            near.set_read_timeout(Some(PATIENCE))?;
            loop {
                self.check_alive(deadline)?;
                if let Ok((mut far, _)) = listener.accept() {
                    far.write_all(b"x")?;
                    return Ok(near.read_exact(&mut [0])?);
                }
            }
        }
    }
}

/// Has the kernel kill this process when the thread ends that started it.
fn die_with_parent() -> io::Result<()> {
    // SAFETY: takes numbers only.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(stack) = &mut self.stack {
            stack.kill().ok();
            stack.wait().ok();
        }
    }
}
