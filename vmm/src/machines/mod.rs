//! Machines that have a name: one directory each, without a daemon.
//!
//! ```text
//! STATE/machines/NAME/           0700
//!   lock            held with flock(2) by the process of the machine, or by whoever creates, starts or removes it
//!   machine.json    what it is          process.json   which process ran it last
//!   result.json     how its last run ended; "cut off" while it runs
//!   disk.ext4       what it wrote       log.0, log.1   what it printed
//!   control, attach, vsock, vsock_1021   sockets while it runs
//! STATE/machines/.new-ID, .gone-ID   half made, half removed: theirs is the lock, too
//! STATE/events.0, events.1           what happened to all of them
//! ```
//!
//! Invariant: whoever changes a machine holds its lock, and the lock goes with the process however that ends. A directory gets its name,
//! and loses it, in one step. What `ps` says comes from the process table, never from what was written before. Any thread.

pub mod identity;
pub mod journal;
pub mod record;

mod error;
mod leftovers;
#[cfg(test)]
mod tests;

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::plan::VsockPlan;
use crate::sys::{random, user};

pub use error::StoreError;
pub use leftovers::Swept;
use record::{Ended, Record, Running, read, replace};

/// The longest name of a machine.
pub const NAME_MAX: usize = 63;
/// Files of a machine's directory.
pub mod names {
    /// Held by who changes the machine.
    pub const LOCK: &str = "lock";
    /// The same, before it is held.
    pub(super) const LOCK_UNNAMED: &str = ".lock";
    /// What it is.
    pub const RECORD: &str = "machine.json";
    /// Which process it is.
    pub const PROCESS: &str = "process.json";
    /// How it ended.
    pub const RESULT: &str = "result.json";
    /// What it wrote.
    pub const DISK: &str = "disk.ext4";
    /// What its guest is told, while it starts.
    pub const CONFIG: &str = "config.ext4";
    /// Its control socket.
    pub const CONTROL: &str = "control";
    /// The host's side of its vsock device.
    pub const VSOCK: &str = "vsock";
    /// Where the guest brings the streams of its main process: its port on the host.
    pub const MAIN: &str = "vsock_1021";
    /// Where they are given to who attaches.
    pub const ATTACH: &str = "attach";
    /// Why a detached one did not start.
    pub const START_LOG: &str = "start.log";

    /// All that there can be, in the order in which they go.
    pub const ALL: [&str; 13] = [
        CONTROL,
        ATTACH,
        VSOCK,
        MAIN,
        CONFIG,
        DISK,
        crate::logbook::NAMES[0],
        crate::logbook::NAMES[1],
        PROCESS,
        RESULT,
        START_LOG,
        RECORD,
        LOCK,
    ];
}

/// How long a lock that somebody holds for a look is waited for.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_STEP: Duration = Duration::from_millis(2);
/// The fewest digits of an id that are taken for it.
const PREFIX_MIN: usize = 4;

/// All machines of a user.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A machine as its files say it is.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its directory.
    pub directory: PathBuf,
    /// What it is.
    pub record: Record,
}

/// A machine that nobody else can change while this lives.
#[derive(Debug)]
pub struct Held {
    /// The machine.
    pub machine: Machine,
    /// Its lock.
    pub lock: File,
}

/// What a machine does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It never ran.
    Created,
    /// Its process lives.
    Running(Running),
    /// It came to its end.
    Exited(Ended),
    /// Its process went away without a word.
    Dead,
}

