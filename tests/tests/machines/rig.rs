//! A user with a home of their own, images to run, and a look at what is left when everything has ended.
//!
//! Invariant: a [`Home`] that is dropped by a test that has not failed holds no machine, no process of one, and no file that was to go.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use openshell_tests::image::{ARCHITECTURE, write_layout};
use openshell_tests::machine::{Finished, Run, fixture};
use serde_json::Value;

/// What anything may take; a guest inside the lab is some thirty times slower than on a host.
pub(crate) const DEADLINE: Duration = Duration::from_mins(4);
const LOOK: Duration = Duration::from_millis(50);

/// A user's home.
pub(crate) struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `openshell-vmm` of this user with these words.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Run {
        Run::new(words)
            .env("HOME", self.path("home"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("XDG_RUNTIME_DIR", self.directory.path())
            .deadline(DEADLINE)
    }

    /// `run` with the fixtures' kernel and these words.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Run {
        self.starting("run", words)
    }

    /// `run` or `create`, as above.
    pub(crate) fn starting<A: AsRef<OsStr>>(
        &self,
        verb: &str,
        words: impl IntoIterator<Item = A>,
    ) -> Run {
        let kernel = fixture("vmlinux-sandbox");
        let kernel = kernel.to_str().unwrap().to_owned();
        self.command([verb, "--kernel", &kernel, "--memory", "256M"]).args(words)
    }

    /// A verb that succeeds; what it printed.
    #[track_caller]
    pub(crate) fn says(&self, words: &[&str]) -> String {
        self.command(words).finish().expect_code(0).text()
    }

    /// A verb that succeeds and prints JSON.
    #[track_caller]
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.says(words)).unwrap()
    }

    /// The status of a machine, as `inspect` tells it.
    #[track_caller]
    pub(crate) fn status(&self, name: &str) -> String {
        self.json(&["inspect", name])[0]["status"].as_str().unwrap().to_owned()
    }

    /// The process of a machine that runs.
    #[track_caller]
    pub(crate) fn pid(&self, name: &str) -> u32 {
        let pid = self.json(&["inspect", name])[0]["pid"].as_u64().unwrap();
        u32::try_from(pid).unwrap()
    }

    /// Waits until a machine's log holds this.
    #[track_caller]
    pub(crate) fn until_logged(&self, name: &str, text: &str) {
        let begin = Instant::now();
        loop {
            let log = self.says(&["logs", name]);
            if log.contains(text) {
                return;
            }
            assert!(begin.elapsed() < DEADLINE, "no {text:?} in the log of {name}:\n{log}");
            std::thread::sleep(LOOK);
        }
    }

    /// Kills a machine's process, and waits until it is gone.
    #[track_caller]
    pub(crate) fn kill_process(&self, name: &str) {
        let pid = self.pid(name);
        let killed =
            Command::new(fixture("busybox")).args(["kill", "-9", &pid.to_string()]).status();
        assert!(killed.unwrap().success());
        let begin = Instant::now();
        // One that nobody reaps is gone all the same.
        while fs::read_link(format!("/proc/{pid}/cwd")).is_ok() {
            assert!(begin.elapsed() < DEADLINE, "process {pid} does not go away");
            std::thread::sleep(LOOK);
        }
    }

    /// What is left of machines: processes that work in this home, and files below it that are no cache.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if cwd.starts_with(self.directory.path()) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                left.push(String::from_utf8_lossy(&line).replace('\0', " "));
            }
        }
        let machines = self.path("state/openshell-vmm/machines");
        let entries = fs::read_dir(machines).into_iter().flatten().flatten();
        left.extend(entries.map(|entry| entry.path().display().to_string()));
        left
    }

    /// An image layout of a shell and what else a test needs.
    pub(crate) fn shell_image(&self) -> String {
        self.shell_image_for(ARCHITECTURE)
    }

    /// The same image for another processor, as its configuration says.
    pub(crate) fn shell_image_for(&self, architecture: &str) -> String {
        let tree = self.path("shell");
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::create_dir_all(tree.join("tmp")).unwrap();
        fs::copy(fixture("busybox"), tree.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "echo", "sleep", "ls", "id", "env", "pwd", "hostname", "stty", "kill",
            "find", "wc", "du", "cut", "stat", "grep", "test", "seq",
        ] {
            drop(std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)));
        }
        let layout = self.path(&format!("oci-{architecture}"));
        let config = serde_json::json!({
            "User": "0:0",
            "Env": ["PATH=/bin", "FROM=image"],
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["echo image says $FROM; exit 3"],
            "WorkingDir": "/tmp",
            "StopSignal": "SIGUSR1",
        });
        write_layout(&fixture("busybox"), &tree, &layout, architecture, &config).unwrap();
        format!("oci:{}", layout.display())
    }

    /// A directory of one program, without a shell.
    pub(crate) fn scratch(&self) -> String {
        let tree = self.path("scratch");
        fs::create_dir_all(&tree).unwrap();
        fs::copy(fixture("guest-probe"), tree.join("probe")).unwrap();
        tree.display().to_string()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let left = self.left();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// The last line that a guest printed.
pub(crate) fn last_line(finished: &Finished) -> String {
    finished.text().lines().next_back().unwrap_or_default().to_owned()
}
