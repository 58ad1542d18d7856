//! ELF kernels: `vmlinux`, and bare-metal programs.
//!
//! Invariant: the entry that is chosen is a physical address inside the file part of a segment. A 64-bit file starts at `e_entry`;
//! only when that is in no segment, or when the file is 32-bit, does the PVH note count. System V ABI, chapter 4 and 5.

use super::notes::Notes;
use super::{Entry, Kernel, KernelError, Segment, Source, arrange, u16_at, u32_at, u64_at};
use crate::boot::cmdline;
use crate::layout::HOLE_START;

pub(super) const MAGIC: &[u8] = b"\x7fELF";

const HEADER_BYTES: usize = 64;
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const FLAG_WRITE: u64 = 2;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// Kernels have about five.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// Kernels have some hundred bytes.
const MAX_NOTE_BYTES: u64 = 64 << 10;

pub(super) fn parse(source: &Source<'_>) -> Result<Kernel, KernelError> {
    let header = Header::read(source)?;
    let mut table = vec![0; usize::from(header.count) * header.class.entry_bytes()];
    source.read("program header table", header.table_at, &mut table)?;
    let mut segments = Vec::new();
    let mut virtual_starts = Vec::new();
    let mut notes = Notes::default();
    for entry in table.chunks_exact(header.class.entry_bytes()) {
        let program = Program::read(header.class, entry);
        match program.kind {
            LOAD if program.mem_len > 0 => {
                segments.push(program.segment(source)?);
                virtual_starts.push(program.virtual_addr);
            }
            NOTE => program.read_notes(source, &mut notes)?,
            _ => {}
        }
    }
    let arranged = arrange(segments.clone())?;
    let entry = choose_entry(&header, &segments, &virtual_starts, &notes)?;
    Ok(Kernel {
        entry,
        pvh: notes.pvh.filter(|&pvh| segments.iter().any(|segment| has(segment, pvh))),
        segments: arranged,
        profile: notes.profile,
        setup_header: None,
        cmdline_max: cmdline::DEFAULT_MAX,
        initrd_end: HOLE_START,
    })
}

/// Prefers the 64-bit entry: a kernel started there need not build page tables and change modes.
fn choose_entry(
    header: &Header,
    segments: &[Segment],
    virtual_starts: &[u64],
    notes: &Notes,
) -> Result<Entry, KernelError> {
    let start = header.entry;
    if header.class == Class::Bits64 {
        if segments.iter().any(|segment| has(segment, start)) {
            return Ok(Entry::Linux64 { rip: start });
        }
        for (segment, &virtual_start) in segments.iter().zip(virtual_starts) {
            let offset = start.checked_sub(virtual_start);
            if let Some(offset) = offset.filter(|&offset| offset < segment.file_len) {
                return Ok(Entry::Linux64 { rip: segment.addr + offset });
            }
        }
    }
    match notes.pvh {
        Some(rip) if segments.iter().any(|segment| has(segment, rip)) => Ok(Entry::Pvh { rip }),
        Some(entry) => Err(KernelError::EntryOutside { entry }),
        None if header.class == Class::Bits32 => {
            Err(KernelError::Bits32 { kind: "ELF file", entry: "PVH" })
        }
        None => Err(KernelError::EntryOutside { entry: start }),
    }
}

fn has(segment: &Segment, addr: u64) -> bool {
    addr.checked_sub(segment.addr).is_some_and(|offset| offset < segment.file_len)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Bits32,
    Bits64,
}

impl Class {
    /// Size of a program header.
    fn entry_bytes(self) -> usize {
        match self {
            Self::Bits32 => 32,
            Self::Bits64 => 56,
        }
    }
}

struct Header {
    class: Class,
    entry: u64,
    table_at: u64,
    count: u16,
}

