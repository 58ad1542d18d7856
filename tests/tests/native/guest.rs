//! A script's run: the image in a directory of its own, the command line, and the end with the script's own explanation.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use openshell_tests::bare::Script;
use openshell_tests::machine::{Finished, Run, Running};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);

/// A guest and the directory that its run's files are in.
#[derive(Debug)]
pub(crate) struct Guest {
    directory: TempDir,
    script: Script,
}

impl Guest {
    pub(crate) fn new(script: &Script) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("guest.elf"), script.elf()).unwrap();
        Self { directory, script: script.clone() }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path in the run's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Names in the run's directory, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Its run with 32 MiB of memory, to be added to.
    pub(crate) fn run(&self) -> Run {
        self.run_with_memory("32M")
    }

    /// Its run with so much memory, to be added to.
    pub(crate) fn run_with_memory(&self, memory: &str) -> Run {
        let run = Run::new(["run", "--memory", memory, "--kernel"]).arg(self.path("guest.elf"));
        run.deadline(DEADLINE)
    }

    /// Waits for the end, and says which expectation of the script failed where one did.
    #[track_caller]
    pub(crate) fn wait(&self, running: Running) -> Finished {
        let finished = running.wait();
        let failure = self.script.explain(&finished.text()).unwrap_or_default();
        assert_eq!(failure, "", "{finished}");
        finished
    }

    /// Runs to the end.
    #[track_caller]
    pub(crate) fn finish(&self, run: Run) -> Finished {
        self.wait(run.spawn())
    }
}

/// Runs a script that ends with `code` and needs nothing; gives what it printed.
#[track_caller]
pub(crate) fn run(script: &Script, code: u8) -> Finished {
    let guest = Guest::new(script);
    guest.finish(guest.run()).expect_code(code)
}

/// Waits until the process can write nothing more, because its standard output is a full pipe.
pub(crate) fn wait_until_full(pid: u32) {
    let mut last = None;
    let begin = Instant::now();
    loop {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok());
        if written == last && written.is_some_and(|bytes| bytes >= 1 << 15) {
            return;
        }
        last = written;
        assert!(begin.elapsed() < Duration::from_secs(60), "{written:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Looks at something until it is as wanted, for ten seconds at most, and gives what it saw last.
pub(crate) fn eventually<T: PartialEq>(want: &T, mut look: impl FnMut() -> T) -> T {
    let begin = Instant::now();
    loop {
        let seen = look();
        if seen == *want || begin.elapsed() > Duration::from_secs(10) {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
