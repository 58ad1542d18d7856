//! Tests of the state directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use super::*;

fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).expect("an id")
}

fn state() -> (tempfile::TempDir, StateDir) {
    let place = tempfile::tempdir().expect("a directory");
    let state = StateDir::open(&place.path().join("state")).expect("a state directory");
    (place, state)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").permissions().mode() & 0o7777
}

#[test]
fn what_is_kept_is_only_for_its_owner() {
    let (_place, state) = state();
    let sandbox = state.create(&id("a"), b"secret").expect("made");
    sandbox.set_stopped(true).expect("stopped");
    sandbox.set_exited("why").expect("exited");
    for directory in [state.root(), &state.images(), &state.root().join("run"), sandbox.path()] {
        assert_eq!(mode(directory), 0o700, "{}", directory.display());
    }
    for name in ["sandbox.pb", "stopped", "main-process-exited"] {
        assert_eq!(mode(&sandbox.file(name)), 0o600, "{name}");
    }
}

#[test]
fn a_second_driver_is_refused() {
    let (_place, state) = state();
    let error = StateDir::open(state.root()).expect_err("held");
    assert!(error.to_string().ends_with("is served by another driver"), "{error}");
    let root = state.root().to_owned();
    drop(state);
    StateDir::open(&root).expect("free again");
}

#[test]
fn a_link_in_the_place_of_a_directory_is_refused() {
    let place = tempfile::tempdir().expect("a directory");
    let (real, link) = (place.path().join("real"), place.path().join("link"));
    fs::create_dir(&real).expect("made");
    symlink(&real, &link).expect("linked");
    assert!(matches!(StateDir::open(&link), Err(StateError::Refused { .. })));
    fs::write(place.path().join("file"), "").expect("written");
    assert!(StateDir::open(&place.path().join("file")).is_err());
}

#[test]
fn a_sandbox_is_there_with_its_request_or_not_at_all() {
    let (_place, state) = state();
    state.create(&id("b"), b"two").expect("made");
    state.create(&id("a"), b"one").expect("made");
    fs::create_dir(state.root().join("sandboxes/half")).expect("made");
    fs::write(state.root().join("sandboxes/file"), "").expect("written");
    symlink(state.sandbox(&id("a")).path(), state.root().join("sandboxes/link")).expect("linked");
    let found: Vec<_> = state.sandboxes().expect("read").into_iter().map(|(id, _)| id).collect();
    assert_eq!(found, [id("a"), id("b")]);
    assert_eq!(state.sandbox(&id("b")).request().expect("read"), b"two");

    let error = state.create(&id("a"), b"three").expect_err("there already");
    assert!(matches!(error, StateError::Io { action: "make", .. }), "{error}");
    assert_eq!(state.sandbox(&id("a")).request().expect("read"), b"one");
    state.create(&id("half"), b"whole").expect("nobody was told of the first half");
}

#[test]
fn marks_are_set_and_cleared_and_survive() {
    let (_place, state) = state();
    let sandbox = state.create(&id("a"), b"").expect("made");
    for stopped in [false, true, true, false, false] {
        sandbox.set_stopped(stopped).expect("written");
        assert_eq!(sandbox.is_stopped(), stopped);
    }
    assert_eq!(sandbox.exited(), None);
    sandbox.set_exited(&"é".repeat(10_000)).expect("written");
    assert_eq!(sandbox.exited().expect("there").len(), 8 << 10);
    sandbox.clear_exited().expect("cleared");
    assert_eq!(sandbox.exited(), None);
    let image = KeptImage { key: "ab12".into(), reference: "docker.io/library/x:1".into() };
    assert_eq!(sandbox.image(), None);
    sandbox.set_image(&image).expect("written");
    assert_eq!(sandbox.image(), Some(image));
}

#[test]
fn remove_sandbox_state_dir_rejects_paths_outside_state_root() {
    let (place, state) = state();
    let outside = place.path().join("outside");
    fs::create_dir(&outside).expect("made");
    let nested = state.create(&id("a"), b"").expect("made").file("nested");
    fs::create_dir(&nested).expect("made");
    for path in [&outside, &nested, &state.root().join("sandboxes"), &state.root().join("images")] {
        let error = state.remove_sandbox_state_dir(path).expect_err("refused");
        assert!(matches!(error, StateError::Refused { .. }), "{error}");
        assert!(path.is_dir());
    }
    let climbing = state.root().join("sandboxes/..");
    assert!(state.remove_sandbox_state_dir(&climbing).is_err());
}

#[test]
fn remove_sandbox_state_dir_rejects_symlinked_state_dir() {
    let (place, state) = state();
    let precious = place.path().join("precious");
    fs::create_dir(&precious).expect("made");
    symlink(&precious, state.sandbox(&id("a")).path()).expect("linked");
    let error = state.remove(&id("a")).expect_err("refused");
    assert!(error.to_string().contains("is a link"), "{error}");
    assert!(precious.is_dir());
}

#[test]
fn removing_is_one_step_and_is_finished_later() {
    let (_place, state) = state();
    state.create(&id("a"), b"").expect("made");
    state.remove(&id("a")).expect("removed");
    state.remove(&id("a")).expect("removed already");
    assert!(state.sandboxes().expect("read").is_empty());
    let left = state.root().join("trash/7-b");
    fs::create_dir(&left).expect("made");
    let root = state.root().to_owned();
    drop(state);
    StateDir::open(&root).expect("opened");
    assert!(!left.exists());
}

#[test]
fn a_disk_in_use_is_waited_for() {
    let (_place, state) = state();
    let sandbox = state.create(&id("a"), b"").expect("made");
    let short = Duration::from_millis(60);
    sandbox.wait_for_overlay(short).expect("no disk, nothing to wait for");
    let disk = File::create(sandbox.overlay()).expect("made");
    disk.lock().expect("locked");
    let error = sandbox.wait_for_overlay(short).expect_err("in use");
    assert!(error.to_string().contains("in use"), "{error}");
    drop(disk);
    sandbox.wait_for_overlay(short).expect("free");
}
