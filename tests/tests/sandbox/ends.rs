//! How a sandbox ends by itself, and what its row says then.

use openshell_proto::v1::SandboxPhase;
use openshell_tests::signal;

use crate::rig::{Rig, Wanted, id, ready};

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

async fn ended(rig: &Rig, name: &str, code: i32) {
    rig.until_phase(name, SandboxPhase::Error).await;
    // The driver may have seen the end before the supervisor's report has come.
    let row = rig.until(name, "told the exit status", |row| {
        row.status.as_ref().is_some_and(|status| status.exit_code == Some(code))
    });
    let (reason, message) = ready(&row.await);
    assert_eq!(reason, "MainProcessExited", "{message}");
}
