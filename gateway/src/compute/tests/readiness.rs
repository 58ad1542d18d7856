use SandboxPhase::{Deleting, Error, Provisioning, Ready, Starting, Stopped, Stopping, Unknown};

use super::*;

#[tokio::test]
async fn apply_sandbox_update_promotes_connected_supervisor_session_to_ready() {
    let mut core = Core::new().await;
    // The session is there before the row is.
    core.connect("i").await;
    core.add("a", Provisioning).await;
    core.says(starting()).await;
    core.is(Ready, "DependenciesReady").await;
    assert_eq!(core.row().await.unwrap().status.unwrap().main_process_instance_id, "i");
}

#[tokio::test]
async fn supervisor_session_connected_promotes_store_state_without_driver_refresh() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    core.is(Ready, "DependenciesReady").await;
    assert!(core.fake.calls().is_empty());
}

#[tokio::test]
async fn supervisor_session_disconnected_demotes_ready_sandbox() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    core.disconnect().await;
    core.is(Provisioning, "DependenciesNotReady").await;
    core.connect("i").await;
    core.is(Ready, "DependenciesReady").await;
}

#[tokio::test]
async fn a_superseded_session_demotes_nothing() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    core.connect("j").await;
    let (old, _) = core.held.remove(0);
    core.compute.sessions().remove_if_current("a", &old.session_id).await;
    core.is(Ready, "DependenciesReady").await;
    assert_eq!(core.row().await.unwrap().status.unwrap().main_process_instance_id, "j");
}

#[tokio::test]
async fn backend_ready_without_supervisor_stays_provisioning() {
    let core = Core::with(Provisioning).await;
    core.says(backend_ready()).await;
    core.is(Provisioning, "SupervisorNotConnected").await;
}

#[tokio::test]
async fn backend_ready_with_supervisor_becomes_ready() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    core.says(backend_ready()).await;
    core.is(Ready, "DependenciesReady").await;
}

#[tokio::test]
async fn backend_not_ready_with_supervisor_becomes_ready() {
    let mut core = Core::with(Unknown).await;
    core.connect("i").await;
    core.says(starting()).await;
    core.is(Ready, "DependenciesReady").await;
}

#[tokio::test]
async fn terminal_failure_ignores_supervisor_session() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    core.says(failed()).await;
    core.is(Error, "ProcessExited").await;
    core.connect("j").await;
    core.says(backend_ready()).await;
    core.is(Error, "ProcessExited").await;
}

#[tokio::test]
async fn later_driver_ready_without_session_does_not_repromote() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    core.disconnect().await;
    core.says(backend_ready()).await;
    core.is(Provisioning, "SupervisorNotConnected").await;
}

#[tokio::test]
async fn phases_that_sessions_and_snapshots_do_not_leave() {
    for phase in [Deleting, Error, Stopped] {
        let mut core = Core::with(phase).await;
        let before = core.row().await;
        core.connect("i").await;
        for status in [
            None,
            starting(),
            backend_ready(),
            failed(),
            condition("Ready", "False", "ContainerExited"),
        ] {
            core.says(status).await;
        }
        core.disconnect().await;
        assert_eq!(core.row().await, before, "{phase:?}");
    }
}

#[tokio::test]
async fn apply_sandbox_update_without_status_preserves_existing_status() {
    let mut core = Core::with(Provisioning).await;
    core.says(backend_ready()).await;
    let before = core.row().await;
    core.says(None).await;
    assert_eq!(core.row().await, before);
    core.connect("i").await;
    core.says(None).await;
    core.is(Ready, "DependenciesReady").await;
}

#[tokio::test]
async fn unknown_watch_snapshot_does_not_create_gateway_state() {
    let core = Core::new().await;
    core.says(backend_ready()).await;
    assert_eq!(core.row().await, None);
}

#[tokio::test]
async fn stopped_container_snapshot_confirms_stopping_sandbox() {
    for status in [
        condition("Ready", "False", "ContainerExited"),
        condition("Ready", "False", "containerstopped"),
        condition("Suspended", "True", "ComputeStopped"),
        condition("Stopped", "True", "ComputeStopped"),
    ] {
        let core = Core::with(Stopping).await;
        core.says(backend_ready()).await;
        core.is(Stopping, "").await;
        core.says(status).await;
        core.is(Stopped, "Stopped").await;
    }
}

#[tokio::test]
async fn starting_lasts_until_ready_or_error() {
    let mut core = Core::with(Starting).await;
    for status in [starting(), backend_ready(), condition("Suspended", "True", "")] {
        core.says(status).await;
        core.is(Starting, "").await;
    }
    core.connect("i").await;
    core.is(Ready, "DependenciesReady").await;
    let core = Core::with(Starting).await;
    core.says(failed()).await;
    core.is(Error, "ProcessExited").await;
}

#[tokio::test]
async fn main_process_exit_zero_is_terminal_error() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    core.exit("i", 0).await;
    core.is(Error, "MainProcessExited").await;
    assert_eq!(core.row().await.unwrap().status.unwrap().exit_code, Some(0));
}

#[tokio::test]
async fn stale_main_process_exit_is_acknowledged_without_replacing_active_instance() {
    let mut core = Core::with(Provisioning).await;
    core.connect("new").await;
    let before = core.row().await;
    core.exit("old", 1).await;
    assert_eq!(core.row().await, before);
}

#[tokio::test]
async fn missing_sandbox_main_process_exit_is_acknowledged() {
    Core::new().await.exit("i", 1).await;
}

#[tokio::test]
async fn precise_exit_enriches_driver_terminal_fallback() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    core.says(failed()).await;
    core.exit("i", 137).await;
    core.is(Error, "MainProcessExited").await;
    assert_eq!(core.row().await.unwrap().status.unwrap().exit_code, Some(137));
}

#[tokio::test]
async fn intentional_stop_ignores_main_process_exit_report() {
    for phase in [Stopping, Stopped] {
        let core = Core::with(phase).await;
        core.exit("", 137).await;
        core.is(phase, "").await;
    }
}

#[tokio::test]
async fn a_main_process_may_end_before_its_first_session() {
    let core = Core::with(Provisioning).await;
    core.exit("i", 7).await;
    core.is(Error, "MainProcessExited").await;
}
