use linux_loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_modlist_entry, hvm_start_info};
use vm_memory::ByteValued;

use super::image::{Elf, MIB, Part, bzimage, input, pattern, pvh_note};
use super::*;
use crate::layout::{self, MMIO_SLOTS, mmio_slot};

const GIB: u64 = 1 << 30;

/// A machine around a kernel image, prepared.
struct Machine {
    ram: GuestRam,
    loaded: Loaded,
    cpu: Result<CpuEntry, BootError>,
}

struct Wish {
    memory: u64,
    cpus: u8,
    cmdline: String,
    initrd: Option<Vec<u8>>,
    tables: Tables,
    pvh: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            memory: 32 * MIB,
            cpus: 2,
            cmdline: "console=ttyS0".to_owned(),
            initrd: None,
            tables: Tables::MpTable,
            pvh: false,
        }
    }
}

fn prepare_with(image: &[u8], wish: &Wish) -> Machine {
    let image = input(image);
    let kernel = Kernel::parse(&image).unwrap();
    let kernel = if wish.pvh { kernel.with_pvh_entry().unwrap() } else { kernel };
    let ram = GuestRam::anonymous(&layout::ram_ranges(wish.memory)).unwrap();
    let loaded = kernel.load(&image, &ram).unwrap();
    let mut cmdline = CommandLine::new();
    cmdline.push(&wish.cmdline).unwrap();
    let initrd = wish.initrd.as_deref().map(input);
    let devices: Vec<_> = (0..MMIO_SLOTS).map_while(mmio_slot).collect();
    let setup = Setup {
        cpus: wish.cpus,
        cmdline: &cmdline,
        initrd: initrd.as_ref(),
        tables: wish.tables,
        devices: &devices,
        serial: true,
        rng_seed: [0x5a; 32],
    };
    let cpu = prepare(&ram, &loaded, &setup);
    Machine { ram, loaded, cpu }
}

impl Machine {
    fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(GuestAddress(addr), &mut bytes).unwrap();
        bytes
    }

    fn word(&self, addr: u64) -> u64 {
        u64::from_le_bytes(self.read(addr, 8).try_into().unwrap())
    }

    fn zero_page(&self) -> boot_params {
        let addr = self.cpu.as_ref().unwrap().regs().rsi;
        *boot_params::from_slice(&self.read(addr, size_of::<boot_params>())).unwrap()
    }

    /// Translates as a processor does, with or without pages of 1 GiB.
    fn translate(&self, virtual_addr: u64, largest: u64) -> Option<u64> {
        let mut sregs = kvm_bindings::kvm_sregs::default();
        self.cpu.as_ref().unwrap().apply(&mut sregs);
        let mut table = sregs.cr3;
        for level in [39, 30, 21, 12] {
            let entry = self.word(table + (virtual_addr >> level & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            let page = entry & 0x000f_ffff_ffff_f000;
            if level < 39 && entry & 0x80 != 0 {
                return (1 << level <= largest)
                    .then_some(page + (virtual_addr & ((1 << level) - 1)));
            }
            table = page;
        }
        Some(table + (virtual_addr & 0xfff))
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn an_elf_kernel_gets_a_zero_page() {
    let machine = prepare_with(&Elf::kernel().build(), &Wish::default());
    let page = machine.zero_page();
    let header = page.hdr;
    assert_eq!({ header.boot_flag }, 0xaa55);
    assert_eq!({ header.header }, 0x5372_6448);
    assert_eq!({ header.type_of_loader }, 0xff);
    assert_eq!({ header.kernel_alignment }, 0x0100_0000);
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0, 0));
    assert_eq!({ page.acpi_rsdp_addr }, 0);
    assert_eq!({ page.sentinel }, 0);
    let line = machine.read(u64::from(header.cmd_line_ptr), 14);
    assert_eq!(line, b"console=ttyS0\0");
    let seed = machine.read(header.setup_data, 48);
    let want = [&[0; 8][..], &[9, 0, 0, 0, 32, 0, 0, 0], &[0x5a; 32]].concat();
    assert_eq!(seed, want);
}

#[test]
fn a_bzimage_keeps_its_header() {
    let mut image = bzimage(0x5000);
    image[0x218..0x220].fill(0x77);
    let bare = prepare_with(&image, &Wish::default()).zero_page().hdr;
    assert_eq!(({ bare.ramdisk_image }, { bare.ramdisk_size }), (0, 0));
    let wish = Wish { initrd: Some(pattern(100, 1)), tables: Tables::Acpi, ..Wish::default() };
    let machine = prepare_with(&image, &wish);
    let page = machine.zero_page();
    let header = page.hdr;
    assert_eq!({ header.version }, 0x020f);
    assert_eq!({ header.pref_address }, 2 * MIB);
    assert_eq!({ header.cmdline_size }, 2047);
    assert_eq!({ header.type_of_loader }, 0xff);
    assert_eq!({ page.acpi_rsdp_addr }, 0xe_0000);
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0x1ff_f000, 100));
    assert_eq!(machine.cpu.unwrap().regs().rip, 2 * MIB + 0x200);
}

