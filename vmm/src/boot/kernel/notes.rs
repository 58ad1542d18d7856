//! ELF notes: the PVH entry, and the build salt by which our kernels say how they find their devices.
//!
//! Invariant: each step consumes a note header, so that reading ends; a note that runs past the end ends it too.

use crate::config::plan::Tables;

use super::u32_at;

/// Type of Xen's note with the 32-bit entry point.
const XEN_PHYS32_ENTRY: u32 = 18;
/// Type of Linux's note with CONFIG_BUILD_SALT.
const LINUX_BUILD_SALT: u32 = 0x100;
const HEADER_BYTES: usize = 12;

/// What the notes of a kernel say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Notes {
    pub(super) pvh: Option<u64>,
    pub(super) profile: Option<Tables>,
}

impl Notes {
    /// Reads one note segment; what it says wins over what an earlier one said. `align` is 4 or 8.
    pub(super) fn read(&mut self, segment: &[u8], align: usize) {
        let mut rest = segment;
        while let Some((note, next)) = split_note(rest, align) {
            match (note.name, note.kind) {
                (b"Xen\0", XEN_PHYS32_ENTRY) => self.pvh = entry_of(note.desc).or(self.pvh),
                (b"Linux\0", LINUX_BUILD_SALT) => {
                    self.profile = profile_of(note.desc).or(self.profile);
                }
                _ => {}
            }
            rest = next;
        }
    }
}

struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    desc: &'a [u8],
}

fn split_note(bytes: &[u8], align: usize) -> Option<(Note<'_>, &[u8])> {
    let header = bytes.get(..HEADER_BYTES)?;
    let name_len = usize::try_from(u32_at(header, 0)).ok()?;
    let desc_len = usize::try_from(u32_at(header, 4)).ok()?;
    let name = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(name_len)?)?;
    let desc_at = (HEADER_BYTES + name_len).checked_next_multiple_of(align)?;
    let desc_end = desc_at.checked_add(desc_len)?;
    let desc = bytes.get(desc_at..desc_end)?;
    // The last note may lack its padding.
    let next = desc_end.checked_next_multiple_of(align)?.min(bytes.len());
    Some((Note { name, kind: u32_at(header, 8), desc }, &bytes[next..]))
}

/// The entry has the size of the kernel's pointers.
fn entry_of(desc: &[u8]) -> Option<u64> {
    match desc.len() {
        4 => Some(u64::from(u32_at(desc, 0))),
        8 => u32::try_from(super::u64_at(desc, 0)).ok().map(u64::from),
        _ => None,
    }
}

/// `openshell-vmm/1 PROFILE mptable` or `... acpi`, with a terminating zero.
fn profile_of(desc: &[u8]) -> Option<Tables> {
    let salt = std::str::from_utf8(desc).ok()?.trim_end_matches('\0');
    let mut words = salt.split(' ');
    if words.next() != Some("openshell-vmm/1") {
        return None;
    }
    match words.nth(1)? {
        "mptable" => Some(Tables::MpTable),
        "acpi" => Some(Tables::Acpi),
        _ => None,
    }
}
