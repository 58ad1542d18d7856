//! Why a boot failed, as the one line that the host sees.
//!
//! Invariant: the line is printable ASCII of at most [`LINE_MAX`] bytes, whatever a path or message holds.

use std::fmt::{self, Write as _};
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// The longest line in bytes, without its newline.
pub const LINE_MAX: usize = 500;

/// Exit code of a machine whose boot failed.
pub const BOOT_FAILED: u8 = 125;
/// Exit code when the main process cannot be run.
pub const NOT_RUNNABLE: u8 = 126;
/// Exit code when the main process was not found.
pub const NOT_FOUND: u8 = 127;

/// A step of the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "docs/guest.md has the table of steps")]
pub enum Step {
    Start,
    MountBase,
    MountRw,
    MountConfig,
    Config,
    Overlay,
    Pivot,
    Mounts,
    Clock,
    Entropy,
    Files,
    Hostname,
    Network,
    Dhcp,
    Resolver,
    Directories,
    Hook,
    User,
    Agent,
    Exec,
    Bug,
}

impl Step {
    /// Its name in the line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::MountBase => "mount-base",
            Self::MountRw => "mount-rw",
            Self::MountConfig => "mount-config",
            Self::Config => "config",
            Self::Overlay => "overlay",
            Self::Pivot => "pivot",
            Self::Mounts => "mounts",
            Self::Clock => "clock",
            Self::Entropy => "entropy",
            Self::Files => "files",
            Self::Hostname => "hostname",
            Self::Network => "network",
            Self::Dhcp => "dhcp",
            Self::Resolver => "resolver",
            Self::Directories => "directories",
            Self::Hook => "hook",
            Self::User => "user",
            Self::Agent => "agent",
            Self::Exec => "exec",
            Self::Bug => "bug",
        }
    }

    /// A failure of this step at `path`, as a system call said it.
    pub fn at(self, path: impl AsRef<Path>) -> impl FnOnce(Errno) -> Failure {
        move |errno| Failure::new(self, describe(errno)).path(path)
    }

    /// A failure of this step at `path`, as the standard library said it.
    pub fn io(self, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Failure {
        move |error| {
            let message = match Errno::from_io_error(&error) {
                Some(errno) => describe(errno),
                None => error.to_string(),
            };
            Failure::new(self, message).path(path)
        }
    }
}

/// A failed boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    step: Step,
    path: Option<String>,
    message: String,
    code: u8,
}

impl Failure {
    /// A failure without a path.
    pub fn new(step: Step, message: impl Into<String>) -> Self {
        Self { step, path: None, message: message.into(), code: BOOT_FAILED }
    }

    /// Names what it was about.
    #[must_use]
    pub fn path(mut self, path: impl AsRef<Path>) -> Self {
        self.path = Some(path.as_ref().to_string_lossy().into_owned());
        self
    }

    /// Another exit code than [`BOOT_FAILED`].
    #[must_use]
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The machine's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// The step that failed.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = format!("openshell-init: error: {}: ", self.step.name());
        if let Some(path) = &self.path {
            _ = write!(line, "{path}: ");
        }
        line.push_str(&self.message);
        let printable = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        for c in line.chars().map(printable).take(LINE_MAX) {
            f.write_char(c)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// What an errno means, with its name: `no such file or directory (ENOENT)`.
#[must_use]
pub fn describe(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    let lower = chars.next().map(|first| first.to_ascii_lowercase());
    let text: String = lower.into_iter().chain(chars).collect();
    match NAMES.iter().find(|(named, _)| *named == errno) {
        Some((_, name)) => format!("{text} ({name})"),
        None => format!("{text} (errno {})", errno.raw_os_error()),
    }
}

const NAMES: [(Errno, &str); 40] = [
    (Errno::PERM, "EPERM"),
    (Errno::NOENT, "ENOENT"),
    (Errno::IO, "EIO"),
    (Errno::NXIO, "ENXIO"),
    (Errno::TOOBIG, "E2BIG"),
    (Errno::NOEXEC, "ENOEXEC"),
    (Errno::BADF, "EBADF"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::ACCESS, "EACCES"),
    (Errno::NOTBLK, "ENOTBLK"),
    (Errno::BUSY, "EBUSY"),
    (Errno::EXIST, "EEXIST"),
    (Errno::XDEV, "EXDEV"),
    (Errno::NODEV, "ENODEV"),
    (Errno::NOTDIR, "ENOTDIR"),
    (Errno::ISDIR, "EISDIR"),
    (Errno::INVAL, "EINVAL"),
    (Errno::NFILE, "ENFILE"),
    (Errno::MFILE, "EMFILE"),
    (Errno::NOTTY, "ENOTTY"),
    (Errno::TXTBSY, "ETXTBSY"),
    (Errno::FBIG, "EFBIG"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::ROFS, "EROFS"),
    (Errno::MLINK, "EMLINK"),
    (Errno::NAMETOOLONG, "ENAMETOOLONG"),
    (Errno::NOSYS, "ENOSYS"),
    (Errno::LOOP, "ELOOP"),
    (Errno::LIBBAD, "ELIBBAD"),
    (Errno::OPNOTSUPP, "EOPNOTSUPP"),
    (Errno::AFNOSUPPORT, "EAFNOSUPPORT"),
    (Errno::ADDRINUSE, "EADDRINUSE"),
    (Errno::ADDRNOTAVAIL, "EADDRNOTAVAIL"),
    (Errno::NETDOWN, "ENETDOWN"),
    (Errno::NETUNREACH, "ENETUNREACH"),
    (Errno::TIMEDOUT, "ETIMEDOUT"),
    (Errno::STALE, "ESTALE"),
    (Errno::UCLEAN, "EUCLEAN"),
    (Errno::BADMSG, "EBADMSG"),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_names_step_path_and_errno() {
        for (failure, expected) in [
            (
                Step::MountBase.at("/dev/vdb")(Errno::NXIO),
                "openshell-init: error: mount-base: /dev/vdb: no such device or address (ENXIO)",
            ),
            (
                Step::Files.io("/x")(io::Error::from_raw_os_error(28)),
                "openshell-init: error: files: /x: no space left on device (ENOSPC)",
            ),
            (Failure::new(Step::Bug, "odd"), "openshell-init: error: bug: odd"),
            (
                Step::Exec.at("/x")(Errno::from_raw_os_error(71)),
                "openshell-init: error: exec: /x: protocol error (errno 71)",
            ),
        ] {
            assert_eq!(failure.to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn a_line_is_one_short_printable_line(path in ".{0,600}", message in ".{0,600}") {
            let line = Failure::new(Step::Files, message).path(path).to_string();
            prop_assert!(line.len() <= LINE_MAX);
            prop_assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
        }
    }
}
