//! One virtual machine and its processors.

#![expect(unsafe_code, reason = "KVM is told host addresses of guest memory here")]

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_MP_STATE_HALTED, kvm_fpu, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{Host, KvmError, call, cpuid, msrs};
use crate::layout;
use crate::memory::GuestRam;
use crate::sys::linger::Linger;

const LAPIC_LVT0_OFFSET: usize = 0x350;
const LAPIC_LVT1_OFFSET: usize = 0x360;
const DELIVERY_MODE_EXTINT: u32 = 0x7 << 8;
const DELIVERY_MODE_NMI: u32 = 0x4 << 8;
const RFLAGS_INTERRUPT_ENABLE: u64 = 1 << 9;

/// A virtual machine with its memory and nothing else. The fields are dropped in this order: the memory goes last.
#[derive(Debug)]
pub(crate) struct BareVm {
    fd: VmFd,
    ram: Arc<GuestRam>,
}

impl BareVm {
    /// Makes the machine and its memory slots.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub(crate) fn new(kvm: &Kvm, ram: Arc<GuestRam>) -> Result<Self, KvmError> {
        let fd = loop {
            match kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                made => break made.map_err(call("KVM_CREATE_VM"))?,
            }
        };
        fd.set_identity_map_address(layout::IDENTITY_MAP_ADDR)
            .map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(layout::TSS_ADDR).map_err(call("KVM_SET_TSS_ADDR"))?;
        for (slot, range) in (0u32..).zip(ram.ranges()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: range.start.0,
                memory_size: range.len_bytes,
                userspace_addr: range.host_addr,
            };
            // SAFETY: the range is mapped and owned by `ram`, which this `BareVm` keeps until after the fd is closed (fields
            // drop in order), and the ranges do not overlap. A machine that lingers has no vCPU left to touch its slots.
            unsafe { fd.set_user_memory_region(region) }
                .map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(Self { fd, ram })
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    pub(crate) fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

/// A virtual machine with its memory and interrupt controllers. It keeps the RAM mapped while it exists; KVM takes it apart
/// after it was dropped.
#[derive(Debug)]
pub struct Vm {
    bare: BareVm,
    cpuid: CpuId,
    _linger: Option<Linger>,
}

impl Vm {
    /// Makes the machine: memory slots first, then the in-kernel PIC, I/O APIC and local APICs. What KVM says of the host's
    /// processor is kept in the directory `kept`.
    ///
    /// # Errors
    /// [`KvmError::TooManyVcpus`], [`KvmError::Call`].
    pub fn new(
        host: &Host,
        ram: Arc<GuestRam>,
        cpus: u8,
        kept: Option<&Path>,
    ) -> Result<Self, KvmError> {
        let max = host.kvm().get_max_vcpus();
        if usize::from(cpus) > max {
            return Err(KvmError::TooManyVcpus { wanted: cpus, max });
        }
        let bare = BareVm::new(host.kvm(), ram)?;
        bare.fd.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        let cpuid = cpuid::supported(host.kvm(), kept)?;
        // SAFETY: the descriptor is open as long as `bare` is.
        let linger = Linger::of(unsafe { BorrowedFd::borrow_raw(bare.fd.as_raw_fd()) });
        Ok(Self { bare, cpuid, _linger: linger })
    }

    /// The machine's RAM.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        self.bare.ram()
    }

    /// Makes processor `index` of `count` with its CPUID, MSRs and local APIC; `boot` is the entry state of the first one.
    ///
    /// # Errors
    /// [`KvmError::Call`], [`KvmError::Msr`].
    pub fn vcpu(
        &self,
        index: u8,
        count: u8,
        boot: Option<(kvm_regs, impl FnOnce(&mut kvm_sregs))>,
    ) -> Result<Vcpu, KvmError> {
        let fd = self.bare.fd.create_vcpu(u64::from(index)).map_err(call("KVM_CREATE_VCPU"))?;
        let cpuid = cpuid::for_vcpu(&self.cpuid, index, count);
        fd.set_cpuid2(&cpuid).map_err(call("KVM_SET_CPUID2"))?;
        msrs::set_boot(&fd)?;
        let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
        fd.set_fpu(&fpu).map_err(call("KVM_SET_FPU"))?;
        if let Some((regs, apply)) = boot {
            fd.set_regs(&regs).map_err(call("KVM_SET_REGS"))?;
            let mut sregs = fd.get_sregs().map_err(call("KVM_GET_SREGS"))?;
            apply(&mut sregs);
            fd.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
        }
        set_local_interrupts(&fd)?;
        Ok(Vcpu { fd })
    }

    /// Rings `doorbell` when the guest writes `queue` to the 32-bit register at `addr`, without a return to user space.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn attach_doorbell(
        &self,
        doorbell: &EventFd,
        addr: u64,
        queue: u32,
    ) -> Result<(), KvmError> {
        self.bare
            .fd
            .register_ioevent(doorbell, &IoEventAddress::Mmio(addr), queue)
            .map_err(call("KVM_IOEVENTFD"))
    }

    /// Raises interrupt line `gsi`, edge-triggered, on every write of `line`.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn attach_interrupt(&self, line: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.bare.fd.register_irqfd(line, gsi).map_err(call("KVM_IRQFD"))
    }
}

