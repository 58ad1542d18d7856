//! A gateway as a process, a driver with a stub behind it, and the client as a process.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openshell_driver_vm::backend::stub::Stub;
use openshell_driver_vm::decoder;
use openshell_driver_vm::endpoint;
use openshell_driver_vm::listen::{Listen, Peer};
use openshell_driver_vm::resources::Host;
use openshell_driver_vm::sandbox::{Driver, Settings};
use openshell_driver_vm::serve::serve;
use openshell_driver_vm::state::StateDir;
use openshell_gateway::certs;
use openshell_proto::compute::v1::DriverSandbox;
use openshell_proto::v1::open_shell_client::OpenShellClient;
use prost::Message as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::oneshot;
use tonic::transport::Channel;

/// Nothing here takes longer on a machine that is not broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const GATEWAY: &str = env!("CARGO_BIN_EXE_openshell-gateway");

/// Whether what gateways say is shown only where it is a warning.
pub(crate) static QUIET: AtomicBool = AtomicBool::new(false);

/// Who may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Over TLS, with certificates.
    Tls,
    /// Everybody, in plain text.
    Open,
}

pub(crate) struct Rig {
    pub(crate) place: TempDir,
    pub(crate) stub: Stub,
    pub(crate) address: SocketAddr,
    pub(crate) door: Door,
    database: String,
    gateway: Option<Child>,
    _end: oneshot::Sender<()>,
    /// What its database needs for as long as it is used; dropped after the gateway has ended.
    _kept: Box<dyn std::any::Any + Send>,
}

/// What a call of the client has come to.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_slice(&self.out).unwrap()
    }
}

fn settings() -> Settings {
    let endpoint = endpoint::Endpoint::parse("http://127.0.0.1:17670").unwrap();
    Settings {
        default_image: Some("registry.example/base:1".to_owned()),
        overlay_bytes: 64 << 20,
        ..Settings::new(endpoint, Host { cpus: 8, memory_mib: 16_384 })
    }
}

impl Rig {
    pub(crate) fn new(door: Door) -> Self {
        let place = tempfile::tempdir().unwrap();
        let (database, kept) = crate::database(place.path());
        Self::on(door, database, place, kept)
    }

    /// One with its rows in this database, which needs what is kept.
    pub(crate) fn on(
        door: Door,
        database: String,
        place: TempDir,
        kept: Box<dyn std::any::Any + Send>,
    ) -> Self {
        certs::generate(&place.path().join("tls"), &[]).unwrap();
        let stub = Stub::default();
        let state = StateDir::open(&place.path().join("driver")).unwrap();
        let driver = Driver::new(state, settings(), Arc::new(stub.clone()), decoder(settings()));
        let socket = place.path().join("run/driver.sock");
        let listen = Listen::Unix { path: socket, peer: Peer::SameUser };
        let (end, ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let ended = async { drop(ended.await) };
            serve(driver, &listen, ended).await.unwrap();
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut rig = Self {
            place,
            stub,
            address: nowhere,
            door,
            database,
            gateway: None,
            _end: end,
            _kept: kept,
        };
        rig.start();
        rig
    }

    /// Starts the gateway, on the address that it had.
    pub(crate) fn start(&mut self) {
        let place = self.place.path().display();
        let door = match self.door {
            Door::Open => "disable_tls = true\n[openshell.gateway.auth]\n\
                           allow_unauthenticated_users = true\n"
                .to_owned(),
            Door::Tls => format!(
                "[openshell.gateway.tls]\ncert_path = '{place}/tls/server/tls.crt'\n\
                 key_path = '{place}/tls/server/tls.key'\nclient_ca_path = '{place}/tls/ca.crt'\n\
                 [openshell.gateway.mtls_auth]\nenabled = true\n"
            ),
        };
        let text = format!(
            "[openshell]\nversion = 1\n[openshell.gateway]\nbind_address = '{}'\n\
             db_url = '{}'\n{door}\
             [openshell.drivers.vm]\nsocket_path = '{place}/run/driver.sock'\n",
            self.address, self.database
        );
        let file = self.place.path().join("gateway.toml");
        std::fs::write(&file, text).unwrap();
        let mut child = Command::new(GATEWAY)
            .arg("--config")
            .arg(&file)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let (tell, heard) = std::sync::mpsc::channel();
        // Read to the end: a gateway must not wait for who reads what it says.
        let read = move || {
            for line in said.lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("serving address=") {
                    tell.send(address.trim().parse().unwrap()).ok();
                }
                if !line.contains(" INFO ") || !QUIET.load(Ordering::Relaxed) {
                    eprintln!("gateway: {line}");
                }
            }
        };
        std::thread::Builder::new().spawn(read).unwrap();
        self.gateway = Some(child);
        self.address = heard.recv_timeout(PATIENCE).expect("the gateway serves");
    }

    /// A database in a file, which needs nothing.
    pub(crate) fn in_a_file(place: &Path) -> (String, Box<dyn std::any::Any + Send>) {
        (format!("sqlite:{}", place.join("gateway.db").display()), Box::new(()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.gateway.as_ref().unwrap().id()
    }

    /// Ends the gateway as a crash does.
    pub(crate) fn kill(&mut self) {
        let mut child = self.gateway.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn tls(&self) -> PathBuf {
        self.place.path().join("tls")
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.door == Door::Tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Runs `openshell-gateway sandbox`.
    pub(crate) async fn call(&self, words: &[&str], input: &[u8]) -> Said {
        self.call_as(&self.tls(), words, input).await
    }

    /// The same, with the certificates of a directory.
    pub(crate) async fn call_as(&self, tls: &Path, words: &[&str], input: &[u8]) -> Said {
        let mut command = tokio::process::Command::new(GATEWAY);
        command
            .arg("sandbox")
            .arg("--endpoint")
            .arg(self.url())
            .arg("--tls-dir")
            .arg(tls)
            .args(words)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        let feed = async {
            // A command that reads nothing is no failure.
            drop(to.write_all(input).await);
            drop(to);
        };
        let ended = async { tokio::join!(feed, child.wait_with_output()).1 };
        let ended = tokio::time::timeout(PATIENCE, ended).await.expect("it ends").unwrap();
        Said {
            code: ended.status.code().unwrap_or(-1),
            out: ended.stdout,
            err: String::from_utf8_lossy(&ended.stderr).into_owned(),
        }
    }

    /// A client of the services.
    pub(crate) async fn client(&self) -> OpenShellClient<Channel> {
        let channel = Channel::from_shared(self.url()).unwrap().connect().await.unwrap();
        OpenShellClient::new(channel).max_decoding_message_size(64 << 20)
    }

    /// What the driver was given of a sandbox.
    pub(crate) fn given(&self, id: &str) -> DriverSandbox {
        let path = self.place.path().join("driver/sandboxes").join(id).join("sandbox.pb");
        DriverSandbox::decode(&std::fs::read(path).unwrap()[..]).unwrap()
    }

    pub(crate) fn token(&self, id: &str) -> String {
        self.given(id).spec.unwrap().sandbox_token
    }

    /// Waits until a sandbox is in a phase, as the client says it.
    pub(crate) async fn until(&self, name: &str, phase: &str) {
        let said = self.call(&["watch", name, "--until", phase, "--timeout", "50"], b"").await;
        assert_eq!(said.code, 0, "{said:?}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut child) = self.gateway.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