impl Store {
    /// The store of this process's user: `openshell-vmm` in `$XDG_STATE_HOME`, `~/.local/state`, or for root `/var/lib`.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn of_process() -> Result<Self, StoreError> {
        let set =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let system = || (user::effective_id() == 0).then(|| PathBuf::from("/var/lib"));
        let home = || Some(set("HOME")?.join(".local/state"));
        let base = set("XDG_STATE_HOME").or_else(system).or_else(home);
        Ok(Self::at(base.ok_or(StoreError::NoHome)?.join("openshell-vmm")))
    }

    /// The store in `root`.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn machines(&self) -> PathBuf {
        self.root.join("machines")
    }

    fn make(&self) -> Result<PathBuf, StoreError> {
        let machines = self.machines();
        if !machines.is_dir() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&machines);
            made.map_err(host("make", &machines))?;
        }
        Ok(machines)
    }

    /// Makes a machine, and keeps it locked. `record` gets id and, when it has none, the id as its name.
    ///
    /// # Errors
    /// When the name is taken or none, or the host refuses.
    pub fn create(&self, mut record: Record) -> Result<Held, StoreError> {
        record.id = new_id().map_err(host("read", Path::new("random bytes")))?;
        if record.name.is_empty() {
            record.name.clone_from(&record.id);
        }
        check_name(&record.name)?;
        let machines = self.make()?;
        let directory = machines.join(&record.name);
        let staging = machines.join(format!(".new-{}", record.id));
        fs::DirBuilder::new().mode(0o700).create(&staging).map_err(host("make", &staging))?;
        let made = || {
            let lock = make_lock(&staging)?;
            let path = staging.join(names::RECORD);
            replace(&path, &record).map_err(host("write", &path))?;
            // A directory that is not empty is never replaced.
            fs::rename(&staging, &directory).map_err(|source| match source.raw_os_error() {
                Some(libc::ENOTEMPTY | libc::EEXIST) => {
                    StoreError::NameTaken { name: record.name.clone() }
                }
                _ => host("make", &directory)(source),
            })?;
            Ok(lock)
        };
        match made() {
            Ok(lock) => Ok(Held { machine: Machine { directory, record }, lock }),
            Err(error) => {
                drop(fs::remove_dir_all(&staging));
                Err(error)
            }
        }
    }

    /// The machine that a user means: by its name, its id or the beginning of that.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn find(&self, word: &str) -> Result<Machine, StoreError> {
        if check_name(word).is_ok()
            && let Some(machine) = Machine::open(&self.machines().join(word))?
        {
            return Ok(machine);
        }
        let mut found: Vec<Machine> = Vec::new();
        if word.len() >= PREFIX_MIN && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            found = self.list();
            found.retain(|machine| machine.record.id.starts_with(word));
        }
        match (found.pop(), found.len()) {
            (Some(machine), 0) => Ok(machine),
            (Some(_), others) => {
                Err(StoreError::Ambiguous { word: word.to_owned(), count: others + 1 })
            }
            (None, _) => Err(StoreError::NotFound { word: word.to_owned() }),
        }
    }

    /// All machines, by name. What cannot be read is left out: `prune` says why.
    #[must_use]
    pub fn list(&self) -> Vec<Machine> {
        let mut machines: Vec<_> = self
            .entries()
            .into_iter()
            .filter(|path| !is_hidden(path))
            .filter_map(|path| Machine::open(&path).ok().flatten())
            .collect();
        machines.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        machines
    }

    fn entries(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.machines()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }
}