#[test]
fn the_memory_map_is_the_ram() {
    let below = [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2)];
    for (memory, above) in [
        (32 * MIB, vec![(MIB, 31 * MIB, 1)]),
        (3 * GIB, vec![(MIB, 3 * GIB - MIB, 1)]),
        (6 * GIB, vec![(MIB, 3 * GIB - MIB, 1), (4 * GIB, 3 * GIB, 1)]),
    ] {
        let machine = prepare_with(&Elf::kernel().build(), &Wish { memory, ..Wish::default() });
        let page = machine.zero_page();
        let table = page.e820_table;
        let got: Vec<_> = table[..usize::from(page.e820_entries)]
            .iter()
            .map(|entry| ({ entry.addr }, { entry.size }, { entry.r#type }))
            .collect();
        assert_eq!(got, [&below[..], &above].concat());
    }
}

#[test]
fn memory_is_mapped_to_itself() {
    let high = Elf::kernel().with(Part::load(0x7000, 2 * GIB + 2 * MIB, pattern(16, 1), 0));
    for (image, memory) in [(Elf::kernel(), 32 * MIB), (high, 3 * GIB)] {
        let machine = prepare_with(&image.build(), &Wish { memory, ..Wish::default() });
        for addr in [0, 0x7000, MIB + 0x40, GIB - 1, GIB, 0xd000_0000, 4 * GIB - 1] {
            assert_eq!(machine.translate(addr, GIB), Some(addr), "{addr:#x}");
        }
        for addr in [4 * GIB, 1 << 39] {
            assert_eq!(machine.translate(addr, GIB), None);
        }
        // What a kernel or a bare-metal guest needs does not depend on pages of 1 GiB.
        for addr in [0, machine.loaded.end.0 - 1, 0xd000_0000, 0xfee0_0000] {
            assert_eq!(machine.translate(addr, 2 * MIB), Some(addr), "{addr:#x}");
        }
    }
}

#[test]
fn the_processor_starts_in_long_mode() {
    let cpu = prepare_with(&Elf::kernel().build(), &Wish::default()).cpu.unwrap();
    let regs = cpu.regs();
    assert_eq!((regs.rip, regs.rsi, regs.rflags), (MIB + 0x40, 0x7000, 2));
    let mut sregs =
        kvm_bindings::kvm_sregs { cr0: 0x6000_0010, apic_base: 7, ..Default::default() };
    cpu.apply(&mut sregs);
    assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x8000_0011, 0x20, 0x500));
    assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.selector), (1, 0, 0x10));
    assert_eq!((sregs.ss.type_, sregs.ss.selector, sregs.tr.type_), (3, 0x18, 0xb));
    assert_eq!(sregs.apic_base, 7);
}

#[test]
fn the_descriptor_table_agrees_with_the_segments() {
    for pvh in [false, true] {
        let elf = Elf::kernel().with(Part::notes(0x6000, pvh_note(0x10_0100)));
        let machine = prepare_with(&elf.build(), &Wish { pvh, ..Wish::default() });
        let mut sregs = kvm_bindings::kvm_sregs::default();
        machine.cpu.as_ref().unwrap().apply(&mut sregs);
        assert_eq!(sregs.cs.l, u8::from(!pvh));
        for segment in [sregs.cs, sregs.ds, sregs.ss, sregs.tr] {
            assert!(segment.selector + 7 <= sregs.gdt.limit);
            let entry = machine.word(sregs.gdt.base + u64::from(segment.selector));
            let bit = |at: u64| u8::try_from(entry >> at & 1).unwrap();
            let limit = u32::try_from(entry & 0xffff | entry >> 32 & 0xf_0000).unwrap();
            let limit = if segment.g == 1 { limit << 12 | 0xfff } else { limit };
            assert_eq!(u64::from(segment.type_), entry >> 40 & 0xf);
            assert_eq!((segment.s, segment.present), (bit(44), bit(47)));
            assert_eq!((segment.l, segment.db, segment.g), (bit(53), bit(54), bit(55)));
            assert_eq!(segment.limit, limit);
        }
    }
}

