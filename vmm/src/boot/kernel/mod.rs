//! Kernel images: what a file is, whether it can be booted, and its way into guest RAM.
//!
//! Invariant: an image is hostile. Every offset in it is checked against its length before use, every count is capped, and a
//! [`Kernel`] holds only segments that lie in the file, above 1 MiB and apart from each other. The guest's own page faults read
//! the mapped parts later: a file changed in place meanwhile changes the kernel too.

mod bzimage;
mod elf;
mod notes;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::config::plan::{InputFile, Tables};
use crate::layout::HOLE_START;
use crate::memory::{GuestAddress, GuestRam, MemoryError};

use super::{PAGE_BYTES, place};

/// Where a kernel starts and in which state it expects the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit boot protocol: long mode, zero page in RSI.
    Linux64 {
        /// Guest-physical address of the first instruction.
        rip: u64,
    },
    /// PVH: 32-bit protected mode without paging, start info in EBX.
    Pvh {
        /// Guest-physical address of the first instruction.
        rip: u64,
    },
}

/// A kernel image, parsed and checked; nothing of it is in guest RAM yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    entry: Entry,
    pvh: Option<u64>,
    segments: Vec<Segment>,
    profile: Option<Tables>,
    setup_header: Option<Vec<u8>>,
    cmdline_max: usize,
    initrd_end: u64,
}

/// A range of the file and its place in guest RAM; RAM past `file_len` is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    offset: u64,
    file_len: u64,
    addr: u64,
    mem_len: u64,
    /// The kernel writes to it, as far as the image says.
    writable: bool,
}

impl Segment {
    fn end(&self) -> u64 {
        self.addr + self.mem_len
    }
}

/// A kernel in guest RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Where it starts.
    pub entry: Entry,
    /// First address after everything the kernel needs until it manages memory itself.
    pub end: GuestAddress,
    /// A bzImage's setup header, as the file has it, to be put in the zero page.
    pub setup_header: Option<Vec<u8>>,
    /// Longest command line that it takes, in bytes without the terminating zero.
    pub cmdline_max: usize,
    /// First address that its initial RAM disk may not reach.
    pub initrd_end: u64,
}

/// Why an image cannot be booted. The message completes "kernel PATH ...".
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("cannot be read at offset {offset:#x}")]
    Read {
        /// Where.
        offset: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It has no bytes.
    #[error("is empty")]
    Empty,
    /// It is compressed as a whole.
    #[error("is a {format} file: unpack it with `{tool}` first")]
    Compressed {
        /// Name of the format.
        format: &'static str,
        /// Command that unpacks it.
        tool: &'static str,
    },
    /// It is for another processor.
    #[error("is a kernel or program for {machine}, this machine needs x86-64")]
    WrongMachine {
        /// Name of the processor.
        machine: String,
    },
    /// It is for 32-bit processors and has no entry that fits.
    #[error("is a 32-bit {kind} without a {entry} entry: use a 64-bit kernel")]
    Bits32 {
        /// ELF file or bzImage.
        kind: &'static str,
        /// The entry it lacks.
        entry: &'static str,
    },
    /// It is nothing that can be booted.
    #[error("is not a kernel: neither ELF nor bzImage")]
    NotAKernel,
    /// The file is shorter than its own headers say.
    #[error("is truncated: {what} ends at byte {needs}, the file has {len_bytes}")]
    Truncated {
        /// Part of the file.
        what: &'static str,
        /// First byte after it.
        needs: u64,
        /// The file's size.
        len_bytes: u64,
    },
    /// A header holds what no kernel has.
    #[error("has a bad header: {what} is {value:#x}")]
    Header {
        /// The field, and what it should be.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// It has nothing to load.
    #[error("has no segment to load")]
    NoSegments,
    /// Two segments want the same memory.
    #[error("has overlapping segments at {first:#x} and {second:#x}")]
    Overlap {
        /// Guest-physical start of the lower one.
        first: u64,
        /// Guest-physical start of the higher one.
        second: u64,
    },
    /// A segment would lie over the boot structures.
    #[error("has a segment at {addr:#x}, below 1 MiB")]
    TooLow {
        /// Guest-physical start.
        addr: u64,
    },
    /// A segment is huge, or lies where no RAM can be below 4 GiB.
    #[error("has a segment of {mem_len:#x} bytes at {addr:#x}, it must end below 3 GiB")]
    TooHigh {
        /// Guest-physical start.
        addr: u64,
        /// Size in memory.
        mem_len: u64,
    },
    /// Its first instruction is not part of it.
    #[error("starts at {entry:#x}, which is in none of its segments")]
    EntryOutside {
        /// The address.
        entry: u64,
    },
    /// A bzImage too old for 64-bit boot.
    #[error(
        "speaks boot protocol {major}.{minor:02}, this machine needs 2.12 or later: use a newer kernel"
    )]
    OldProtocol {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// It does not fit in RAM.
    #[error(
        "needs memory up to {needs_mib} MiB, below the 3072 MiB mark the machine has {has_mib} MiB"
    )]
    NoRoom {
        /// End of the kernel, rounded up.
        needs_mib: u64,
        /// End of low RAM.
        has_mib: u64,
    },
    /// Guest RAM refused it.
    #[error("cannot be placed in guest memory")]
    Place {
        /// Why.
        #[source]
        source: MemoryError,
    },
}

