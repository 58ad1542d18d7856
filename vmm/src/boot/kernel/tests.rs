use std::io::Cursor;

use linux_loader::loader::{self, KernelLoader};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::*;
use crate::boot::image::{
    Elf, MIB, NOTE, Part, bzimage, input, note, pattern, pvh_note, salt_note,
};

const RAM_BYTES: u64 = 8 * MIB;

fn ram(len: u64) -> GuestRam {
    GuestRam::anonymous(&[(GuestAddress(0), len)]).unwrap()
}

fn contents(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(ram.len_bytes()).unwrap()];
    ram.read(GuestAddress(0), &mut bytes).unwrap();
    bytes
}

/// Parses the image from memory and from a file, which must agree, and loads it.
fn load(bytes: &[u8]) -> (Kernel, Loaded, Vec<u8>) {
    let image = input(bytes);
    let kernel = Kernel::parse(&image).unwrap();
    assert_eq!(kernel, Kernel::parse_bytes(bytes).unwrap());
    let ram = ram(RAM_BYTES);
    let loaded = kernel.load(&image, &ram).unwrap();
    (kernel, loaded, contents(&ram))
}

fn error(bytes: &[u8]) -> String {
    Kernel::parse_bytes(bytes).unwrap_err().to_string()
}

/// What the reference loader puts in RAM, and where the kernel starts and ends.
fn reference<L: KernelLoader>(bytes: &[u8], offset: Option<u64>) -> (u64, u64, Vec<u8>) {
    let len = usize::try_from(RAM_BYTES).unwrap();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), len)]).unwrap();
    let mut image = Cursor::new(bytes);
    let result = L::load(&memory, offset.map(GuestAddress), &mut image, None).unwrap();
    let mut out = vec![0; len];
    memory.read_slice(&mut out, GuestAddress(0)).unwrap();
    (result.kernel_load.0, result.kernel_end, out)
}

#[test]
fn an_elf_kernel_is_loaded_as_the_reference_loads_it() {
    let ragged = Elf::kernel().with(Part::load(0x7654, 3 * MIB + 0x654, pattern(0x5000, 5), 9));
    let askew = Elf::kernel().with(Part::load(0x7001, 3 * MIB, pattern(0x5000, 5), 0));
    let inside_a_page = Elf::kernel().with(Part::load(0x7010, 3 * MIB + 0x10, pattern(99, 5), 0));
    let one_page = Elf::kernel().with(Part::load(0x7000, 3 * MIB, pattern(4096, 5), 1));
    for elf in [Elf::kernel(), ragged, askew, inside_a_page, one_page] {
        let bytes = elf.build();
        let (_, loaded, ram) = load(&bytes);
        let (entry, end, want) = reference::<loader::Elf>(&bytes, None);
        assert_eq!(loaded.entry, Entry::Linux64 { rip: entry });
        assert_eq!(loaded.end.0, end);
        assert!(ram == want, "RAM differs");
    }
}

#[test]
fn a_bzimage_is_loaded_where_it_prefers() {
    let bytes = bzimage(0x5432);
    let (kernel, loaded, ram) = load(&bytes);
    let (start, _, want) = reference::<loader::BzImage>(&bytes, Some(2 * MIB));
    assert_eq!(loaded.entry, Entry::Linux64 { rip: start + 0x200 });
    assert!(ram == want, "RAM differs");
    assert_eq!(loaded.end.0, 3 * MIB, "init_size counts");
    assert_eq!(loaded.setup_header.unwrap(), bytes[0x1f1..0x26c]);
    assert_eq!((loaded.cmdline_max, loaded.initrd_end), (2047, 0x8000_0000));
    assert_eq!(kernel.tables(Tables::Auto), Tables::Acpi);
}

