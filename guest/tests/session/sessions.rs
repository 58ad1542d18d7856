//! Hello, heartbeats, rejection, and gateways that go away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openshell_proto::v1::gateway_message::Payload as Theirs;
use openshell_proto::v1::supervisor_message::Payload as Ours;
use openshell_proto::v1::{GatewayHeartbeat, RelayOpen};
use tokio::time::timeout;

use crate::gateway::{Gateway, PATIENCE, State};
use crate::supervisor::Supervisor;

const MAIN: &str = "sleep 1000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_says_hello_and_beats() {
    let mut gateway = Gateway::start(Arc::default(), 0);
    let _supervisor = Supervisor::start(&gateway, MAIN);
    let mut session = gateway.session().await;
    assert_eq!(session.hello.sandbox_id, "sandbox-1");
    assert_eq!(session.hello.instance_id.len(), 36);
    let first = timeout(PATIENCE, session.incoming.message()).await.unwrap().unwrap().unwrap();
    assert!(matches!(first.payload, Some(Ours::Heartbeat(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_supervisor_tries_again() {
    let state = Arc::new(State::default());
    state.rejections.store(2, Ordering::SeqCst);
    let mut gateway = Gateway::start(state, 0);
    let _supervisor = Supervisor::start(&gateway, MAIN);
    gateway.session().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_killed_and_comes_back_has_the_same_session_again() {
    let mut gateway = Gateway::start(Arc::default(), 0);
    let _supervisor = Supervisor::start(&gateway, MAIN);
    let first = gateway.session().await.hello;
    for _ in 0..2 {
        let port = gateway.kill();
        gateway = Gateway::start(Arc::default(), port);
        assert_eq!(gateway.session().await.hello, first, "the main process is the same");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_the_gateway_closes_is_opened_again() {
    let mut gateway = Gateway::start(Arc::default(), 0);
    let _supervisor = Supervisor::start(&gateway, MAIN);
    drop(gateway.session().await);
    gateway.session().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_heart_stops_is_left() {
    let mut gateway = Gateway::start(Arc::default(), 0);
    let _supervisor = Supervisor::start(&gateway, MAIN);
    let silent = gateway.session().await;
    silent.send(Theirs::Heartbeat(GatewayHeartbeat {})).await;
    let again = timeout(Duration::from_secs(40), gateway.sessions.recv()).await;
    assert!(again.expect("a new session").is_some());
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_make_no_sense_end_nothing() {
    let mut gateway = Gateway::start(Arc::default(), 0);
    let _supervisor = Supervisor::start(&gateway, MAIN);
    let mut session = gateway.session().await;
    session.outgoing.send(Ok(Default::default())).await.unwrap();
    // A relay that nobody waits for: it is connected, and its stream is refused.
    session.send(Theirs::RelayOpen(RelayOpen::default())).await;
    assert!(matches!(session.message().await, Ours::RelayOpenResult(result) if result.success));
    let state = Arc::clone(&gateway.state);
    session.relay(&state, "real", None).await.unwrap();
}
