//! Why a machine that was asked for cannot be built, with a remedy for each reason.
//!
//! Invariant: a message names the thing as the user wrote it. Pure.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::lock::Holder;
use super::net_plan::NetPlanError;
use super::open::{MAX_CPUS, MAX_DISKS, MAX_MEMORY_BYTES, MIN_MEMORY_BYTES, SECTOR_BYTES};
use super::plan::VsockPlan;
use super::units::format_size;
use crate::explain::Explain;

/// What the user wrote cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A flag's value.
    #[error("{flag} {value}: {reason}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration file could not be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// As the user wrote it.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The configuration file is not right.
    #[error("{}:{line}:{column}: {message}", path.display())]
    File {
        /// As the user wrote it.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// What is wrong there.
        message: String,
        /// A known name close to the one written.
        nearest: Option<String>,
    },
}

impl SpecError {
    pub(super) fn value(flag: &'static str, value: &OsStr, reason: String) -> Self {
        Self::Value { flag, value: value.to_string_lossy().into_owned(), reason }
    }

    /// What is wrong, without the flag's name.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Value { value, reason, .. } => format!("{value}: {reason}"),
            Self::Read { .. } | Self::File { .. } => self.to_string(),
        }
    }
}

impl Explain for SpecError {
    fn fix(&self) -> Option<String> {
        Some(match self {
            Self::Value { .. } => {
                "`openshell-vmm run --help` lists what each flag takes".to_owned()
            }
            Self::Read { .. } => "check the path given to --config".to_owned(),
            Self::File { nearest: Some(name), .. } => format!("did you mean `{name}`?"),
            Self::File { .. } => {
                "the file takes the long names of the flags; `openshell-vmm run --help` lists them"
                    .to_owned()
            }
        })
    }
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRole {
    /// `--disk FILE`.
    Disk,
    /// `--disk ..,overlay=FILE`.
    Overlay,
    /// `--kernel FILE`.
    Kernel,
    /// `--initrd FILE`.
    Initrd,
    /// `--console file=FILE`.
    Console,
    /// `--result FILE`.
    Result,
}

impl fmt::Display for FileRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Overlay => "overlay",
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Console => "console file",
            Self::Result => "result file",
        })
    }
}

