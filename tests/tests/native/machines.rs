//! Machines that have a name, with bare-metal guests: their life by the verbs, from many commands at once, and after SIGKILL of anything.
//!
//! A guest's kernel is a script, its image a disk that nobody reads. Invariant: a [`Home`] that is dropped by a test that has not failed holds
//! no machine and no process of one.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use openshell_tests::bare::Script;
use openshell_tests::machine::{Finished, Run};
use serde_json::Value;

use crate::guest::eventually;

struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn new(script: &Script) -> Self {
        let home = Self { directory: tempfile::tempdir().unwrap() };
        fs::write(home.path("guest.elf"), script.elf()).unwrap();
        for disk in ["tools.ext4", "base.ext4"] {
            File::create(home.path(disk)).unwrap().set_len(1 << 20).unwrap();
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Run {
        Run::new(words)
            .env("HOME", self.path("home"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("OPENSHELL_VMM_TOOLS", self.path("tools.ext4"))
    }

    /// `run` or `create` of the script, with more words before the image.
    fn start(&self, verb: &str, words: &[&str]) -> Run {
        let run = self.command(&[verb, "--memory", "32M", "--kernel"]).arg(self.path("guest.elf"));
        run.args(words).arg(self.path("base.ext4")).args(["--", "main"])
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        self.command(words).finish().expect_code(0).text()
    }

    #[track_caller]
    fn refused(&self, words: &[&str], code: u8) -> Finished {
        let finished = self.command(words).finish().expect_code(code);
        assert!(finished.stderr.contains("fix: "), "{finished}");
        finished
    }

    #[track_caller]
    fn inspect(&self, name: &str) -> Value {
        let all: Value = serde_json::from_str(&self.ok(&["inspect", name])).unwrap();
        all[0].clone()
    }

    #[track_caller]
    fn status(&self, name: &str) -> String {
        self.inspect(name)["status"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn pid(&self, name: &str) -> u32 {
        u32::try_from(self.inspect(name)["pid"].as_u64().unwrap()).unwrap()
    }

    /// Processes of machines of this home.
    fn processes(&self) -> Vec<u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|cwd| cwd.starts_with(self.directory.path()))
        })
        .collect()
    }

    fn machines(&self) -> Vec<String> {
        let machines = self.path("state/openshell-vmm/machines");
        let entries = fs::read_dir(machines).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    /// The one machine of this home, when its guest has spoken. It has no main process, so what it says is in its log alone.
    #[track_caller]
    fn only_machine_that_is_up(&self) -> String {
        let up = || {
            let id = self.command(&["ps", "-q"]).finish().text().trim().to_owned();
            let log = self.command(&["logs", &id]).finish().text();
            (log == "up\n").then_some(id)
        };
        eventually(&true, || up().is_some());
        up().expect("the guest has not spoken")
    }

    /// What happened, as words.
    fn events(&self) -> Vec<String> {
        let text = self.ok(&["events", "-o", "json"]);
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pid in self.processes() {
                signal(pid, "KILL");
            }
            return;
        }
        assert_eq!(self.processes(), Vec::<u32>::new(), "processes are left");
        assert_eq!(self.machines(), Vec::<String>::new(), "machines are left");
    }
}

fn signal(pid: u32, name: &str) {
    let sent = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// CPU time of a process in clock ticks.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn spinning() -> Home {
    Home::new(Script::new().say("up\n").spin())
}

#[test]
fn a_machine_in_the_foreground_leaves_nothing() {
    let home = Home::new(Script::new().say("hello").exit(9));
    let finished = home.start("run", &[]).finish().expect_code(9);
    assert_eq!((finished.text().as_str(), finished.stderr.as_str()), ("hello", ""));
    assert_eq!(home.machines(), Vec::<String>::new());
    assert_eq!(home.events(), ["create", "start", "die", "remove"]);
    home.start("run", &["--name", "kept"]).finish().expect_code(9);
    assert_eq!(home.status("kept"), "exited");
    assert_eq!(home.inspect("kept")["ended"]["code"], 9);
    assert_eq!(home.ok(&["logs", "--source", "boot", "--source", "guest", "kept"]), "hello");
    assert_eq!(home.ok(&["wait", "kept"]), "9\n");
    home.start("run", &["--name", "kept"]).finish().expect_code(125);
    home.ok(&["rm", "kept"]);
}

#[test]
fn a_machine_in_the_background_lives_by_the_verbs() {
    let home = spinning();
    let flags = ["-d", "--name", "work", "--label", "k=v", "--stop-timeout", "1"];
    let id = home.start("run", &flags).finish().expect_code(0).text();
    let id = id.trim();
    assert_eq!(id.len(), 12);
    assert_eq!(eventually(&"up\n".to_owned(), || home.ok(&["logs", "work"])), "up\n");
    let pid = home.pid("work");
    assert_eq!((home.status(id), home.processes()), ("running".to_owned(), vec![pid]));
    let table = home.ok(&["ps"]);
    assert!(table.lines().nth(1).unwrap().starts_with("work "), "{table}");
    let rows: Value = serde_json::from_str(&home.ok(&["ps", "-o", "json"])).unwrap();
    assert_eq!(
        (rows[0]["memory_bytes"].as_u64(), rows[0]["pid"].as_u64()),
        (Some(32 << 20), Some(pid.into()))
    );
    for (filter, shown) in
        [("label=k", true), ("label=k=w", false), ("name=wor", true), ("status=paused", false)]
    {
        assert_eq!(home.ok(&["ps", "-q", "--filter", filter]).trim() == id, shown, "{filter}");
    }
    home.refused(&["rm", "work"], 5);
    home.refused(&["resume", "work"], 5);
    home.ok(&["pause", "work"]);
    assert_eq!(home.status("work"), "paused");
    home.refused(&["pause", "work"], 5);
    let before = cpu_ticks(pid);
    std::thread::sleep(Duration::from_millis(600));
    assert!(cpu_ticks(pid) - before < 10, "a paused machine uses its processor");
    home.ok(&["resume", "work"]);
    std::thread::sleep(Duration::from_millis(600));
    assert!(cpu_ticks(pid) - before > 10, "a resumed machine does not run");
    assert_eq!(home.status("work"), "running");
    home.ok(&["pause", "--label", "k=v"]);
    // A guest that does not answer is ended when its time is over, paused or not.
    let begin = Instant::now();
    assert_eq!(home.ok(&["stop", "work"]), "work\n");
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!((home.status("work").as_str(), home.processes().len()), ("exited", 0));
    assert_eq!(home.ok(&["wait", "work"]), "137\n");
    assert_eq!(home.ok(&["stop", "work"]), "work\n", "it is as it should be");
    home.refused(&["kill", "work"], 5);
    assert_eq!(home.ok(&["ps", "-q"]), "");
    assert!(home.ok(&["ps", "-a"]).contains("exited (137)"));
    home.ok(&["start", "work"]);
    home.ok(&["start", "work"]);
    assert_eq!(eventually(&"up\nup\n".to_owned(), || home.ok(&["logs", "work"])), "up\nup\n");
    home.ok(&["kill", "work"]);
    assert_eq!(home.status("work"), "exited");
    home.ok(&["rm", "work"]);
    home.refused(&["inspect", "work"], 3);
    assert_eq!(
        home.events(),
        [
            "create", "start", "pause", "resume", "pause", "stop", "die", "stop", "start", "kill",
            "die", "remove"
        ]
    );
}

#[test]
fn after_sigkill_of_a_machine_ps_tells_the_truth() {
    let home = spinning();
    for name in ["kept", "short"] {
        let rm: &[&str] = if name == "short" { &["--rm"] } else { &[] };
        home.start("run", &[&["-d", "--name", name], rm].concat()).finish().expect_code(0);
    }
    for name in ["kept", "short"] {
        signal(home.pid(name), "KILL");
    }
    assert_eq!(eventually(&0, || home.processes().len()), 0);
    assert_eq!(home.status("kept"), "dead");
    assert_eq!(home.ok(&["wait", "kept"]), "137\n");
    assert_eq!(home.machines(), ["kept"], "what was to go is gone");
    // Its disk may be locked for a moment by what the kernel still takes apart.
    home.ok(&["start", "kept"]);
    assert_eq!(home.status("kept"), "running");
    signal(home.pid("kept"), "KILL");
    assert_eq!(eventually(&0, || home.processes().len()), 0);
    let freed: Value = serde_json::from_str(&home.ok(&["prune", "-o", "json"])).unwrap();
    assert_eq!(freed["machines"][0], "kept");
}

#[test]
fn after_sigkill_of_a_foreground_run_the_next_command_cleans_up() {
    let home = spinning();
    let running = home.start("run", &[]).spawn();
    let id = home.only_machine_that_is_up();
    assert!(!home.path(&format!("state/openshell-vmm/machines/{id}/disk.ext4")).exists());
    running.signal(libc::SIGKILL);
    assert_eq!(running.wait().signal, Some(libc::SIGKILL));
    assert_eq!(home.ok(&["ps", "-aq"]), "");
    assert_eq!(home.machines(), Vec::<String>::new());
}

#[test]
fn the_first_signal_asks_the_guest_and_the_second_ends_the_machine() {
    let home = spinning();
    let running = home.start("run", &["--stop-timeout", "1"]).spawn();
    home.only_machine_that_is_up();
    let begin = Instant::now();
    running.signal(libc::SIGINT);
    let finished = running.wait().expect_code(137);
    assert!(begin.elapsed() >= Duration::from_millis(900), "{finished}");
    let running = home.start("run", &["--stop-timeout", "60"]).spawn();
    let id = home.only_machine_that_is_up();
    running.signal(libc::SIGINT);
    assert_eq!(eventually(&"stopping".to_owned(), || home.status(&id)), "stopping");
    running.signal(libc::SIGINT);
    running.wait().expect_code(130);
    let running = home.start("run", &["--timeout", "1"]).spawn();
    running.wait().expect_code(124);
}

#[test]
fn of_many_commands_at_once_each_leaves_a_whole_machine() {
    let home = spinning();
    let name = ["--name", "one"];
    let all = |words: &[&str]| -> Vec<i32> {
        let runs: Vec<_> = (0..6).map(|_| home.command(words).spawn()).collect();
        runs.into_iter().map(|run| run.wait().code.unwrap()).collect()
    };
    let creates: Vec<_> = (0..6).map(|_| home.start("create", &name).spawn()).collect();
    let codes: Vec<_> = creates.into_iter().map(|run| run.wait().code).collect();
    assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
    assert_eq!(home.status("one"), "created");
    for _ in 0..3 {
        let codes = all(&["start", "one"]);
        assert!(codes.contains(&0) && codes.iter().all(|code| [0, 5].contains(code)), "{codes:?}");
        assert_eq!((home.status("one").as_str(), home.processes().len()), ("running", 1));
        let codes = all(&["kill", "one"]);
        assert!(codes.contains(&0) && codes.iter().all(|code| [0, 5].contains(code)), "{codes:?}");
        assert_eq!((home.status("one").as_str(), home.processes().len()), ("exited", 0));
    }
    let starts = home.command(&["start", "one"]).spawn();
    let codes = all(&["rm", "-f", "one"]);
    drop(starts.wait());
    assert!(codes.iter().all(|code| [0, 3, 5].contains(code)), "{codes:?}");
    if !home.machines().is_empty() {
        home.ok(&["rm", "-f", "one"]);
    }
}

#[test]
fn many_machines_start_side_by_side_and_go_together() {
    let home = spinning();
    let starts: Vec<_> = (0..8).map(|_| home.start("run", &["-d", "--keep"]).spawn()).collect();
    for start in starts {
        start.wait().expect_code(0);
    }
    assert_eq!(home.ok(&["ps", "-q"]).lines().count(), 8);
    assert_eq!(home.processes().len(), 8);
    assert_eq!(home.ok(&["kill", "--all"]).lines().count(), 8);
    assert_eq!(home.ok(&["wait", "--all"]), "", "none runs");
    let told: Value = serde_json::from_str(&home.ok(&["rm", "--all", "-o", "json"])).unwrap();
    assert_eq!(told.as_array().unwrap().len(), 8);
}

#[test]
fn a_machine_that_cannot_start_says_why_and_leaves_nothing() {
    let home = spinning();
    fs::write(home.path("guest.elf"), b"no kernel").unwrap();
    for words in [&["-d"][..], &["-d", "--name", "work"], &[]] {
        let finished = home.start("run", words).finish().expect_code(125);
        assert!(finished.stderr.contains("guest.elf"), "{finished}");
        assert_eq!(home.machines(), Vec::<String>::new(), "{words:?}");
    }
    home.start("create", &["--name", "work"]).finish().expect_code(0);
    let finished = home.command(&["start", "work"]).finish().expect_code(1);
    assert!(finished.stderr.contains("guest.elf"), "{finished}");
    assert_ne!(home.status("work"), "running");
    home.ok(&["rm", "work"]);
}
