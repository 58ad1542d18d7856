//! What the VMM needs of a kernel image, read from its ELF headers: segments that a file mapping can serve, and the
//! notes that say what the image is. ELF-64 specification; note types from the kernel's elfnote headers.

use anyhow::{Context as _, Result, bail, ensure};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PAGE: u64 = 4096;

/// The notes of an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Notes {
    /// `NT_GNU_BUILD_ID` in hexadecimal.
    pub(super) build_id: String,
    /// `CONFIG_BUILD_SALT`.
    pub(super) salt: String,
    /// Whether there is a 32-bit PVH entry point.
    pub(super) pvh: bool,
}

/// Checks that `image` is an uncompressed x86-64 kernel whose segments can be mapped, and reads its notes.
pub(super) fn check(image: &[u8]) -> Result<Notes> {
    ensure!(image.starts_with(b"\x7fELF\x02\x01"), "not a little-endian ELF-64 file");
    ensure!(half(image, 16)? == 2, "not an executable");
    ensure!(half(image, 18)? == 62, "not for x86-64");
    let table = long(image, 32)?;
    let (entry_size, count) = (u64::from(half(image, 54)?), u64::from(half(image, 56)?));
    let mut notes = Notes::default();
    let mut loads = 0;
    for index in 0..count {
        let at = table.checked_add(index * entry_size).context("headers past any file")?;
        let header =
            image.get(usize::try_from(at)?..).context("program headers past the file's end")?;
        let (offset, physical) = (long(header, 8)?, long(header, 24)?);
        let size = long(header, 32)?;
        match word(header, 0)? {
            PT_LOAD => {
                ensure!(
                    offset % PAGE == physical % PAGE,
                    "the segment at {physical:#x} has file offset {offset:#x}, not of the same page phase"
                );
                loads += 1;
            }
            PT_NOTE => {
                let start = usize::try_from(offset)?;
                let end =
                    start.checked_add(usize::try_from(size)?).context("a note past any file")?;
                read_notes(
                    image.get(start..end).context("a note segment past the file's end")?,
                    &mut notes,
                )?;
            }
            _ => {}
        }
    }
    ensure!(loads > 0, "no segment to load");
    ensure!(!notes.build_id.is_empty(), "no build id");
    ensure!(!notes.salt.is_empty(), "no build salt");
    Ok(notes)
}

fn read_notes(mut rest: &[u8], notes: &mut Notes) -> Result<()> {
    while !rest.is_empty() {
        let (name_len, data_len) = (word(rest, 0)? as usize, word(rest, 4)? as usize);
        let kind = word(rest, 8)?;
        let data_at = 12 + name_len.next_multiple_of(4);
        let next = data_at + data_len.next_multiple_of(4);
        let name = rest.get(12..12 + name_len).context("a note name past its segment")?;
        let data = rest.get(data_at..data_at + data_len).context("a note past its segment")?;
        match (name, kind) {
            (b"GNU\0", 3) => notes.build_id = super::hex(data),
            (b"Linux\0", 0x100) => {
                let text = data.strip_suffix(b"\0").unwrap_or(data);
                notes.salt = std::str::from_utf8(text).context("the build salt")?.to_owned();
            }
            (b"Xen\0", 18) => notes.pvh = true,
            _ => {}
        }
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(())
}

fn half(bytes: &[u8], at: usize) -> Result<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Result<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    match bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(field) => Ok(*field),
        None => bail!("the file ends before offset {at} + {N}"),
    }
}
