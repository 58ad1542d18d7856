//! From a kernel image to the first instruction: loading, boot parameters, tables and the boot processor's registers.
//!
//! Invariant: everything written here lies inside guest RAM and outside the kernel, and the pages touched are few, because each
//! first touch is a page fault. Nothing here calls KVM: the result is plain data. Runs once, on the main thread.

mod acpi;
pub mod cmdline;
mod cpu;
#[cfg(test)]
mod image;
pub mod kernel;
mod mptable;
mod params;

use crate::config::plan::{InputFile, Tables};
use crate::layout::MmioSlot;
use crate::memory::{GuestAddress, GuestRam, MemoryError};

pub use cmdline::{CommandLine, CommandLineError};
pub use cpu::CpuEntry;
pub use kernel::{Entry, Kernel, KernelError, Loaded};

const PAGE_BYTES: u64 = 4096;

/// Where the boot structures are: below the first 640 KiB's end, packed in few pages.
mod place {
    /// Descriptor table, in the page that Linux reads for BIOS data anyway.
    pub(super) const GDT: u64 = 0x500;
    /// Zero page, or PVH start info with its lists.
    pub(super) const PARAMS: u64 = 0x7000;
    /// A command line of up to [`COMMAND_LINE_ROOM`] bytes.
    pub(super) const COMMAND_LINE: u64 = 0x8000;
    /// Bytes at [`COMMAND_LINE`], the terminating zero included.
    pub(super) const COMMAND_LINE_ROOM: usize = 0x800;
    /// The RNG seed.
    pub(super) const SETUP_DATA: u64 = 0x8800;
    /// Initial stack pointer; a kernel brings its own stack.
    pub(super) const STACK_TOP: u64 = 0x8ff0;
    /// Page tables: PML4, page directory pointers, then page directories.
    pub(super) const PAGE_TABLES: u64 = 0x9000;
    /// A longer command line, up to 64 KiB.
    pub(super) const LONG_COMMAND_LINE: u64 = 0x2_0000;
    /// End of RAM that a BIOS would leave to the kernel; the MultiProcessor table follows.
    pub(super) const LOW_RAM_END: u64 = 0x9_fc00;
    /// The ACPI tables, in the area that a BIOS would be in.
    pub(super) const ACPI: u64 = 0xe_0000;
    /// RAM again.
    pub(super) const EXTENDED_RAM: u64 = 0x10_0000;
}

/// What a machine tells its kernel.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Number of vCPUs.
    pub cpus: u8,
    /// The whole command line.
    pub cmdline: &'a CommandLine,
    /// The initial RAM disk.
    pub initrd: Option<&'a InputFile>,
    /// Which tables to write, after [`Kernel::tables`]; [`Tables::Auto`] counts as ACPI.
    pub tables: Tables,
    /// The virtio-mmio transports, for the ACPI tables.
    pub devices: &'a [MmioSlot],
    /// Whether the ACPI tables list the serial port, without which a kernel that reads them has no console there.
    pub serial: bool,
    /// Fresh random bytes for the guest's random number generator.
    pub rng_seed: [u8; 32],
}

/// Why a kernel that is loaded cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The command line is longer than the kernel takes.
    #[error("command line is {len} bytes, the kernel takes at most {max}")]
    CommandLineTooLong {
        /// Bytes, without the terminating zero.
        len: usize,
        /// The most that the kernel takes.
        max: usize,
    },
    /// The initial RAM disk is empty.
    #[error("initrd {path} is empty")]
    InitrdEmpty {
        /// As the user wrote it.
        path: String,
    },
    /// There is no room between the kernel and the end of low RAM.
    #[error(
        "initrd {path} of {len_bytes} bytes does not fit between the kernel's end at {kernel_end:#x} and the end of its \
         memory at {ram_end:#x}: give the machine more memory"
    )]
    InitrdTooLarge {
        /// As the user wrote it.
        path: String,
        /// Its size.
        len_bytes: u64,
        /// First address after the kernel.
        kernel_end: u64,
        /// First address that the initrd may not use.
        ram_end: u64,
    },
    /// Guest RAM refused a write: the machine has less RAM than the boot structures need.
    #[error("cannot place the {what} in guest memory")]
    Place {
        /// The structure.
        what: &'static str,
        /// Why.
        #[source]
        source: MemoryError,
    },
}