/// LINT0 takes the PIC's interrupts, LINT1 the NMI, as firmware would leave them.
fn set_local_interrupts(fd: &VcpuFd) -> Result<(), KvmError> {
    let mut lapic = fd.get_lapic().map_err(call("KVM_GET_LAPIC"))?;
    for (offset, mode) in
        [(LAPIC_LVT0_OFFSET, DELIVERY_MODE_EXTINT), (LAPIC_LVT1_OFFSET, DELIVERY_MODE_NMI)]
    {
        for (register, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(mode.to_le_bytes()) {
            *register = byte.cast_signed();
        }
    }
    fd.set_lapic(&lapic).map_err(call("KVM_SET_LAPIC"))
}

/// One processor; exactly one thread runs it.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
}

/// Registers of a vCPU that matter when it cannot go on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[expect(missing_docs, reason = "the processor's own names")]
pub struct Registers {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: u16,
    pub ss: u16,
}

impl Vcpu {
    /// Runs the guest until it exits.
    ///
    /// # Errors
    /// What KVM_RUN said; EINTR and EAGAIN mean that a signal came.
    pub fn run(&mut self) -> Result<VcpuExit<'_>, kvm_ioctls::Error> {
        self.fd.run()
    }

    /// The address of `kvm_run.immediate_exit`, for the kick signal's handler on the thread that runs this processor.
    pub(crate) fn immediate_exit_ptr(&mut self) -> *mut u8 {
        &raw mut self.fd.get_kvm_run().immediate_exit
    }

    /// Makes the next [`Self::run`] enter the guest again after a kick.
    pub fn clear_kick(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Tells the guest's clock that time has passed without it, so that its watchdogs do not bark.
    pub fn was_held(&mut self) {
        // A guest without that clock has none to be told.
        self.fd.kvmclock_ctrl().ok();
    }

    /// The suberror of the last KVM_EXIT_INTERNAL_ERROR.
    pub fn internal_suberror(&mut self) -> u32 {
        // SAFETY: all members of the exit union are plain integers, so that any bytes are valid; the value means something after an
        // internal error only, which is when it is asked for.
        unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror }
    }

    /// The registers; zeroes where KVM does not give them any more.
    #[must_use]
    pub fn registers(&self) -> Registers {
        let regs = self.fd.get_regs().unwrap_or_default();
        let sregs = self.fd.get_sregs().unwrap_or_default();
        Registers {
            rip: regs.rip,
            rsp: regs.rsp,
            rflags: regs.rflags,
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rbp: regs.rbp,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            cs: sregs.cs.selector,
            ss: sregs.ss.selector,
        }
    }

    /// Whether the processor sleeps in HLT with interrupts off, which only a reset could end.
    #[must_use]
    pub fn halted_for_good(&self) -> bool {
        let halted =
            self.fd.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_HALTED);
        halted && self.fd.get_regs().is_ok_and(|regs| regs.rflags & RFLAGS_INTERRUPT_ENABLE == 0)
    }

    /// Whether the processor waits to be started by another one.
    #[must_use]
    pub fn waits_for_start(&self) -> bool {
        self.fd.get_mp_state().is_ok_and(|state| {
            state.mp_state == kvm_bindings::KVM_MP_STATE_UNINITIALIZED
                || state.mp_state == kvm_bindings::KVM_MP_STATE_INIT_RECEIVED
        })
    }
}
