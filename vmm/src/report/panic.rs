//! What a Linux kernel means by the reason it panics with.
//!
//! Invariant: a reason that is not recognised is still reported as the kernel gave it. Pure.

/// What a panic is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicKind {
    /// The root disk could not be mounted.
    RootDisk,
    /// There was no init to run.
    NoInit,
    /// Init ended; Linux has no life after it.
    InitDied(InitEnd),
    /// Memory ran out where the kernel could not do without.
    OutOfMemory,
    /// Anything else.
    Other,
}

/// How init ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitEnd {
    /// It exited with this status.
    Code(u8),
    /// It was ended by this signal.
    Signal(u8),
    /// The kernel did not say.
    Unknown,
}

impl PanicKind {
    /// Reads the text that follows "Kernel panic - not syncing: ".
    #[must_use]
    pub fn of(reason: &str) -> Self {
        let has = |text: &str| reason.contains(text);
        if has("VFS: Unable to mount root") {
            Self::RootDisk
        } else if has("No working init found") || has("Requested init") {
            Self::NoInit
        } else if has("Attempted to kill init") {
            Self::InitDied(init_end(reason))
        } else if has("ut of memory") || has("System is deadlocked on memory") {
            Self::OutOfMemory
        } else {
            Self::Other
        }
    }

    /// What it means, one line.
    #[must_use]
    pub fn why(self) -> Option<String> {
        Some(match self {
            Self::RootDisk => "the guest found no file system that it can mount as root".to_owned(),
            Self::NoInit => "the root file system has no program that can run as init".to_owned(),
            Self::InitDied(InitEnd::Code(code)) => {
                format!("the guest's init exited with status {code}; init must not end")
            }
            Self::InitDied(InitEnd::Signal(signal)) => {
                format!("the guest's init was ended by signal {signal}; init must not end")
            }
            Self::InitDied(InitEnd::Unknown) => {
                "the guest's init ended; init must not end".to_owned()
            }
            Self::OutOfMemory => "the guest has too little memory".to_owned(),
            Self::Other => return None,
        })
    }

    /// What can be done, one line.
    #[must_use]
    pub fn fix(self) -> Option<&'static str> {
        match self {
            Self::RootDisk => Some(
                "check that the first --disk holds a file system that the kernel has, and root= in --append",
            ),
            Self::NoInit => {
                Some("check that the root disk has /sbin/init, or name one with --append init=PATH")
            }
            Self::OutOfMemory => Some("give more with --memory"),
            Self::InitDied(_) | Self::Other => None,
        }
    }
}

/// Linux prints the status as wait(2) would give it: "exitcode=0x00000100".
fn init_end(reason: &str) -> InitEnd {
    let status = reason
        .split_once("exitcode=0x")
        .map(|(_, rest)| rest.split(|c: char| !c.is_ascii_hexdigit()).next().unwrap_or_default())
        .and_then(|digits| u32::from_str_radix(digits, 16).ok());
    match status.map(u32::to_le_bytes) {
        Some([low, code, ..]) if low & 0x7f == 0 => InitEnd::Code(code),
        Some([low, ..]) => InitEnd::Signal(low & 0x7f),
        None => InitEnd::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_recognised() {
        for (reason, want) in [
            ("VFS: Unable to mount root fs on unknown-block(0,0)", PanicKind::RootDisk),
            (
                "VFS: Unable to mount root fs on \"/dev/vda\" or unknown-block(254,0)",
                PanicKind::RootDisk,
            ),
            ("No working init found.  Try passing init= option to kernel.", PanicKind::NoInit),
            ("Requested init /bin/nope failed (error -2).", PanicKind::NoInit),
            ("Attempted to kill init! exitcode=0x00000100", PanicKind::InitDied(InitEnd::Code(1))),
            (
                "Attempted to kill init! exitcode=0x0000ff00",
                PanicKind::InitDied(InitEnd::Code(255)),
            ),
            (
                "Attempted to kill init! exitcode=0x0000008b",
                PanicKind::InitDied(InitEnd::Signal(11)),
            ),
            ("Attempted to kill init! exitcode=0xfffffffff", PanicKind::InitDied(InitEnd::Unknown)),
            ("Attempted to kill init!", PanicKind::InitDied(InitEnd::Unknown)),
            ("Out of memory and no killable processes...", PanicKind::OutOfMemory),
            ("Fatal exception in interrupt", PanicKind::Other),
            ("", PanicKind::Other),
        ] {
            assert_eq!(PanicKind::of(reason), want, "{reason}");
        }
    }
}
