//! A driver that the gateway starts, and what becomes of it and its machines when the gateway ends.

use std::time::{Duration, Instant};

use openshell_proto::v1::SandboxPhase;

use crate::rig::{Rig, Wanted, id};

/// When nothing may be left of a gateway that was killed.
const GONE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_gateway_takes_its_driver_with_it() {
    let mut rig = Rig::managed().await;
    let id = id(&rig.create("kept", Wanted::default()).await.unwrap());
    rig.until_phase("kept", SandboxPhase::Ready).await;
    assert_eq!(rig.shell(&id, "echo kept >file").await.unwrap().code, Some(0));
    let gateway = rig.gateway.take().unwrap();
    let ended = gateway.terminate(Duration::from_secs(60)).await;
    assert!(ended.success(), "{ended}");
    assert!(rig.left().processes.is_empty(), "{:#?}", rig.left());
    assert!(rig.sandbox(&id).join("stopped").exists(), "a gateway that ends stops its sandboxes");
    rig.start_gateway().await;
    rig.until_phase("kept", SandboxPhase::Ready).await;
    assert!(!rig.sandbox(&id).join("stopped").exists());
    assert_eq!(rig.shell(&id, "cat file").await.unwrap().text(), "kept\n");
    rig.gateway.take().unwrap().kill();
    let ends = Instant::now() + GONE;
    while !rig.left().processes.is_empty() {
        assert!(Instant::now() < ends, "{:#?}", rig.left());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
