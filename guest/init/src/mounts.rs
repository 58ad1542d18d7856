//! What Linux programs expect to be mounted, and a few settings of the kernel that go with it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::failure::{Failure, Step};

const NONE: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV);
const DATA: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Type, place, flags, options, and whether a kernel may lack it.
const MOUNTS: [(&str, &str, MountFlags, &std::ffi::CStr, bool); 8] = [
    ("proc", "/proc", NONE, c"", false),
    ("sysfs", "/sys", NONE, c"", false),
    ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755", false),
    ("devpts", "/dev/pts", MountFlags::NOSUID, c"gid=5,mode=620,ptmxmode=666", false),
    ("tmpfs", "/dev/shm", DATA, c"mode=1777", false),
    ("mqueue", "/dev/mqueue", NONE, c"", true),
    ("tmpfs", "/run", DATA, c"mode=755", false),
    ("cgroup2", "/sys/fs/cgroup", NONE, c"nsdelegate", true),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
];

/// Settings that differ from the kernel's, where it has them.
const SETTINGS: [(&str, &str); 2] = [
    // A supervisor reads the firewall's log lines of another namespace.
    ("/proc/sys/net/netfilter/nf_log_all_netns", "1"),
    // Everybody may ping, as in containers.
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Descriptors that a process may have, and may allow itself.
const FILES: (u64, u64) = (1024, 524_288);

/// Mounts everything.
///
/// # Errors
/// A mount that failed, unless it is one that a kernel may lack.
pub fn all() -> Result<(), Failure> {
    let step = Step::Mounts;
    for (kind, place, flags, options, optional) in MOUNTS {
        if !Path::new(place).is_dir() {
            match fs::create_dir_all(place) {
                Err(_) if optional => continue,
                result => result.map_err(step.io(place))?,
            }
        }
        match mount(kind, place, kind, flags, options) {
            Err(Errno::NODEV) if optional => {}
            result => result.map_err(step.at(place))?,
        }
    }
    for (target, place) in LINKS {
        match symlink(target, place) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(step.io(place)(error));
            }
            _ => {}
        }
    }
    for (path, value) in SETTINGS {
        if Path::new(path).exists() {
            fs::write(path, value).map_err(step.io(path))?;
        }
    }
    let (current, maximum) = (Some(FILES.0), Some(FILES.1));
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).map_err(step.at("RLIMIT_NOFILE"))
}
