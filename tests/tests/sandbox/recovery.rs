//! What is lost and comes back: the gateway, the network, the driver. A row is never ready while nobody can be reached.

use std::time::{Duration, Instant};

use openshell_proto::v1::SandboxPhase;

use crate::rig::{Net, Rig, Wanted, Wire, free_port, id, phase, ready, say};

/// How long a row is watched that must stay as it is.
const WHILE: Duration = Duration::from_secs(3);
/// How long the network is gone; a gateway has missed the guests before that.
const GONE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn sessions_return_after_the_gateway_and_the_network_were_gone() {
    let port = free_port();
    let wire = Wire::to(port).await;
    let mut rig = Rig::start_at(port, wire.port).await;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        ids.push(id(&rig.create(name, Wanted::default()).await.unwrap()));
    }
    for name in ["one", "two"] {
        rig.until_phase(name, SandboxPhase::Ready).await;
    }
    crate::tokens::each_is_good_for_its_own_sandbox(&rig, &ids[0], &ids[1]).await;
    let boots = [boot(&rig, &ids[0]).await, boot(&rig, &ids[1]).await];
    assert_ne!(boots[0], boots[1]);

    wire.set(Net::Cut);
    rig.gateway.take().unwrap().kill();
    rig.start_gateway().await;
    let begin = Instant::now();
    while begin.elapsed() < WHILE {
        for name in ["one", "two"] {
            let row = rig.row(name).await.unwrap();
            assert_eq!(phase(&row), SandboxPhase::Provisioning, "nobody is there: {row:#?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    wire.set(Net::Up);
    returned(&rig, &ids, &boots).await;

    wire.set(Net::Silent);
    let begin = Instant::now();
    for name in ["one", "two"] {
        let row = rig.until(name, "missed", |row| phase(row) != SandboxPhase::Ready).await;
        assert_eq!(phase(&row), SandboxPhase::Provisioning, "{row:#?}");
        assert_eq!(ready(&row).0, "DependenciesNotReady", "{row:#?}");
    }
    let missed = begin.elapsed();
    say(&format!("network gone: missed after {:.1} s", missed.as_secs_f64()));
    assert!(missed < GONE);
    // The time is used for another gateway beside this one.
    let other = another_gateway().await;
    tokio::time::sleep(GONE.saturating_sub(begin.elapsed())).await;
    for name in ["one", "two"] {
        let row = rig.row(name).await.unwrap();
        assert_eq!(phase(&row), SandboxPhase::Provisioning, "{row:#?}");
    }
    wire.set(Net::Up);
    returned(&rig, &ids, &boots).await;
    crate::tokens::are_worth_nothing_at_another_gateway(&rig, &other, &ids[0]).await;
    returned(&rig, &ids, &boots).await;
}

/// A gateway with a driver and a sandbox of its own, whose name another gateway has given as well.
async fn another_gateway() -> Rig {
    let other = Rig::start().await;
    other.create("one", Wanted::default()).await.unwrap();
    other.until_phase("one", SandboxPhase::Ready).await;
    other
}

/// The same machines are back.
async fn returned(rig: &Rig, ids: &[String], boots: &[String; 2]) {
    for ((name, id), before) in ["one", "two"].into_iter().zip(ids).zip(boots) {
        rig.until_phase(name, SandboxPhase::Ready).await;
        assert_eq!(boot(rig, id).await, *before, "{name} is another machine");
    }
}

/// What names one boot of a guest's kernel.
async fn boot(rig: &Rig, id: &str) -> String {
    let said = rig.shell(id, "cat /proc/sys/kernel/random/boot_id").await.unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    said.text()
}

#[tokio::test]
async fn a_driver_that_was_killed_starts_its_machines_again() {
    let mut rig = Rig::start().await;
    let id = id(&rig.create("kept", Wanted::default()).await.unwrap());
    rig.until_phase("kept", SandboxPhase::Ready).await;
    let before = boot(&rig, &id).await;
    assert_eq!(rig.shell(&id, "echo kept >file; sync").await.unwrap().code, Some(0));
    rig.driver.take().unwrap().kill();
    let row = rig.until("kept", "missed", |row| phase(row) != SandboxPhase::Ready).await;
    assert_eq!(phase(&row), SandboxPhase::Provisioning, "{row:#?}");
    assert_eq!(rig.machine(&id), None, "the machine has ended with the driver");
    rig.start_driver();
    rig.until_phase("kept", SandboxPhase::Ready).await;
    assert_ne!(boot(&rig, &id).await, before);
    assert_eq!(rig.shell(&id, "cat file").await.unwrap().text(), "kept\n");
    crate::ends::of_a_machine(&rig, "kept", &id).await;
    crate::ends::of_a_main_process(&rig).await;
    crate::ends::of_a_kernel(&mut rig).await;
}
