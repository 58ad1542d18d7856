//! Hardware-reduced ACPI: processors, the I/O APIC, the virtio-mmio transports, power-off and reset.
//!
//! Invariant: all tables are one block at 0xe0000, the root pointer first, so that they touch one or two pages and a kernel that
//! was told no address finds them by its scan. ACPI 6.5, chapters 4.1 (hardware-reduced) and 5.2 (tables).

use acpi_tables::aml::{self, Path};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, xsdt::XSDT};

use crate::layout::{
    ACPI_RESET_PORT, ACPI_RESET_VALUE, ACPI_S5_SLEEP_TYPE, ACPI_SCI_GSI, ACPI_SLEEP_CONTROL_PORT,
    ACPI_SLEEP_STATUS_PORT, IOAPIC_BASE, LAPIC_BASE, MmioSlot, SERIAL_GSI, SERIAL_PORT,
    VIRTIO_MMIO_STRIDE,
};

use super::place;

const OEM: [u8; 6] = *b"OPENSH";
const OEM_TABLE: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;
const SDT_HEADER_BYTES: u32 = 36;
/// Tables start on this boundary, for readers of the dump only.
const TABLE_ALIGN: u64 = 16;
/// IA-PC boot flags: no VGA, no CMOS clock; no legacy devices and no keyboard controller, so that the kernel probes for none.
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;
const ALL_PROCESSORS: u8 = 0xff;

/// The bytes to write at 0xe0000, the root pointer first. The serial port is listed when `serial` is set.
pub(super) fn build(cpus: u8, devices: &[MmioSlot], serial: bool) -> Vec<u8> {
    let mut block = Block(vec![0; Rsdp::len()]);
    let dsdt = block.add(sdt(*b"DSDT", 2, &definitions(devices, serial)).as_slice());
    let fadt = block.add(&to_bytes(&fadt(dsdt)));
    let madt = block.add(sdt(*b"APIC", 6, &interrupt_controllers(cpus)).as_slice());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = block.add(&to_bytes(&xsdt));
    let mut bytes = block.0;
    bytes[..Rsdp::len()].copy_from_slice(&to_bytes(&Rsdp::new(OEM, xsdt)));
    bytes
}

/// Tables one after the other from 0xe0000 on.
struct Block(Vec<u8>);

impl Block {
    /// Gives the table's guest-physical address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let offset = (self.0.len() as u64).next_multiple_of(TABLE_ALIGN);
        self.0.resize(usize::try_from(offset).expect("tables are a few KiB"), 0);
        self.0.extend_from_slice(table);
        place::ACPI + offset
    }
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port =
        |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    // The button flags say that there is no fixed button, which a kernel would make an input device of.
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    table.sci_int = u16::try_from(ACPI_SCI_GSI).expect("an I/O APIC has few pins").into();
    table.iapc_boot_arch = BOOT_FLAGS.into();
    table.reset_reg = port(ACPI_RESET_PORT);
    table.reset_value = ACPI_RESET_VALUE;
    table.sleep_control_reg = port(ACPI_SLEEP_CONTROL_PORT);
    table.sleep_status_reg = port(ACPI_SLEEP_STATUS_PORT);
    table.finalize()
}

/// The body of the MADT. Lines need no overrides: each is the pin of its number, edge-triggered and active high.
fn interrupt_controllers(cpus: u8) -> Vec<u8> {
    const LOCAL_APIC: u8 = 0;
    const IO_APIC: u8 = 1;
    const LOCAL_APIC_NMI: u8 = 4;
    const ENABLED: [u8; 4] = [1, 0, 0, 0];
    const NO_8259: [u8; 4] = [0; 4];
    let mut body = Vec::new();
    body.extend_from_slice(&low32(LAPIC_BASE).to_le_bytes());
    body.extend_from_slice(&NO_8259);
    for id in 0..cpus {
        body.extend_from_slice(&[LOCAL_APIC, 8, id, id]);
        body.extend_from_slice(&ENABLED);
    }
    body.extend_from_slice(&[IO_APIC, 12, 0, 0]);
    body.extend_from_slice(&low32(IOAPIC_BASE).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    body.extend_from_slice(&[LOCAL_APIC_NMI, 6, ALL_PROCESSORS, 0, 0, 1]);
    body
}

/// The body of the DSDT. A device without `_STA` is present and working, so none has one: each costs an evaluation.
fn definitions(devices: &[MmioSlot], serial: bool) -> Vec<u8> {
    let mut names = Vec::new();
    if serial {
        names.extend(serial_port());
    }
    for (index, slot) in devices.iter().enumerate() {
        names.extend(transport(index, *slot));
    }
    let names = Raw(names);
    let scope = aml::Scope::new(Path::new("_SB_"), vec![&names]);
    let zero = aml::Zero {};
    let s5 = aml::Package::new(vec![&ACPI_S5_SLEEP_TYPE, &zero, &zero, &zero]);
    let mut body = to_bytes(&scope);
    body.extend(to_bytes(&aml::Name::new(Path::new("_S5_"), &s5)));
    body
}

fn transport(index: usize, slot: MmioSlot) -> Vec<u8> {
    let hid = aml::Name::new(Path::new("_HID"), &"LNRO0005");
    let uid = aml::Name::new(Path::new("_UID"), &index);
    let registers = aml::Memory32Fixed::new(true, low32(slot.base), low32(VIRTIO_MMIO_STRIDE));
    let line = edge(slot.gsi);
    let resources = aml::ResourceTemplate::new(vec![&registers, &line]);
    let crs = aml::Name::new(Path::new("_CRS"), &resources);
    let name = format!("V{index:03X}");
    to_bytes(&aml::Device::new(Path::new(&name), vec![&hid, &uid, &crs]))
}

fn serial_port() -> Vec<u8> {
    let eisa = aml::EISAName::new("PNP0501");
    let hid = aml::Name::new(Path::new("_HID"), &eisa);
    let uid = aml::Name::new(Path::new("_UID"), &aml::ZERO);
    let ports = aml::IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    let line = edge(SERIAL_GSI);
    let resources = aml::ResourceTemplate::new(vec![&ports, &line]);
    let crs = aml::Name::new(Path::new("_CRS"), &resources);
    to_bytes(&aml::Device::new(Path::new("COM1"), vec![&hid, &uid, &crs]))
}

fn edge(gsi: u32) -> aml::Interrupt {
    let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
    aml::Interrupt::new(consumer, edge_triggered, active_low, shared, gsi)
}

/// AML that is already bytes.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn sdt(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, SDT_HEADER_BYTES, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table
}

fn to_bytes(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

fn low32(addr: u64) -> u32 {
    u32::try_from(addr).expect("device registers are below 4 GiB")
}
