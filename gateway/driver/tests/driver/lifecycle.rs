//! Create, stop, start, delete, the end of a machine, and a driver that starts again.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use openshell_driver_vm::backend::stub::Stub;
use openshell_driver_vm::backend::{Ended, Stop};
use openshell_driver_vm::sandbox::Settings;
use openshell_proto::compute::v1 as pb;
use prost::Message as _;
use tonic::Code;

use crate::fixture::{
    Fixture, condition, create, delete, get, list, sandbox, settings, start, stop, until,
};

fn ended(code: i32, ran: bool) -> Ended {
    Ended { code, ran, message: format!("VM process exited with status {code}") }
}

#[tokio::test]
async fn sandbox_request_metadata_round_trips_for_start() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    let path = fixture.sandbox("a").join("sandbox.pb");
    let kept = fs::read(&path).expect("read");
    assert_eq!(pb::DriverSandbox::decode(&kept[..]).expect("a request"), sandbox("a"));
    let mode = |path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(path), mode(fixture.sandbox("a"))), (0o600, 0o700));
    fixture.wait_for_running(1).await;
    stop(&mut fixture.client, "a").await.expect("stopped");
    start(&mut fixture.client, "a").await.expect("started");
    fixture.wait_for_running(1).await;
    let spec = fixture.stub.spec("a").expect("it runs");
    let token = spec.guest.files.iter().find(|file| file.path.ends_with("sandbox.jwt"));
    assert_eq!(token.expect("a token").bytes, b"secret-token\n");
}

#[tokio::test]
async fn duplicate_create_keeps_existing_state_dir() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    let before = fs::read(fixture.sandbox("a").join("sandbox.pb")).expect("read");
    let mut other = sandbox("a");
    other.name = "other".to_owned();
    assert_eq!(create(&mut fixture.client, other).await, Err(Code::AlreadyExists));
    let after = fs::read(fixture.sandbox("a").join("sandbox.pb")).expect("read");
    assert_eq!(before, after);
    assert_eq!(get(&mut fixture.client, "a", "").await.expect("there").name, "name-a");
}

#[tokio::test]
async fn stop_and_start_are_idempotent_and_keep_the_mark() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    fixture.wait_for_running(1).await;
    let mark = fixture.sandbox("a").join("stopped");
    for _ in 0..2 {
        stop(&mut fixture.client, "a").await.expect("stopped");
        assert!(mark.exists());
        assert_eq!(fixture.stub.running(), 0);
        let found = fixture.condition("a").await;
        assert_eq!(
            (&*found.kind, &*found.status, &*found.reason),
            ("Stopped", "True", "ComputeStopped")
        );
        assert_eq!(found.count, 2, "Suspended beside Stopped");
    }
    assert_eq!(fixture.stub.stops(), [Stop::Orderly]);
    for _ in 0..3 {
        start(&mut fixture.client, "a").await.expect("started");
        assert!(!mark.exists());
    }
    fixture.wait_for_running(1).await;
    assert_eq!(fixture.stub.started(), 2);
    assert_eq!(fixture.condition("a").await.reason, "Starting");
    assert!(!fixture.sandbox("a").join("main-process-exited").exists());
}

#[tokio::test]
async fn failed_start_preserves_stopped_state() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    fixture.wait_for_running(1).await;
    stop(&mut fixture.client, "a").await.expect("stopped");
    fs::write(fixture.sandbox("a").join("sandbox.pb"), "\u{ff}not a request").expect("written");
    assert_eq!(start(&mut fixture.client, "a").await, Err(Code::Internal));
    assert!(fixture.sandbox("a").join("stopped").exists());
    assert_eq!(fixture.condition("a").await.kind, "Stopped");
}

