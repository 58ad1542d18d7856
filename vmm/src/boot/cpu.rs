//! The boot processor's first state: registers, descriptor table, page tables.
//!
//! Invariant: application processors get none of this; they wait for the start-up message of the boot processor. Linux x86 boot
//! protocol, "64-bit boot protocol"; Xen's "x86/HVM direct boot ABI".

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::layout::HOLE_START;
use crate::memory::{GuestAddress, GuestRam};

use super::{BootError, PAGE_BYTES, place, put};

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 2;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;
const MIB_2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// `__BOOT_CS` and `__BOOT_DS` of the boot protocol, then a task state segment.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Null, unused, 64-bit code, data, and a task segment of two entries: flat, present, privilege level 0.
const GDT: [u64; 6] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];
/// Offset of its last byte.
const GDT_LIMIT: u16 = 47;
const _: () = assert!(GDT.len() * 8 == GDT_LIMIT as usize + 1);
/// The same with 32-bit code, for PVH.
const GDT_CODE_32: u64 = 0x00cf_9b00_0000_ffff;

/// The boot processor's state at its first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuEntry {
    rip: u64,
    params: u64,
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Long { cr3: u64 },
    Protected,
}

impl CpuEntry {
    pub(super) fn long_mode(rip: u64, params: u64, cr3: u64) -> Self {
        Self { rip, params, mode: Mode::Long { cr3 } }
    }

    pub(super) fn protected_mode(rip: u64, params: u64) -> Self {
        Self { rip, params, mode: Mode::Protected }
    }

    /// The general registers; boot processor only.
    #[must_use]
    pub fn regs(&self) -> kvm_regs {
        let regs = kvm_regs { rip: self.rip, rflags: RFLAGS, ..Default::default() };
        match self.mode {
            Mode::Long { .. } => {
                kvm_regs { rsi: self.params, rsp: place::STACK_TOP, rbp: place::STACK_TOP, ..regs }
            }
            Mode::Protected => kvm_regs { rbx: self.params, ..regs },
        }
    }

    /// Changes the special registers from their reset values; boot processor only.
    pub fn apply(&self, sregs: &mut kvm_sregs) {
        let long = matches!(self.mode, Mode::Long { .. });
        sregs.cs = code_segment(long);
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *segment = data_segment();
        }
        sregs.tr = task_segment();
        sregs.gdt = kvm_dtable { base: place::GDT, limit: GDT_LIMIT, padding: [0; 3] };
        // No handler: an exception before the kernel has its own ends the machine as a triple fault.
        sregs.idt = kvm_dtable::default();
        match self.mode {
            Mode::Long { cr3 } => {
                sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
                sregs.cr3 = cr3;
                sregs.cr4 = CR4_PAE;
                sregs.efer = EFER_LME | EFER_LMA;
            }
            Mode::Protected => {
                sregs.cr0 = CR0_PE | CR0_ET;
                sregs.cr3 = 0;
                sregs.cr4 = 0;
                sregs.efer = 0;
            }
        }
    }
}

pub(super) fn write_gdt(ram: &GuestRam, entry: &CpuEntry) -> Result<(), BootError> {
    let mut gdt = GDT;
    if entry.mode == Mode::Protected {
        gdt[usize::from(CODE_SELECTOR / 8)] = GDT_CODE_32;
    }
    let bytes: Vec<u8> = gdt.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    put(ram, place::GDT, &bytes, "descriptor table")
}

/// Maps the first 4 GiB to themselves and gives CR3.
///
/// By pages of 2 MiB, which every processor has: all up to `end`, which is what the boot protocol asks for, and the GiB of the
/// device registers, for bare-metal guests. What lies between is mapped by entries of 1 GiB: those take no page of RAM, and a
/// processor without such pages faults only when it uses one.
pub(super) fn write_page_tables(ram: &GuestRam, end: GuestAddress) -> Result<u64, BootError> {
    const DEVICES_GIB: u64 = HOLE_START / GIB;
    let pointers_at = place::PAGE_TABLES + PAGE_BYTES;
    let mut next_directory = pointers_at + PAGE_BYTES;
    let mut pointers = Vec::new();
    for gib in 0..=DEVICES_GIB {
        let start = gib * GIB;
        if start != 0 && start >= end.0 && gib != DEVICES_GIB {
            pointers.push(start | PRESENT_WRITABLE | LARGE_PAGE);
            continue;
        }
        let pages = (0..ENTRIES).map(|page| (start + page * MIB_2) | PRESENT_WRITABLE | LARGE_PAGE);
        put_entries(ram, next_directory, pages)?;
        pointers.push(next_directory | PRESENT_WRITABLE);
        next_directory += PAGE_BYTES;
    }
    put_entries(ram, pointers_at, pointers)?;
    put_entries(ram, place::PAGE_TABLES, [pointers_at | PRESENT_WRITABLE])?;
    Ok(place::PAGE_TABLES)
}

fn put_entries(
    ram: &GuestRam,
    addr: u64,
    entries: impl IntoIterator<Item = u64>,
) -> Result<(), BootError> {
    let bytes: Vec<u8> = entries.into_iter().flat_map(u64::to_le_bytes).collect();
    put(ram, addr, &bytes, "page tables")
}

fn code_segment(long: bool) -> kvm_segment {
    kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb,
        l: u8::from(long),
        db: u8::from(!long),
        ..flat_segment()
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment { selector: DATA_SELECTOR, type_: 0x3, db: 1, ..flat_segment() }
}

fn flat_segment() -> kvm_segment {
    kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() }
}

fn task_segment() -> kvm_segment {
    kvm_segment {
        selector: TASK_SELECTOR,
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    }
}