#[test]
fn pvh_gets_a_start_info() {
    let elf = Elf::kernel().with(Part::notes(0x6000, pvh_note(0x10_0100)));
    let initrd = Some(pattern(5000, 1));
    let wish = Wish { pvh: true, initrd, tables: Tables::Acpi, memory: 6 * GIB, ..Wish::default() };
    let machine = prepare_with(&elf.build(), &wish);
    let regs = machine.cpu.as_ref().unwrap().regs();
    assert_eq!(regs.rip, 0x10_0100);
    let info = machine.read(regs.rbx, size_of::<hvm_start_info>());
    let info = *hvm_start_info::from_slice(&info).unwrap();
    assert_eq!((info.magic, info.version, info.nr_modules), (0x336e_c578, 1, 1));
    assert_eq!((info.rsdp_paddr, info.memmap_entries), (0xe_0000, 4));
    assert_eq!(machine.read(info.cmdline_paddr, 14), b"console=ttyS0\0");
    let module = machine.read(info.modlist_paddr, size_of::<hvm_modlist_entry>());
    let module = *hvm_modlist_entry::from_slice(&module).unwrap();
    assert_eq!((module.paddr, module.size), (3 * GIB - 8192, 5000));
    let last = info.memmap_paddr + 3 * 24;
    assert_eq!((machine.word(last), machine.word(last + 8)), (4 * GIB, 3 * GIB));
    assert_eq!(machine.word(last + 16), 1);
    let mut sregs = kvm_bindings::kvm_sregs::default();
    machine.cpu.unwrap().apply(&mut sregs);
    assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x11, 0, 0, 0));
}

#[test]
fn a_command_line_is_refused_when_the_kernel_would_cut_it() {
    let short = |max: u32| {
        let mut image = bzimage(0x5000);
        image[0x238..0x23c].copy_from_slice(&max.to_le_bytes());
        image
    };
    for (image, len, fits) in [
        (Elf::kernel().build(), 2047, true),
        (Elf::kernel().build(), 2048, false),
        (short(255), 255, true),
        (short(255), 256, false),
        (short(65_535), 65_535, true),
        (short(65_535), 65_536, false),
    ] {
        let cmdline = "x".repeat(len);
        let machine = prepare_with(&image, &Wish { cmdline: cmdline.clone(), ..Wish::default() });
        if fits {
            let header = machine.zero_page().hdr;
            let line = machine.read(u64::from(header.cmd_line_ptr), len + 1);
            assert_eq!(line, format!("{cmdline}\0").as_bytes());
            continue;
        }
        let want = format!("command line is {len} bytes, the kernel takes at most {}", len - 1);
        assert_eq!(machine.cpu.unwrap_err().to_string(), want);
    }
}

#[test]
fn control_characters_are_no_arguments() {
    let mut line = CommandLine::new();
    for argument in ["a=b", "", "  c d ", "é"] {
        line.push(argument).unwrap();
    }
    assert_eq!(line.to_string(), "a=b c d é");
    for (argument, found) in [("x\0", '\0'), ("x\ny", '\n'), ("\u{7f}", '\u{7f}')] {
        let error = CommandLineError::Control { argument: argument.to_owned(), found };
        assert_eq!(line.push(argument), Err(error));
    }
    assert_eq!(line.to_string(), "a=b c d é");
}

