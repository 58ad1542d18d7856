//! Synthetic kernel images for tests.

use std::io::Write;

use crate::config::plan::InputFile;

pub(super) const LOAD: u32 = 1;
pub(super) const NOTE: u32 = 4;
pub(super) const MIB: u64 = 1 << 20;

/// One program header and, when `data` is not empty, its bytes at `offset`.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) kind: u32,
    pub(super) offset: u64,
    pub(super) vaddr: u64,
    pub(super) paddr: u64,
    pub(super) data: Vec<u8>,
    pub(super) file_len: u64,
    pub(super) mem_len: u64,
    pub(super) align: u64,
}

impl Part {
    pub(super) fn load(offset: u64, paddr: u64, data: Vec<u8>, bss: u64) -> Self {
        let file_len = data.len() as u64;
        let vaddr = paddr.wrapping_add(0xffff_ffff_8000_0000);
        let mem_len = file_len + bss;
        Self { kind: LOAD, offset, vaddr, paddr, data, file_len, mem_len, align: 0x1000 }
    }

    pub(super) fn notes(offset: u64, data: Vec<u8>) -> Self {
        Self { kind: NOTE, align: 4, ..Self::load(offset, 0, data, 0) }
    }
}

/// A 64-bit ELF file, or a 32-bit one.
#[derive(Debug, Clone)]
pub(super) struct Elf {
    pub(super) bits: u8,
    pub(super) machine: u16,
    pub(super) entry: u64,
    pub(super) parts: Vec<Part>,
}

impl Elf {
    /// Two segments like those of a kernel: text whose pages can be mapped, data with a ragged end and 64 KiB of bss.
    pub(super) fn kernel() -> Self {
        let parts = vec![
            Part::load(0x1000, MIB, pattern(0x2345, 1), 0),
            Part::load(0x4000, MIB + 0x3000, pattern(0x1801, 2), 0x1_0000),
        ];
        Self { bits: 64, machine: 62, entry: MIB + 0x40, parts }
    }

    pub(super) fn with(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let wide = self.bits == 64;
        let (header_len, entry_len) = if wide { (64, 56) } else { (52, 32) };
        let mut out = vec![0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1];
        out.resize(16, 0);
        out.extend(2u16.to_le_bytes());
        out.extend(self.machine.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        for value in [self.entry, header_len, 0] {
            word(&mut out, wide, value);
        }
        out.extend(0u32.to_le_bytes());
        for value in [header_len, entry_len, self.parts.len() as u64, 64, 0, 0] {
            out.extend(u16::try_from(value).unwrap().to_le_bytes());
        }
        for part in &self.parts {
            out.extend(part.kind.to_le_bytes());
            if wide {
                out.extend(7u32.to_le_bytes());
            }
            for value in [part.offset, part.vaddr, part.paddr, part.file_len, part.mem_len] {
                word(&mut out, wide, value);
            }
            if !wide {
                out.extend(7u32.to_le_bytes());
            }
            word(&mut out, wide, part.align);
        }
        for part in self.parts.iter().filter(|part| !part.data.is_empty()) {
            let start = usize::try_from(part.offset).unwrap();
            let end = start + part.data.len();
            out.resize(out.len().max(end), 0);
            out[start..end].copy_from_slice(&part.data);
        }
        out
    }
}

#[expect(clippy::cast_possible_truncation, reason = "32-bit files are made of small values")]
fn word(out: &mut Vec<u8>, wide: bool, value: u64) {
    if wide {
        out.extend(value.to_le_bytes());
    } else {
        out.extend((value as u32).to_le_bytes());
    }
}

pub(super) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for value in [name.len(), desc.len(), kind as usize] {
        out.extend(u32::try_from(value).unwrap().to_le_bytes());
    }
    for field in [name, desc] {
        out.extend(field);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

pub(super) fn pvh_note(entry: u32) -> Vec<u8> {
    note(b"Xen\0", 18, &u64::from(entry).to_le_bytes())
}

pub(super) fn salt_note(salt: &str) -> Vec<u8> {
    note(b"Linux\0", 0x100, format!("{salt}\0").as_bytes())
}

/// A bzImage of protocol 2.15 with one setup sector and `payload` bytes after it.
pub(super) fn bzimage(payload: usize) -> Vec<u8> {
    let mut out = vec![0; 1024];
    let mut set = |offset: usize, bytes: &[u8]| {
        out[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    set(0x1f1, &[1]);
    set(0x1f4, &u32::try_from(payload.div_ceil(16)).unwrap().to_le_bytes());
    set(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    set(0x202, b"HdrS");
    set(0x206, &0x020f_u16.to_le_bytes());
    set(0x211, &[1]);
    set(0x214, &0x0010_0000_u32.to_le_bytes());
    set(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    set(0x230, &0x0020_0000_u32.to_le_bytes());
    set(0x234, &[1]);
    set(0x236, &0x003f_u16.to_le_bytes());
    set(0x238, &2047_u32.to_le_bytes());
    set(0x258, &(2 * MIB).to_le_bytes());
    set(0x260, &0x0010_0000_u32.to_le_bytes());
    out.extend(pattern(payload, 3));
    out
}

/// Bytes without zeros, so that missing ones are seen.
pub(super) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap().wrapping_mul(seed) | 1).collect()
}

pub(super) fn input(bytes: &[u8]) -> InputFile {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    InputFile { path: "image".into(), file, len_bytes: bytes.len() as u64 }
}
