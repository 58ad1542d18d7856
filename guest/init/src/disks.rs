//! The sandbox's disks, and the root that is put together from them.
//!
//! Until [`pivot`] the root is the tools disk, which is read-only: everything hangs below a tmpfs on its `/run`.
//! Invariant: after the pivot nothing of that is reachable but the tools disk itself, at [`TOOLS`].

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, UnmountFlags, mount, move_mount, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::cmdline::{self, ReadWrite, Words};
use crate::failure::{Failure, Step};

/// Where our programs are.
pub const HOME: &str = "/opt/openshell";
/// Where the tools disk is.
pub const TOOLS: &str = "/opt/openshell/tools";
/// Where the config disk is until the pivot.
pub const CONFIG: &str = "/run/config";

const BASE: &str = "/run/base";
const READ_WRITE: &str = "/run/rw";
const ROOT: &str = "/run/root";
const DEVICE_PATIENCE: Duration = Duration::from_secs(5);
const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Mounts what the disks need to be mounted, and reads the kernel's command line.
///
/// # Errors
/// A mount, or a word that cannot be.
pub fn start() -> Result<Words, Failure> {
    let step = Step::Start;
    mount("tmpfs", "/run", "tmpfs", QUIET, c"mode=755").map_err(step.at("/run"))?;
    for directory in ["/run/proc", BASE, READ_WRITE, CONFIG, ROOT] {
        fs::create_dir(directory).map_err(step.io(directory))?;
    }
    mount("proc", "/run/proc", "proc", QUIET, None).map_err(step.at("/proc"))?;
    if !Path::new("/dev/null").exists() {
        mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None).map_err(step.at("/dev"))?;
    }
    let path = "/run/proc/cmdline";
    let line = fs::read(path).map_err(step.io("/proc/cmdline"))?;
    cmdline::parse(&String::from_utf8_lossy(&line))
        .map_err(|word| Failure::new(step, format!("{word:?} cannot be")).path("/proc/cmdline"))
}

/// Mounts the disk with the configuration and says where it is: at [`CONFIG`], unless it is the read-write disk, which is mounted for good
/// then.
///
/// # Errors
/// The mount.
pub fn mount_config(words: &Words) -> Result<&'static str, Failure> {
    if words.config_is_read_write() {
        device(Step::MountRw, &words.config, READ_WRITE, MountFlags::NOATIME, None)?;
        return Ok(READ_WRITE);
    }
    let flags = MountFlags::RDONLY | QUIET | MountFlags::NOEXEC;
    device(Step::MountConfig, &words.config, CONFIG, flags, Some(c"noload"))?;
    Ok(CONFIG)
}

/// Mounts base and read-write disk, unless [`mount_config`] did, and the overlay of both. A directory on the read-write disk is returned, if it is a disk.
///
/// # Errors
/// A mount, or `upper` and `work` that cannot be made.
pub fn mount_root(words: &Words) -> Result<Option<File>, Failure> {
    let read_only = MountFlags::RDONLY | MountFlags::NOATIME;
    device(Step::MountBase, &words.base, BASE, read_only, Some(c"noload"))?;
    let kept = match &words.read_write {
        ReadWrite::Device(name) => {
            if !words.config_is_read_write() {
                device(Step::MountRw, name, READ_WRITE, MountFlags::NOATIME, None)?;
            }
            Some(File::open(READ_WRITE).map_err(Step::MountRw.io(READ_WRITE))?)
        }
        ReadWrite::Memory => {
            let step = Step::MountRw;
            mount("tmpfs", READ_WRITE, "tmpfs", MountFlags::empty(), c"mode=755,size=75%")
                .map_err(step.at("memory"))?;
            None
        }
    };
    overlay()?;
    Ok(kept)
}

fn overlay() -> Result<(), Failure> {
    let (upper, work) = ("/run/rw/upper", "/run/rw/work");
    for directory in [upper, work] {
        match fs::create_dir(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Step::Overlay.io(directory)(error));
            }
            _ => {}
        }
    }
    copy_metadata(BASE, upper)?;
    let data = c"lowerdir=/run/base,upperdir=/run/rw/upper,workdir=/run/rw/work,redirect_dir=on";
    mount("overlay", ROOT, "overlay", MountFlags::empty(), data).map_err(Step::Overlay.at("/"))
}

/// Gives `to` owner, group and mode of `from`: the root of an overlay is its upper directory.
fn copy_metadata(from: &str, to: &str) -> Result<(), Failure> {
    let wanted = fs::metadata(from).map_err(Step::Overlay.io(from))?;
    let found = fs::metadata(to).map_err(Step::Overlay.io(to))?;
    if (wanted.uid(), wanted.gid()) != (found.uid(), found.gid()) {
        chown(to, Some(wanted.uid()), Some(wanted.gid())).map_err(Step::Overlay.io(to))?;
    }
    if wanted.mode() != found.mode() {
        let mode = fs::Permissions::from_mode(wanted.mode() & 0o7777);
        fs::set_permissions(to, mode).map_err(Step::Overlay.io(to))?;
    }
    Ok(())
}

/// Makes the overlay the root, and the tools disk a directory in it.
///
/// # Errors
/// A call that failed.
pub fn pivot() -> Result<(), Failure> {
    let step = Step::Pivot;
    let tools = File::open("/").map_err(step.io("/"))?;
    chdir(ROOT).map_err(step.at(ROOT))?;
    // The old root ends up on top of the new one at the same place, where only the descriptor reaches it.
    pivot_root(".", ".").map_err(step.at("/"))?;
    fchdir(&tools).map_err(step.at("/"))?;
    for directory in ["run", "dev"] {
        match unmount(directory, UnmountFlags::DETACH) {
            // A kernel that mounts no /dev by itself, and found it in the initial RAM disk.
            Err(Errno::INVAL) | Ok(()) => {}
            Err(errno) => return Err(step.at(directory)(errno)),
        }
    }
    chdir("/").map_err(step.at("/"))?;
    fs::create_dir_all(HOME).map_err(step.io(HOME))?;
    mount("tmpfs", HOME, "tmpfs", QUIET, c"mode=755,size=64M").map_err(step.at(HOME))?;
    fs::create_dir(TOOLS).map_err(step.io(TOOLS))?;
    move_mount(&tools, "", CWD, TOOLS, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(step.at(TOOLS))
}

fn device(
    step: Step,
    name: &str,
    target: &str,
    flags: MountFlags,
    data: Option<&std::ffi::CStr>,
) -> Result<(), Failure> {
    let path = format!("/dev/{name}");
    let since = Instant::now();
    loop {
        match mount(path.as_str(), target, "ext4", flags, data) {
            // A driver may still be looking at its devices.
            Err(Errno::NOENT | Errno::NXIO) if since.elapsed() < DEVICE_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result.map_err(step.at(&path)),
        }
    }
}
