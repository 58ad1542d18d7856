//! The processor that the guest sees: the host's, without what a guest of this machine cannot use.
//!
//! Invariant: for the same host and the same index the result is the same, so that a snapshot's processor can be made again.

use std::path::Path;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::kept::{self, Key};
use super::{DEVICE, KvmError, call};

const ECX1_VMX: u32 = 1 << 5;
const ECX1_PDCM: u32 = 1 << 15;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_HYPERVISOR: u32 = 1 << 31;
const EDX1_HTT: u32 = 1 << 28;
const ECX7_WAITPKG: u32 = 1 << 5;
const EDX7_AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
const ECX8000_0001_SVM: u32 = 1 << 2;
const ECX6_EPB: u32 = 1 << 3;
const EAX6_TURBO: u32 = 1 << 1;
const CACHE_LINE_QUADWORDS: u32 = 8;
const TOPOLOGY_SMT: u32 = 1;
const TOPOLOGY_CORE: u32 = 2;

/// What KVM can offer on this host, as it says or as it is kept in the directory `kept` since it last said so.
///
/// # Errors
/// [`KvmError::Call`].
pub(super) fn supported(kvm: &Kvm, kept: Option<&Path>) -> Result<CpuId, KvmError> {
    let kept = kept.and_then(|directory| Some((directory, Key::of(Path::new(DEVICE)).ok()?)));
    if let Some(table) = kept.and_then(|(directory, key)| kept::read(directory, &key)) {
        return Ok(table);
    }
    let table =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
    if let Some((directory, key)) = kept {
        // The next run asks KVM again.
        drop(kept::write(directory, &key, &table));
    }
    Ok(table)
}

/// The table of processor `index` of `count`: one socket of `count` single-threaded cores.
pub(super) fn for_vcpu(supported: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let has_extended_topology = cpuid.as_slice().iter().any(|entry| entry.function == 0xb);
    for entry in cpuid.as_mut_slice() {
        adjust(entry, index, count);
    }
    if has_extended_topology && !cpuid.as_slice().iter().any(is_core_level) {
        let mut entry =
            kvm_cpuid_entry2 { function: 0xb, index: 1, flags: 1, ..Default::default() };
        adjust(&mut entry, index, count);
        // A full table only means that the guest learns the topology from leaf 1 instead.
        drop(cpuid.push(entry));
    }
    cpuid
}

fn is_core_level(entry: &kvm_cpuid_entry2) -> bool {
    entry.function == 0xb && entry.index == 1
}

fn adjust(entry: &mut kvm_cpuid_entry2, index: u8, count: u8) {
    let apic_id = u32::from(index);
    let cores = u32::from(count);
    match entry.function {
        0x1 => {
            entry.ebx = (entry.ebx & 0xff)
                | CACHE_LINE_QUADWORDS << 8
                | cores.next_power_of_two() << 16
                | apic_id << 24;
            entry.ecx |= ECX1_HYPERVISOR | ECX1_TSC_DEADLINE;
            entry.ecx &= !(ECX1_VMX | ECX1_PDCM);
            if cores > 1 {
                entry.edx |= EDX1_HTT;
            } else {
                entry.edx &= !EDX1_HTT;
            }
        }
        0x4 => {
            let level = (entry.eax >> 5) & 0x7;
            let shared_by = if level == 3 { cores.next_power_of_two() } else { 1 };
            entry.eax &= 0x3fff;
            entry.eax |= (shared_by - 1) << 14 | (cores.next_power_of_two() - 1) << 26;
        }
        0x6 => {
            entry.eax &= !EAX6_TURBO;
            entry.ecx &= !ECX6_EPB;
        }
        0x7 if entry.index == 0 => {
            entry.ecx &= !ECX7_WAITPKG;
            entry.edx &= !EDX7_AMX;
        }
        // No performance counters.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0xb | 0x1f => topology(entry, apic_id, cores),
        0x8000_0001 => entry.ecx &= !ECX8000_0001_SVM,
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (cores - 1),
        0x8000_001e => {
            entry.eax = apic_id;
            entry.ebx = apic_id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

fn topology(entry: &mut kvm_cpuid_entry2, apic_id: u32, cores: u32) {
    let (shift, processors, level) = match entry.index {
        0 => (0, 1, TOPOLOGY_SMT),
        1 => (cores.next_power_of_two().trailing_zeros(), cores, TOPOLOGY_CORE),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = processors;
    entry.ecx = entry.index | level << 8;
    entry.edx = apic_id;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> CpuId {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            ecx: u32::MAX,
            edx: u32::MAX,
            eax: 0x0000_0163,
            ..Default::default()
        };
        let leaves =
            [leaf(1, 0), leaf(4, 3), leaf(7, 0), leaf(0xa, 0), leaf(0xb, 0), leaf(0x8000_0001, 0)];
        CpuId::from_entries(&leaves).unwrap()
    }

    fn entry(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn every_processor_has_its_own_apic_id() {
        for index in 0..4 {
            let cpuid = for_vcpu(&table(), index, 4);
            assert_eq!(entry(&cpuid, 1, 0).ebx >> 24, u32::from(index));
            assert_eq!(entry(&cpuid, 0xb, 0).edx, u32::from(index));
            assert_eq!(entry(&cpuid, 0xb, 1).edx, u32::from(index));
            assert_eq!(entry(&cpuid, 0xb, 1).ebx, 4);
        }
    }

    #[test]
    fn nested_virtualisation_and_counters_are_hidden() {
        let cpuid = for_vcpu(&table(), 0, 1);
        assert_eq!(entry(&cpuid, 1, 0).ecx & ECX1_VMX, 0);
        assert_eq!(entry(&cpuid, 0x8000_0001, 0).ecx & ECX8000_0001_SVM, 0);
        assert_eq!(entry(&cpuid, 0xa, 0).eax, 0);
        assert_eq!(entry(&cpuid, 7, 0).ecx & ECX7_WAITPKG, 0);
        assert_ne!(entry(&cpuid, 1, 0).ecx & ECX1_TSC_DEADLINE, 0);
    }
}
