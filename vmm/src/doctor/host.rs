//! What else of the host decides how well a guest runs.

use std::fs;
use std::path::Path;

use super::Check;
use crate::config::kernel::{KernelPlaces, Profile, verify};

/// Descriptors for the disks, queues and vsock streams of one machine, with room to spare.
const WANTED_FILES: u64 = 1024;

pub(super) fn io_uring() -> Check {
    let name = "io_uring";
    match ::io_uring::IoUring::new(8) {
        Ok(_) => Check::ok(name, "usable"),
        Err(error) => {
            let fix = match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    "sudo sysctl kernel.io_uring_disabled=0; in a container, allow it in the seccomp profile"
                }
                Some(libc::ENOMEM) => "raise the limit of locked memory: ulimit -l",
                _ => "use a kernel with CONFIG_IO_URING",
            };
            Check::warn(name, format!("refused ({error}): disks use the synchronous engine"), fix)
        }
    }
}

pub(super) fn huge_pages() -> Check {
    let read = |name: &str| fs::read_to_string(Path::new("/sys/kernel/mm").join(name)).ok();
    let mode = read("transparent_hugepage/enabled");
    let reserved = read("hugepages/hugepages-2048kB/nr_hugepages");
    explain_huge_pages(mode.as_deref(), reserved.as_deref())
}

fn explain_huge_pages(mode: Option<&str>, reserved: Option<&str>) -> Check {
    let name = "huge pages";
    // "always [madvise] never"
    let chosen = mode
        .and_then(|mode| mode.split_once('['))
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(chosen, _)| chosen);
    let reserved = reserved.map_or("no", str::trim);
    match chosen {
        Some(chosen @ ("always" | "madvise")) => Check::ok(
            name,
            format!("transparent huge pages are on ({chosen}); {reserved} reserved pages of 2 MiB"),
        ),
        Some(chosen) => Check::warn(
            name,
            format!("transparent huge pages are off ({chosen}): guests start slower"),
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Check::warn(
            name,
            "the host kernel has no transparent huge pages: guests start slower",
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

pub(super) fn limits() -> Vec<Check> {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    explain_limits(&limits)
}

fn explain_limits(limits: &str) -> Vec<Check> {
    // Columns: name, soft limit, hard limit, unit.
    let soft = |name: &str| -> Option<&str> {
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()
    };
    let files = soft("Max open files").unwrap_or("unknown");
    let memory = soft("Max locked memory").unwrap_or("unknown");
    let open_files = match files.parse::<u64>() {
        Ok(count) if count < WANTED_FILES => Check::warn(
            "open files",
            format!("at most {count}: a machine with many vsock streams needs {WANTED_FILES}"),
            format!("ulimit -n {WANTED_FILES}"),
        ),
        _ => Check::ok("open files", format!("at most {files}")),
    };
    vec![open_files, Check::ok("locked memory", format!("at most {memory} bytes"))]
}

pub(super) fn kernel() -> Check {
    let name = "guest kernel";
    let path = match KernelPlaces::of_process().find(None, Profile::default()) {
        Ok(path) => path,
        Err(searched) => {
            let searched: Vec<_> = searched.iter().map(|path| path.display().to_string()).collect();
            return Check::warn(
                name,
                format!("none in {}", searched.join(", ")),
                "`cargo xtask kernel` builds and installs one, or name yours: run --kernel FILE",
            );
        }
    };
    match verify(&path) {
        Ok(manifest) => Check::ok(
            name,
            format!("{}: Linux {}, as installed", path.display(), manifest.source_version),
        ),
        Err(error @ crate::config::kernel::VerifyError::Digest { .. }) => Check::fail(
            name,
            error.to_string(),
            "`cargo xtask kernel` builds and installs it again",
        ),
        Err(error) => Check::warn(
            name,
            format!("{}: not verified: {error}", path.display()),
            "`cargo xtask kernel` installs one with its manifest",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn huge_page_modes() {
        for (mode, status, word) in [
            (Some("[always] madvise never\n"), Status::Ok, "always"),
            (Some("always [madvise] never\n"), Status::Ok, "madvise"),
            (Some("always madvise [never]\n"), Status::Warn, "never"),
            (Some("garbage"), Status::Warn, "no transparent"),
            (None, Status::Warn, "no transparent"),
        ] {
            let check = explain_huge_pages(mode, Some("0\n"));
            assert_eq!(check.status, status, "{mode:?}");
            assert!(check.detail.contains(word), "{}", check.detail);
        }
    }

    #[test]
    fn limits_are_read_from_their_soft_column() {
        let limits = |files: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max open files            {files}                 1048576              files\n\
                 Max locked memory         8388608              8388608              bytes\n"
            )
        };
        let [files, memory] = &explain_limits(&limits("256"))[..] else { panic!("two checks") };
        assert_eq!(files.status, Status::Warn);
        assert_eq!(memory.detail, "at most 8388608 bytes");
        for soft in ["1024", "unlimited"] {
            assert_eq!(explain_limits(&limits(soft))[0].status, Status::Ok, "{soft}");
        }
    }
}
