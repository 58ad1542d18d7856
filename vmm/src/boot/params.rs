//! The boot parameters a kernel reads first: Linux's zero page, or the PVH start info; both with the memory map.
//!
//! Invariant: one page holds all of it. Linux x86 boot protocol 2.15 (Documentation/arch/x86/boot.rst, zero-page.rst) and Xen's
//! hvm/start_info.h.

use crate::memory::GuestRam;

use super::{BootError, Loaded, Placed, place, put};

const ZERO_PAGE_BYTES: usize = 4096;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const SETUP_DATA_RNG_SEED: u32 = 9;
/// Loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;

/// Offsets in the zero page.
mod at {
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const SETUP_HEADER: usize = 0x1f1;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const HEADER_MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

const NOWHERE: Placed = Placed { addr: 0, len: 0 };

/// What the parameters say.
pub(super) struct Facts<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) loaded: &'a Loaded,
    pub(super) cmdline: Placed,
    pub(super) initrd: Option<Placed>,
    pub(super) rsdp: Option<u64>,
    pub(super) rng_seed: &'a [u8; 32],
}

impl Facts<'_> {
    pub(super) fn write_zero_page(&self) -> Result<(), BootError> {
        self.write_rng_seed()?;
        put(self.ram, place::PARAMS, &self.zero_page().0, "zero page")
    }

    fn zero_page(&self) -> Page {
        let mut page = Page::new();
        match &self.loaded.setup_header {
            Some(header) => page.set(at::SETUP_HEADER, header),
            None => {
                page.set(at::BOOT_FLAG, &0xaa55_u16.to_le_bytes());
                page.set(at::HEADER_MAGIC, b"HdrS");
                page.set(at::VERSION, &0x020f_u16.to_le_bytes());
                page.set(at::LOADFLAGS, &[LOADED_HIGH]);
                page.set(at::KERNEL_ALIGNMENT, &0x0100_0000_u32.to_le_bytes());
                page.set(at::CMDLINE_SIZE, &low32(self.cmdline.len));
            }
        }
        page.set(at::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
        page.set(at::CMD_LINE_PTR, &low32(self.cmdline.addr));
        page.set(at::SETUP_DATA, &place::SETUP_DATA.to_le_bytes());
        // Written without an initrd too: a file's header may hold anything there.
        let initrd = self.initrd.unwrap_or(NOWHERE);
        page.set(at::RAMDISK_IMAGE, &low32(initrd.addr));
        page.set(at::RAMDISK_SIZE, &low32(initrd.len));
        if let Some(rsdp) = self.rsdp {
            page.set(at::ACPI_RSDP_ADDR, &rsdp.to_le_bytes());
        }
        let map = memory_map(self.ram);
        page.set(at::E820_ENTRIES, &[u8::try_from(map.len()).expect("RAM has few ranges")]);
        for (i, entry) in map.iter().enumerate() {
            let mut bytes = [0; 20];
            bytes[..8].copy_from_slice(&entry.addr.to_le_bytes());
            bytes[8..16].copy_from_slice(&entry.len.to_le_bytes());
            bytes[16..].copy_from_slice(&entry.kind.to_le_bytes());
            page.set(at::E820_TABLE + i * bytes.len(), &bytes);
        }
        page
    }

    /// A `setup_data` node; Linux wipes the seed once it has used it.
    fn write_rng_seed(&self) -> Result<(), BootError> {
        let mut node = Vec::with_capacity(16 + self.rng_seed.len());
        node.extend_from_slice(&0u64.to_le_bytes());
        node.extend_from_slice(&SETUP_DATA_RNG_SEED.to_le_bytes());
        node.extend_from_slice(&low32(self.rng_seed.len() as u64));
        node.extend_from_slice(self.rng_seed);
        put(self.ram, place::SETUP_DATA, &node, "RNG seed")
    }

    pub(super) fn write_start_info(&self) -> Result<(), BootError> {
        put(self.ram, place::PARAMS, &self.start_info(), "PVH start info")
    }

    /// `hvm_start_info`, then one `hvm_modlist_entry`, then the `hvm_memmap_table_entry`s.
    fn start_info(&self) -> Vec<u8> {
        const MAGIC: u32 = 0x336e_c578;
        const VERSION: u32 = 1;
        const INFO_BYTES: u64 = 56;
        const MODULE_BYTES: u64 = 32;
        let map = memory_map(self.ram);
        let modules = place::PARAMS + INFO_BYTES;
        let entries = modules + MODULE_BYTES;
        let mut info = Vec::new();
        info.extend_from_slice(&MAGIC.to_le_bytes());
        info.extend_from_slice(&VERSION.to_le_bytes());
        info.extend_from_slice(&0u32.to_le_bytes());
        info.extend_from_slice(&u32::from(self.initrd.is_some()).to_le_bytes());
        info.extend_from_slice(&modules.to_le_bytes());
        info.extend_from_slice(&self.cmdline.addr.to_le_bytes());
        info.extend_from_slice(&self.rsdp.unwrap_or(0).to_le_bytes());
        info.extend_from_slice(&entries.to_le_bytes());
        info.extend_from_slice(&low32(map.len() as u64));
        info.extend_from_slice(&0u32.to_le_bytes());
        let initrd = self.initrd.unwrap_or(NOWHERE);
        for value in [initrd.addr, initrd.len, 0, 0] {
            info.extend_from_slice(&value.to_le_bytes());
        }
        for entry in map {
            info.extend_from_slice(&entry.addr.to_le_bytes());
            info.extend_from_slice(&entry.len.to_le_bytes());
            info.extend_from_slice(&entry.kind.to_le_bytes());
            info.extend_from_slice(&0u32.to_le_bytes());
        }
        info
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MapEntry {
    addr: u64,
    len: u64,
    kind: u32,
}

/// RAM, with the area of BIOS and tables below 1 MiB reserved. PVH uses the same type numbers as E820.
fn memory_map(ram: &GuestRam) -> Vec<MapEntry> {
    let reserved = place::EXTENDED_RAM - place::LOW_RAM_END;
    let mut map = vec![
        MapEntry { addr: 0, len: place::LOW_RAM_END, kind: E820_RAM },
        MapEntry { addr: place::LOW_RAM_END, len: reserved, kind: E820_RESERVED },
    ];
    for range in ram.ranges() {
        let start = range.start.0.max(place::EXTENDED_RAM);
        let end = range.start.0 + range.len_bytes;
        if end > start {
            map.push(MapEntry { addr: start, len: end - start, kind: E820_RAM });
        }
    }
    map
}

fn low32(value: u64) -> [u8; 4] {
    u32::try_from(value).expect("boot structures and initrd are below 4 GiB").to_le_bytes()
}

struct Page([u8; ZERO_PAGE_BYTES]);

impl Page {
    fn new() -> Self {
        Self([0; ZERO_PAGE_BYTES])
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}
