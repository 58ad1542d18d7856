use SandboxPhase::{Deleting, Error, Provisioning, Ready, Starting, Stopped, Stopping, Unknown};
use tonic::Code;

use super::*;

#[tokio::test]
async fn persisted_ready_is_not_trusted() {
    for (phase, after) in [(Ready, Provisioning), (Stopped, Stopped), (Error, Error)] {
        let core = Core::with(phase).await;
        assert_eq!(core.compute.distrust_persisted().await.unwrap(), 1);
        assert_eq!(phase_of(&core.row().await.unwrap()), after);
    }
}

#[tokio::test]
async fn start_persisted_sandboxes_starts_running_phases() {
    for (phase, called) in [
        (SandboxPhase::Unspecified, "start a"),
        (Provisioning, "start a"),
        (Ready, "start a"),
        (Starting, "start a"),
        (Unknown, "start a"),
        (Stopped, ""),
        (Error, ""),
        (Deleting, ""),
    ] {
        let core = Core::with(phase).await;
        core.compute.start_persisted_sandboxes(true).await.unwrap();
        assert_eq!(core.fake.calls().join(","), called, "{phase:?}");
        assert_eq!(phase_of(&core.row().await.unwrap()), phase);
    }
}

#[tokio::test]
async fn startup_recovery_completes_stopped_session_cleanup() {
    let mut core = Core::with(Stopping).await;
    core.connect("i").await;
    core.compute.start_persisted_sandboxes(true).await.unwrap();
    core.is(Stopped, "Stopped").await;
    assert!(core.compute.sessions().is_empty());
}

#[tokio::test]
async fn start_persisted_sandboxes_marks_missing_backend_as_error() {
    for phase in [Provisioning, Stopping] {
        let core = Core::with(phase).await;
        core.fake.sandboxes.lock().unwrap().clear();
        core.compute.start_persisted_sandboxes(true).await.unwrap();
        core.is(Error, "BackendResourceMissing").await;
    }
}

#[tokio::test]
async fn start_persisted_sandboxes_marks_failed_start_as_error() {
    let core = Core::with(Provisioning).await;
    core.fake.refuse("start", Status::internal("no memory"));
    core.compute.start_persisted_sandboxes(true).await.unwrap();
    core.is(Error, "StartFailed").await;
}

#[tokio::test]
async fn startup_sweep_rechecks_intent_after_acquiring_gate() {
    let core = Core::with(Provisioning).await;
    let gate = core.compute.0.gate("a").await;
    let sweep = tokio::spawn({
        let compute = core.compute.clone();
        async move { compute.start_persisted_sandboxes(true).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    core.compute.0.forget("a").await.unwrap();
    drop(gate);
    sweep.await.unwrap().unwrap();
    assert!(core.fake.calls().is_empty());
}

#[tokio::test]
async fn shutdown_stops_running_intent_without_changing_persisted_phase() {
    let core = Core::with(Provisioning).await;
    core.add("b", Stopped).await;
    core.compute.shutdown(true).await.unwrap();
    assert_eq!(core.fake.calls(), ["stop a"]);
    assert_eq!(phase_of(&core.row().await.unwrap()), Provisioning);
    // The loops have ended: what the driver says of its stops is not written.
    core.compute.follow_driver().await;
    core.compute.reconcile_driver().await;
}

#[tokio::test]
async fn reconcile_store_with_backend_applies_driver_snapshot() {
    let core = Core::with(Provisioning).await;
    core.fake.set(snapshot("a", failed()));
    core.compute.reconcile_store_with_backend().await.unwrap();
    core.is(Error, "ProcessExited").await;
}

#[tokio::test]
async fn reconcile_store_with_backend_does_not_recreate_missing_record_from_snapshot() {
    let core = Core::new().await;
    core.fake.set(snapshot("a", starting()));
    core.compute.reconcile_store_with_backend().await.unwrap();
    assert_eq!(core.row().await, None);
}

#[tokio::test]
async fn reconcile_store_with_backend_rechecks_driver_before_pruning() {
    let core = Core::with(Provisioning).await;
    age(&core).await;
    // Not listed by then, but there: asked again, the driver knows it.
    core.compute.absent(&("a".into(), "name-a".into())).await.unwrap();
    assert!(core.row().await.is_some());
    core.fake.sandboxes.lock().unwrap().clear();
    core.fake.refuse("find", Status::unavailable("busy"));
    core.compute.reconcile_store_with_backend().await.unwrap();
    assert!(core.row().await.is_some(), "a driver that does not answer proves nothing");
}

#[tokio::test]
async fn reconcile_store_with_backend_removes_stale_provisioning_records() {
    let core = Core::with(Provisioning).await;
    core.fake.sandboxes.lock().unwrap().clear();
    core.compute.reconcile_store_with_backend().await.unwrap();
    assert!(core.row().await.is_some(), "it is young");
    age(&core).await;
    core.compute.reconcile_store_with_backend().await.unwrap();
    assert_eq!(core.row().await, None);
}

#[tokio::test]
async fn rows_in_transition_whose_compute_is_missing_are_errors() {
    for phase in [Stopping, Stopped, Starting] {
        let core = Core::with(phase).await;
        core.fake.sandboxes.lock().unwrap().clear();
        core.compute.reconcile_store_with_backend().await.unwrap();
        core.is(Error, "ComputeResourceMissing").await;
    }
}

#[tokio::test]
async fn errors_of_the_store_do_not_reach_callers() {
    let core = Core::with(Ready).await;
    core.compute.store().close().await;
    let error = core.compute.require_persisted_sandbox("a").await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Internal, "the gateway's store failed"));
}

async fn age(core: &Core) {
    let older = |row: &Sandbox| {
        let mut next = row.clone();
        next.meta_mut().created_at_ms -= 301_000;
        Some(next)
    };
    core.compute.store().update_message_cas("a", older).await.unwrap();
}
