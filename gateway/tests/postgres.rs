//! Rows, and whole gateways, in a Postgres of the test's own, which listens on a Unix socket in a directory of its own.
//!
//! Invariant: every test of `whole` is one here too.

#![cfg(test)]

#[path = "whole/client.rs"]
mod client;
#[path = "whole/restarts.rs"]
mod restarts;
#[path = "whole/rig.rs"]
#[expect(dead_code, reason = "what this test uses of it")]
mod rig;
#[path = "whole/scale.rs"]
mod scale;
#[path = "whole/supervisor.rs"]
mod supervisor;

use std::path::{Path, PathBuf};
use std::process::Command;

use openshell_gateway::store::{Condition, Selector, Store, StoreError};
use openshell_proto::datamodel::v1::ObjectMeta;
use openshell_proto::v1::Sandbox;

use rig::{Door, Rig};
use supervisor::Supervisor;

/// The server; ended when dropped.
struct Server {
    place: tempfile::TempDir,
    programs: PathBuf,
}

impl Server {
    fn start() -> Self {
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("package postgresql");
        let newest = versions.map(|entry| entry.unwrap().path()).max().expect("a version of it");
        let place = tempfile::tempdir().unwrap();
        let server = Self { place, programs: newest.join("bin") };
        if rustix::process::geteuid().is_root() {
            // The server does not run as root.
            let done = Command::new("chown").arg("postgres").arg(server.place.path()).status();
            assert!(done.unwrap().success());
        }
        let data = server.data();
        server.run("initdb", &["-D", &data, "-A", "trust", "-U", "gateway", "--no-sync"]);
        server.begin();
        server
    }

    /// Starts the program on the data that is there.
    fn begin(&self) {
        let data = self.data();
        let options = format!("-k {} -c listen_addresses= -F", self.place.path().display());
        let log = format!("{data}/log");
        self.run("pg_ctl", &["-D", &data, "-w", "-l", &log, "-o", &options, "start"]);
    }

    fn data(&self) -> String {
        self.place.path().join("data").display().to_string()
    }

    fn run(&self, program: &str, words: &[&str]) {
        let path = self.programs.join(program);
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"])
                .arg(path);
            command
        } else {
            Command::new(path)
        };
        let output = command.args(words).current_dir(Path::new("/")).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn url(&self) -> String {
        let host = self.place.path().display().to_string().replace('/', "%2F");
        format!("postgres://gateway@{host}/postgres")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "stop"]);
    }
}

/// A database of its own, with its server.
fn database(_place: &Path) -> (String, Box<dyn std::any::Any + Send>) {
    let server = Server::start();
    (server.url(), Box::new(server))
}

fn sandbox(id: &str, name: &str, workspace: &str) -> Sandbox {
    let metadata = ObjectMeta {
        id: id.into(),
        name: name.into(),
        workspace: workspace.into(),
        ..ObjectMeta::default()
    };
    Sandbox { metadata: Some(metadata), ..Sandbox::default() }
}

