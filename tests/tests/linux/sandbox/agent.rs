//! The host's agent beside the main process of a real guest: commands, terminals, copies, figures.

use std::time::Duration;

use openshell_tests::machine::{Finished, Input, Run, Running};
use serde_json::json;

use super::disks::Sandbox;
use super::{said, shell};

/// A guest that waits, with an agent, and the way to it.
struct Served {
    sandbox: Sandbox,
    running: Running,
    _directory: tempfile::TempDir,
}

/// A tree goes in and comes out again as it was, by name and as a stream.
fn copies(served: &Served) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir_all(at("tree/in")).unwrap();
    std::fs::write(at("tree/in/file"), vec![9; 300_000]).unwrap();
    std::os::unix::fs::symlink("in/file", at("tree/link")).unwrap();
    drop(served.verb("cp").arg(at("tree")).arg(":/root").finish().expect_code(0));
    let finished = served.exec(&[
        "-u",
        "0",
        "--",
        "/bin/busybox",
        "sh",
        "-c",
        "/bin/busybox stat -c %u:%s /root/tree/in/file; /bin/busybox readlink /root/tree/link",
    ]);
    said(&finished.expect_code(0), &["0:300000", "in/file"]);
    drop(served.verb("cp").arg(":/root/tree").arg(at("back")).finish().expect_code(0));
    assert_eq!(std::fs::read(at("back/in/file")).unwrap(), vec![9; 300_000]);
    let archive = served.verb("cp").args([":/root/tree", "-"]).finish().expect_code(0);
    assert!(archive.stdout.windows(9).any(|part| part == b"tree/in/f"), "{}", archive.stderr);
    let finished = served.verb("cp").arg(":/none").arg(at("x")).finish().expect_code(1);
    assert!(finished.stderr.contains("/none: No such file"), "{finished}");
}

impl Served {
    fn start() -> Self {
        let sandbox = Sandbox::new();
        let more = json!({
            "agent": true,
            "network": {"mode": "none"},
            "directories": [
                {"path": "/sandbox", "owner": "sandbox", "mode": "0750"},
                {"path": "/root", "mode": "0700"},
            ],
            "process": {"user": "sandbox", "cwd": "/sandbox", "env": ["A=usual", "B=usual"]},
        });
        let config = shell(
            "echo ready; trap 'exit 7' USR1; while true; do /bin/busybox sleep 1; done",
            &more,
        );
        let path = sandbox.path("vsock");
        let (running, directory) = sandbox.guest(&config, &[]).option("--vsock", &path).start();
        running.wait_for("ready");
        Self { sandbox, running, _directory: directory }
    }

    fn verb(&self, verb: &str) -> Run {
        Run::new([verb, "--vsock"]).arg(self.sandbox.path("vsock")).deadline(Duration::from_mins(2))
    }

    /// `exec` with these options and words.
    fn exec(&self, words: &[&str]) -> Finished {
        self.verb("exec").args(words).finish()
    }

    fn script(&self, script: &str) -> Finished {
        self.exec(&["--", "/bin/busybox", "sh", "-c", script])
    }
}

#[test]
fn commands_run_beside_the_main_process() {
    let served = Served::start();
    let finished = served.script(
        "b=/bin/busybox; echo $A $B $HOME $PATH; $b pwd; echo $($b id -u):$($b id -g) $($b id -G)
         $b cat /proc/self/oom_score_adj; exit 200",
    );
    let finished = finished.expect_code(200);
    said(
        &finished,
        &[
            "usual usual /sandbox /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "/sandbox",
            "10001:10002 10002 77",
            "0",
        ],
    );
    let finished = served.exec(&[
        "-e",
        "A=ours",
        "-w",
        "/",
        "-u",
        "0:0",
        "--",
        "/bin/busybox",
        "sh",
        "-c",
        "echo $A $B $(/bin/busybox pwd) $(/bin/busybox id -u):$(/bin/busybox id -g)",
    ]);
    said(&finished.expect_code(0), &["ours usual / 0:0"]);
    drop(served.script("kill -9 $$").expect_code(128 + 9));
    for (words, code, text) in [
        (&["--", "/bin/none"][..], 127, "/bin/none: no such file or directory"),
        (&["--", "/bin/plain"], 126, "/bin/plain: not an executable file"),
        (&["--", "/bin/lost"], 126, "/bin/lost: its interpreter is missing"),
        (&["-u", "nobody", "--", "/bin/busybox"], 125, "no user \"nobody\" in /etc/passwd"),
        (&["-w", "/none", "--", "/bin/busybox"], 126, "/none: "),
    ] {
        let finished = served.exec(words).expect_code(code);
        assert!(finished.stderr.contains(text) && finished.stdout.is_empty(), "{finished}");
    }
    // What goes in comes out, more than any buffer on the way holds.
    let bytes: Vec<u8> =
        (0..3_000_001_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let finished = served
        .verb("exec")
        .args(["-i", "--", "/bin/busybox", "cat"])
        .stdin(Input::Bytes(bytes.clone()))
        .finish()
        .expect_code(0);
    assert!(finished.stdout == bytes, "{} bytes came back", finished.stdout.len());
    copies(&served);
    let finished = served.verb("stats").args(["-o", "json"]).finish().expect_code(0);
    let stats: serde_json::Value = serde_json::from_slice(&finished.stdout).unwrap();
    assert!(stats[0]["memory_total_bytes"].as_u64() > Some(100 << 20), "{finished}");
    // Nobody but the host is served, and nothing is left of what has ended.
    let left = served.script("/bin/busybox ps -o stat,args");
    let text = left.text();
    assert!(
        !text.contains("busybox cat") && !text.lines().any(|line| line.starts_with('Z')),
        "{left}"
    );
    // Not this shell, which has the same words.
    let script = "for d in /proc/[0-9]*; do
        if test $d != /proc/$$ && /bin/busybox grep -q 'echo ready' $d/cmdline; then kill -USR1 ${d#/proc/}; fi
        done; true";
    drop(served.script(script).expect_code(0));
    drop(served.running.wait().expect_code(7));
}
