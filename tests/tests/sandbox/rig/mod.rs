//! A gateway and a driver of a test's own, and a user's client of that gateway.
//!
//! Invariant: no process outlives the [`Rig`], every wait has an end, and a test that fails says what every program said last.

mod calls;
mod daemon;
mod left;
mod pki;

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
pub(crate) use left::Left;
pub(crate) use pki::Pki;

/// How long anything may take that a lab does while a machine boots in it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);
/// What is shown of a log.
const TAIL: usize = 60;

/// A user of the gateway.
pub(crate) type Client = OpenShellClient<Channel>;

/// Both programs and where they keep what they have.
pub(crate) struct Rig {
    directory: tempfile::TempDir,
    pub(crate) pki: Pki,
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
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::make(&directory.path().join("pki"));
        let client = client(&pki, "user", port);
        let mut rig =
            Self { directory, pki, port, guest_port, driver: None, gateway: None, client };
        std::fs::write(rig.path("gateway.toml"), rig.configuration()).unwrap();
        rig.start_driver();
        rig.start_gateway().await;
        rig
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
        let text = |path: PathBuf| path.into_os_string().into_string().unwrap();
        let args = [
            ("--bind-socket", text(self.path("run/driver.sock"))),
            ("--openshell-endpoint", format!("https://127.0.0.1:{}", self.guest_port)),
            ("--default-image", format!("oci:{}:image", text(fixture("oci")))),
            ("--state-dir", text(self.path("state"))),
            ("--runtime-dir", text(fixture(""))),
            ("--kernel", text(fixture("vmlinux-sandbox"))),
            ("--guest-tls-ca", text(self.pki.path("ca.crt"))),
            ("--guest-tls-cert", text(self.pki.path("guest.crt"))),
            ("--guest-tls-key", text(self.pki.path("guest.key"))),
            ("--vcpus", "1".into()),
            ("--mem-mib", "256".into()),
            ("--overlay-disk-mib", "256".into()),
        ];
        let mut words = vec!["--allow-same-uid-peer".to_owned()];
        words.extend(args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
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

    fn configuration(&self) -> String {
        let pki = |name: &str| self.pki.path(name).display().to_string();
        format!(
            "[openshell]\nversion = 1\n\
             [openshell.gateway]\nbind_address = '127.0.0.1:{port}'\ncompute_drivers = ['vm']\n\
             db_url = 'sqlite:{database}?mode=rwc'\n\
             [openshell.gateway.tls]\ncert_path = '{cert}'\nkey_path = '{key}'\nclient_ca_path = '{ca}'\n\
             [openshell.gateway.mtls_auth]\nenabled = true\n\
             [openshell.gateway.gateway_jwt]\nsigning_key_path = '{signing}'\nkid_path = '{kid}'\ngateway_id = 'lab'\n\
             [openshell.drivers.vm]\nsocket_path = '{socket}'\n",
            port = self.port,
            database = self.path("gateway.db").display(),
            cert = pki("server.crt"),
            key = pki("server.key"),
            ca = pki("ca.crt"),
            signing = pki("signing.pem"),
            kid = pki("kid"),
            socket = self.path("run/driver.sock").display(),
        )
    }

    /// A user's client. It connects again by itself.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client with the guests' certificate.
    pub(crate) fn guest_client(&self) -> Client {
        client(&self.pki, "guest", self.port)
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
    let identity =
        Identity::from_pem(pki.read(&format!("{name}.crt")), pki.read(&format!("{name}.key")));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(pki.read("ca.crt")))
        .domain_name("localhost")
        .identity(identity);
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap();
    let endpoint = endpoint.tls_config(tls).unwrap().connect_timeout(Duration::from_secs(10));
    OpenShellClient::new(endpoint.connect_lazy()).max_decoding_message_size(16 << 20)
}
