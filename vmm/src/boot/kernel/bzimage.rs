//! bzImage: the compressed kernels that distributions ship, started at their 64-bit entry.
//!
//! Invariant: the kernel gets `init_size` bytes from its load address on, and the setup header goes to the zero page as the file
//! has it. Linux x86 boot protocol 2.12 and later (Documentation/arch/x86/boot.rst).

use super::{Entry, Kernel, KernelError, Segment, Source, u16_at, u32_at, u64_at};
use crate::boot::place;
use crate::layout::HOLE_START;

const SECTOR_BYTES: u64 = 512;
const MAGIC: &[u8] = b"HdrS";
const MAGIC_AT: usize = 0x202;
const HEADER_AT: usize = 0x1f1;
/// The end of the last field that is read, `init_size`.
const KNOWN_END: usize = 0x264;
/// The zero page has room for the header up to here.
const MAX_HEADER_END: usize = 0x290;
const LOADED_HIGH: u8 = 1;
const KERNEL_64: u16 = 1;
/// The 64-bit entry, from the load address.
const ENTRY_64: u64 = 0x200;
const LONG_COMMAND_LINE_MAX: u32 = 0xffff;

pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(MAGIC_AT..).is_some_and(|rest| rest.starts_with(MAGIC))
}

pub(super) fn parse(source: &Source<'_>) -> Result<Kernel, KernelError> {
    let bad = |what, value: u64| Err(KernelError::Header { what, value });
    let mut head = [0; KNOWN_END];
    source.read("setup header", 0, &mut head)?;
    let version = u16_at(&head, 0x206);
    if version < 0x020c {
        let [minor, major] = version.to_le_bytes();
        return Err(KernelError::OldProtocol { major, minor });
    }
    if head[0x211] & LOADED_HIGH == 0 {
        return bad("load flags (LOADED_HIGH must be set)", u64::from(head[0x211]));
    }
    if u16_at(&head, 0x236) & KERNEL_64 == 0 {
        return Err(KernelError::Bits32 { kind: "bzImage", entry: "64-bit" });
    }
    let setup_sectors = match head[HEADER_AT] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let offset = (setup_sectors + 1) * SECTOR_BYTES;
    source.check("setup code", 0, offset + ENTRY_64 + 1)?;
    let file_len = source.len() - offset;
    // `syssize`, in units of 16 bytes, is what the build wrote: a shorter file has lost its end. What follows it is a signature.
    let payload = u64::from(u32_at(&head, 0x1f4)) * 16;
    source.check("compressed kernel", offset, payload.saturating_sub(15))?;
    let addr = u64_at(&head, 0x258);
    let mem_len = u64::from(u32_at(&head, 0x260)).max(file_len);
    if addr < place::EXTENDED_RAM {
        return Err(KernelError::TooLow { addr });
    }
    if addr.checked_add(mem_len).is_none_or(|end| end > HOLE_START) {
        return Err(KernelError::TooHigh { addr, mem_len });
    }
    Ok(Kernel {
        entry: Entry::Linux64 { rip: addr + ENTRY_64 },
        pvh: None,
        segments: vec![Segment { offset, file_len, addr, mem_len, writable: false }],
        profile: None,
        setup_header: Some(setup_header(source, &head)?),
        cmdline_max: cmdline_max(&head),
        initrd_end: (u64::from(u32_at(&head, 0x22c)) + 1).min(HOLE_START),
    })
}

/// From 0x1f1 to where the jump at 0x200 goes, which is after the header's last field.
fn setup_header(source: &Source<'_>, head: &[u8; KNOWN_END]) -> Result<Vec<u8>, KernelError> {
    let end = MAGIC_AT + usize::from(head[0x201]);
    if !(KNOWN_END..=MAX_HEADER_END).contains(&end) {
        return Err(KernelError::Header {
            what: "end of the setup header (0x264 to 0x290)",
            value: end as u64,
        });
    }
    let mut header = vec![0; end - HEADER_AT];
    source.read("setup header", HEADER_AT as u64, &mut header)?;
    Ok(header)
}

fn cmdline_max(head: &[u8; KNOWN_END]) -> usize {
    match u32_at(head, 0x238) {
        0 => 255,
        max => usize::try_from(max.min(LONG_COMMAND_LINE_MAX)).expect("at most 65535"),
    }
}