#[tokio::test]
async fn prepare_sandbox_overlay_preserves_existing_overlay_on_start() {
    let mut fixture = Fixture::new().await;
    fixture.stub.set_disks(true);
    fixture.create("a").await.expect("created");
    fixture.wait_for_running(1).await;
    let disk = fixture.sandbox("a").join("overlay.ext4");
    stop(&mut fixture.client, "a").await.expect("stopped");
    let file = fs::OpenOptions::new().write(true).open(&disk).expect("opened");
    std::os::unix::fs::FileExt::write_all_at(&file, b"the user's", 4096).expect("written");
    start(&mut fixture.client, "a").await.expect("started");
    fixture.wait_for_running(1).await;
    assert_eq!(&fs::read(&disk).expect("read")[4096..4106], b"the user's");
    stop(&mut fixture.client, "a").await.expect("stopped");
    file.set_len(32 << 20).expect("cut");
    assert_eq!(start(&mut fixture.client, "a").await, Err(Code::Internal), "another size");
    assert!(fixture.sandbox("a").join("stopped").exists());
}

#[tokio::test]
async fn the_end_of_a_machine_is_terminal_whatever_its_status() {
    let mut fixture = Fixture::new().await;
    for (id, code) in [("zero", 0), ("seven", 7)] {
        fixture.create(id).await.expect("created");
        until(|| fixture.stub.end(id, Ok(ended(code, true)))).await;
        let found = fixture.wait_for(id, "ProcessExited").await;
        assert_eq!((&*found.kind, &*found.status), ("Ready", "False"));
        assert!(found.message.contains(&format!("status {code}")), "{}", found.message);
        let mark = fs::read_to_string(fixture.sandbox(id).join("main-process-exited"));
        assert_eq!(mark.expect("a mark").trim_end(), found.message);
        start(&mut fixture.client, id).await.expect("nothing to do");
        assert_eq!(fixture.condition(id).await.reason, "ProcessExited");
    }
    assert_eq!(fixture.stub.running(), 0);
    stop(&mut fixture.client, "zero").await.expect("stopped");
    start(&mut fixture.client, "zero").await.expect("started by a user");
    fixture.wait_for_running(1).await;
    assert!(!fixture.sandbox("zero").join("main-process-exited").exists());
}

#[tokio::test]
async fn a_machine_whose_end_cannot_be_told_is_killed() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    until(|| fixture.stub.end("a", Err("no child".to_owned()))).await;
    let found = fixture.wait_for("a", "ProcessPollFailed").await;
    assert!(found.message.contains("no child"));
    assert_eq!(fixture.stub.stops(), [Stop::Now]);
}

#[tokio::test]
async fn delete_sandbox_cleans_provisioning_record_without_process() {
    let mut fixture = Fixture::new().await;
    fixture.stub.set_refusal(Some("manifest unknown"));
    fixture.create("a").await.expect("accepted");
    let found = fixture.wait_for("a", "ProvisioningFailed").await;
    assert!(found.message.contains("manifest unknown"));
    assert!(!fixture.sandbox("a").exists(), "nothing is left of a fresh sandbox");
    assert_eq!(delete(&mut fixture.client, "a").await, Ok(true));
    assert_eq!(delete(&mut fixture.client, "a").await, Ok(false));
    assert!(list(&mut fixture.client).await.is_empty());
}

#[tokio::test]
async fn a_host_that_cannot_run_machines_fails_the_start_and_not_the_sandbox() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    fixture.wait_for_running(1).await;
    stop(&mut fixture.client, "a").await.expect("stopped");
    start(&mut fixture.client, "a").await.expect("started");
    until(|| fixture.stub.end("a", Ok(ended(125, false)))).await;
    fixture.wait_for("a", "ProvisioningFailed").await;
    assert!(!fixture.sandbox("a").join("main-process-exited").exists());
    start(&mut fixture.client, "a").await.expect("tried again");
    fixture.wait_for_running(1).await;
}

