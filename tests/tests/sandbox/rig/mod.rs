//! A gateway and a driver of a test's own, and a user's client of that gateway.
//!
//! Invariant: no process outlives the [`Rig`], every wait has an end, and a test that fails says what every program said last.

mod calls;
mod daemon;
mod left;
mod pki;
mod ssh;
mod wire;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use openshell_proto::v1::open_shell_client::OpenShellClient;
use openshell_proto::v1::{GetSandboxRequest, HealthRequest, Sandbox, SandboxPhase};
use openshell_tests::machine::fixture;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

pub(crate) use calls::{Wanted, command};
pub(crate) use daemon::Daemon;
use left::Left;
use pki::Pki;
pub(crate) use wire::{Net, Wire};

/// How long anything may take that a lab does while a machine boots in it.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);
const LOOK: Duration = Duration::from_millis(100);
/// What a machine gets.
const VCPUS: u32 = 1;
const MEMORY_MIB: u32 = 256;
const DISK_MIB: u32 = 256;
/// What is shown of a log.
const TAIL: usize = 60;

/// A user of the gateway.
pub(crate) type Client = OpenShellClient<Channel>;

/// Both programs and where they keep what they have.
pub(crate) struct Rig {
    directory: tempfile::TempDir,
    pki: Pki,
    /// Where the gateway listens, and where guests are told that it does.
    port: u16,
    guest_port: u16,
    pub(crate) driver: Option<Daemon>,
    pub(crate) gateway: Option<Daemon>,
    client: Client,
}

impl Rig {
    /// Starts both, and waits until the gateway serves.
    pub(crate) async fn start() -> Self {
        let port = free_port();
        Self::start_at(port, port).await
    }

    /// As [`Self::start`], with guests that dial another port than the gateway's.
    pub(crate) async fn start_at(port: u16, guest_port: u16) -> Self {
        let mut rig = Self::new(port, guest_port);
        let socket = rig.path("run/driver.sock");
        rig.configure(&format!("socket_path = '{}'\n", socket.display()));
        rig.start_driver();
        rig.start_gateway().await;
        rig
    }

    /// A gateway that starts its driver itself.
    pub(crate) async fn managed() -> Self {
        let port = free_port();
        let mut rig = Self::new(port, port);
        let mut keys =
            format!("vcpus = {VCPUS}\nmem_mib = {MEMORY_MIB}\noverlay_disk_mib = {DISK_MIB}\n");
        for (key, path) in [
            ("driver_dir", fixture("")),
            ("state_dir", rig.path("state")),
            ("guest_tls_ca", rig.pki.path("ca.crt")),
            ("guest_tls_cert", rig.pki.path("guest/tls.crt")),
            ("guest_tls_key", rig.pki.path("guest/tls.key")),
        ] {
            keys.push_str(&format!("{key} = '{}'\n", path.display()));
        }
        keys.push_str(&format!("default_image = '{}'\n", image()));
        rig.configure(&keys);
        rig.start_gateway().await;
        rig
    }

    fn new(port: u16, guest_port: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::make(&directory.path().join("pki"));
        let client = client(&pki, "client", port);
        Self { directory, pki, port, guest_port, driver: None, gateway: None, client }
    }

    /// A path in the rig's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The directory of a sandbox, by its id.
    pub(crate) fn sandbox(&self, id: &str) -> PathBuf {
        self.path("state/sandboxes").join(id)
    }

    /// Starts the driver.
    pub(crate) fn start_driver(&mut self) {
        self.start_driver_with(&[]);
    }

