//! Our own driver and gateway conform.

#![cfg(test)]

use std::sync::Arc;
use std::time::Duration;

use openshell_conformance::played::Played;
use openshell_conformance::{Report, driver, gateway};
use openshell_driver_vm::backend::stub::Stub;
use openshell_driver_vm::decoder;
use openshell_driver_vm::endpoint;
use openshell_driver_vm::listen::{Listen, Peer};
use openshell_driver_vm::resources::{Host, Size};
use openshell_driver_vm::sandbox::{Driver, Settings};
use openshell_driver_vm::serve::serve;
use openshell_driver_vm::state::StateDir;
use openshell_gateway::auth::Users;
use openshell_gateway::auth::token::Keys;
use openshell_gateway::compute::Compute;
use openshell_gateway::managed::reach;
use openshell_gateway::serve::{About, Gateway};
use openshell_gateway::session::{Limits, Registry};
use openshell_gateway::store::Store;
use tokio::net::TcpListener;
use tonic::transport::Endpoint;

fn passed(report: &Report, at_least: usize) {
    println!("{}", report.text());
    assert_eq!(report.failures().count(), 0, "{}", report.text());
    assert!(report.len() >= at_least, "{} checks", report.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_driver_conforms() {
    let place = tempfile::tempdir().unwrap();
    let endpoint = endpoint::Endpoint::parse("http://127.0.0.1:17670").unwrap();
    let settings = Settings {
        size: Size { vcpus: 1, memory_mib: 512 },
        overlay_bytes: 64 << 20,
        rules: vec![],
        ..Settings::new(endpoint, Host { cpus: 2, memory_mib: 4096 })
    };
    let state = StateDir::open(&place.path().join("state")).unwrap();
    let socket = place.path().join("run/driver.sock");
    let backend = Arc::new(Stub::default());
    let played = Driver::new(state, settings.clone(), backend, decoder(settings));
    let listen = Listen::Unix { path: socket.clone(), peer: Peer::SameUser };
    tokio::spawn(async move { serve(played, &listen, std::future::pending()).await });
    reach(&socket, Duration::from_secs(20), Duration::from_millis(10)).await.unwrap();
    let report = driver::check(&socket, "registry.example/base:1").await.unwrap();
    passed(&report, 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_gateway_conforms() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("driver.sock");
    let played = Played::serve(&socket).unwrap();
    let patience = Duration::from_secs(20);
    let (driver, _) = reach(&socket, patience, Duration::from_millis(10)).await.unwrap();
    let url = format!("sqlite:{}", place.path().join("rows.db").display());
    let store = Store::open(&url).await.unwrap();
    let settings = openshell_gateway::compute::Settings::default();
    let sessions = Registry::new(Limits::default());
    let compute = Compute::new(store, Arc::new(driver), sessions, Arc::default(), settings);
    let following = compute.clone();
    tokio::spawn(async move { following.follow_driver().await });
    let users = Users { allow_unauthenticated: true, ..Users::default() };
    let keys = Keys::generate("conformance", None).unwrap();
    let about = About { driver: "vm".into(), default_image: "i".into(), ..About::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = Gateway::new(compute, keys, users, about);
    tokio::spawn(gateway.serve(listener, None, std::future::pending()));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    passed(&gateway::check(endpoint, played).await.unwrap(), 11);
}
