//! What a gateway that is killed leaves behind, and what comes back.

use crate::rig::{Door, Rig};
use crate::supervisor::Supervisor;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_comes_back_with_rows_and_tokens() {
    let mut rig = Rig::new(Door::Tls);
    let mut all = Vec::new();
    for name in ["with", "without"] {
        let row = rig.call(&["create", name, "-o", "json"], b"").await.json();
        let id = row["id"].as_str().unwrap().to_owned();
        all.push(Supervisor::start(&rig, &id, "run-1"));
        rig.until(name, "ready").await;
    }
    // One supervisor goes while nobody is there to see it.
    rig.kill();
    all.truncate(1);
    rig.start();
    // The token of before is still good: its supervisor comes back by itself.
    rig.until("with", "ready").await;
    let said = rig.call(&["exec", "with", "-n", "--", "echo", "back"], b"").await;
    assert_eq!((said.code, said.text().as_str()), (0, "back\n"));
    // And nobody is ready because a row said so.
    let row = rig.call(&["get", "without", "-o", "json"], b"").await.json();
    assert_eq!(row["phase"], "Provisioning");
    assert_eq!(rig.stub.started(), 2, "machines go on while the gateway is away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_gateway_on_the_same_address_is_refused() {
    let rig = Rig::new(Door::Open);
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_openshell-gateway"))
        .arg("--config")
        .arg(rig.place.path().join("gateway.toml"))
        .env_clear()
        .env("OPENSHELL_BIND_ADDRESS", rig.address.to_string())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot be listened on"), "{said}");
    assert_eq!(rig.call(&["list"], b"").await.code, 0);
}
