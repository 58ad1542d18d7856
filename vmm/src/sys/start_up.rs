//! Memory that only the start of the process needed.
//!
//! Reading arguments and building a machine touches most of the program and of the heap once; a machine that runs needs a small
//! part of either.

#![expect(unsafe_code, reason = "the program's own mappings are looked up and given back here")]

use std::slice;

const PAGE_BYTES: u64 = 4096;

/// Gives back pages of the program's file and free pages of its heap. What is used again is mapped again, from the page cache.
///
/// Pages that a debugger has written to are lost, and its breakpoints with them.
pub fn release() {
    for segment in read_only_segments() {
        let Ok(len) = usize::try_from(segment.end - segment.start) else { continue };
        let start = std::ptr::with_exposed_provenance_mut(
            usize::try_from(segment.start).unwrap_or_default(),
        );
        // SAFETY: the range lies in a segment that the program itself never writes, so that every page of it is as the file
        // has it, and comes back from there. A host that refuses keeps the pages.
        unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) };
    }
    // SAFETY: it takes the allocator's locks and touches only memory that is free.
    unsafe { libc::malloc_trim(0) };
}

/// Whole pages of the segments that are mapped without a right to write, by their addresses. Nothing is relocated there.
fn read_only_segments() -> Vec<std::ops::Range<u64>> {
    // SAFETY: the call reads the auxiliary vector, which the kernel made.
    let table = unsafe { libc::getauxval(libc::AT_PHDR) };
    // SAFETY: as above.
    let count = unsafe { libc::getauxval(libc::AT_PHNUM) };
    let first = std::ptr::with_exposed_provenance::<libc::Elf64_Phdr>(
        usize::try_from(table).unwrap_or_default(),
    );
    if first.is_null() {
        return Vec::new();
    }
    let count = usize::try_from(count).unwrap_or_default();
    // SAFETY: the kernel gives the address and the number of the program headers that it has mapped, and nothing writes them.
    let headers = unsafe { slice::from_raw_parts(first, count) };
    let Some(own) = headers.iter().find(|header| header.p_type == libc::PT_PHDR) else {
        return Vec::new();
    };
    let bias = table.wrapping_sub(own.p_vaddr);
    headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
        .map(|header| {
            let start = bias.wrapping_add(header.p_vaddr);
            let end = start.wrapping_add(header.p_memsz);
            start & !(PAGE_BYTES - 1)..end & !(PAGE_BYTES - 1)
        })
        .filter(|range| range.start < range.end)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of `range` that are mapped, as the kernel counts them.
    fn resident_kib(range: &std::ops::Range<u64>) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let mut kib = 0;
        for line in maps.lines() {
            let mut words = line.split_ascii_whitespace();
            let Some(first) = words.next() else { continue };
            if let Some((start, end)) = first.split_once('-') {
                let (start, end) = (
                    u64::from_str_radix(start, 16).unwrap(),
                    u64::from_str_radix(end, 16).unwrap(),
                );
                inside = start <= range.start && range.end <= end;
            } else if inside && first == "Rss:" {
                kib += words.next().unwrap().parse::<u64>().unwrap();
            }
        }
        kib
    }

    const ALONE: &str = "OPENSHELL_TEST_RELEASE_ALONE";

    /// In a process of its own: other tests, at the same time, would take their part of the program back.
    #[test]
    fn the_program_is_given_back_and_runs_on() {
        if std::env::var_os(ALONE).is_some() {
            return give_back();
        }
        let name = "sys::start_up::tests::the_program_is_given_back_and_runs_on";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1", name])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}{said}");
    }

    fn give_back() {
        let segments = read_only_segments();
        let largest = segments.iter().max_by_key(|range| range.end - range.start).unwrap();
        let inside = read_only_segments as fn() -> _ as usize as u64;
        assert!(largest.contains(&inside), "{largest:x?} is the program's text");
        // SAFETY: the range is mapped and readable; to fault it in changes nothing.
        unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(usize::try_from(largest.start).unwrap()),
                usize::try_from(largest.end - largest.start).unwrap(),
                libc::MADV_POPULATE_READ,
            )
        };
        let before = resident_kib(largest);
        release();
        let after = resident_kib(largest);
        assert!(after < before / 2, "{before} KiB became {after}");
    }
}
