//! What a VMM's process holds beside its guest's RAM.

use std::fs;

use anyhow::{Context as _, Result};

/// The memory of process `pid` besides its largest writable mapping, which in a VMM is the guest's RAM: its proportional share, in KiB.
///
/// # Errors
/// When the process is gone or its maps cannot be read.
pub fn memory_beside_guest_kib(pid: u32) -> Result<u64> {
    of_process(pid, "Pss:")
}

/// As [`memory_beside_guest_kib`], without pages of files: their share grows when another process of the same program ends.
///
/// # Errors
/// As there.
pub fn anonymous_beside_guest_kib(pid: u32) -> Result<u64> {
    of_process(pid, "Anonymous:")
}

fn of_process(pid: u32, kind: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    besides_largest(&text, kind).with_context(|| format!("{path} has no mapping"))
}

fn besides_largest(smaps: &str, kind: &str) -> Option<u64> {
    let field = |line: &str, name: &str| -> Option<u64> {
        line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()
    };
    let mut mappings: Vec<(u64, u64)> = Vec::new();
    let mut writable = false;
    for line in smaps.lines() {
        if let Some(size) = field(line, "Size:") {
            // An allocator reserves more than a small guest has, but not to be written.
            mappings.push((if writable { size } else { 0 }, 0));
        } else if let (Some(kib), Some(last)) = (field(line, kind), mappings.last_mut()) {
            last.1 = kib;
        } else if let Some(rights) = line.split(' ').nth(1).filter(|rights| rights.len() == 4) {
            writable = rights.starts_with("rw");
        }
    }
    let (_, guest) = mappings.iter().max_by_key(|(size, _)| *size)?;
    Some(mappings.iter().map(|(_, kib)| kib).sum::<u64>() - guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_mapping_is_left_out() {
        let smaps = "\
55-56 r-xp 0 00:00 1 /bin/vmm
Size:               2048 kB
Rss:                 900 kB
Pss:                 500 kB
Pss_Dirty:            10 kB
7f-80 rw-p 0 00:00 0
Size:             131072 kB
Pss:                4096 kB
80-81 rw-p 0 00:00 0
Size:                  8 kB
Pss:                   8 kB
81-99 ---p 0 00:00 0
Size:             999999 kB
Pss:                   0 kB
";
        assert_eq!(besides_largest(smaps, "Pss:"), Some(508));
        assert_eq!(besides_largest(smaps, "Pss_Dirty:"), Some(10));
        assert_eq!(besides_largest("", "Pss:"), None);
    }
}
