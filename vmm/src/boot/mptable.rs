//! The MultiProcessor table: processors, the I/O APIC and its lines, for kernels without ACPI.
//!
//! Invariant: the floating pointer is the first thing at 0x9fc00, the last KiB of base memory, where kernels look for it, and the
//! table follows it within that KiB for up to 32 processors. Intel MultiProcessor Specification 1.4.

use crate::layout::{GSI_COUNT, IOAPIC_BASE, LAPIC_BASE};

use super::place;

const POINTER_BYTES: u32 = 16;
const HEADER_BYTES: u16 = 44;
const SPEC_1_4: u8 = 4;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
/// Family 6: nobody reads more of it.
const CPU_SIGNATURE: u32 = 0x600;
/// FPU and APIC on chip.
const CPU_FEATURES: u32 = 0x201;
const ISA_BUS: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Interrupt types of the specification's table 4-7.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Interrupt {
    Vectored = 0,
    Nmi = 1,
    External = 3,
}

/// The bytes to write at 0x9fc00 for `cpus` processors.
pub(super) fn build(cpus: u8) -> Vec<u8> {
    let (entries, count) = entries(cpus);
    let mut table = header(&entries, count);
    table.extend_from_slice(&entries);
    set_checksum(&mut table, 7);

    let table_addr = u32::try_from(place::LOW_RAM_END).expect("below 1 MiB") + POINTER_BYTES;
    let mut bytes = Vec::with_capacity(POINTER_BYTES as usize + table.len());
    bytes.extend_from_slice(b"_MP_");
    bytes.extend_from_slice(&table_addr.to_le_bytes());
    bytes.extend_from_slice(&[1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut bytes, 10);
    bytes.extend_from_slice(&table);
    bytes
}

fn header(entries: &[u8], count: u16) -> Vec<u8> {
    let len = HEADER_BYTES + u16::try_from(entries.len()).expect("at most 255 processor entries");
    let mut bytes = Vec::with_capacity(usize::from(len));
    bytes.extend_from_slice(b"PCMP");
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&[SPEC_1_4, 0]);
    bytes.extend_from_slice(b"OPENSHELMICROVM     ");
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&low32(LAPIC_BASE));
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn entries(cpus: u8) -> (Vec<u8>, u16) {
    let io_apic_id = cpus;
    let mut bytes = Vec::new();
    for apic_id in 0..cpus {
        let flags = if apic_id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        bytes.extend_from_slice(&[0, apic_id, LOCAL_APIC_VERSION, flags]);
        bytes.extend_from_slice(&CPU_SIGNATURE.to_le_bytes());
        bytes.extend_from_slice(&CPU_FEATURES.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
    }
    bytes.extend_from_slice(&[1, ISA_BUS]);
    bytes.extend_from_slice(b"ISA   ");
    bytes.extend_from_slice(&[2, io_apic_id, IO_APIC_VERSION, ENABLED]);
    bytes.extend_from_slice(&low32(IOAPIC_BASE));
    let lines = u8::try_from(GSI_COUNT).expect("an I/O APIC has few pins");
    for line in 0..lines {
        bytes.extend_from_slice(&interrupt(3, Interrupt::Vectored, line, io_apic_id, line));
    }
    bytes.extend_from_slice(&interrupt(4, Interrupt::External, 0, 0, 0));
    bytes.extend_from_slice(&interrupt(4, Interrupt::Nmi, 0, ALL_LOCAL_APICS, 1));
    (bytes, u16::from(cpus) + 2 + u16::from(lines) + 2)
}

/// One interrupt entry: polarity and trigger as the ISA bus has them, active high and edge.
fn interrupt(entry: u8, kind: Interrupt, source: u8, apic: u8, pin: u8) -> [u8; 8] {
    [entry, kind as u8, 0, 0, ISA_BUS, source, apic, pin]
}

fn low32(addr: u64) -> [u8; 4] {
    u32::try_from(addr).expect("APIC registers are below 4 GiB").to_le_bytes()
}

/// Makes the sum of all bytes zero.
fn set_checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte));
}
