//! Bare-metal guests: a few instructions in an ELF image that any VMM loads.

mod interpreter;
mod script;
pub mod virtio;

pub use interpreter::FAILED;
pub use script::{Mark, Script};

/// Where the code of a guest is loaded and entered, guest-physical.
pub const LOAD_ADDR: u64 = 0x10_0000;

/// The first serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Where a guest reports its exit code: the second register of the event device.
pub const EXIT_PORT: u16 = 0x681;

const HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;
const NOTE_BYTES: u64 = 20;
const CODE_OFFSET: u64 = 0x1000;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// A 64-bit ELF image that loads `code` at [`LOAD_ADDR`] and enters it there.
///
/// A VMM with a 64-bit entry runs it in long mode; one that reads the PVH note runs it in 32-bit protected mode, so that code for both must mean
/// the same in both.
#[must_use]
pub fn elf(code: &[u8]) -> Vec<u8> {
    let code_len = code.len() as u64;
    let note_offset = HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES;
    let mut image = Vec::new();
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2_u16, 62] {
        image.extend(half.to_le_bytes());
    }
    image.extend(1_u32.to_le_bytes());
    for word in [LOAD_ADDR, HEADER_BYTES, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 64, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    program_header(&mut image, PT_LOAD, CODE_OFFSET, LOAD_ADDR, code_len);
    program_header(&mut image, PT_NOTE, note_offset, 0, NOTE_BYTES);
    for word in [4, 4, XEN_ELFNOTE_PHYS32_ENTRY, u32::from_le_bytes(*b"Xen\0")] {
        image.extend(word.to_le_bytes());
    }
    let entry = u32::try_from(LOAD_ADDR).expect("the load address is below 4 GiB");
    image.extend(entry.to_le_bytes());
    image.resize(usize::try_from(CODE_OFFSET).expect("one page"), 0);
    image.extend(code);
    image
}

fn program_header(image: &mut Vec<u8>, kind: u32, offset: u64, addr: u64, len: u64) {
    image.extend(kind.to_le_bytes());
    image.extend(7_u32.to_le_bytes());
    for word in [offset, addr, addr, len, len, 4] {
        image.extend(word.to_le_bytes());
    }
}
