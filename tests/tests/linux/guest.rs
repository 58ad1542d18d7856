//! A Linux guest: the command line of a run, its disks, and the script it executes.
//!
//! Invariant: fixtures are never written. Guests that only read share one copy of the root disk; one that writes has its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use openshell_tests::machine::{Finished, Run, Running, fixture};

/// What a test must be done in; a guest inside the lab is some thirty times slower than on a host.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long before the deadline the machine ends itself.
const LAST_WORDS: Duration = Duration::from_secs(10);
const BLOCK: usize = 4096;

/// The guest's first disk.
#[derive(Debug)]
enum Root {
    /// Read-only, shared with other guests.
    Shared,
    /// Words after `--disk`.
    Own(OsString),
}

/// A guest to be started.
#[derive(Debug)]
pub(crate) struct Guest {
    directory: tempfile::TempDir,
    kernel: &'static str,
    root: Root,
    disks: Vec<OsString>,
    append: String,
    args: Vec<OsString>,
    deadline: Duration,
    scripted: bool,
}

impl Guest {
    /// The `sandbox` kernel on one CPU with the shared root disk, and a shell on the console.
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            kernel: "vmlinux-sandbox",
            root: Root::Shared,
            disks: Vec::new(),
            append: String::new(),
            args: Vec::new(),
            deadline: DEADLINE,
            scripted: false,
        }
    }

    /// A guest that executes `script` instead of a shell, from its second disk, `/dev/vdb`. The machine ends with the exit status of the
    /// first command that fails, or 0. Further disks follow as `/dev/vdc` and so on.
    pub(crate) fn running(script: &str) -> Self {
        let mut guest = Self::new();
        let mut text = format!("( set -e\n{script}\n)\nguest-probe exit-code $?\n");
        // The shell reads the disk to its end, which is that of a sector.
        text.push_str(&"\n".repeat(text.len().next_multiple_of(512) - text.len()));
        let path = guest.path("script");
        std::fs::write(&path, text).unwrap();
        guest.append = "run=/dev/vdb ".to_owned();
        guest.scripted = true;
        guest.disk(&path, ",ro")
    }

    /// A path in the guest's own directory on the host.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Another kernel: the name of a fixture.
    pub(crate) fn kernel(mut self, name: &'static str) -> Self {
        self.kernel = name;
        self
    }

    /// A root disk: `path` and the options that follow it.
    pub(crate) fn root(mut self, path: &Path, options: &str) -> Self {
        self.root = Root::Own(disk(path, options));
        self
    }

    /// One more disk: `path` and the options that follow it.
    pub(crate) fn disk(mut self, path: &Path, options: &str) -> Self {
        self.disks.push(disk(path, options));
        self
    }

    /// More words for the kernel's command line.
    pub(crate) fn append(mut self, words: &str) -> Self {
        self.append.push_str(words);
        self
    }

    /// An option of `run` and its value.
    pub(crate) fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.args.push(name.into());
        self.args.push(value.into());
        self
    }

    /// An option of `run` without a value.
    pub(crate) fn flag(mut self, name: &str) -> Self {
        self.args.push(name.into());
        self
    }

    /// Another deadline than the usual one.
    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The run, not yet started, and the directory to keep while it runs.
    pub(crate) fn prepare(self) -> (Run, tempfile::TempDir) {
        let mut args: Vec<OsString> = vec!["run".into()];
        let root = match self.root {
            Root::Shared => disk(&SHARED_ROOT.path, ",ro"),
            Root::Own(words) => words,
        };
        for words in std::iter::once(root).chain(self.disks) {
            args.extend(["--disk".into(), words]);
        }
        args.extend(["--kernel".into(), fixture(self.kernel).into()]);
        args.extend(["--append".into(), self.append.into()]);
        if !self.args.iter().any(|arg| arg == "--timeout") {
            // Before the deadline, so that the machine says how far it came.
            let limit = self.deadline.saturating_sub(LAST_WORDS).as_secs();
            args.extend(["--timeout".into(), limit.to_string().into()]);
        }
        args.extend(self.args);
        (Run::new(args).deadline(self.deadline), self.directory)
    }

    /// Starts it.
    #[track_caller]
    pub(crate) fn start(self) -> (Running, tempfile::TempDir) {
        let (run, directory) = self.prepare();
        (run.spawn(), directory)
    }

    /// Runs it to its end; a script must succeed.
    #[track_caller]
    pub(crate) fn finish(self) -> Finished {
        let scripted = self.scripted;
        let (running, _directory) = self.start();
        let finished = running.wait();
        if scripted { finished.expect_code(0) } else { finished }
    }

    /// Runs it to its end, whatever that is.
    #[track_caller]
    pub(crate) fn end(self) -> Finished {
        let (running, _directory) = self.start();
        running.wait()
    }
}

/// Whether the guest runs inside the lab, where an exit takes a guest some 100 us.
pub(crate) fn in_lab() -> bool {
    std::env::var_os("OPENSHELL_VMM_LAB").is_some()
}

fn disk(path: &Path, options: &str) -> OsString {
    let mut words = path.as_os_str().to_owned();
    words.push(options);
    words
}

/// Makes a sparse file.
pub(crate) fn blank(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

/// Bytes that a file has on the host's disk.
pub(crate) fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// What the root disk holds, without its holes.
struct RootDisk {
    bytes: u64,
    blocks: Vec<(u64, [u8; BLOCK])>,
}

static ROOT_DISK: LazyLock<RootDisk> = LazyLock::new(|| {
    let mut file = File::open(fixture("rootfs.ext4")).unwrap();
    let bytes = file.metadata().unwrap().len();
    let mut blocks = Vec::new();
    let mut chunk = vec![0; 1 << 20];
    for begin in (0..bytes).step_by(chunk.len()) {
        let len = usize::try_from(bytes - begin).unwrap().min(chunk.len());
        file.read_exact(&mut chunk[..len]).unwrap();
        for (block, at) in chunk[..len].as_chunks().0.iter().zip((begin..).step_by(BLOCK)) {
            if *block != [0; BLOCK] {
                blocks.push((at, *block));
            }
        }
    }
    RootDisk { bytes, blocks }
});

/// The copy that guests share.
struct SharedRoot {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

static SHARED_ROOT: LazyLock<SharedRoot> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root");
    copy_root(&path);
    SharedRoot { path, _directory: directory }
});

/// Makes a copy of the root disk at `path`.
pub(crate) fn copy_root(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(ROOT_DISK.bytes).unwrap();
    for (at, block) in &ROOT_DISK.blocks {
        file.write_all_at(block, *at).unwrap();
    }
}

/// Whether the file at `path` is still as [`copy_root`] made it.
pub(crate) fn is_pristine_root(path: &Path) -> bool {
    let file = File::open(path).unwrap();
    let mut expected = ROOT_DISK.blocks.iter().peekable();
    let mut block = [0; BLOCK];
    (0..ROOT_DISK.bytes).step_by(BLOCK).all(|at| {
        file.read_exact_at(&mut block, at).unwrap();
        match expected.next_if(|(place, _)| *place == at) {
            Some((_, data)) => block == *data,
            None => block == [0; BLOCK],
        }
    })
}
