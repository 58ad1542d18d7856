//! Streams of changes: nothing is missed.

use std::collections::BTreeMap;
use std::time::Duration;

use openshell_driver_vm::backend::Ended;
use openshell_proto::compute::v1 as pb;
use pb::watch_sandboxes_event::Payload;

use crate::fixture::{
    Fixture, condition, connect_with, create, delete, first_condition, sandbox, start, stop, watch,
};

#[tokio::test]
async fn a_life_is_told_in_order() {
    let mut fixture = Fixture::new().await;
    let mut watch = fixture.watch().await;
    fixture.create("a").await.expect("created");
    assert_eq!(watch.words("Started").await, ["Scheduled", "=Starting", "Pulled", "Started"]);
    stop(&mut fixture.client, "a").await.expect("stopped");
    assert_eq!(watch.words("Stopped").await, ["=ComputeStopped", "Stopped"]);
    start(&mut fixture.client, "a").await.expect("started");
    assert_eq!(watch.words("Started").await, ["=Starting", "Pulled", "Started"]);
    let message = "VM process exited with status 9".to_owned();
    assert!(fixture.stub.end("a", Ok(Ended { code: 9, ran: true, message })));
    assert_eq!(watch.words("ProcessExited").await, ["=ProcessExited", "ProcessExited"]);
    assert_eq!(delete(&mut fixture.client, "a").await, Ok(true));
    assert_eq!(watch.words("-").await, ["=Deleting", "-"]);
}

#[tokio::test]
async fn events_carry_what_the_command_shows() {
    let mut fixture = Fixture::new().await;
    let mut watch = fixture.watch().await;
    let mut asked = sandbox("a");
    let template = asked.spec.as_mut().and_then(|spec| spec.template.as_mut()).expect("a template");
    template.resources =
        Some(pb::DriverResourceRequirements { cpu_limit: "99".into(), ..Default::default() });
    create(&mut fixture.client, asked).await.expect("created");
    let Some(Payload::PlatformEvent(event)) = watch.next().await else { panic!("an event") };
    assert_eq!(event.sandbox_id, "a");
    let event = event.event.expect("an event");
    assert_eq!((&*event.source, &*event.r#type, &*event.reason), ("vm", "Normal", "Scheduled"));
    assert!(event.message.contains("8 CPUs instead of 99"), "{}", event.message);
    assert!(event.timestamp_ms > 1_700_000_000_000);
    assert_eq!(event.metadata["openshell.progress.complete_step"], "requesting_sandbox");
    assert_eq!(event.metadata["openshell.progress.active_step"], "pulling_image");
}

#[tokio::test]
async fn a_watcher_begins_with_everything_that_is() {
    let mut fixture = Fixture::new().await;
    for id in ["a", "b", "c"] {
        fixture.create(id).await.expect("created");
    }
    fixture.wait_for_running(3).await;
    stop(&mut fixture.client, "b").await.expect("stopped");
    let mut watch = fixture.watch().await;
    let mut seen = BTreeMap::new();
    for _ in 0..3 {
        let Some(Payload::Sandbox(event)) = watch.next().await else { panic!("a sandbox") };
        let sandbox = event.sandbox.expect("a sandbox");
        seen.insert(sandbox.id.clone(), first_condition(&sandbox).reason);
    }
    let expected = [("a", "Starting"), ("b", "ComputeStopped"), ("c", "Starting")];
    assert_eq!(seen, expected.map(|(id, reason)| (id.to_owned(), reason.to_owned())).into());
    assert_eq!(delete(&mut fixture.client, "b").await, Ok(true));
    assert_eq!(watch.words("-").await, ["=Deleting", "-"]);
}

#[tokio::test]
async fn a_watcher_that_does_not_read_learns_how_everything_is_in_the_end() {
    let mut fixture = Fixture::new().await;
    for number in 0..8 {
        fixture.create(&format!("s{number}")).await.expect("created");
    }
    fixture.wait_for_running(8).await;
    let mut slow = connect_with(&fixture.socket(), Some(16 << 10)).await;
    let mut watch = watch(&mut slow).await;
    // Far more changes than any buffer on the way holds.
    for round in 0..400 {
        for number in 0..8 {
            let id = format!("s{number}");
            let done = if round % 2 == 0 {
                stop(&mut fixture.client, &id).await
            } else {
                start(&mut fixture.client, &id).await
            };
            done.expect("done");
        }
    }
    for number in 0..4 {
        stop(&mut fixture.client, &format!("s{number}")).await.expect("stopped");
        assert_eq!(delete(&mut fixture.client, &format!("s{number}")).await, Ok(true));
    }
    fixture.create("last").await.expect("created");
    let (mut state, mut read) = (BTreeMap::new(), 0);
    let expected = ["last", "s4", "s5", "s6", "s7"];
    loop {
        match watch.next().await.expect("a change") {
            Payload::Sandbox(event) => {
                let sandbox = event.sandbox.expect("a sandbox");
                state.insert(sandbox.id.clone(), first_condition(&sandbox).reason);
            }
            Payload::Deleted(event) => {
                state.remove(&event.sandbox_id);
            }
            Payload::PlatformEvent(_) => {}
        }
        read += 1;
        let settled = state.values().all(|reason| reason == "Starting");
        if settled && state.keys().map(String::as_str).eq(expected) {
            break;
        }
    }
    assert!(read < 8000, "{read} changes were read: nothing was left out, so nothing was tested");
}

#[tokio::test]
async fn a_guest_that_cannot_reach_its_gateway_is_heard() {
    let mut fixture = Fixture::new().await;
    fixture
        .stub
        .set_said("openshell-supervisor: gateway NOT reachable at host.openshell.internal:1");
    fixture.create("a").await.expect("created");
    fixture.wait_for_running(1).await;
    let mut client = fixture.client.clone();
    let heard = async {
        loop {
            let found = condition(&mut client, "a").await.expect("there");
            if found.message.contains("NOT reachable") {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let found = tokio::time::timeout(crate::fixture::PATIENCE, heard).await.expect("heard");
    assert_eq!((&*found.reason, &*found.status), ("Starting", "False"), "a reason that may pass");
}

#[tokio::test]
async fn watchers_are_bounded_and_places_are_given_back() {
    let mut fixture = Fixture::new().await;
    let mut watches = Vec::new();
    for _ in 0..64 {
        watches.push(fixture.watch().await);
    }
    let request = pb::WatchSandboxesRequest::default();
    let refused = fixture.client.watch_sandboxes(request).await.expect_err("too many");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    drop(watches);
    let mut client = fixture.client.clone();
    let free = async {
        while client.watch_sandboxes(pb::WatchSandboxesRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::fixture::PATIENCE, free).await.expect("free again");
}