/// What was asked for is readable and cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Nothing to boot from.
    #[error("no disk was given")]
    NoDisk,
    /// More disks than a machine has room for.
    #[error("{count} disks were given: a machine has at most {MAX_DISKS}")]
    TooManyDisks {
        /// Disks asked for.
        count: usize,
    },
    /// Nothing has this name.
    #[error("{role} {}: no such file", path.display())]
    Missing {
        /// What it is for.
        role: FileRole,
        /// As the user wrote it.
        path: PathBuf,
    },
    /// The file is of a kind that cannot serve.
    #[error("{role} {} is {found}, not {}", path.display(), role.wanted())]
    WrongKind {
        /// What it is for.
        role: FileRole,
        /// As the user wrote it.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// The file can be read and not written.
    #[error("{role} {} cannot be opened for writing", path.display())]
    ReadOnly {
        /// What it is for.
        role: FileRole,
        /// As the user wrote it.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file could not be opened, for a reason of the host's.
    #[error("cannot open {role} {}", path.display())]
    Open {
        /// What it is for.
        role: FileRole,
        /// As the user wrote it.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Another process holds a lock.
    #[error("{role} {} is in use{}", path.display(), by(holder.as_ref()))]
    Locked {
        /// What it is for.
        role: FileRole,
        /// As the user wrote it.
        path: PathBuf,
        /// Who has it, when the host tells.
        holder: Option<Holder>,
        /// It was asked for read-write.
        exclusive: bool,
    },
    /// The file system cannot lock.
    #[error("cannot lock {role} {}", path.display())]
    Lock {
        /// What it is for.
        role: FileRole,
        /// As the user wrote it.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Two names of one file.
    #[error(
        "{role} {} is the same file as {other_role} {}", path.display(), other_path.display()
    )]
    SameFile {
        /// What the second one is for.
        role: FileRole,
        /// The second one.
        path: PathBuf,
        /// What the first one is for.
        other_role: FileRole,
        /// The first one.
        other_path: PathBuf,
    },
    /// Nothing in it.
    #[error("{role} {} is empty", path.display())]
    Empty {
        /// What it is for.
        role: FileRole,
        /// As the user wrote it.
        path: PathBuf,
    },
    /// A disk that does not end on a sector boundary.
    #[error("disk {} has {len_bytes} bytes, which is not a multiple of {SECTOR_BYTES}", path.display())]
    NotSectors {
        /// As the user wrote it.
        path: PathBuf,
        /// Its size.
        len_bytes: u64,
    },
    /// `ro` and `overlay` on one disk.
    #[error("disk {}: ro and overlay exclude each other", path.display())]
    ReadOnlyOverlay {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// A limit of zero.
    #[error("disk {}: {limit}=0 would stop it for good", path.display())]
    ZeroLimit {
        /// As the user wrote it.
        path: PathBuf,
        /// `iops` or `bw`.
        limit: &'static str,
    },
    /// Number of vCPUs.
    #[error("{cpus} CPUs: a machine has 1 to {MAX_CPUS}")]
    Cpus {
        /// As asked for.
        cpus: u64,
    },
    /// Less memory than any kernel boots in, or more than a guest can address.
    #[error(
        "memory of {}: a machine has {} to {}",
        format_size(*bytes), format_size(MIN_MEMORY_BYTES), format_size(MAX_MEMORY_BYTES)
    )]
    Memory {
        /// As asked for.
        bytes: u64,
    },
    /// A time-out of nothing.
    #[error("a timeout of 0 leaves the machine no time to run")]
    ZeroTimeout,
    /// The socket's name does not fit in an address.
    #[error("vsock path {} has {len} bytes: at most {max} fit", path.display())]
    VsockPathTooLong {
        /// As the user wrote it.
        path: PathBuf,
        /// Its length.
        len: usize,
        /// Longest one.
        max: usize,
    },
    /// Somebody listens there.
    #[error("vsock path {} is in use{}", path.display(), by(holder.as_ref()))]
    VsockInUse {
        /// As the user wrote it.
        path: PathBuf,
        /// Who, when the host tells.
        holder: Option<Holder>,
    },
    /// Something else has the name.
    #[error("vsock path {} exists and is not a socket", path.display())]
    VsockNotSocket {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// The directory of a file to be made.
    #[error("{what} {}: its directory does not exist", path.display())]
    NoDirectory {
        /// What was to be made.
        what: &'static str,
        /// As the user wrote it.
        path: PathBuf,
    },
    /// The other context ids have a meaning of their own.
    #[error(
        "vsock cid {cid}: a guest has {} to {}",
        VsockPlan::GUEST_CIDS.start(), VsockPlan::GUEST_CIDS.end()
    )]
    VsockCid {
        /// As asked for.
        cid: u64,
    },
    /// The result file has contents that no run wrote.
    #[error("result file {} exists and holds something other than a result", path.display())]
    NotAResult {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// The network.
    #[error("{0}")]
    Network(#[source] NetPlanError),
    /// No kernel was named and none is installed.
    #[error("no guest kernel found")]
    NoKernel {
        /// Where it was looked for, in order.
        searched: Vec<PathBuf>,
    },
}

impl FileRole {
    fn wanted(self) -> &'static str {
        match self {
            Self::Disk => "a regular file or block device",
            Self::Console => "a regular file, pipe or terminal",
            Self::Overlay | Self::Kernel | Self::Initrd | Self::Result => "a regular file",
        }
    }
}