#[test]
fn the_entry_is_64_bit_before_pvh() {
    let linux = |rip| Ok(Entry::Linux64 { rip });
    let pvh = |rip| Ok(Entry::Pvh { rip });
    let notes = |entry| Part::notes(0x6000, pvh_note(entry));
    let entry_at = |entry, elf: Elf| Elf { entry, ..elf };
    let narrow = |elf: Elf| Elf { bits: 32, machine: 3, ..elf };
    let low = 0x10_0100;
    for (name, elf, want) in [
        ("physical", Elf::kernel(), linux(MIB + 0x40)),
        ("physical, with a note", Elf::kernel().with(notes(low)), linux(MIB + 0x40)),
        ("virtual", entry_at(0xffff_ffff_8010_0040, Elf::kernel()), linux(MIB + 0x40)),
        ("none but the note", entry_at(0, Elf::kernel().with(notes(low))), pvh(MIB + 0x100)),
        ("none", entry_at(0, Elf::kernel()), Err("starts at 0x0, which is in none")),
        (
            "in the bss",
            entry_at(MIB + 0x8000, Elf::kernel()),
            Err("starts at 0x108000, which is in none"),
        ),
        (
            "a note that points outside",
            entry_at(0, Elf::kernel().with(notes(0x100))),
            Err("starts at 0x100, which is in none"),
        ),
        ("32-bit with a note", narrow(Elf::kernel().with(notes(low))), pvh(MIB + 0x100)),
        ("32-bit", narrow(Elf::kernel()), Err("is a 32-bit ELF file without a PVH entry")),
    ] {
        match (Kernel::parse_bytes(&elf.build()), want) {
            (Ok(kernel), Ok(entry)) => assert_eq!(kernel.entry(), entry, "{name}"),
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{name}: {error}"),
            (got, want) => panic!("{name}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn pvh_can_be_asked_for() {
    let kernel = Kernel::parse_bytes(&Elf::kernel().build()).unwrap();
    assert_eq!(kernel.with_pvh_entry(), None);
    let elf = Elf::kernel().with(Part::notes(0x6000, pvh_note(0x10_0100)));
    let kernel = Kernel::parse_bytes(&elf.build()).unwrap().with_pvh_entry().unwrap();
    assert_eq!(kernel.entry(), Entry::Pvh { rip: 0x10_0100 });
}

#[test]
fn the_build_salt_names_the_tables() {
    let other = note(b"GNU\0", 3, b"build id of an odd length");
    for (notes, want) in [
        (salt_note("openshell-vmm/1 tiny mptable"), Tables::MpTable),
        (salt_note("openshell-vmm/1 sandbox acpi"), Tables::Acpi),
        ([other.clone(), salt_note("openshell-vmm/1 tiny mptable")].concat(), Tables::MpTable),
        (
            [pvh_note(0x10_0100), salt_note("openshell-vmm/1 tiny mptable")].concat(),
            Tables::MpTable,
        ),
        (salt_note("openshell-vmm/2 tiny mptable"), Tables::Acpi),
        (salt_note("openshell-vmm/1 mptable"), Tables::Acpi),
        (salt_note("Debian"), Tables::Acpi),
        (note(b"Linux\0", 0x101, b"openshell-vmm/1 tiny mptable\0"), Tables::Acpi),
        (note(b"Linux\0", 0x100, b"\xff\xfe"), Tables::Acpi),
        (vec![0xff; 64], Tables::Acpi),
        (other, Tables::Acpi),
    ] {
        let kernel =
            Kernel::parse_bytes(&Elf::kernel().with(Part::notes(0x6000, notes)).build()).unwrap();
        assert_eq!(kernel.tables(Tables::Auto), want);
        for asked in [Tables::MpTable, Tables::Acpi] {
            assert_eq!(kernel.tables(asked), asked);
        }
    }
}

/// A good ELF image with one header field changed.
fn elf_with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    patched(Elf::kernel().build(), offset, bytes)
}

fn patched(mut image: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn what_is_no_kernel_for_this_machine_is_named() {
    let at = |offset: usize, magic: &[u8]| patched(vec![0; 4096], offset, magic);
    for (image, text) in [
        (vec![], "is empty"),
        (b"#!/bin/sh\n".to_vec(), "is not a kernel: neither ELF nor bzImage"),
        (vec![0; 4096], "is not a kernel: neither ELF nor bzImage"),
        (at(0, b"\x1f\x8b\x08"), "is a gzip file: unpack it with `gunzip` first"),
        (at(0, b"\xfd7zXZ\0"), "is a xz file: unpack it with `unxz` first"),
        (at(0, b"\x28\xb5\x2f\xfd"), "is a zstd file"),
        (at(0, b"BZh9"), "is a bzip2 file"),
        (at(0, b"\x02\x21\x4c\x18"), "is a lz4 file"),
        (at(0, b"\x04\x22\x4d\x18"), "is a lz4 file"),
        (at(0, b"\x89LZO\0"), "is a lzop file"),
        (at(0, b"\x5d\0\0\x80"), "is a lzma file"),
        (at(0x38, b"ARM\x64"), "is a kernel or program for aarch64"),
        (at(0x38, b"RSC\x05"), "is a kernel or program for riscv64"),
        (elf_with(18, &[183, 0]), "is a kernel or program for aarch64"),
        (elf_with(18, &[21, 0]), "is a kernel or program for powerpc"),
        (elf_with(18, &[0x34, 0x12]), "is a kernel or program for ELF machine 4660"),
        (elf_with(5, &[2]), "is a kernel or program for a big-endian processor"),
    ] {
        let error = error(&image);
        assert!(error.starts_with(text), "{error:?}, not {text:?}");
    }
}

#[test]
fn a_bad_elf_header_is_named() {
    const FIRST: usize = 64;
    const SECOND: usize = 64 + 56;
    let word = u64::to_le_bytes;
    for (image, text) in [
        (b"\x7fELF".to_vec(), "is truncated: ELF header ends at byte 64, the file has 4"),
        (Elf::kernel().build()[..100].to_vec(), "is truncated: program header table ends at byte"),
        (Elf::kernel().build()[..0x2000].to_vec(), "is truncated: a segment ends at byte"),
        (elf_with(4, &[3]), "has a bad header: ELF class (1 or 2) is 0x3"),
        (elf_with(16, &[1]), "has a bad header: ELF type"),
        (elf_with(32, &word(u64::MAX)), "is truncated: program header table"),
        (elf_with(32, &word(1 << 40)), "is truncated: program header table"),
        (elf_with(54, &[32]), "has a bad header: size of a program header is 0x20"),
        (elf_with(56, &[0, 0]), "has no segment to load"),
        (elf_with(56, &[0xff, 0xff]), "has a bad header: number of program headers"),
        (elf_with(FIRST + 8, &word(u64::MAX - 8)), "is truncated: a segment"),
        (elf_with(FIRST + 24, &word(0x9_f000)), "has a segment at 0x9f000, below 1 MiB"),
        (elf_with(FIRST + 24, &word(u64::MAX)), "has a segment of 0x"),
        (
            elf_with(FIRST + 24, &word(HOLE_START)),
            "has a segment of 0x2345 bytes at 0xc0000000, it must end below 3 GiB",
        ),
        (elf_with(FIRST + 32, &word(1 << 50)), "has a bad header: memory size of a segment"),
        (elf_with(FIRST + 40, &word(u64::MAX)), "has a segment of 0x"),
        (elf_with(FIRST + 40, &word(1)), "has a bad header: memory size of a segment"),
        (elf_with(SECOND + 24, &word(MIB)), "has overlapping segments at 0x100000 and 0x100000"),
        (elf_with(SECOND + 24, &word(MIB + 0x2344)), "has overlapping segments at 0x100000 and"),
        (
            Elf::kernel().with(Part { file_len: 1 << 40, ..Part::notes(0x6000, vec![]) }).build(),
            "is truncated: a note segment",
        ),
        (Elf { parts: vec![Part::notes(0x100, vec![1; 64])], ..Elf::kernel() }.build(), "has no"),
    ] {
        let error = error(&image);
        assert!(error.starts_with(text), "{error:?}, not {text:?}");
    }
}

#[test]
fn a_bad_bzimage_header_is_named() {
    let with = |offset: usize, bytes: &[u8]| patched(bzimage(0x5000), offset, bytes);
    for (image, text) in [
        (bzimage(0x5000)[..0x240].to_vec(), "is truncated: setup header ends at byte 612"),
        (bzimage(0x5000)[..0x400].to_vec(), "is truncated: setup code"),
        (bzimage(0x5000)[..0x4000].to_vec(), "is truncated: compressed kernel ends at byte"),
        (with(0x1f1, &[200]), "is truncated: setup code"),
        (with(0x1f4, &[0xff; 4]), "is truncated: compressed kernel"),
        (with(0x206, &[0x0b, 2]), "speaks boot protocol 2.11, this machine needs 2.12"),
        (with(0x206, &[0, 0]), "speaks boot protocol 0.00"),
        (with(0x211, &[0]), "has a bad header: load flags"),
        (with(0x236, &[0x3e]), "is a 32-bit bzImage without a 64-bit entry"),
        (with(0x201, &[0]), "has a bad header: end of the setup header"),
        (with(0x201, &[0xff]), "has a bad header: end of the setup header"),
        (with(0x258, &[0; 8]), "has a segment at 0x0, below 1 MiB"),
        (with(0x258, &[0xff; 8]), "has a segment of 0x100000 bytes at 0xffffffffffffffff, it must"),
        (with(0x260, &[0xff; 4]), "has a segment of 0xffffffff bytes at 0x200000, it must end"),
    ] {
        let error = error(&image);
        assert!(error.starts_with(text), "{error:?}, not {text:?}");
    }
}

#[test]
fn a_command_line_of_any_bzimage_is_limited() {
    for (field, want) in [(0, 255), (255, 255), (2047, 2047), (65_535, 65_535), (u32::MAX, 65_535)]
    {
        let image = patched(bzimage(0x5000), 0x238, &u32::to_le_bytes(field));
        assert_eq!(Kernel::parse_bytes(&image).unwrap().cmdline_max, want);
    }
}

#[test]
fn a_kernel_larger_than_ram_is_refused() {
    let elf = Elf::kernel().with(Part::load(0x7000, 3 * MIB, pattern(16, 5), 4 * MIB));
    let image = input(&elf.build());
    let kernel = Kernel::parse(&image).unwrap();
    let error = kernel.load(&image, &ram(6 * MIB)).unwrap_err();
    let want = "needs memory up to 8 MiB, below the 3072 MiB mark the machine has 6 MiB";
    assert_eq!(error.to_string(), want);
    kernel.load(&image, &ram(8 * MIB)).unwrap();
}

#[test]
fn a_file_that_shrank_is_an_error() {
    let image = input(&bzimage(0x5000));
    let kernel = Kernel::parse(&image).unwrap();
    image.file.set_len(0x1000).unwrap();
    assert!(matches!(kernel.load(&image, &ram(RAM_BYTES)), Err(KernelError::Read { .. })));
}

fn mutations() -> impl Strategy<Value = Vec<(usize, u8)>> {
    // Mostly headers: of ELF at the start, of a bzImage from 0x1f0, of notes at 0x6000.
    let place = prop_oneof![0..0x100usize, 0x1f0..0x270usize, 0x6000..0x6040usize, 0..0x8000usize];
    let byte = prop_oneof![Just(0), Just(0xff), Just(0x7f), Just(0x80), any::<u8>()];
    proptest::collection::vec((place, byte), 1..8)
}

fn mutate(image: &mut [u8], mutations: &[(usize, u8)]) {
    for &(at, byte) in mutations {
        if let Some(target) = image.get_mut(at) {
            *target = byte;
        }
    }
}

/// Whatever was accepted obeys the invariants and loads, or says that RAM is too small.
fn survives(bytes: &[u8]) {
    let image = input(bytes);
    let parsed = Kernel::parse(&image);
    let Ok(kernel) = parsed else {
        assert!(!parsed.unwrap_err().to_string().is_empty());
        return;
    };
    let (Entry::Linux64 { rip } | Entry::Pvh { rip }) = kernel.entry;
    assert!(kernel.segments.iter().any(|s| s.addr <= rip && rip < s.addr + s.file_len));
    assert!(kernel.segments.windows(2).all(|pair| pair[0].end() <= pair[1].addr));
    assert!(kernel.segments.iter().all(|s| s.addr >= MIB && s.end() <= HOLE_START));
    assert!(kernel.segments.iter().all(|s| s.offset + s.file_len <= bytes.len() as u64));
    let ram = ram(RAM_BYTES);
    match kernel.load(&image, &ram) {
        Ok(loaded) => {
            assert!(loaded.end.0 <= RAM_BYTES);
            let ram = contents(&ram);
            for segment in &kernel.segments {
                let at = |value| usize::try_from(value).unwrap();
                let (file, bss) = (at(segment.addr + segment.file_len), at(segment.end()));
                let want = &bytes[at(segment.offset)..at(segment.offset + segment.file_len)];
                assert!(&ram[at(segment.addr)..file] == want);
                assert!(ram[file..bss].iter().all(|&byte| byte == 0));
            }
            assert!(ram[..at_mib()].iter().all(|&byte| byte == 0));
        }
        Err(error) => assert!(matches!(error, KernelError::NoRoom { .. }), "{error}"),
    }
}

fn at_mib() -> usize {
    usize::try_from(MIB).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_mutation_of_an_elf_image_breaks_the_loader(mutations in mutations(), cut in 0..0x8000usize) {
        let notes = [pvh_note(0x10_0100), salt_note("openshell-vmm/1 tiny mptable")].concat();
        let mut bytes = Elf::kernel().with(Part::notes(0x6000, notes)).build();
        mutate(&mut bytes, &mutations);
        survives(&bytes);
        bytes.truncate(cut);
        survives(&bytes);
    }

    #[test]
    fn no_mutation_of_a_bzimage_breaks_the_loader(mutations in mutations(), cut in 0..0x8000usize) {
        let mut bytes = bzimage(0x5000);
        mutate(&mut bytes, &mutations);
        survives(&bytes);
        bytes.truncate(cut);
        survives(&bytes);
    }

    #[test]
    fn no_bytes_break_the_note_reader(bytes in proptest::collection::vec(any::<u8>(), 1..200), wide: bool) {
        let part = Part { kind: NOTE, align: if wide { 8 } else { 4 }, ..Part::notes(0x6000, bytes) };
        let kernel = Kernel::parse_bytes(&Elf::kernel().with(part).build()).unwrap();
        prop_assert_eq!(kernel.entry(), Entry::Linux64 { rip: MIB + 0x40 });
    }

    #[test]
    fn any_good_layout_is_loaded_as_the_reference_loads_it(
        parts in proptest::collection::vec((0..0x2000u64, 0..0x2000u64, 1..0x4000usize, 0..0x2000u64, any::<bool>()), 1..5)
    ) {
        let (mut addr, mut offset) = (MIB, 0x1000u64);
        let mut elf = Elf { parts: Vec::new(), ..Elf::kernel() };
        for (gap, skew, len, bss, congruent) in parts {
            addr += gap;
            offset = if congruent { offset.next_multiple_of(0x1000) + addr % 0x1000 } else { offset + skew };
            elf.parts.push(Part::load(offset, addr, pattern(len, 7), bss));
            addr += len as u64 + bss;
            offset += len as u64;
        }
        elf.entry = elf.parts[0].paddr;
        let bytes = elf.build();
        let (_, loaded, ram) = load(&bytes);
        let (entry, end, want) = reference::<loader::Elf>(&bytes, None);
        prop_assert_eq!((loaded.entry, loaded.end.0), (Entry::Linux64 { rip: entry }, end));
        prop_assert!(ram == want, "RAM differs");
    }
}