impl Header {
    fn read(source: &Source<'_>) -> Result<Self, KernelError> {
        let bad = |what, value| Err(KernelError::Header { what, value });
        let mut bytes = [0; HEADER_BYTES];
        source.read("ELF header", 0, &mut bytes)?;
        let class = match bytes[4] {
            CLASS_32 => Class::Bits32,
            CLASS_64 => Class::Bits64,
            other => return bad("ELF class (1 or 2)", u64::from(other)),
        };
        if bytes[5] != LITTLE_ENDIAN {
            return Err(KernelError::WrongMachine { machine: "a big-endian processor".to_owned() });
        }
        let machine = u16_at(&bytes, 18);
        if ![MACHINE_386, MACHINE_X86_64].contains(&machine) {
            return Err(KernelError::WrongMachine { machine: machine_name(machine) });
        }
        let kind = u16_at(&bytes, 16);
        if ![TYPE_EXEC, TYPE_DYN].contains(&kind) {
            return bad("ELF type (2, executable, or 3)", u64::from(kind));
        }
        let (entry, table_at, entry_bytes, count) = match class {
            Class::Bits32 => (
                u64::from(u32_at(&bytes, 24)),
                u64::from(u32_at(&bytes, 28)),
                u16_at(&bytes, 42),
                u16_at(&bytes, 44),
            ),
            Class::Bits64 => {
                (u64_at(&bytes, 24), u64_at(&bytes, 32), u16_at(&bytes, 54), u16_at(&bytes, 56))
            }
        };
        if count == 0 {
            return Err(KernelError::NoSegments);
        }
        if count > MAX_PROGRAM_HEADERS {
            return bad("number of program headers (at most 64)", u64::from(count));
        }
        if usize::from(entry_bytes) != class.entry_bytes() {
            return bad("size of a program header", u64::from(entry_bytes));
        }
        Ok(Self { class, entry, table_at, count })
    }
}

fn machine_name(machine: u16) -> String {
    match machine {
        8 => "mips".to_owned(),
        20 | 21 => "powerpc".to_owned(),
        22 => "s390x".to_owned(),
        40 => "arm".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv".to_owned(),
        258 => "loongarch".to_owned(),
        other => format!("ELF machine {other}"),
    }
}

/// One program header.
struct Program {
    kind: u32,
    offset: u64,
    virtual_addr: u64,
    addr: u64,
    file_len: u64,
    mem_len: u64,
    align: u64,
    writable: bool,
}

impl Program {
    fn read(class: Class, bytes: &[u8]) -> Self {
        let kind = u32_at(bytes, 0);
        match class {
            Class::Bits32 => {
                let word = |offset| u64::from(u32_at(bytes, offset));
                Self {
                    kind,
                    offset: word(4),
                    virtual_addr: word(8),
                    addr: word(12),
                    file_len: word(16),
                    mem_len: word(20),
                    align: word(28),
                    writable: word(24) & FLAG_WRITE != 0,
                }
            }
            Class::Bits64 => {
                let word = |offset| u64_at(bytes, offset);
                Self {
                    kind,
                    offset: word(8),
                    virtual_addr: word(16),
                    addr: word(24),
                    file_len: word(32),
                    mem_len: word(40),
                    align: word(48),
                    writable: u64::from(u32_at(bytes, 4)) & FLAG_WRITE != 0,
                }
            }
        }
    }

    fn segment(&self, source: &Source<'_>) -> Result<Segment, KernelError> {
        if self.mem_len < self.file_len {
            return Err(KernelError::Header {
                what: "memory size of a segment (at least its file size)",
                value: self.mem_len,
            });
        }
        if self.addr.checked_add(self.mem_len).is_none_or(|end| end > HOLE_START) {
            return Err(KernelError::TooHigh { addr: self.addr, mem_len: self.mem_len });
        }
        source.check("a segment", self.offset, self.file_len)?;
        Ok(Segment {
            offset: self.offset,
            file_len: self.file_len,
            addr: self.addr,
            mem_len: self.mem_len,
            writable: self.writable,
        })
    }

    fn read_notes(&self, source: &Source<'_>, notes: &mut Notes) -> Result<(), KernelError> {
        source.check("a note segment", self.offset, self.file_len)?;
        let len = self.file_len.min(MAX_NOTE_BYTES);
        let mut bytes = vec![0; usize::try_from(len).expect("capped")];
        source.read("a note segment", self.offset, &mut bytes)?;
        notes.read(&bytes, if self.align == 8 { 8 } else { 4 });
        Ok(())
    }
}
