//! A guest, a host and the world behind it, each a namespace; the stack stands between the first two.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use openshell_tests::machine::fixture;
use openshell_tests::netns::Namespace;

/// What the guest calls the host's loopback.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 254);
/// The stack itself.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
/// An address of the world's.
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(8, 51, 100, 9);

/// Longer than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The rig, taken down when dropped.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) guest: Namespace,
    pub(crate) host: Namespace,
    pub(crate) world: Namespace,
    vmm: Child,
    directory: tempfile::TempDir,
}

impl Rig {
    /// With the host's loopback open to the guest.
    pub(crate) fn open() -> Self {
        Self::with(&["--allow", "host"])
    }

    /// With these arguments of `openshell-vmm net`.
    pub(crate) fn with(args: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        let [guest, host, world] = [(); 3].map(|()| Namespace::new().unwrap());
        for namespace in [&guest, &host, &world] {
            namespace.run("sysctl", "-qw net.ipv4.tcp_congestion_control=reno").unwrap();
        }
        let world_pid = world.path();
        let world_pid = world_pid.components().nth(2).unwrap().as_os_str().to_str().unwrap();
        host.ip(&format!("link add up0 type veth peer name down0 netns {world_pid}")).unwrap();
        for words in ["addr add 8.51.100.2/24 dev up0", "link set up0 up"] {
            host.ip(words).unwrap();
        }
        for words in [
            "addr add 8.51.100.1/24 dev down0",
            "addr add 8.51.100.9/24 dev down0",
            "link set down0 up",
            "route add blackhole 9.0.0.0/8",
        ] {
            world.ip(words).unwrap();
        }
        world.run("sysctl", "-qw net.ipv4.ip_forward=1").unwrap();
        host.ip("route add default via 8.51.100.1").unwrap();
        host.run("sysctl", "-qw net.ipv4.ping_group_range=0 2147483647").ok();
        let ping = "/proc/sys/net/ipv4/ping_group_range";
        let range = format!("echo 0 2147483647 > {ping}");
        host.command("sh").args(["-c", &range]).status().unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let vmm = host
            .command(fixture("openshell-vmm").to_str().unwrap())
            .args(["net", "--tap", "tap0", "--netns"])
            .arg(guest.path())
            .arg("--resolv-conf")
            .arg(directory.path().join("resolv.conf"))
            .args(args)
            .stderr(log)
            .spawn()
            .unwrap();
        let mut rig = Self { guest, host, world, vmm, directory };
        rig.wait_for("the network stack is on the tap tap0");
        for words in [
            "addr add 192.168.127.2/24 dev tap0",
            "link set tap0 txqueuelen 20000 up",
            "route add default via 192.168.127.1",
        ] {
            rig.guest.ip(words).unwrap();
        }
        rig
    }

    /// What the command said so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A file beside the others of this test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The process of the stack.
    pub(crate) fn pid(&self) -> u32 {
        self.vmm.id()
    }

    /// Waits until the command has said `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.said().contains(text) {
            let ended = self.vmm.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", self.said());
            assert!(Instant::now() < deadline, "it never said {text:?}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the command in good order; what it said.
    pub(crate) fn end(mut self) -> String {
        openshell_tests::signal(self.vmm.id(), libc::SIGTERM).unwrap();
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.vmm.try_wait().unwrap() {
                assert!(status.success(), "{status:?}\n{}", self.said());
                return self.said();
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Somebody who listens on the host's loopback, and how the guest reaches it.
    pub(crate) fn listen(&self) -> (TcpListener, SocketAddr) {
        let listener = self.host.inside(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, (HOST, port).into())
    }

    /// A connection of the guest's.
    pub(crate) fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.guest.inside(|| TcpStream::connect_timeout(&to, DEADLINE))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(stream)
    }

    /// A connection between the guest and the host's loopback: the guest's end and the host's.
    pub(crate) fn pair(&self) -> (TcpStream, TcpStream) {
        let (listener, at) = self.listen();
        let near = self.connect(at).unwrap();
        let (far, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        far.set_read_timeout(Some(DEADLINE)).unwrap();
        far.set_write_timeout(Some(DEADLINE)).unwrap();
        (near, far)
    }

    /// Counter `name` of those that the command printed last; 0 when it has not.
    pub(crate) fn counter(said: &str, name: &str) -> u64 {
        let line = said.lines().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |count| count.parse().unwrap())
    }
}

impl Drop for Rig {
    #[expect(clippy::print_stdout, reason = "what a test that failed is looked at with")]
    fn drop(&mut self) {
        self.vmm.kill().ok();
        self.vmm.wait().ok();
        if std::thread::panicking() {
            println!("the stack said:\n{}", self.said());
        }
    }
}

/// Runs a program to its end, within the deadline; what it printed.
pub(crate) fn output(command: &mut Command) -> String {
    let mut bounded = Command::new("timeout");
    bounded.arg(DEADLINE.as_secs().to_string()).arg(command.get_program());
    let output = bounded.args(command.get_args()).output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}: {:?}\n{text}", output.status);
    text
}

/// A program that runs beside the test, and is ended with it.
#[derive(Debug)]
pub(crate) struct Beside(Child);

impl Beside {
    pub(crate) fn start(command: &mut Command) -> Self {
        use std::process::Stdio;
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Tries again until `attempt` succeeds.
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "{what}: not within the deadline");
        std::thread::sleep(Duration::from_millis(10));
    }
}