#[test]
fn an_initrd_lies_at_the_top_of_low_ram() {
    for (memory, len, addr) in [
        (32 * MIB, 5000, 32 * MIB - 8192),
        (32 * MIB, 4096, 32 * MIB - 4096),
        (6 * GIB, 1, 3 * GIB - 4096),
    ] {
        let initrd = pattern(len, 1);
        let wish = Wish { memory, initrd: Some(initrd.clone()), ..Wish::default() };
        let machine = prepare_with(&Elf::kernel().build(), &wish);
        assert_eq!(u64::from(machine.zero_page().hdr.ramdisk_image), addr);
        let padded = machine.read(addr, len.next_multiple_of(4096));
        assert_eq!(padded[..len], initrd);
        assert!(padded[len..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let room = usize::try_from(31 * MIB - 0x1_4000).unwrap();
    for (len, text) in [
        (0, "initrd image is empty"),
        (
            room,
            "initrd image of 32423936 bytes does not fit between the kernel's end at 0x114801 and the end of",
        ),
    ] {
        let wish = Wish { initrd: Some(vec![1; len]), ..Wish::default() };
        let machine = prepare_with(&Elf::kernel().build(), &wish);
        assert_eq!(machine.loaded.end.0, 0x11_4801);
        let error = machine.cpu.unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
    }
}

#[test]
fn the_multiprocessor_table_is_whole() {
    for cpus in [1, 2, 32] {
        let machine = prepare_with(&Elf::kernel().build(), &Wish { cpus, ..Wish::default() });
        let pointer = machine.read(0x9_fc00, 16);
        assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
        assert_eq!(pointer[4..10], [0x10, 0xfc, 9, 0, 1, 4]);
        let len = machine.read(0x9_fc14, 2);
        let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
        assert!(16 + len <= 1024, "it fits in its KiB");
        let table = machine.read(0x9_fc10, len);
        assert_eq!((&table[..4], sum(&table)), (&b"PCMP"[..], 0));
        assert_eq!(table[0x24..0x28], 0xfee0_0000_u32.to_le_bytes());
        let mut rest = &table[44..];
        let mut kinds = [0; 5];
        while let Some(&kind) = rest.first() {
            kinds[usize::from(kind)] += 1;
            let (entry, next) = rest.split_at(if kind == 0 { 20 } else { 8 });
            match kind {
                0 => assert_eq!(entry[3], if entry[1] == 0 { 3 } else { 1 }),
                2 => assert_eq!(entry[1..], [cpus, 0x11, 1, 0, 0, 0xc0, 0xfe]),
                3 => assert_eq!((entry[5], entry[6]), (entry[7], cpus)),
                _ => {}
            }
            rest = next;
        }
        assert_eq!(kinds, [u32::from(cpus), 1, 1, 24, 2]);
        let count = u32::from(u16::from_le_bytes([table[0x22], table[0x23]]));
        assert_eq!(count, kinds.iter().sum::<u32>());
    }
}

#[test]
fn without_acpi_there_is_no_root_pointer() {
    let machine = prepare_with(&Elf::kernel().build(), &Wish::default());
    assert_eq!(machine.read(0xe_0000, 8), [0; 8]);
}

/// The table at `addr`, its checksum checked.
fn table(machine: &Machine, addr: u64) -> Vec<u8> {
    let len = machine.read(addr + 4, 4);
    let len = u32::from_le_bytes(len.try_into().unwrap());
    let bytes = machine.read(addr, usize::try_from(len).unwrap());
    assert_eq!(sum(&bytes), 0);
    bytes
}

#[test]
fn acpi_tables_lead_from_the_root_to_all_of_them() {
    let wish = Wish { tables: Tables::Acpi, cpus: 32, ..Wish::default() };
    let machine = prepare_with(&Elf::kernel().build(), &wish);
    assert_eq!(machine.read(0x9_fc00, 4), [0; 4], "never both");
    let rsdp = machine.read(0xe_0000, 36);
    assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (&b"RSD PTR "[..], 0, 0));
    let xsdt = table(&machine, machine.word(0xe_0000 + 24));
    let pointers: Vec<_> = xsdt[36..]
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let [fadt_at, madt_at] = pointers[..] else { panic!("{pointers:x?}") };
    let fadt = table(&machine, fadt_at);
    let port = |port: u16| [&[1, 8, 0, 1][..], &u64::from(port).to_le_bytes()].concat();
    assert_eq!((&fadt[..4], fadt.len(), fadt[8]), (&b"FACP"[..], 276, 6));
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_eq!(flags, 1 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 12 | 1 << 20);
    assert_eq!((&fadt[116..128], fadt[128]), (&port(0x602)[..], 1));
    assert_eq!((&fadt[244..256], &fadt[256..268]), (&port(0x600)[..], &port(0x601)[..]));
    let madt = table(&machine, madt_at);
    assert_eq!((&madt[..4], madt.len()), (&b"APIC"[..], 44 + 32 * 8 + 12 + 6));
    assert_eq!(madt[44 + 31 * 8..44 + 32 * 8], [0, 8, 31, 31, 1, 0, 0, 0]);
    let dsdt = table(&machine, machine.word(fadt_at + 140));
    assert_eq!(&dsdt[..4], b"DSDT");
    assert!(dsdt.ends_with(b"\x08_S5_\x12\x07\x04\x0a\x05\0\0\0"));
    assert!(machine.word(0xe_0000 + 24) + xsdt.len() as u64 <= MIB);
}

#[test]
fn a_transport_is_an_acpi_device() {
    let devices: Vec<_> = (0..2).map_while(mmio_slot).collect();
    let block = acpi::build(1, &devices, false);
    // Device (V001) { Name (_HID, "LNRO0005") Name (_UID, One) Name (_CRS, ResourceTemplate {
    //   Memory32Fixed (ReadWrite, 0xd0001000, 0x1000) Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {6} }) }
    let want = [
        &b"\x5b\x82\x3aV001\x08_HID\x0dLNRO0005\0\x08_UID\x01\x08_CRS\x11\x1a\x0a\x17"[..],
        &b"\x86\x09\0\x01\0\x10\0\xd0\0\x10\0\0\x89\x06\0\x03\x01\x06\0\0\0\x79\0"[..],
    ]
    .concat();
    assert!(block.windows(want.len()).any(|window| window == want), "{:02x?}", &block[64..]);
    assert!(!block.windows(4).any(|window| window == b"COM1"));
    let with_serial = acpi::build(1, &devices, true);
    assert!(with_serial.windows(4).any(|window| window == b"COM1"));
}
