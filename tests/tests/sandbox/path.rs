//! One sandbox from its creation to its deletion, over all that a user does with it meanwhile.

use std::time::Instant;

use openshell_proto::v1::sandbox_stream_event::Payload;
use openshell_proto::v1::{SandboxPhase, WatchSandboxRequest};

use crate::rig::{Rig, Wanted, command, id, phase, say};

/// From the request to the first output of a command, by phases.
#[tokio::test]
async fn a_command_runs_in_a_new_sandbox() {
    let rig = Rig::start().await;
    let begin = Instant::now();
    let mut phases = Vec::new();
    let row = rig.create("first", Wanted::default()).await.unwrap();
    phases.push(("accepted".to_owned(), begin.elapsed()));
    assert_ne!(phase(&row), SandboxPhase::Ready);
    let request = WatchSandboxRequest {
        id: id(&row),
        follow_status: true,
        follow_events: true,
        event_tail: 100,
        stop_on_terminal: true,
        ..Default::default()
    };
    let mut watch = rig.client().watch_sandbox(request).await.unwrap().into_inner();
    while let Some(event) = watch.message().await.unwrap() {
        match event.payload {
            Some(Payload::Event(event)) => phases.push((event.reason, begin.elapsed())),
            Some(Payload::Sandbox(row)) if phase(&row) == SandboxPhase::Ready => {
                phases.push(("Ready".to_owned(), begin.elapsed()));
            }
            Some(Payload::Sandbox(row)) => assert_ne!(phase(&row), SandboxPhase::Error, "{row:#?}"),
            _ => {}
        }
    }
    let said = rig.exec(command(&id(&row), &["echo", "smoke-ok"])).await.unwrap();
    phases.push(("output".to_owned(), begin.elapsed()));
    assert_eq!((said.text().as_str(), said.code), ("smoke-ok\n", Some(0)));
    for (name, at) in phases {
        say(&format!("create to exec: {name:<20} {:>8.3} s", at.as_secs_f64()));
    }
}
