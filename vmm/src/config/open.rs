//! From a [`Spec`] to a [`Plan`]: opens, locks and checks everything that the user named.
//!
//! Invariant: a refusal leaves every file as it was, and nothing here waits for another process. Runs once, on the main
//! thread, before any other thread exists.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::failure::{FileRole, PlanError};
use super::kernel::{KernelPlaces, Profile};
use super::lock::{self, LockError};
use super::net::{MacAddress, Mtu, NetMode, NetSpec};
use super::net_plan;
use super::plan::{
    ConsolePlan, DiskLimits, DiskPlan, InputFile, KernelPlan, NetPlan, OverlayPlan, Plan, Tables,
    VsockPlan,
};
use super::spec::{ConsoleSpec, DiskSpec, Spec, VsockSpec};
use crate::sys::open_file::set_blocking;
use crate::sys::{unix, unix_peer};

/// Unit of a disk's size.
pub const SECTOR_BYTES: u64 = 512;
/// vCPUs of one machine.
pub const MAX_CPUS: u8 = 32;
/// Disks of one machine.
pub const MAX_DISKS: usize = 8;
/// The least that a Linux kernel boots in.
pub const MIN_MEMORY_BYTES: u64 = 32 << 20;
/// The largest power of two that fits, with the hole below 4 GiB, into the 39 address bits that every x86-64 processor
/// with nested paging has.
pub const MAX_MEMORY_BYTES: u64 = 256 << 30;

/// Huge pages back RAM that is a multiple of this; a request is rounded up to it.
const MEMORY_STEP_BYTES: u64 = 2 << 20;
/// One vCPU boots fastest and is what peers default to; a guest that builds software asks for more.
const DEFAULT_CPUS: u64 = 1;
const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
const DEFAULT_GUEST_CID: u64 = *VsockPlan::GUEST_CIDS.start();

/// Opens everything that `spec` names but [`Spec::result`], which was opened with [`result`] before, so that a refusal can be
/// told there. [`Spec::boot_trace`] and [`Plan::runtime_dir`] are left for the caller.
///
/// # Errors
/// [`PlanError`] names the first thing that cannot be had. What was opened is closed again.
pub fn open(spec: &Spec, places: &KernelPlaces) -> Result<Plan, PlanError> {
    // A kernel that the user names may need neither: a unikernel, a bare-metal test.
    if spec.disks.is_empty() && spec.initrd.is_none() && spec.kernel.is_none() {
        return Err(PlanError::NoDisk);
    }
    if spec.disks.len() > MAX_DISKS {
        return Err(PlanError::TooManyDisks { count: spec.disks.len() });
    }
    let cpus = spec.cpus.unwrap_or(DEFAULT_CPUS);
    let cpus = u8::try_from(cpus)
        .ok()
        .filter(|cpus| (1..=MAX_CPUS).contains(cpus))
        .ok_or(PlanError::Cpus { cpus })?;
    let timeout = spec.timeout.map(|limit| limit.0);
    if timeout.is_some_and(|limit| limit.is_zero()) {
        return Err(PlanError::ZeroTimeout);
    }
    let memory_bytes = memory(spec.memory.map_or(DEFAULT_MEMORY_BYTES, |memory| memory.0))?;
    let vsock = spec.vsock.as_ref().map(vsock).transpose()?;
    let net = net(&spec.net)?;
    let image = kernel(spec.kernel.as_deref(), places)?;
    let initrd = spec.initrd.as_deref().map(|path| input(FileRole::Initrd, path)).transpose()?;
    let mut taken = Taken::default();
    if let Some((path, found)) =
        spec.result.as_ref().and_then(|path| Some((path, fs::metadata(path).ok()?)))
    {
        taken.claim(FileRole::Result, path, &found)?;
    }
    let (disks, console) = match open_writable(spec, &mut taken) {
        Ok(opened) => opened,
        Err(error) => {
            taken.remove_created();
            return Err(error);
        }
    };
    Ok(Plan {
        cpus,
        memory_bytes,
        kernel: KernelPlan { image },
        initrd,
        append: spec.append.clone().unwrap_or_default(),
        disks,
        vsock,
        net,
        console,
        timeout,
        seccomp: spec.seccomp.unwrap_or(true),
        tables: spec.tables.map_or(Tables::Auto, Tables::from),
        control: None,
        streams: None,
        runtime_dir: None,
    })
}

/// Opens the result file at `path`, and empties it when it holds an older result.
///
/// # Errors
/// [`PlanError`] when it cannot be made or written. A file that holds something else, such as a disk given by mistake, is
/// refused and left alone.
pub fn result(path: &Path) -> Result<File, PlanError> {
    let role = FileRole::Result;
    if !has_directory(path) {
        return Err(PlanError::NoDirectory { what: "result file", path: path.to_owned() });
    }
    let (file, _) = open_or_create(role, path, &mut Taken::default(), Metadata::is_file)?;
    let failed = |source| open_error(role, path, true, source);
    let mut first = [0];
    if file.read_at(&mut first, 0).map_err(failed)? == 1 && first != *b"{" {
        return Err(PlanError::NotAResult { path: path.to_owned() });
    }
    file.set_len(0).map_err(failed)?;
    Ok(file)
}