/// Writes everything the kernel expects to find in RAM and gives the boot processor's first registers.
///
/// # Errors
/// [`BootError`] for a command line or initrd that does not fit.
pub fn prepare(ram: &GuestRam, loaded: &Loaded, setup: &Setup<'_>) -> Result<CpuEntry, BootError> {
    let cmdline = write_command_line(ram, loaded, setup.cmdline)?;
    let initrd = setup.initrd.map(|file| place_initrd(ram, loaded, file)).transpose()?;
    let rsdp = write_tables(ram, setup)?;
    let facts = params::Facts { ram, loaded, cmdline, initrd, rsdp, rng_seed: &setup.rng_seed };
    let cpu = match loaded.entry {
        Entry::Linux64 { rip } => {
            facts.write_zero_page()?;
            let cr3 = cpu::write_page_tables(ram, loaded.end)?;
            CpuEntry::long_mode(rip, place::PARAMS, cr3)
        }
        Entry::Pvh { rip } => {
            facts.write_start_info()?;
            CpuEntry::protected_mode(rip, place::PARAMS)
        }
    };
    cpu::write_gdt(ram, &cpu)?;
    Ok(cpu)
}

/// A range of guest RAM in use: start and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    addr: u64,
    len: u64,
}

fn write_command_line(
    ram: &GuestRam,
    loaded: &Loaded,
    cmdline: &CommandLine,
) -> Result<Placed, BootError> {
    let bytes = cmdline.to_bytes_with_nul();
    let len = bytes.len() - 1;
    if len > loaded.cmdline_max {
        return Err(BootError::CommandLineTooLong { len, max: loaded.cmdline_max });
    }
    let short = bytes.len() <= place::COMMAND_LINE_ROOM;
    let addr = if short { place::COMMAND_LINE } else { place::LONG_COMMAND_LINE };
    put(ram, addr, &bytes, "command line")?;
    Ok(Placed { addr, len: len as u64 })
}

fn place_initrd(ram: &GuestRam, loaded: &Loaded, initrd: &InputFile) -> Result<Placed, BootError> {
    let path = || initrd.path.display().to_string();
    if initrd.len_bytes == 0 {
        return Err(BootError::InitrdEmpty { path: path() });
    }
    let low_end = ram.ranges().first().map_or(0, |range| range.start.0 + range.len_bytes);
    let ram_end = low_end.min(loaded.initrd_end) & !(PAGE_BYTES - 1);
    let addr = initrd
        .len_bytes
        .checked_next_multiple_of(PAGE_BYTES)
        .and_then(|room| ram_end.checked_sub(room))
        .filter(|&addr| addr >= loaded.end.0)
        .ok_or_else(|| BootError::InitrdTooLarge {
            path: path(),
            len_bytes: initrd.len_bytes,
            kernel_end: loaded.end.0,
            ram_end,
        })?;
    // The last page's bytes past the file's end are zero in the mapping, which is what the guest may expect of padding.
    let room = initrd.len_bytes.next_multiple_of(PAGE_BYTES);
    ram.map_file(GuestAddress(addr), &initrd.file, 0, room)
        .map_err(|source| BootError::Place { what: "initrd", source })?;
    Ok(Placed { addr, len: initrd.len_bytes })
}

/// Gives the address of the ACPI root pointer when there is one.
fn write_tables(ram: &GuestRam, setup: &Setup<'_>) -> Result<Option<u64>, BootError> {
    if setup.tables == Tables::MpTable {
        put(ram, place::LOW_RAM_END, &mptable::build(setup.cpus), "MultiProcessor table")?;
        return Ok(None);
    }
    let tables = acpi::build(setup.cpus, setup.devices, setup.serial);
    put(ram, place::ACPI, &tables, "ACPI tables")?;
    Ok(Some(place::ACPI))
}

fn put(ram: &GuestRam, addr: u64, data: &[u8], what: &'static str) -> Result<(), BootError> {
    ram.write(GuestAddress(addr), data).map_err(|source| BootError::Place { what, source })
}

#[cfg(test)]
mod tests;
