//! Advisory locks on disk images, and who holds the one that is in the way.
//!
//! Invariant: taking a lock waits for nobody who lives. The locks are flock(2): they belong to the open file, so they go when the process
//! does, however it ends, and unlike fcntl(2) record locks they survive that another part of the process closes the file.
//! `/proc/locks` names their holder, which open-file-description locks of fcntl(2) would not.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

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
}

impl Holder {
    fn lives(&self) -> bool {
        Path::new("/proc").join(self.pid.to_string()).exists()
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

/// How long the kernel may take to let go of the files of a process that was killed: it takes an io_uring apart after the process
/// has ended.
const LETTING_GO: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Locks `file` against every other machine, or with `shared` against those that want it for themselves.
///
/// # Errors
/// [`LockError`]: at once when the holder lives, after two seconds when it has ended and the kernel still keeps its lock.
pub fn lock(file: &File, shared: bool) -> Result<(), LockError> {
    let deadline = Instant::now() + LETTING_GO;
    loop {
        match try_lock(file, shared) {
            Err(LockError::Held(Some(holder))) if !holder.lives() && Instant::now() < deadline => {
                std::thread::sleep(LOOK_AGAIN);
            }
            outcome => return outcome,
        }
    }
}

fn try_lock(file: &File, shared: bool) -> Result<(), LockError> {
    let locked = if shared { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(LockError::Held(holder_of(file))),
        Err(TryLockError::Error(error)) => Err(LockError::Refused(error)),
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
    fn a_process_that_has_ended_does_not_live() {
        assert!(Holder::of(std::process::id()).lives());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let holder = Holder::of(child.id());
        child.wait().unwrap();
        assert!(!holder.lives());
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
}
