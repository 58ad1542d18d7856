//! A machine that can be built: every file is open, every size checked, every address placed.
//!
//! Invariant: nothing in a [`Plan`] can be refused later because of what the user wrote; building it fails only when the
//! host does.

use std::env;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use super::net::{CardFeature, MacAddress, Mtu, RingSize};
use super::net_plan::HostPlan;
use crate::logbook::Logbook;
use crate::sys::{unix, user};

/// A machine to build.
#[derive(Debug)]
pub struct Plan {
    /// Number of vCPUs, 1 to 32.
    pub cpus: u8,
    /// Guest RAM in bytes: a multiple of 2 MiB, at least 32 MiB.
    pub memory_bytes: u64,
    /// The guest kernel.
    pub kernel: KernelPlan,
    /// The initial RAM disk, opened.
    pub initrd: Option<InputFile>,
    /// What the user added to the kernel command line.
    pub append: String,
    /// Disks in order: the first is the root disk, `/dev/vda`.
    pub disks: Vec<DiskPlan>,
    /// virtio-vsock, when asked for.
    pub vsock: Option<VsockPlan>,
    /// The network card, unless there is none.
    pub net: Option<NetPlan>,
    /// Where the serial console goes.
    pub console: ConsolePlan,
    /// The machine is stopped after this time.
    pub timeout: Option<Duration>,
    /// Threads are confined by seccomp filters.
    pub seccomp: bool,
    /// How the guest finds its devices.
    pub tables: Tables,
    /// The control socket, for a machine that has a name. Signals that end the process ask its guest first.
    pub control: Option<ControlPlan>,
    /// The main process's standard streams, where its guest brings them.
    pub streams: Option<StreamsPlan>,
    /// Where small things are kept until the host's next boot; nothing is kept without it. See [`runtime_directory`].
    pub runtime_dir: Option<PathBuf>,
}

/// The user's directory for what does not outlive a boot: `openshell-vmm` in `$XDG_RUNTIME_DIR`, or in `/run` for root.
#[must_use]
pub fn runtime_directory() -> Option<PathBuf> {
    let named = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let system = || (user::effective_id() == 0).then(|| PathBuf::from("/run"));
    Some(named.or_else(system)?.join("openshell-vmm"))
}

/// A file opened for reading, with the name to use in messages.
#[derive(Debug)]
pub struct InputFile {
    /// As the user wrote it.
    pub path: PathBuf,
    /// Opened read-only.
    pub file: File,
    /// Its size when it was opened.
    pub len_bytes: u64,
}

/// The guest kernel.
#[derive(Debug)]
pub struct KernelPlan {
    /// The image: its headers are parsed when the machine is built.
    pub image: InputFile,
}

/// How the guest finds processors and devices. Never both, because a kernel that reads both probes devices twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// By the kernel image: the profile its build salt names, or ACPI.
    Auto,
    /// MultiProcessor table and `virtio_mmio.device=` on the command line.
    MpTable,
    /// Hardware-reduced ACPI.
    Acpi,
}

/// One disk.
#[derive(Debug)]
pub struct DiskPlan {
    /// The image as the user wrote it, for messages.
    pub path: PathBuf,
    /// The image: opened read-only when `read_only` or when there is an overlay, read-write otherwise, and locked.
    pub file: File,
    /// The device is read-only for the guest.
    pub read_only: bool,
    /// Size in bytes, a multiple of 512.
    pub len_bytes: u64,
    /// Copy-on-write: writes go to this file.
    pub overlay: Option<OverlayPlan>,
    /// Limits.
    pub limits: DiskLimits,
    /// Nobody reads the image when the machine is gone: the guest is offered no FLUSH, and nothing is written for good.
    pub volatile: bool,
}

/// Where an overlay disk keeps what the guest wrote.
#[derive(Debug)]
pub struct OverlayPlan {
    /// As the user wrote it, for messages.
    pub path: PathBuf,
    /// Opened read-write and locked; may be empty (new).
    pub file: File,
}

/// Token-bucket limits of one disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Operations per second.
    pub ops_per_s: Option<NonZeroU64>,
    /// Bytes per second.
    pub bytes_per_s: Option<NonZeroU64>,
}

/// virtio-vsock.
#[derive(Debug)]
pub struct VsockPlan {
    /// The host socket; guest port N appears at `PATH_N`.
    pub path: PathBuf,
    /// The guest's context id, one of [`Self::GUEST_CIDS`].
    pub guest_cid: u64,
}

impl VsockPlan {
    /// Context ids that a guest can have: 0 to 2 and the two largest 32-bit values mean something else, and the rest of the field
    /// is reserved (VIRTIO 1.2 section 5.10.4).
    pub const GUEST_CIDS: RangeInclusive<u64> = 3..=0xffff_fffd;
    /// The longest [`Self::path`] in bytes: a socket address must hold it with `_` and the largest port number behind it.
    pub const MAX_PATH_BYTES: usize = unix::MAX_PATH_BYTES - "_4294967295".len();
}

/// The network card and the stack behind it.
#[derive(Debug)]
pub struct NetPlan {
    /// The guest's hardware address.
    pub mac: MacAddress,
    /// Largest packet.
    pub mtu: Mtu,
    /// The host's side.
    pub host: HostPlan,
    /// Features that the card does not offer.
    pub without: Vec<CardFeature>,
    /// Descriptors of a ring.
    pub ring_size: RingSize,
}

/// The control socket of a machine that has a name.
#[derive(Debug)]
pub struct ControlPlan {
    /// Listens already.
    pub listener: UnixListener,
    /// Its name, removed at the machine's end.
    pub path: PathBuf,
    /// The host's side of the vsock device, for questions to the guest.
    pub guest: PathBuf,
    /// The signal that asks the guest's main process to end.
    pub stop_signal: i32,
    /// How long it may take then.
    pub grace: Duration,
}

/// The main process's standard streams. See [`crate::streams`].
#[derive(Debug)]
pub struct StreamsPlan {
    /// Listens already where the guest's connection comes.
    pub guest: UnixListener,
    /// Listens already for who attaches.
    pub attach: UnixListener,
    /// Names of both, removed at the machine's end.
    pub paths: [PathBuf; 2],
    /// Where output is kept.
    pub log: Logbook,
    /// The process has a terminal.
    pub tty: bool,
    /// The process has an input.
    pub input: bool,
    /// They are this process's streams as well.
    pub own: bool,
}

/// Where the serial console goes.
#[derive(Debug)]
pub enum ConsolePlan {
    /// Standard input and output.
    Stdio,
    /// Output to a file, no input.
    File(File),
    /// Output to a machine's logbook; the main process's streams are elsewhere.
    Logged {
        /// The logbook.
        log: Logbook,
        /// Standard output gets the end of it when there has been no main process.
        output: bool,
    },
    /// The kernel is told of no console; what it prints all the same is kept for messages.
    None,
}