    /// Starts the driver with further arguments.
    pub(crate) fn start_driver_with(&mut self, more: &[&str]) {
        let text = |path: PathBuf| path.into_os_string().into_string().unwrap();
        let args = [
            ("--bind-socket", text(self.path("run/driver.sock"))),
            ("--openshell-endpoint", format!("https://127.0.0.1:{}", self.guest_port)),
            ("--default-image", image()),
            ("--state-dir", text(self.path("state"))),
            ("--runtime-dir", text(fixture(""))),
            ("--guest-tls-ca", text(self.pki.path("ca.crt"))),
            ("--guest-tls-cert", text(self.pki.path("guest/tls.crt"))),
            ("--guest-tls-key", text(self.pki.path("guest/tls.key"))),
            ("--vcpus", VCPUS.to_string()),
            ("--mem-mib", MEMORY_MIB.to_string()),
            ("--overlay-disk-mib", DISK_MIB.to_string()),
        ];
        let mut words = vec!["--allow-same-uid-peer".to_owned()];
        words.extend(args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        words.extend(more.iter().map(|&word| word.to_owned()));
        let log = self.path("driver.log");
        self.driver = Some(Daemon::start(&fixture("openshell-driver-vm"), words, &log));
    }

    /// Starts the gateway, and waits until it serves.
    pub(crate) async fn start_gateway(&mut self) {
        let args = ["--config".into(), self.path("gateway.toml")];
        let log = self.path("gateway.log");
        self.gateway = Some(Daemon::start(&fixture("openshell-gateway"), args, &log));
        let ends = Instant::now() + PATIENCE;
        while let Err(status) = self.client().health(HealthRequest {}).await {
            let ended = self.gateway.as_mut().and_then(Daemon::ended);
            assert!(ended.is_none(), "the gateway ended with {ended:?}");
            assert!(Instant::now() < ends, "the gateway does not serve: {status}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Writes the gateway's configuration; `driver` is what it says about the driver.
    fn configure(&self, driver: &str) {
        let pki = |name: &str| self.pki.path(name).display().to_string();
        let text = format!(
            "[openshell]\nversion = 1\n\
             [openshell.gateway]\nbind_address = '127.0.0.1:{port}'\ncompute_drivers = ['vm']\n\
             db_url = 'sqlite:{database}?mode=rwc'\n\
             [openshell.gateway.tls]\ncert_path = '{cert}'\nkey_path = '{key}'\nclient_ca_path = '{ca}'\n\
             [openshell.gateway.mtls_auth]\nenabled = true\n\
             [openshell.drivers.vm]\n{driver}",
            port = self.port,
            database = self.path("gateway.db").display(),
            cert = pki("server/tls.crt"),
            key = pki("server/tls.key"),
            ca = pki("ca.crt"),
        );
        std::fs::write(self.path("gateway.toml"), text).unwrap();
    }

    /// What there is on this machine of what sandboxes take.
    pub(crate) fn left(&self) -> Left {
        let servers: Vec<u32> =
            [&self.gateway, &self.driver].into_iter().flatten().map(Daemon::pid).collect();
        Left::now(&servers, &self.path("state"))
    }

    /// The process of a sandbox's machine, if there is one.
    pub(crate) fn machine(&self, id: &str) -> Option<u32> {
        left::machine_of(&self.sandbox(id))
    }

    /// A user's client. It connects again by itself.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client with the guests' certificate.
    pub(crate) fn guest_client(&self) -> Client {
        client(&self.pki, "guest", self.port)
    }

    /// A client of `gateway` with our certificate, of a `user` or `guest`, that takes it for ours.
    pub(crate) fn client_of(&self, gateway: &Self, name: &str) -> Client {
        client(&self.pki, name, gateway.port)
    }

    /// The row of a sandbox.
    pub(crate) async fn row(&self, name: &str) -> Result<Sandbox, Status> {
        let request = GetSandboxRequest { name: name.into(), ..Default::default() };
        let answer = self.client().get_sandbox(request).await?;
        Ok(answer.into_inner().sandbox.unwrap_or_default())
    }

    /// Waits until the row of a sandbox is as `good` wants it, and returns it.
    #[track_caller]
    pub(crate) fn until<'a>(
        &'a self,
        name: &'a str,
        what: &'a str,
        good: impl Fn(&Sandbox) -> bool + 'a,
    ) -> impl Future<Output = Sandbox> + 'a {
        let place = std::panic::Location::caller();
        async move {
            let ends = Instant::now() + PATIENCE;
            loop {
                let row = self.row(name).await;
                if let Ok(row) = &row
                    && good(row)
                {
                    return row.clone();
                }
                assert!(Instant::now() < ends, "{place}: not {what}: {row:#?}");
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Waits until a sandbox is in this phase. An error is waited for only if it is the phase.
    #[track_caller]
    pub(crate) fn until_phase<'a>(
        &'a self,
        name: &'a str,
        phase: SandboxPhase,
    ) -> impl Future<Output = Sandbox> + 'a {
        let place = std::panic::Location::caller();
        let row = self.until(name, phase.as_str_name(), move |row| {
            let now = self::phase(row);
            now == phase || now == SandboxPhase::Error
        });
        async move {
            let row = row.await;
            assert_eq!(self::phase(&row), phase, "{place}: {row:#?}");
            row
        }
    }

    /// Waits until there is no such sandbox.
    pub(crate) async fn until_gone(&self, name: &str) {
        let ends = Instant::now() + PATIENCE;
        loop {
            match self.row(name).await {
                Err(status) if status.code() == Code::NotFound => return,
                row => assert!(Instant::now() < ends, "{name} is still there: {row:?}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut logs = vec![self.path("gateway.log"), self.path("driver.log")];
        let sandboxes = std::fs::read_dir(self.path("state/sandboxes")).into_iter().flatten();
        for sandbox in sandboxes.flatten() {
            logs.extend(["vmm.log", "rootfs-console.log"].map(|name| sandbox.path().join(name)));
        }
        for log in logs {
            show_tail(&log);
        }
    }
}

fn show_tail(log: &Path) {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default();
    say(&format!("--- {}\n{}", log.display(), tail.join("\n")));
}

/// Says something whatever becomes of the test.
pub(crate) fn say(text: &str) {
    use std::io::Write as _;
    // Nobody is told less by a test than by its result.
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// The image of all sandboxes, as the operator names it.
fn image() -> String {
    format!("oci:{}:image", fixture("oci").display())
}

/// Whether time counts the instructions of this lab, 1 ns each.
pub(crate) fn counts_instructions() -> bool {
    std::env::var_os("OPENSHELL_VMM_CLOCK").is_some_and(|clock| clock == "instructions")
}

/// The phase of a row.
pub(crate) fn phase(row: &Sandbox) -> SandboxPhase {
    row.status.as_ref().map_or(SandboxPhase::Unspecified, |status| status.phase())
}

/// The id of a row.
pub(crate) fn id(row: &Sandbox) -> String {
    row.metadata.as_ref().map(|metadata| metadata.id.clone()).unwrap_or_default()
}

/// Reason and message of the condition `Ready`.
pub(crate) fn ready(row: &Sandbox) -> (String, String) {
    let conditions = row.status.iter().flat_map(|status| &status.conditions);
    let mut ready = conditions.filter(|condition| condition.r#type == "Ready");
    ready.next().map(|one| (one.reason.clone(), one.message.clone())).unwrap_or_default()
}

/// A port of the loopback that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn client(pki: &Pki, name: &str, port: u16) -> Client {
    let file = |file: &str| pki.read(&format!("{name}/{file}"));
    let identity = Identity::from_pem(file("tls.crt"), file("tls.key"));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(pki.read("ca.crt")))
        .domain_name("localhost")
        .identity(identity);
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap();
    let endpoint = endpoint.tls_config(tls).unwrap().connect_timeout(Duration::from_secs(10));
    OpenShellClient::new(endpoint.connect_lazy()).max_decoding_message_size(16 << 20)
}
