//! The model-specific registers that firmware would have set.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{KvmError, call};

/// (register, value). MTRRdefType: enabled, write-back by default; without it a guest may see RAM as uncached.
const BOOT: [(u32, u64); 11] = [
    (0x0000_0174, 0),      // IA32_SYSENTER_CS
    (0x0000_0175, 0),      // IA32_SYSENTER_ESP
    (0x0000_0176, 0),      // IA32_SYSENTER_EIP
    (0xc000_0081, 0),      // STAR
    (0xc000_0083, 0),      // CSTAR
    (0xc000_0082, 0),      // LSTAR
    (0xc000_0102, 0),      // KERNEL_GS_BASE
    (0xc000_0084, 0),      // SYSCALL_MASK
    (0x0000_0010, 0),      // IA32_TSC
    (0x0000_01a0, 1),      // IA32_MISC_ENABLE: fast strings
    (0x0000_02ff, 0x0806), // MTRRdefType
];

/// Sets the boot values on a processor whose CPUID is set.
///
/// # Errors
/// [`KvmError::Msr`] for the first register that KVM refused.
pub(super) fn set_boot(fd: &VcpuFd) -> Result<(), KvmError> {
    let entries = BOOT.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&entries).expect("the boot set fits");
    let set = fd.set_msrs(&msrs).map_err(call("KVM_SET_MSRS"))?;
    match BOOT.get(set) {
        Some(&(index, _)) => Err(KvmError::Msr { index }),
        None => Ok(()),
    }
}
