//! Advisory locks on disk images, and who holds the one that is in the way.
//!
//! Invariant: taking a lock never waits for a process that lives. The locks are flock(2): they belong to the open file, so they
//! go with the process, however it ends, and unlike fcntl(2) record locks they survive that another part of the process closes
//! the file. `/proc/locks` names their holder, which open-file-description locks of fcntl(2) would not.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// The kernel takes an io_uring apart after its process has ended, and lets go of its files last: tens of milliseconds.
const LINGER_LIMIT: Duration = Duration::from_millis(500);
const LINGER_STEP: Duration = Duration::from_millis(2);

/// A process that has something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, as seen from here.
    pub pid: u32,
    /// Its name, empty when it cannot be read.
    pub name: String,
}

impl Holder {
    /// The process `pid`, with its name if it can be read.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Self { pid, name: name.trim_end().chars().filter(|c| !c.is_control()).collect() }
    }

    /// False for one that has ended and waits for its parent to notice.
    fn lives(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The name before it, in parentheses, may hold anything.
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "by process {}", self.pid)?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " ({})", self.name) }
    }
}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Another open file has a lock that excludes this one.
    Held(Option<Holder>),
    /// The host cannot lock this file.
    Refused(io::Error),
}

/// Locks `file` against every other machine, or with `shared` against those that want it for themselves.
///
/// # Errors
/// [`LockError`]: at once when the holder is known to live, after half a second otherwise.
pub fn lock(file: &File, shared: bool) -> Result<(), LockError> {
    let start = Instant::now();
    loop {
        let locked = if shared { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(LockError::Refused(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        let holder = holder_of(file);
        if holder.as_ref().is_some_and(Holder::lives) || start.elapsed() >= LINGER_LIMIT {
            return Err(LockError::Held(holder));
        }
        std::thread::sleep(LINGER_STEP);
    }
}

fn holder_of(file: &File) -> Option<Holder> {
    let inode = file.metadata().ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    find_holder(&locks, inode.dev(), inode.ino()).map(Holder::of)
}

/// The process that holds a flock on the inode. Some file systems show another device number in `/proc/locks` than in
/// stat(2) (btrfs, overlayfs): then the inode number alone decides, if one process only has such a lock.
fn find_holder(locks: &str, dev: u64, ino: u64) -> Option<u32> {
    let device = format!("{:02x}:{:02x}", libc::major(dev), libc::minor(dev));
    let (mut same_device, mut same_inode) = (None, Vec::new());
    for line in locks.lines() {
        // 1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF; a waiter has "->" after the number.
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else { continue };
        let (Ok(pid), Some((place, inode))) = (pid.parse::<u32>(), place.rsplit_once(':')) else {
            continue;
        };
        if pid == 0 || inode.parse() != Ok(ino) {
            continue;
        }
        if place == device {
            same_device = same_device.or(Some(pid));
        }
        same_inode.push(pid);
    }
    same_inode.dedup();
    same_device.or(match same_inode[..] {
        [pid] => Some(pid),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  WRITE 11 08:01:100 0 EOF
2: FLOCK  ADVISORY  WRITE 12 08:01:100 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 08:01:100 0 EOF
3: FLOCK  ADVISORY  READ  14 00:2f:200 0 EOF
4: FLOCK  ADVISORY  READ  15 00:30:300 0 EOF
5: FLOCK  ADVISORY  READ  16 00:31:300 0 EOF
6: OFDLCK ADVISORY  WRITE -1 08:01:400 0 EOF
7: FLOCK  ADVISORY  WRITE 0 08:01:500 0 EOF
8: FLOCK ADVISORY
garbage
";

    #[test]
    fn the_holder_is_found_by_device_and_inode() {
        let sda1 = libc::makedev(8, 1);
        for (dev, ino, want) in [
            (sda1, 100, Some(12)),
            (sda1, 200, Some(14)),
            (sda1, 300, None),
            (libc::makedev(0, 0x31), 300, Some(16)),
            (sda1, 400, None),
            (sda1, 500, None),
            (sda1, 10, None),
        ] {
            assert_eq!(find_holder(LOCKS, dev, ino), want, "inode {ino}");
        }
    }

    #[test]
    fn readers_share_and_a_writer_excludes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let (first, second, third) = (open(), open(), open());
        lock(&first, true).unwrap();
        lock(&second, true).unwrap();
        let Err(LockError::Held(Some(holder))) = lock(&third, false) else {
            panic!("an exclusive lock beside two shared ones")
        };
        assert_eq!(holder.pid, std::process::id());
        drop((first, second));
        lock(&third, false).unwrap();
        assert!(matches!(lock(&open(), true), Err(LockError::Held(_))));
    }

    #[test]
    fn a_lock_that_outlives_its_process_is_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = File::open(file.path()).unwrap();
        // It locks the open file that it shares with this process, and ends.
        let locker = Command::new("flock").arg("0").stdin(held.try_clone().unwrap()).status();
        assert!(locker.unwrap().success());
        let ours = File::open(file.path()).unwrap();
        let start = Instant::now();
        assert!(matches!(lock(&ours, false), Err(LockError::Held(_))));
        assert!(start.elapsed() >= LINGER_LIMIT);
        let release = std::thread::Builder::new().spawn(move || {
            std::thread::sleep(10 * LINGER_STEP);
            drop(held);
        });
        lock(&ours, false).unwrap();
        release.unwrap().join().unwrap();
    }
}