impl Kernel {
    /// Reads and checks an image's headers.
    ///
    /// # Errors
    /// [`KernelError`] says what is wrong with it.
    pub fn parse(image: &InputFile) -> Result<Self, KernelError> {
        parse(&Source::File(&image.file, image.len_bytes))
    }

    /// [`Self::parse`] for an image in memory.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_bytes(image: &[u8]) -> Result<Self, KernelError> {
        parse(&Source::Bytes(image))
    }

    /// Where it starts.
    #[must_use]
    pub fn entry(&self) -> Entry {
        self.entry
    }

    /// The same kernel started through its PVH entry, or `None` when it has no such entry.
    #[must_use]
    pub fn with_pvh_entry(self) -> Option<Self> {
        let rip = self.pvh?;
        Some(Self { entry: Entry::Pvh { rip }, ..self })
    }

    /// Decides `wish`: [`Tables::Auto`] becomes what the image's build salt names, or ACPI when it names nothing.
    #[must_use]
    pub fn tables(&self, wish: Tables) -> Tables {
        match wish {
            Tables::Auto => self.profile.unwrap_or(Tables::Acpi),
            other => other,
        }
    }

    /// Puts it in guest RAM that nobody wrote to yet: whole pages that the kernel only reads are mapped from the file, the rest is
    /// copied.
    ///
    /// # Errors
    /// [`KernelError::NoRoom`] when RAM is too small, [`KernelError::Read`] and [`KernelError::Place`] when the host fails.
    pub fn load(&self, image: &InputFile, ram: &GuestRam) -> Result<Loaded, KernelError> {
        let low_end = ram.ranges().first().map_or(0, |range| range.start.0 + range.len_bytes);
        let end = self.segments.iter().map(Segment::end).max().unwrap_or(0);
        if end > low_end.min(HOLE_START) {
            return Err(KernelError::NoRoom {
                needs_mib: end.div_ceil(1 << 20),
                has_mib: low_end >> 20,
            });
        }
        for segment in &self.segments {
            load_segment(segment, image, ram)?;
        }
        Ok(Loaded {
            entry: self.entry,
            end: GuestAddress(end),
            setup_header: self.setup_header.clone(),
            cmdline_max: self.cmdline_max,
            initrd_end: self.initrd_end,
        })
    }
}

/// Sorts segments by address once they are checked against each other.
fn arrange(mut segments: Vec<Segment>) -> Result<Vec<Segment>, KernelError> {
    segments.sort_by_key(|segment| segment.addr);
    let first = segments.first().ok_or(KernelError::NoSegments)?;
    if first.addr < place::EXTENDED_RAM {
        return Err(KernelError::TooLow { addr: first.addr });
    }
    for pair in segments.windows(2) {
        if pair[0].end() > pair[1].addr {
            return Err(KernelError::Overlap { first: pair[0].addr, second: pair[1].addr });
        }
    }
    Ok(segments)
}

fn parse(source: &Source<'_>) -> Result<Kernel, KernelError> {
    let mut head = [0; HEAD_BYTES];
    let head = source.read_prefix(0, &mut head)?;
    if head.is_empty() {
        return Err(KernelError::Empty);
    }
    if head.starts_with(elf::MAGIC) {
        return elf::parse(source);
    }
    if bzimage::is_bzimage(head) {
        return bzimage::parse(source);
    }
    Err(name_the_format(head))
}

/// Enough to tell every format that is told apart, and the whole header of a bzImage.
const HEAD_BYTES: usize = 0x300;