impl Machine {
    /// The machine in `directory`; none when there is none.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub fn open(directory: &Path) -> Result<Option<Self>, StoreError> {
        let record = read::<Record>(&directory.join(names::RECORD)).map_err(StoreError::Record)?;
        Ok(record.map(|record| Self { directory: directory.to_owned(), record }))
    }

    /// A path in its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What it does now.
    #[must_use]
    pub fn status(&self) -> Status {
        let running = read::<Running>(&self.path(names::PROCESS)).ok().flatten();
        let Some(running) = running else { return Status::Created };
        if running.process.lives() {
            return Status::Running(running);
        }
        match self.ended() {
            Some(ended) if !ended.was_cut_off() => Status::Exited(ended),
            _ => Status::Dead,
        }
    }

    /// The process that ran it last.
    #[must_use]
    pub fn last_run(&self) -> Option<Running> {
        read::<Running>(&self.path(names::PROCESS)).ok().flatten()
    }

    /// How the last run ended.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        read::<Ended>(&self.path(names::RESULT)).ok().flatten()
    }

    /// When the last run ended, in milliseconds since 1970.
    #[must_use]
    pub fn ended_unix_ms(&self) -> Option<u64> {
        let modified = fs::metadata(self.path(names::RESULT)).ok()?.modified().ok()?;
        let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok()
    }

    /// Takes its lock.
    ///
    /// # Errors
    /// [`StoreError::Running`] when it runs, [`StoreError::Busy`] when another command changes it, [`StoreError::NotFound`] when it went away.
    pub fn hold(self) -> Result<Held, StoreError> {
        self.hold_within(LOCK_PATIENCE)
    }

    fn hold_within(self, patience: Duration) -> Result<Held, StoreError> {
        let ends = Instant::now() + patience;
        loop {
            let lock = open_lock(&self.directory)?;
            match lock.try_lock() {
                Ok(()) if is_at(&lock, &self.path(names::LOCK)) => {
                    return Ok(Held { machine: self, lock });
                }
                // Removed in between, and perhaps made again.
                Ok(()) => return Err(StoreError::NotFound { word: self.record.name }),
                Err(TryLockError::Error(source)) => {
                    return Err(host("lock", &self.directory)(source));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if let Status::Running(running) = self.status() {
                let pid = running.process.pid;
                return Err(StoreError::Running { name: self.record.name, pid });
            }
            if Instant::now() >= ends {
                return Err(StoreError::Busy { name: self.record.name });
            }
            thread::sleep(LOCK_STEP);
        }
    }
}

impl Ended {
    /// Whether this is what is written before a run, so that nobody came to write its end.
    #[must_use]
    pub fn was_cut_off(&self) -> bool {
        self.source == "vmm" && self.reason == CUT_OFF
    }
}

/// What a result file says of a run that has not ended in order.
pub const CUT_OFF: &str = "the run was cut off";

impl Held {
    /// Writes down that this process runs the machine.
    ///
    /// # Errors
    /// What the host said.
    pub fn claim(&self) -> Result<(), StoreError> {
        let path = self.machine.path(names::PROCESS);
        let process = identity::Identity::of_process().map_err(host("read", Path::new("/proc")))?;
        let started_unix_ms = crate::logbook::now_unix_ms();
        let running = Running { schema: record::SCHEMA, process, started_unix_ms };
        replace(&path, &running).map_err(host("write", &path))
    }

    /// Removes the machine and all that it wrote.
    ///
    /// # Errors
    /// When it cannot be moved out of its place.
    pub fn remove(self, store: &Store) -> Result<(), StoreError> {
        let Machine { directory, record } = &self.machine;
        let gone = store.machines().join(format!(".gone-{}", record.id));
        fs::rename(directory, &gone).map_err(host("remove", directory))?;
        fs::remove_dir_all(&gone).map_err(host("remove", &gone))
    }
}

/// Takes a machine's files away with calls that a confined event loop may make; what is left, `prune` finds. Called by the machine itself.
pub fn remove_own(directory: &Path) {
    for name in names::ALL {
        drop(fs::remove_file(directory.join(name)));
    }
    drop(fs::remove_dir(directory));
}

/// Where the host's side of a machine's vsock device listens, by name, id or the beginning of that, for a process that connects to it. A
/// path that no socket address holds is given through a descriptor that stays open until this process ends.
///
/// # Errors
/// When there is no such machine, or it does not run.
pub fn vsock_path(word: &str) -> Result<PathBuf, StoreError> {
    let machine = Store::of_process()?.find(word)?;
    match machine.status() {
        Status::Running(_) => machine.socket(names::VSOCK),
        _ => Err(StoreError::NotRunning { name: machine.record.name }),
    }
}

impl Machine {
    /// A path to one of its sockets that a socket address can hold.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn socket(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.path(name);
        if path.as_os_str().as_bytes().len() <= VsockPlan::MAX_PATH_BYTES {
            return Ok(path);
        }
        let directory = File::open(&self.directory).map_err(host("open", &self.directory))?;
        // Kept open: the path leads through it.
        Ok(PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.into_raw_fd())))
    }
}

/// Whether `name` can be a machine's.
///
/// # Errors
/// [`StoreError::BadName`].
pub fn check_name(name: &str) -> Result<(), StoreError> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if first && name.len() <= NAME_MAX && name.bytes().all(rest) {
        return Ok(());
    }
    Err(StoreError::BadName { name: name.to_owned() })
}

fn new_id() -> io::Result<String> {
    let bytes: [u8; 6] = random::array()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes the lock of a directory, which is held from the moment it has its name: one that is free is of a maker who died.
fn make_lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join(names::LOCK);
    let unnamed = directory.join(names::LOCK_UNNAMED);
    let options = File::options().read(true).write(true).create_new(true).mode(0o600).clone();
    let lock = options.open(&unnamed).map_err(host("make", &unnamed))?;
    lock.try_lock().map_err(|error| host("lock", &unnamed)(error.into()))?;
    fs::rename(&unnamed, &path).map_err(host("make", &path))?;
    Ok(lock)
}

/// Opens the lock of a directory; one that is going away has none, and gets none.
fn open_lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join(names::LOCK);
    let opened = File::options().read(true).write(true).open(&path);
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => StoreError::NotFound {
            word: directory.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        },
        _ => host("open", &path)(source),
    })
}

/// Whether an open file still has this name.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_bytes().starts_with(b"."))
}

fn host(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Host { action, path, source }
}