fn open_writable(
    spec: &Spec,
    taken: &mut Taken,
) -> Result<(Vec<DiskPlan>, ConsolePlan), PlanError> {
    let disks = spec.disks.iter().map(|disk| open_disk(disk, taken)).collect::<Result<_, _>>()?;
    Ok((disks, console(spec.console.as_ref(), taken)?))
}

fn memory(bytes: u64) -> Result<u64, PlanError> {
    bytes
        .checked_next_multiple_of(MEMORY_STEP_BYTES)
        .filter(|_| (MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&bytes))
        .ok_or(PlanError::Memory { bytes })
}

fn net(spec: &NetSpec) -> Result<Option<NetPlan>, PlanError> {
    if spec.mode.unwrap_or_default() == NetMode::None {
        return Ok(None);
    }
    Ok(Some(NetPlan {
        mac: spec.mac.unwrap_or(MacAddress::GUEST),
        mtu: spec.mtu.unwrap_or(Mtu::ETHERNET),
        host: net_plan::open(spec).map_err(PlanError::Network)?,
        without: spec.without.clone(),
        ring_size: spec.ring_size.unwrap_or_default(),
    }))
}

fn vsock(spec: &VsockSpec) -> Result<VsockPlan, PlanError> {
    let path = spec.path.clone();
    let guest_cid = spec.cid.unwrap_or(DEFAULT_GUEST_CID);
    if !VsockPlan::GUEST_CIDS.contains(&guest_cid) {
        return Err(PlanError::VsockCid { cid: guest_cid });
    }
    let len = path.as_os_str().as_bytes().len();
    if len > VsockPlan::MAX_PATH_BYTES {
        return Err(PlanError::VsockPathTooLong { path, len, max: VsockPlan::MAX_PATH_BYTES });
    }
    match fs::symlink_metadata(&path) {
        Err(_) if has_directory(&path) => {}
        Err(_) => return Err(PlanError::NoDirectory { what: "vsock path", path }),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(PlanError::VsockNotSocket { path });
        }
        // A socket that a killed machine left refuses connections, and the device replaces it. One that may not be
        // connected to is the device's to refuse.
        Ok(_) => match unix::connect(&path) {
            Ok(stream) => {
                let holder = unix_peer::pid(&stream).map(lock::Holder::of);
                return Err(PlanError::VsockInUse { path, holder });
            }
            // The queue of connections is full: it listens and does not answer.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(PlanError::VsockInUse { path, holder: None });
            }
            Err(_) => {}
        },
    }
    Ok(VsockPlan { path, guest_cid })
}

fn has_directory(path: &Path) -> bool {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => true,
        Some(parent) => parent.is_dir(),
        None => false,
    }
}

fn kernel(explicit: Option<&Path>, places: &KernelPlaces) -> Result<InputFile, PlanError> {
    let path = places
        .find(explicit, Profile::default())
        .map_err(|searched| PlanError::NoKernel { searched })?;
    input(FileRole::Kernel, &path)
}

fn input(role: FileRole, path: &Path) -> Result<InputFile, PlanError> {
    let (file, found) = open_existing(role, path, false, Metadata::is_file)?;
    if found.len() == 0 {
        return Err(PlanError::Empty { role, path: path.to_owned() });
    }
    Ok(InputFile { path: path.to_owned(), file, len_bytes: found.len() })
}

/// The files that devices of this machine write to or read from, to notice one that is named twice.
#[derive(Debug, Default)]
struct Taken {
    files: Vec<(Identity, FileRole, PathBuf)>,
    created: Vec<PathBuf>,
}

/// What makes two names one file: a block device has many nodes, a regular file one inode.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    Inode { device: u64, inode: u64 },
    BlockDevice(u64),
}

impl Taken {
    fn claim(&mut self, role: FileRole, path: &Path, found: &Metadata) -> Result<(), PlanError> {
        let identity = if found.file_type().is_block_device() {
            Identity::BlockDevice(found.rdev())
        } else {
            Identity::Inode { device: found.dev(), inode: found.ino() }
        };
        if let Some((_, other_role, other_path)) =
            self.files.iter().find(|(it, ..)| *it == identity)
        {
            return Err(PlanError::SameFile {
                role,
                path: path.to_owned(),
                other_role: *other_role,
                other_path: other_path.clone(),
            });
        }
        self.files.push((identity, role, path.to_owned()));
        Ok(())
    }

    /// Files made for a machine that is not to be; they are empty still.
    fn remove_created(&self) {
        for path in &self.created {
            // The refusal is what must be told.
            drop(fs::remove_file(path));
        }
    }
}

