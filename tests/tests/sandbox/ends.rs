//! How a sandbox ends by itself, and what its row says then.

use std::process::Command;
use std::time::Duration;

use openshell_proto::v1::SandboxPhase;
use openshell_tests::machine::fixture;
use openshell_tests::signal;
use tonic::Code;

use crate::rig::{PATIENCE, Rig, Wanted, id, ready};

/// A machine whose process is killed.
pub(crate) async fn of_a_machine(rig: &Rig, name: &str, id: &str) {
    signal(rig.machine(id).unwrap(), 9).unwrap();
    let row = rig.until_phase(name, SandboxPhase::Error).await;
    let (reason, message) = ready(&row);
    assert_eq!(reason, "ProcessExited", "{row:#?}");
    for part in ["killed by signal 9", "last console lines"] {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
    assert!(rig.sandbox(id).join("main-process-exited").exists());
    assert!(rig.delete(name).await.unwrap());
    assert!(!rig.sandbox(id).exists());
}

/// A main process that is killed, and one that ends by itself.
pub(crate) async fn of_a_main_process(rig: &Rig) {
    let script = "echo $$ >pid; while :; do sleep 3600; done";
    let wanted = Wanted { script, ..Wanted::default() };
    let id = id(&rig.create("killed", wanted).await.unwrap());
    rig.until_phase("killed", SandboxPhase::Ready).await;
    // The command may lose its connection before it has said how it ended.
    drop(rig.shell(&id, "kill -9 $(cat pid)").await);
    ended(rig, "killed", 137).await;
    let wanted = Wanted { script: "sleep 1; exit 3", ..Wanted::default() };
    rig.create("short", wanted).await.unwrap();
    ended(rig, "short", 3).await;
    for name in ["killed", "short"] {
        assert!(rig.delete(name).await.unwrap());
    }
    let left = rig.left();
    assert!(left.processes.is_empty() && left.files.is_empty(), "{left:#?}");
}

/// A guest's kernel that finds no first process, and panics.
pub(crate) async fn of_a_kernel(rig: &mut Rig) {
    let tools = rig.path("empty.ext4");
    let mut make = Command::new(fixture("openshell-rootfs"));
    make.args(["make-config", "--add", "/dev/null:/dev/.keep", "--output"]).arg(&tools);
    let made = make.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    rig.driver.take().unwrap().terminate(PATIENCE).await;
    rig.start_driver_with(&["--tools-disk", &tools.to_string_lossy()]);
    // The gateway looks for a driver that has gone every two seconds.
    let id = loop {
        match rig.create("panics", Wanted::default()).await {
            Ok(row) => break id(&row),
            Err(status) => assert_eq!(status.code(), Code::Internal, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let row = rig.until_phase("panics", SandboxPhase::Error).await;
    let (reason, message) = ready(&row);
    assert_eq!(reason, "ProcessExited", "{row:#?}");
    for part in [
        "the guest kernel panicked: ",
        "last phase completed: kernel_entry",
        "last console lines: ",
        "Kernel panic - not syncing: Requested init /bin/openshell-init failed",
    ] {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
    let exited = std::fs::read_to_string(rig.sandbox(&id).join("main-process-exited")).unwrap();
    assert_eq!(exited.trim_end(), message);
    assert!(rig.delete("panics").await.unwrap());
}

async fn ended(rig: &Rig, name: &str, code: i32) {
    rig.until_phase(name, SandboxPhase::Error).await;
    // The driver may have seen the end before the supervisor's report has come.
    let row = rig.until(name, "told the exit status", |row| {
        row.status.as_ref().is_some_and(|status| status.exit_code == Some(code))
    });
    let (reason, message) = ready(&row.await);
    assert_eq!(reason, "MainProcessExited", "{message}");
}
