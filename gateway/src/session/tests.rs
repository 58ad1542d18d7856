use std::sync::atomic::{AtomicUsize, Ordering};

use openshell_proto::v1::{
    RelayOpen, RelayOpenResult, SshRelayTarget, SupervisorHeartbeat, SupervisorMessage,
    supervisor_message,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Code;

use super::*;

const NO_PATIENCE: Duration = Duration::ZERO;

fn ssh() -> Target {
    Target::Ssh(SshRelayTarget {})
}

fn registry() -> Arc<Registry> {
    Registry::new(Limits::default())
}

fn relay_open(inbox: &mut Outbound) -> RelayOpen {
    match inbox.try_recv().unwrap().unwrap().payload.unwrap() {
        Payload::RelayOpen(open) => open,
        other => panic!("{other:?}"),
    }
}

/// A session that has been accepted, with its acceptance read.
fn accepted(registry: &Registry, sandbox: &str) -> (Session, Outbound) {
    let (session, mut inbox) = registry.register(sandbox, "instance");
    let first = inbox.try_recv().unwrap().unwrap().payload.unwrap();
    let Payload::SessionAccepted(message) = first else { panic!("{first:?}") };
    assert_eq!(message.session_id, session.session_id);
    assert_eq!(message.heartbeat_interval_secs, 15);
    (session, inbox)
}

fn silent() -> impl Stream<Item = Result<SupervisorMessage, Status>> + Send {
    tokio_stream::pending()
}

#[tokio::test]
async fn registry_register_and_lookup() {
    let registry = registry();
    assert!(registry.is_empty());
    let hello = SupervisorHello { sandbox_id: "a".into(), instance_id: "one".into() };
    let (session, _inbox) = registry.connect(&hello).await.unwrap();
    assert!(!session.superseded);
    assert_eq!(registry.instance("a").as_deref(), Some("one"));
    assert_eq!(registry.instance("b"), None);
    let nobody = SupervisorHello::default();
    assert_eq!(registry.connect(&nobody).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn registry_supersedes_previous_session() {
    let registry = registry();
    let (first, _inbox) = accepted(&registry, "a");
    let (second, _other) = registry.register("a", "two");
    assert!(second.superseded);
    assert_ne!(first.session_id, second.session_id);
    assert_eq!(registry.len(), 1);
    assert_eq!(registry.instance("a").as_deref(), Some("two"));
}

#[tokio::test]
async fn registry_remove() {
    let registry = registry();
    let (mut session, _inbox) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    assert!(registry.remove("a"));
    assert!(!registry.remove("a"));
    assert!((&mut session.over).await.is_err(), "the session learns that it is over");
    assert_eq!(relay.opened().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn remove_if_current_removes_matching_session() {
    let registry = registry();
    let (session, _inbox) = accepted(&registry, "a");
    assert!(registry.remove_if_current("a", &session.session_id).await);
    assert!(!registry.has_session("a"));
}

#[tokio::test]
async fn remove_if_current_ignores_stale_session_id() {
    let registry = registry();
    let (stale, _inbox) = accepted(&registry, "a");
    let (_session, _other) = accepted(&registry, "a");
    assert!(!registry.remove_if_current("a", &stale.session_id).await);
    assert!(registry.has_session("a"));
}

#[tokio::test]
async fn remove_if_current_unknown_sandbox_is_noop() {
    assert!(!registry().remove_if_current("a", "s").await);
}

#[tokio::test]
async fn open_relay_sends_relay_open_to_registered_session() {
    let registry = registry();
    let (_session, mut inbox) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "service", NO_PATIENCE).await.unwrap();
    let open = relay_open(&mut inbox);
    assert_eq!(open.channel_id, relay.channel_id);
    assert_eq!((open.target, open.service_id.as_str()), (Some(ssh()), "service"));
}

#[tokio::test(start_paused = true)]
async fn open_relay_times_out_without_session() {
    let begin = tokio::time::Instant::now();
    let error = registry().open_relay("a", ssh(), "", Duration::from_secs(15)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(error.message(), "supervisor session not connected");
    assert_eq!(begin.elapsed().as_secs(), 15);
}

#[tokio::test(start_paused = true)]
async fn open_relay_waits_for_session_to_appear() {
    let registry = registry();
    let later = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        registry.register("other", "x");
        registry.register("a", "x")
    };
    let open = registry.open_relay("a", ssh(), "", Duration::from_secs(15));
    let (relay, _session) = tokio::join!(open, later);
    assert!(relay.is_ok());
}

#[tokio::test]
async fn open_relay_fails_when_session_receiver_dropped() {
    let registry = registry();
    let (_session, inbox) = accepted(&registry, "a");
    drop(inbox);
    let error = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(registry.pending_relays(), 0);
}

#[tokio::test]
async fn open_relay_rejects_when_global_cap_reached() {
    let registry = Registry::new(Limits { pending: 3, ..Limits::default() });
    let mut held = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let session = accepted(&registry, name);
        let relay = registry.open_relay(name, ssh(), "", NO_PATIENCE).await;
        if name == "d" {
            assert_eq!(relay.as_ref().unwrap_err().code(), Code::ResourceExhausted);
        }
        held.push((session, relay));
    }
    // One requester goes away: its place is free at once.
    drop(held.remove(0));
    assert!(registry.open_relay("d", ssh(), "", NO_PATIENCE).await.is_ok());
}

#[tokio::test]
async fn open_relay_rejects_when_per_sandbox_cap_reached() {
    let registry = registry();
    let (_a, _inbox) = accepted(&registry, "a");
    let (_b, _other) = accepted(&registry, "b");
    let mut held = Vec::new();
    for _ in 0..32 {
        held.push(registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap());
    }
    let error = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(registry.open_relay("b", ssh(), "", NO_PATIENCE).await.is_ok());
}

#[tokio::test]
async fn open_relay_uses_newest_session_after_supersede() {
    let registry = registry();
    let (_first, mut old) = accepted(&registry, "a");
    let (_second, mut new) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    assert!(old.try_recv().is_err());
    assert_eq!(relay_open(&mut new).channel_id, relay.channel_id);
}

#[tokio::test]
async fn register_signals_shutdown_to_previous_session() {
    let registry = registry();
    let (first, _inbox) = accepted(&registry, "a");
    let (_second, _other) = accepted(&registry, "a");
    assert_eq!(registry.run(first, silent()).await, Ended::Superseded);
    assert!(registry.has_session("a"), "the end of the old session is not that of the new one");
}

#[tokio::test]
async fn replay_pending_relays_reissues_open_to_superseding_session() {
    let registry = registry();
    let (_first, _inbox) = accepted(&registry, "a");
    let (_other, _others) = accepted(&registry, "b");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    let _foreign = registry.open_relay("b", ssh(), "", NO_PATIENCE).await.unwrap();
    let (_second, mut new) = accepted(&registry, "a");
    assert_eq!(relay_open(&mut new).channel_id, relay.channel_id);
    assert!(new.try_recv().is_err(), "only its own");
    assert!(registry.claim_relay(&relay.channel_id, Claimant::Sandbox("a")).is_ok());
}

#[test]
fn expected_transport_close_is_nonfatal_only_during_shutdown() {
    for error in [Status::cancelled("closed"), Status::unavailable("going away")] {
        assert_eq!(end_of_transport(&error, true), Ended::Transport { expected: true });
        assert_eq!(end_of_transport(&error, false), Ended::Transport { expected: false });
    }
}

#[test]
fn unexpected_transport_error_stays_fatal_during_shutdown() {
    for error in [Status::internal("broken frame"), Status::data_loss("x")] {
        assert_eq!(end_of_transport(&error, true), Ended::Transport { expected: false });
    }
}

#[test]
fn claim_relay_unknown_channel() {
    let error = registry().claim_relay("c", Claimant::Sandbox("a")).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn claim_relay_success() {
    let registry = registry();
    let (_session, _inbox) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    let channel = relay.channel_id.clone();
    assert!(registry.claim_relay(&channel, Claimant::Sandbox("a")).is_ok());
    let again = registry.claim_relay(&channel, Claimant::Sandbox("a")).unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
}

#[tokio::test]
async fn claim_relay_rejects_cross_sandbox_principal_without_consuming_channel() {
    let registry = registry();
    let (_session, _inbox) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    let error = registry.claim_relay(&relay.channel_id, Claimant::Sandbox("b")).unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert!(registry.claim_relay(&relay.channel_id, Claimant::Sandbox("a")).is_ok());
}

#[tokio::test]
async fn claim_relay_rejects_user_principal() {
    let registry = registry();
    let (_session, _inbox) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    let error = registry.claim_relay(&relay.channel_id, Claimant::User).unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn claim_relay_expired_returns_deadline_exceeded() {
    let registry = registry();
    let (_session, _inbox) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    let error = registry.claim_relay(&relay.channel_id, Claimant::Sandbox("a")).unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert_eq!(relay.opened().await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn claim_relay_receiver_dropped_returns_internal() {
    let registry = registry();
    let (_session, _inbox) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    let channel = relay.channel_id.clone();
    drop(relay);
    let error = registry.claim_relay(&channel, Claimant::Sandbox("a")).unwrap_err();
    assert_eq!(error.code(), Code::Internal);
}

#[tokio::test]
async fn claim_relay_connects_both_ends() {
    let registry = registry();
    let (_session, _inbox) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    let mut far = registry.claim_relay(&relay.channel_id, Claimant::Sandbox("a")).unwrap();
    let mut near = relay.opened().await.unwrap();
    near.write_all(b"ping").await.unwrap();
    near.shutdown().await.unwrap();
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    far.write_all(b"pong").await.unwrap();
    drop(far);
    near.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"pingpong");
}

#[tokio::test]
async fn relay_open_failure_completes_pending_waiter() {
    let registry = registry();
    let (_session, _inbox) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    let mut result = RelayOpenResult {
        channel_id: relay.channel_id.clone(),
        success: true,
        error: "refused\x1b[2J".repeat(1000),
    };
    registry.relay_opened("a", &result);
    result.success = false;
    registry.relay_opened("b", &result);
    assert_eq!(registry.pending_relays(), 1, "success and the word of another change nothing");
    registry.relay_opened("a", &result);
    let error = relay.opened().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().len() < 300 && !error.message().contains('\x1b'), "{error}");
}

#[tokio::test(start_paused = true)]
async fn reap_expired_relays_removes_old_entries() {
    let registry = registry();
    let (_session, _inbox) = accepted(&registry, "a");
    let relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(registry.reap_expired_relays(), 1);
    assert_eq!(registry.pending_relays(), 0);
    assert_eq!(relay.opened().await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn reap_expired_relays_keeps_fresh_entries() {
    let registry = registry();
    let (_session, _inbox) = accepted(&registry, "a");
    let _relay = registry.open_relay("a", ssh(), "", NO_PATIENCE).await.unwrap();
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!(registry.reap_expired_relays(), 0);
    assert_eq!(registry.pending_relays(), 1);
}

#[tokio::test(start_paused = true)]
async fn three_missed_heartbeats_end_a_session() {
    let registry = registry();
    let (session, mut inbox) = accepted(&registry, "a");
    let beat = SupervisorMessage {
        payload: Some(supervisor_message::Payload::Heartbeat(SupervisorHeartbeat {})),
    };
    let inbound = tokio_stream::iter([Ok(beat.clone()), Ok(beat)])
        .then(|message| async move {
            tokio::time::sleep(Duration::from_secs(20)).await;
            message
        })
        .chain(silent());
    let begin = tokio::time::Instant::now();
    assert_eq!(registry.run(session, inbound).await, Ended::Silent);
    assert_eq!(begin.elapsed().as_secs(), 20 + 20 + 45);
    assert!(!registry.has_session("a"));
    let mut beats = 0;
    while inbox.try_recv().is_ok() {
        beats += 1;
    }
    assert_eq!(beats, 5, "the gateway's own, every 15 seconds");
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_does_not_read_is_let_go() {
    let registry = Registry::new(Limits { outbound: 2, ..Limits::default() });
    let (session, _inbox) = registry.register("a", "x");
    let beat = SupervisorMessage { payload: None };
    let inbound = tokio_stream::iter(std::iter::repeat_n(Ok(beat), 1000)).then(|m| async move {
        tokio::time::sleep(Duration::from_secs(10)).await;
        m
    });
    assert_eq!(registry.run(session, inbound).await, Ended::Stuck);
}

#[tokio::test]
async fn a_second_hello_ends_the_session() {
    let registry = registry();
    let (session, _inbox) = accepted(&registry, "a");
    let hello = SupervisorMessage {
        payload: Some(supervisor_message::Payload::Hello(SupervisorHello::default())),
    };
    let ended = registry.run(session, tokio_stream::iter([Ok(hello)])).await;
    assert_eq!(ended, Ended::Protocol);
}

/// Looks at the registry while it is told: it could not if the lock were held.
struct Curious {
    registry: Arc<Registry>,
    told: AtomicUsize,
}

#[tonic::async_trait]
impl Observer for Curious {
    async fn session_changed(&self, sandbox_id: &str) {
        let expected = self.told.fetch_add(1, Ordering::SeqCst) == 0;
        assert_eq!(self.registry.has_session(sandbox_id), expected);
    }
}

#[tokio::test]
async fn the_observer_is_called_outside_of_the_lock() {
    let registry = registry();
    let curious =
        Arc::new(Curious { registry: Arc::clone(&registry), told: AtomicUsize::default() });
    let observer: Weak<dyn Observer> = Arc::<Curious>::downgrade(&curious);
    registry.observe(observer);
    let hello = SupervisorHello { sandbox_id: "a".into(), instance_id: "i".into() };
    let (session, _inbox) = registry.connect(&hello).await.unwrap();
    assert_eq!(registry.run(session, tokio_stream::empty()).await, Ended::Closed);
    assert_eq!(curious.told.load(Ordering::SeqCst), 2);
}