fn open_disk(spec: &DiskSpec, taken: &mut Taken) -> Result<DiskPlan, PlanError> {
    let path = spec.path.clone();
    if spec.ro && spec.overlay.is_some() {
        return Err(PlanError::ReadOnlyOverlay { path });
    }
    let limits = DiskLimits {
        ops_per_s: limit(&path, "iops", spec.iops)?,
        bytes_per_s: limit(&path, "bw", spec.bw.map(|bw| bw.0))?,
    };
    let write = !spec.ro && spec.overlay.is_none();
    let (mut file, found) = open_existing(FileRole::Disk, &path, write, |found| {
        found.is_file() || found.file_type().is_block_device()
    })?;
    taken.claim(FileRole::Disk, &path, &found)?;
    lock_file(FileRole::Disk, &path, &file, !write)?;
    // Seeking tells the size of a block device too, for which stat(2) says 0.
    let len_bytes = file.seek(SeekFrom::End(0)).and_then(|len| file.rewind().map(|()| len));
    let len_bytes = len_bytes.map_err(|source| PlanError::Open {
        role: FileRole::Disk,
        path: path.clone(),
        source,
    })?;
    if len_bytes == 0 {
        return Err(PlanError::Empty { role: FileRole::Disk, path });
    }
    if !len_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(PlanError::NotSectors { path, len_bytes });
    }
    let overlay = spec.overlay.as_deref().map(|path| open_overlay(path, taken)).transpose()?;
    Ok(DiskPlan { path, file, read_only: spec.ro, len_bytes, overlay, limits, volatile: false })
}

fn limit(
    path: &Path,
    limit: &'static str,
    value: Option<u64>,
) -> Result<Option<NonZeroU64>, PlanError> {
    value
        .map(|value| {
            NonZeroU64::new(value).ok_or(PlanError::ZeroLimit { path: path.to_owned(), limit })
        })
        .transpose()
}

fn open_overlay(path: &Path, taken: &mut Taken) -> Result<OverlayPlan, PlanError> {
    let role = FileRole::Overlay;
    let (file, found) = open_or_create(role, path, taken, Metadata::is_file)?;
    taken.claim(role, path, &found)?;
    lock_file(role, path, &file, false)?;
    Ok(OverlayPlan { path: path.to_owned(), file })
}

fn console(spec: Option<&ConsoleSpec>, taken: &mut Taken) -> Result<ConsolePlan, PlanError> {
    let path = match spec {
        None | Some(ConsoleSpec::Stdio) => return Ok(ConsolePlan::Stdio),
        Some(ConsoleSpec::None) => return Ok(ConsolePlan::None),
        Some(ConsoleSpec::File(path)) => path,
    };
    let role = FileRole::Console;
    let (file, found) = open_or_create(role, path, taken, |found| {
        let kind = found.file_type();
        kind.is_file() || kind.is_fifo() || kind.is_char_device()
    })?;
    taken.claim(role, path, &found)?;
    if found.is_file() {
        // Only now: a disk named by mistake has just been refused.
        file.set_len(0).map_err(|source| open_error(role, path, true, source))?;
    }
    Ok(ConsolePlan::File(file))
}

fn lock_file(role: FileRole, path: &Path, file: &File, shared: bool) -> Result<(), PlanError> {
    let path = || path.to_owned();
    lock::lock(file, shared).map_err(|error| match error {
        LockError::Held(holder) => {
            PlanError::Locked { role, path: path(), holder, exclusive: !shared }
        }
        LockError::Refused(source) => PlanError::Lock { role, path: path(), source },
    })
}

fn open_or_create(
    role: FileRole,
    path: &Path,
    taken: &mut Taken,
    suits: impl Fn(&Metadata) -> bool,
) -> Result<(File, Metadata), PlanError> {
    if fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        let created = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        match created {
            Ok(file) => {
                taken.created.push(path.to_owned());
                let found =
                    file.metadata().map_err(|source| open_error(role, path, true, source))?;
                return Ok((file, found));
            }
            // Somebody else made it in between.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(open_error(role, path, true, error)),
        }
    }
    open_existing(role, path, true, suits)
}

/// Opens a file that `suits`. What it is is asked before and after: opening some devices has effects, and opening a pipe
/// would wait for its other end.
fn open_existing(
    role: FileRole,
    path: &Path,
    write: bool,
    suits: impl Fn(&Metadata) -> bool,
) -> Result<(File, Metadata), PlanError> {
    let failed = |source| open_error(role, path, write, source);
    let check = |found: Metadata| {
        if suits(&found) {
            Ok(found)
        } else {
            Err(PlanError::WrongKind { role, path: path.to_owned(), found: kind(&found) })
        }
    };
    check(fs::metadata(path).map_err(failed)?)?;
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    let found = check(file.metadata().map_err(failed)?)?;
    set_blocking(&file).map_err(failed)?;
    Ok((file, found))
}

fn open_error(role: FileRole, path: &Path, write: bool, source: io::Error) -> PlanError {
    let path = path.to_owned();
    let refused = matches!(
        source.raw_os_error(),
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY)
    );
    if source.kind() == io::ErrorKind::NotFound {
        return PlanError::Missing { role, path };
    }
    let readable =
        || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).is_ok();
    if write && refused && readable() {
        return PlanError::ReadOnly { role, path, source };
    }
    PlanError::Open { role, path, source }
}

fn kind(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "a regular file"
    }
}

#[cfg(test)]
mod tests;
