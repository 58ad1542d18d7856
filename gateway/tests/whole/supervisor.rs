//! The supervisor's session and SSH server, in this process: what a guest would run.

use std::collections::BTreeMap;
use std::sync::Arc;

use openshell_guest::children::Children;
use openshell_guest::connect;
use openshell_guest::logs::{self, Log};
use openshell_guest::main_process::MainProcess;
use openshell_guest::process::{Program, Sandbox};
use openshell_guest::session::Session;
use openshell_guest::settings::{MainSpec, Settings, TlsFiles, TokenSource};
use openshell_guest::ssh;
use openshell_guest::token::Token;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::rig::{Door, Rig};

pub(crate) struct Supervisor {
    main: Arc<MainProcess>,
    tasks: Vec<JoinHandle<()>>,
    _end: watch::Sender<bool>,
    _directory: tempfile::TempDir,
}

impl Supervisor {
    /// One with a session for a sandbox, of this run of the main process.
    pub(crate) fn start(rig: &Rig, id: &str, instance: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| rig.tls().join(name);
        let tls = (rig.door == Door::Tls).then(|| TlsFiles {
            ca: file("ca.crt"),
            cert: file("guest/tls.crt"),
            key: file("guest/tls.key"),
            server_name: Some("host.openshell.internal".to_owned()),
        });
        let settings = Settings {
            endpoint: rig.url(),
            sandbox_id: id.to_owned(),
            token: TokenSource::Value(rig.token(id)),
            tls,
            ssh_socket: directory.path().join("ssh.sock"),
            main: MainSpec { command: vec!["sleep".to_owned()], tty: false },
            workdir: "/tmp".into(),
            environment: BTreeMap::new(),
            user: String::new(),
        };
        let endpoint = connect::endpoint(&settings).unwrap();
        let (token, _) = Token::read(&settings.token).unwrap();
        let (log, lines) = Log::new(id);
        let pushing = logs::push(connect::client(endpoint.connect_lazy(), &token), lines);
        let path = std::env::var("PATH").unwrap();
        let sandbox = Sandbox {
            children: Children::watch().unwrap(),
            owner: None,
            workdir: "/tmp".into(),
            environment: [("PATH".to_owned(), path)].into(),
            shell: Some("/bin/sh".into()),
        };
        let words = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
        let program = Program { words, ..Program::default() };
        let main = MainProcess::start(&sandbox, &program, false, log.tap()).unwrap();
        let main = Arc::new(main);
        let listener = ssh::listen(&settings.ssh_socket).unwrap();
        let context = Arc::new(ssh::Context { sandbox, main: Arc::clone(&main) });
        let (end, ended) = watch::channel(false);
        let session = Session {
            endpoint,
            token,
            sandbox_id: id.to_owned(),
            instance_id: instance.to_owned(),
            ssh_socket: settings.ssh_socket,
            log,
        };
        let tasks = vec![
            tokio::spawn(pushing),
            tokio::spawn(async move { drop(ssh::serve(listener, context).await) }),
            tokio::spawn(session.keep(ended)),
        ];
        Self { main, tasks, _end: end, _directory: directory }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.main.signal(Signal::KILL);
        for task in &self.tasks {
            task.abort();
        }
    }
}
