//! A supervisor as a process of its own.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::process::{Pid, Signal, kill_process};

use crate::gateway::{Gateway, TOKEN};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running supervisor; ended when dropped.
pub(crate) struct Supervisor {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Supervisor {
    /// Starts one whose main process is a shell with `script`.
    pub(crate) fn start(gateway: &Gateway, script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("token");
        std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
        let spec =
            serde_json::json!({"version": 1, "command": ["/bin/sh", "-c", script], "tty": false});
        let spec = format!("base64url:{}", URL_SAFE_NO_PAD.encode(spec.to_string()));
        let child = Command::new(env!("CARGO_BIN_EXE_openshell-supervisor"))
            .args(["--workdir", "/tmp"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("OPENSHELL_ENDPOINT", format!("http://{}", gateway.address))
            .env("OPENSHELL_SANDBOX_ID", "sandbox-1")
            .env("OPENSHELL_SANDBOX_TOKEN_FILE", &token)
            .env("OPENSHELL_SSH_SOCKET_PATH", directory.path().join("run/ssh.sock"))
            .env("OPENSHELL_MAIN_PROCESS_SPEC", spec)
            .env("OPENSHELL_USER_ENVIRONMENT", r#"{"GIVEN": "by the user"}"#)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, _directory: directory }
    }

    pub(crate) fn terminate(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// Waits for its end: exit code, and what it said.
    pub(crate) async fn end(mut self) -> (i32, String) {
        let ends = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut said = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                return (status.code().unwrap_or(-1), said);
            }
            assert!(Instant::now() < ends, "the supervisor goes on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
