use SandboxPhase::{Deleting, Error, Provisioning, Ready, Starting, Stopped, Stopping};
use tonic::Code;

use super::*;
use crate::watch::Heard;

const NAME: &str = "name-a";

#[tokio::test]
async fn create_leaves_a_row_only_if_the_driver_accepts() {
    for (refusal, code) in [
        (None, None),
        (Some(Status::already_exists("d")), Some(Code::AlreadyExists)),
        (Some(Status::failed_precondition("d")), Some(Code::FailedPrecondition)),
        (Some(Status::invalid_argument("d")), Some(Code::Internal)),
        (Some(Status::unavailable("d")), Some(Code::Internal)),
    ] {
        let core = Core::new().await;
        if let Some(refusal) = refusal {
            core.fake.refuse("create", refusal);
        }
        let wanted = snapshot("a", None);
        let made = core.compute.create(row("a", SandboxPhase::Unspecified), wanted).await;
        assert_eq!(made.as_ref().err().map(Status::code), code);
        assert_eq!(core.row().await.is_some(), code.is_none());
        if let Ok(made) = made {
            assert_eq!(phase_of(&made), Provisioning);
            let again = core.compute.create(row("a", Provisioning), snapshot("a", None)).await;
            assert_eq!(again.unwrap_err().code(), Code::AlreadyExists);
            assert!(core.row().await.is_some());
        }
    }
}

#[tokio::test]
async fn stop_and_start_follow_durable_state_machine() {
    let mut core = Core::with(Provisioning).await;
    let refused = core.compute.stop("default", NAME).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    core.connect("i").await;
    let mut follower = core.compute.bus().follow("a");
    let row = core.compute.stop("default", NAME).await.unwrap();
    assert_eq!(phase_of(&row), Stopped);
    assert_eq!(follower.next().await, Heard::Changed);
    assert!(!core.compute.sessions().has_session("a"), "the session ends with the machine");
    core.is(Stopped, "Stopped").await;
    assert_eq!(core.row().await.unwrap().status.unwrap().main_process_instance_id, "i");
    core.compute.stop("default", NAME).await.unwrap();
    core.compute.start("default", NAME).await.unwrap();
    core.is(Starting, "Starting").await;
    core.compute.start("default", NAME).await.unwrap();
    core.connect("j").await;
    core.is(Ready, "DependenciesReady").await;
    core.compute.start("default", NAME).await.unwrap();
    assert_eq!(core.fake.calls(), ["stop a", "start a", "start a"]);
    assert_eq!(core.compute.stop("default", "x").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_stop_that_fails_can_be_tried_again() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    core.fake.refuse("stop", Status::unavailable("busy"));
    let refused = core.compute.stop("default", NAME).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    core.is(Stopping, "Stopping").await;
    core.fake.refuse.lock().unwrap().clear();
    core.compute.stop("default", NAME).await.unwrap();
    core.is(Stopped, "Stopped").await;
}

#[tokio::test]
async fn starting_uses_previous_main_process_instance_as_exit_tombstone() {
    let mut core = Core::with(Provisioning).await;
    core.connect("old").await;
    core.compute.stop("default", NAME).await.unwrap();
    core.compute.start("default", NAME).await.unwrap();
    core.exit("old", 137).await;
    core.is(Starting, "Starting").await;
    core.exit("new", 1).await;
    core.is(Error, "MainProcessExited").await;
}

#[tokio::test]
async fn a_caller_that_goes_away_strands_no_row() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    let paused = core.fake.pause.write().await;
    let stop = tokio::spawn({
        let compute = core.compute.clone();
        async move { compute.stop("default", NAME).await }
    });
    core.becomes(Stopping).await;
    stop.abort();
    assert!(stop.await.unwrap_err().is_cancelled());
    drop(paused);
    core.becomes(Stopped).await;
}

#[tokio::test]
async fn delete_removes_the_row_and_all_that_hangs_on_it() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    let mut follower = core.compute.bus().follow("a");
    assert!(core.compute.delete("default", NAME).await.unwrap());
    assert!(!core.compute.delete("default", NAME).await.unwrap());
    assert_eq!(core.row().await, None);
    assert!(core.compute.sessions().is_empty());
    assert_eq!(core.compute.bus().topics(), 0);
    loop {
        if follower.next().await == Heard::Gone {
            break;
        }
    }
}

#[tokio::test]
async fn delete_error_with_absent_backend_removes_gateway_row() {
    let core = Core::with(Provisioning).await;
    core.fake.sandboxes.lock().unwrap().clear();
    core.fake.refuse("delete", Status::internal("disk"));
    let error = core.compute.delete("default", NAME).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert_eq!(core.row().await, None);
}

#[tokio::test]
async fn delete_error_recovers_from_current_driver_snapshot() {
    let core = Core::with(Provisioning).await;
    core.fake.set(snapshot("a", failed()));
    core.fake.refuse("delete", Status::internal("disk"));
    core.compute.delete("default", NAME).await.unwrap_err();
    core.is(Error, "ProcessExited").await;
    assert_eq!(core.row().await.unwrap().meta().unwrap().deletion_timestamp_ms, 0);
}

#[tokio::test]
async fn delete_error_rolls_back_when_driver_lookup_fails() {
    let mut core = Core::with(Provisioning).await;
    core.connect("i").await;
    core.fake.refuse("delete", Status::internal("disk"));
    core.fake.refuse("find", Status::unavailable("busy"));
    core.compute.delete("default", NAME).await.unwrap_err();
    core.is(Ready, "DependenciesReady").await;
    core.disconnect().await;
    core.is(Provisioning, "DependenciesNotReady").await;
}

#[tokio::test]
async fn delete_error_does_not_resurrect_row_removed_by_watcher() {
    let core = Core::with(Provisioning).await;
    core.fake.refuse("delete", Status::internal("disk"));
    let paused = core.fake.pause.write().await;
    let remover = async {
        core.becomes(Deleting).await;
        core.compute.0.forget("a").await.unwrap();
        drop(paused);
    };
    let (deleted, ()) = tokio::join!(core.compute.delete("default", NAME), remover);
    assert!(deleted.is_err());
    assert_eq!(core.row().await, None);
}