fn name_the_format(head: &[u8]) -> KernelError {
    const COMPRESSED: [(&[u8], &str, &str); 8] = [
        (b"\x1f\x8b", "gzip", "gunzip"),
        (b"\xfd7zXZ\0", "xz", "unxz"),
        (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
        (b"BZh", "bzip2", "bunzip2"),
        (b"\x02\x21\x4c\x18", "lz4", "unlz4"),
        (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
        (b"\x89LZO", "lzop", "lzop -d"),
        (b"\x5d\0\0", "lzma", "unlzma"),
    ];
    const OTHER_MACHINES: [(usize, &[u8], &str); 2] =
        [(0x38, b"ARM\x64", "aarch64"), (0x38, b"RSC\x05", "riscv64")];
    for (magic, format, tool) in COMPRESSED {
        if head.starts_with(magic) {
            return KernelError::Compressed { format, tool };
        }
    }
    for (offset, magic, machine) in OTHER_MACHINES {
        if head.get(offset..).is_some_and(|rest| rest.starts_with(magic)) {
            return KernelError::WrongMachine { machine: machine.to_owned() };
        }
    }
    KernelError::NotAKernel
}

/// Maps the pages that the segment fills entirely when file and memory agree in page offset; copies the rest.
///
/// A kernel writes to nearly every page of its writable segments, and a page that is mapped costs a fault to read and another one
/// to write: those are copied.
///
/// What follows `file_len` needs no zeroing: RAM is zero, and other segments write only inside themselves.
fn load_segment(segment: &Segment, image: &InputFile, ram: &GuestRam) -> Result<(), KernelError> {
    let place = |source| KernelError::Place { source };
    let file_end = segment.addr + segment.file_len;
    let first_page = segment.addr.next_multiple_of(PAGE_BYTES);
    let last_page = file_end & !(PAGE_BYTES - 1);
    let congruent = segment.addr % PAGE_BYTES == segment.offset % PAGE_BYTES;
    if segment.writable || !congruent || first_page >= last_page {
        return copy(image, segment.offset, ram, segment.addr, segment.file_len);
    }
    let offset_of = |addr: u64| segment.offset + (addr - segment.addr);
    copy(image, segment.offset, ram, segment.addr, first_page - segment.addr)?;
    let len = last_page - first_page;
    ram.map_file(GuestAddress(first_page), &image.file, offset_of(first_page), len)
        .map_err(place)?;
    copy(image, offset_of(last_page), ram, last_page, file_end - last_page)
}

fn copy(
    image: &InputFile,
    offset: u64,
    ram: &GuestRam,
    addr: u64,
    len: u64,
) -> Result<(), KernelError> {
    ram.read_file(GuestAddress(addr), &image.file, offset, len).map_err(|error| match error {
        MemoryError::ReadFile { source, .. } => KernelError::Read { offset, source },
        source => KernelError::Place { source },
    })
}

/// Where an image's bytes come from.
enum Source<'a> {
    File(&'a File, u64),
    Bytes(&'a [u8]),
}

impl Source<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::File(_, len) => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Checks that `what`, at `offset..offset + len`, is in the file.
    fn check(&self, what: &'static str, offset: u64, len: u64) -> Result<(), KernelError> {
        let needs = offset.saturating_add(len);
        if needs > self.len() {
            return Err(KernelError::Truncated { what, needs, len_bytes: self.len() });
        }
        Ok(())
    }

    fn read(&self, what: &'static str, offset: u64, out: &mut [u8]) -> Result<(), KernelError> {
        self.check(what, offset, out.len() as u64)?;
        match self {
            Self::File(file, _) => file.read_exact_at(out, offset),
            Self::Bytes(bytes) => {
                let start = usize::try_from(offset).expect("checked against the length");
                out.copy_from_slice(&bytes[start..start + out.len()]);
                Ok(())
            }
        }
        .map_err(|source| KernelError::Read { offset, source })
    }

    /// Reads as much of `out` as the file has from `offset` on.
    fn read_prefix<'b>(&self, offset: u64, out: &'b mut [u8]) -> Result<&'b [u8], KernelError> {
        let left = self.len().saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        let out = &mut out[..len];
        self.read("header", offset, out)?;
        Ok(out)
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

/// # Panics
/// When the field is not in `bytes`: callers pass headers of a fixed length and offsets that are constants.
fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("a slice of N bytes")
}

#[cfg(test)]
mod tests;