fn name(row: &Sandbox) -> String {
    row.metadata.clone().unwrap().name
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_kept_as_in_sqlite() {
    let server = Server::start();
    let store = Store::open(&server.url()).await.unwrap();
    let row = sandbox("1", "b-a", "w");
    assert_eq!(store.put_if(&row, Condition::MustCreate).await.unwrap(), 1);
    for again in [row.clone(), sandbox("1", "c", "w"), sandbox("2", "b-a", "w")] {
        let error = store.put_if(&again, Condition::MustCreate).await.unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }), "{error:?}");
    }
    let expected = Condition::MatchResourceVersion(1);
    assert_eq!(store.put_if(&row, expected).await.unwrap(), 2);
    let error = store.put_if(&row, expected).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
    let error = store.put_if(&sandbox("9", "z", "w"), expected).await.unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error:?}");
    // Another gateway on the same database, and an order that no locale changes.
    let second = Store::open(&server.url()).await.unwrap();
    for (id, name, workspace) in [("2", "ba", "w"), ("3", "a", "x"), ("4", "b", "w")] {
        second.put_if(&sandbox(id, name, workspace), Condition::MustCreate).await.unwrap();
    }
    let rows: Vec<Sandbox> = store.list(None, &Selector::default()).await.unwrap();
    assert_eq!(rows.iter().map(name).collect::<Vec<_>>(), ["b", "b-a", "ba", "a"]);
    let rows: Vec<Sandbox> = store.list(Some("x"), &Selector::default()).await.unwrap();
    assert_eq!(rows.len(), 1);
    let found: Sandbox = second.fetch_by_name("w", "b-a").await.unwrap().unwrap();
    assert_eq!(found.metadata.unwrap().resource_version, 2);
    assert!(second.delete::<Sandbox>("1").await.unwrap());
    assert!(store.fetch::<Sandbox>("1").await.unwrap().is_none());
    assert!(!store.delete::<Sandbox>("1").await.unwrap());
    store.ping().await.unwrap();
    store.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost_among_writers() {
    let server = Server::start();
    let store = Store::open(&server.url()).await.unwrap();
    store.put_if(&sandbox("1", "a", "w"), Condition::MustCreate).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        writers.spawn(async move {
            for _ in 0..25 {
                let add = |row: &Sandbox| {
                    let mut next = row.clone();
                    next.status.get_or_insert_default().current_policy_version += 1;
                    Some(next)
                };
                assert!(store.update_message_cas("1", add).await.unwrap().unwrap().1);
            }
        });
    }
    writers.join_all().await;
    let row: Sandbox = store.fetch("1").await.unwrap().unwrap();
    assert_eq!(row.status.unwrap().current_policy_version, 100);
    // The server goes: said, not waited for.
    drop(server);
    assert!(store.ping().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_keeps_everything_there() {
    let server = Server::start();
    let mut rig = Rig::on(Door::Tls, server.url(), tempfile::tempdir().unwrap(), Box::new(()));
    let mut supervisors = Vec::new();
    for name in ["one", "two"] {
        let row = rig.call(&["create", name, "--label", "of=test", "-o", "json"], b"").await.json();
        let id = row["id"].as_str().unwrap().to_owned();
        supervisors.push(Supervisor::start(&rig, &id, "run-1"));
        rig.until(name, "ready").await;
    }
    let again = rig.call(&["create", "one"], b"").await;
    assert!(again.code == 1 && again.err.contains("(AlreadyExists)"), "{again:?}");
    let said = rig.call(&["exec", "one", "-n", "--", "echo", "here"], b"").await;
    assert_eq!((said.code, said.text().as_str()), (0, "here\n"));
    let stopped = rig.call(&["stop", "two", "--wait"], b"").await;
    assert_eq!(stopped.code, 0, "{stopped:?}");
    supervisors.truncate(1);

    rig.kill();
    rig.start();
    rig.until("one", "ready").await;
    let rows = rig.call(&["list", "--selector", "of=test", "-o", "json"], b"").await.json();
    let phases: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["phase"].clone()).collect();
    assert_eq!(phases, ["Ready", "Stopped"], "{rows}");
    // The database goes and comes back: calls fail meanwhile, and the gateway stays.
    server.run("pg_ctl", &["-D", &server.data(), "-m", "immediate", "-w", "stop"]);
    let without = rig.call(&["list"], b"").await;
    assert_eq!(without.code, 1, "{without:?}");
    server.begin();
    rig.until("one", "ready").await;
    for name in ["one", "two"] {
        let said = rig.call(&["delete", name], b"").await;
        assert_eq!(said.code, 0, "{said:?}");
    }
    assert_eq!(rig.call(&["list", "-o", "json"], b"").await.text(), "[]\n");
    assert_eq!(rig.stub.running(), 0);
}