#[tokio::test]
async fn delete_during_provisioning_leaves_nothing() {
    let mut fixture = Fixture::new().await;
    fixture.stub.set_prepare_time(Duration::from_secs(3600));
    fixture.create("a").await.expect("created");
    until(|| fixture.stub.spec("a").is_some()).await;
    assert_eq!(delete(&mut fixture.client, "a").await, Ok(true));
    assert!(!fixture.sandbox("a").exists());
    assert_eq!(fixture.stub.started(), 0);
    fixture.create("a").await.expect("the id is free");
}

#[tokio::test]
async fn stop_during_provisioning_is_kept_for_a_later_start() {
    let mut fixture = Fixture::new().await;
    fixture.stub.set_prepare_time(Duration::from_secs(3600));
    fixture.create("a").await.expect("created");
    until(|| fixture.stub.spec("a").is_some()).await;
    stop(&mut fixture.client, "a").await.expect("stopped");
    assert!(fixture.sandbox("a").join("stopped").exists());
    fixture.stub.set_prepare_time(Duration::ZERO);
    start(&mut fixture.client, "a").await.expect("started");
    fixture.wait_for_running(1).await;
}

#[tokio::test]
async fn delete_sandbox_keeps_registry_entry_when_cleanup_fails() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    fixture.wait_for_running(1).await;
    let (path, aside) = (fixture.sandbox("a"), fixture.state().join("aside"));
    fs::rename(&path, &aside).expect("moved");
    symlink(&aside, &path).expect("linked");
    assert_eq!(delete(&mut fixture.client, "a").await, Err(Code::Internal));
    let found = fixture.condition("a").await;
    assert!(found.deleting && found.reason == "Deleting", "{found:?}");
    assert_eq!(start(&mut fixture.client, "a").await, Err(Code::FailedPrecondition));
    assert!(aside.join("sandbox.pb").exists());
    fs::remove_file(&path).expect("removed");
    fs::rename(&aside, &path).expect("moved back");
    assert_eq!(delete(&mut fixture.client, "a").await, Ok(true));
    assert!(!path.exists());
}

#[tokio::test]
async fn one_sandbox_is_worked_on_by_one_request_at_a_time() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..60 {
        let mut client = fixture.client.clone();
        tasks.spawn(async move {
            let done = match number % 3 {
                0 => stop(&mut client, "a").await,
                1 => start(&mut client, "a").await,
                _ => condition(&mut client, "a").await.map(drop),
            };
            done.expect("in some order");
        });
    }
    tasks.join_all().await;
    stop(&mut fixture.client, "a").await.expect("stopped");
    assert_eq!(fixture.stub.running(), 0);
    start(&mut fixture.client, "a").await.expect("started");
    fixture.wait_for_running(1).await;
    let mut deletes = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = fixture.client.clone();
        deletes.spawn(async move { delete(&mut client, "a").await.expect("in some order") });
    }
    let deleted = deletes.join_all().await;
    assert_eq!(deleted.iter().filter(|deleted| **deleted).count(), 1, "{deleted:?}");
    assert_eq!(fixture.stub.running(), 0);
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_nothing_half_done() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    fixture.wait_for_running(1).await;
    for _ in 0..20 {
        let mut client = fixture.client.clone();
        let asked = tokio::spawn(async move { delete(&mut client, "a").await });
        tokio::task::yield_now().await;
        asked.abort();
    }
    delete(&mut fixture.client, "a").await.expect("in some order");
    assert!(!fixture.sandbox("a").exists());
    assert_eq!(fixture.stub.running(), 0);
    fixture.create("a").await.expect("the id is free");
}