impl Explain for PlanError {
    fn why(&self) -> Option<String> {
        use std::error::Error;
        Some(match self {
            Self::NoDisk => {
                "the guest boots from its first disk or from an initial RAM disk".into()
            }
            Self::Locked { exclusive: true, .. } => {
                "a disk that is written belongs to one machine alone".into()
            }
            Self::Locked { exclusive: false, .. } => {
                "another machine writes to it: what is read here would change underway".into()
            }
            Self::SameFile { .. } => {
                "two devices on one file would undo each other's writes".into()
            }
            Self::VsockPathTooLong { .. } => {
                "a socket address holds 107 bytes, and guest port N is served at PATH_N".into()
            }
            Self::NoKernel { searched } => {
                let places: Vec<_> =
                    searched.iter().map(|path| path.display().to_string()).collect();
                format!("looked for {}", places.join(", "))
            }
            Self::Network(error) => return error.why(),
            _ => return self.source().map(ToString::to_string),
        })
    }

    fn fix(&self) -> Option<String> {
        Some(match self {
            Self::NoDisk => "add --disk FILE, or --initrd FILE".into(),
            Self::TooManyDisks { .. } => "put several directories on one disk".into(),
            Self::Missing { role: FileRole::Overlay, .. } | Self::NoDirectory { .. } => {
                "make the directory first".into()
            }
            Self::Missing { .. } => "check the path".into(),
            Self::WrongKind { role: FileRole::Disk, found: "a directory", .. } => {
                "make an ext4 image of the directory and give its file name".into()
            }
            Self::WrongKind { role, .. } => format!("give {}", role.wanted()),
            Self::ReadOnly { role: FileRole::Disk, path, .. } => {
                let path = path.display();
                format!(
                    "--disk {path},ro to read it only, or --disk {path},overlay=FILE to keep writes apart"
                )
            }
            Self::ReadOnly { path, .. } | Self::Open { path, .. } => permission_fix(path),
            Self::Locked { holder, exclusive, path, .. } => {
                let stop = holder.as_ref().map_or_else(
                    || "stop the process that has it".to_owned(),
                    |holder| format!("stop process {}", holder.pid),
                );
                if *exclusive {
                    format!(
                        "{stop}, or share the image with --disk {},overlay=FILE in both",
                        path.display()
                    )
                } else {
                    stop
                }
            }
            Self::Lock { .. } => "put the file on a file system with flock(2) locks".into(),
            Self::SameFile { .. } => "give each its own file, or drop one".into(),
            Self::Empty { .. } => "give a file with contents".into(),
            Self::NotSectors { path, len_bytes } => {
                let want = len_bytes.next_multiple_of(SECTOR_BYTES);
                format!("truncate -s {want} {}, if the image is complete", path.display())
            }
            Self::ReadOnlyOverlay { .. } => {
                "drop ro: the image is never written when there is an overlay".into()
            }
            Self::ZeroLimit { limit, .. } => format!("drop {limit} for no limit"),
            Self::Cpus { .. } => format!("--cpus N with N from 1 to {MAX_CPUS}"),
            Self::Memory { bytes } if *bytes < MIN_MEMORY_BYTES => {
                "--memory 512M suits most guests; a bare number is MiB".into()
            }
            Self::Memory { .. } => "ask for less".into(),
            Self::ZeroTimeout => "drop --timeout for no limit".into(),
            Self::VsockPathTooLong { .. } => {
                "use a shorter directory, such as one in $XDG_RUNTIME_DIR".into()
            }
            Self::VsockInUse { .. } => "give each machine a socket path of its own".into(),
            Self::VsockNotSocket { .. } => "give another path, or remove that file".into(),
            Self::NotAResult { .. } => "give another name, or remove that file".into(),
            Self::Network(error) => return error.fix(),
            Self::VsockCid { .. } => "drop cid: the default is 3".into(),
            Self::NoKernel { .. } => {
                "`cargo xtask kernel` builds and installs one, or --kernel FILE names your own"
                    .into()
            }
        })
    }
}

fn by(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| " by another process".to_owned(), |holder| format!(" {holder}"))
}

fn permission_fix(path: &Path) -> String {
    format!("check owner and mode: ls -ld {}", path.display())
}