#[tokio::test]
async fn a_driver_that_starts_again_brings_back_what_ran() {
    let mut fixture = Fixture::new().await;
    for id in ["runs", "stopped", "ended"] {
        fixture.create(id).await.expect("created");
    }
    fixture.wait_for_running(3).await;
    stop(&mut fixture.client, "stopped").await.expect("stopped");
    assert!(fixture.stub.end("ended", Ok(ended(3, true))));
    let told = fixture.wait_for("ended", "ProcessExited").await;
    fs::create_dir(fixture.sandbox("empty")).expect("made");
    fs::create_dir(fixture.sandbox("alien")).expect("made");
    fs::copy(
        fixture.sandbox("runs").join("sandbox.pb"),
        fixture.sandbox("alien").join("sandbox.pb"),
    )
    .expect("copied");
    let mut fixture = fixture.restart(settings()).await;
    fixture.wait_for_running(1).await;
    assert_eq!(list(&mut fixture.client).await.len(), 3);
    assert!(fixture.stub.spec("runs").is_some());
    assert_eq!(fixture.condition("runs").await.reason, "Starting");
    assert_eq!(fixture.condition("stopped").await.kind, "Stopped");
    let again = fixture.condition("ended").await;
    assert_eq!((&*again.reason, &again.message), ("ProcessExited", &told.message));
    start(&mut fixture.client, "runs").await.expect("it was started already");
    assert_eq!(fixture.stub.started(), 1);
}

#[tokio::test]
async fn startup_does_not_restore_terminal_canonical_process() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    until(|| fixture.stub.end("a", Ok(ended(0, true)))).await;
    fixture.wait_for("a", "ProcessExited").await;
    let mut fixture = fixture.restart(settings()).await;
    assert_eq!(fixture.condition("a").await.reason, "ProcessExited");
    assert_eq!(fixture.stub.started(), 0);
}

#[tokio::test]
async fn a_request_that_no_longer_holds_is_told_and_kept() {
    let mut fixture = Fixture::new().await;
    let mut asked = sandbox("a");
    asked.spec.as_mut().expect("a spec").template = None;
    create(&mut fixture.client, asked).await.expect("created");
    fixture.wait_for_running(1).await;
    let none = Settings { default_image: None, ..settings() };
    let mut fixture = fixture.restart(none).await;
    let found = fixture.condition("a").await;
    assert_eq!(found.reason, "ProvisioningFailed");
    assert!(found.message.contains("template.image"), "{}", found.message);
    assert!(fixture.sandbox("a").join("sandbox.pb").exists());
    let mut fixture = fixture.restart(settings()).await;
    fixture.wait_for_running(1).await;
    assert_eq!(fixture.condition("a").await.reason, "Starting");
}

#[tokio::test]
async fn a_driver_that_ends_ends_its_machines_and_marks_nothing() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    fixture.wait_for_running(1).await;
    let watch = fixture.watch().await;
    let directory = fixture.sandbox("a");
    let (place, stub) = fixture.stop().await;
    assert_eq!((stub.running(), stub.stops()), (0, vec![Stop::Orderly]));
    assert!(!directory.join("stopped").exists());
    assert!(!directory.join("main-process-exited").exists());
    assert!(!place.path().join("run/driver.sock").exists());
    drop(watch);
}

#[tokio::test]
async fn a_guest_that_hangs_while_it_boots_is_ended_and_says_how_far_it_came() {
    let limit = Duration::from_millis(50);
    let settings = Settings { boot_limit: limit, ..settings() };
    let mut fixture = Fixture::with(settings, Stub::default()).await;
    fixture.create("boots").await.expect("created");
    fixture.wait_for_running(1).await;
    fixture.stub.set_hang(true);
    fixture.create("hangs").await.expect("created");
    let found = fixture.wait_for("hangs", "ProcessExited").await;
    for part in ["did not boot within 0 s", "status 143", "last phase completed: kernel_entry"] {
        assert!(found.message.contains(part), "no {part:?} in {}", found.message);
    }
    assert!(fixture.sandbox("hangs").join("main-process-exited").exists());
    // One that has booted may take its time.
    tokio::time::sleep(2 * limit).await;
    assert_eq!(fixture.condition("boots").await.reason, "Starting");
    assert_eq!(fixture.stub.running(), 1);
}
