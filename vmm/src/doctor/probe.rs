//! Guests of a few instructions that show what a KVM can do.
//!
//! Invariant: an instruction counts as working only when the guest went on behind it and said so with a port write. The
//! guests run in 64-bit kernel mode with paging and an interrupt table, as a kernel does. One thread.

use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use crate::kvm::{BareVm, KvmError};
use crate::memory::{GuestAddress, GuestRam, MemoryError};

const RAM_BYTES: u64 = 2 << 20;
const GDT: u64 = 0x500;
const IDT: u64 = 0x1000;
const STACK_END: u64 = 0x3000;
const HANDLER: u64 = 0x3000;
const CODE: u64 = 0x4000;
/// Zeroes, aligned as XRSTOR and CMPXCHG16B want their operand.
const DATA: u64 = 0x5000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const PORT: u16 = 0x10;
const PASSED: u8 = 0x2a;

/// mov al, PASSED; out PORT, al; hlt
const PASS: [u8; 5] = [0xb0, PASSED, 0xe6, 0x10, 0xf4];

/// What a kernel cannot do without, each with code that falls through to [`PASS`] when it worked.
const PROBES: [(&str, &[u8]); 4] = [
    // int3, whose handler is PASS; ud2 in case it goes on here.
    ("INT3", &[0xcc, 0x0f, 0x0b]),
    // mov rax, rsp; push DATA_SELECTOR; push rax; pushfq; push CODE_SELECTOR; lea rcx, [rip + 3]; push rcx; iretq
    (
        "IRETQ",
        &[
            0x48, 0x89, 0xe0, 0x6a, 0x10, 0x50, 0x9c, 0x6a, 0x08, 0x48, 0x8d, 0x0d, 3, 0, 0, 0,
            0x51, 0x48, 0xcf,
        ],
    ),
    // xor edx, edx; mov eax, 1; mov edi, DATA; xrstor [rdi]
    ("XRSTOR", &[0x31, 0xd2, 0xb8, 1, 0, 0, 0, 0xbf, 0, 0x50, 0, 0, 0x0f, 0xae, 0x2f]),
    // xor eax, eax; xor edx, edx; xor ebx, ebx; xor ecx, ecx; mov edi, DATA; lock cmpxchg16b [rdi]
    (
        "CMPXCHG16B",
        &[
            0x31, 0xc0, 0x31, 0xd2, 0x31, 0xdb, 0x31, 0xc9, 0xbf, 0, 0x50, 0, 0, 0xf0, 0x48, 0x0f,
            0xc7, 0x0f,
        ],
    ),
];

/// How one instruction came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Its name.
    pub(super) instruction: &'static str,
    /// How the guest ended instead of going on.
    pub(super) failure: Option<String>,
}

/// Why not even a guest without any of these instructions ran.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("cannot open /dev/kvm: {}", describe(*errno))]
    Open { errno: i32 },
    #[error("cannot create a virtual machine: {source}: {}", cause(source))]
    Vm { source: KvmError },
    #[error("cannot set up a virtual machine ({step}): {}", describe(*errno))]
    SetUp { step: &'static str, errno: i32 },
    #[error("cannot map guest memory: {source}")]
    Memory { source: MemoryError },
    #[error("a guest of three instructions did not run: {how}")]
    Run { how: String },
    #[error("a guest of a few instructions did not end in time")]
    NoAnswer,
    #[error("cannot start a thread: {source}")]
    Thread { source: io::Error },
}

fn cause(error: &KvmError) -> String {
    std::error::Error::source(error).map_or_else(String::new, ToString::to_string)
}

fn describe(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

/// Runs a guest that needs nothing special, then one for each of the instructions.
pub(super) fn run() -> Result<Vec<Answer>, ProbeError> {
    let kvm = Kvm::new().map_err(|error| ProbeError::Open { errno: error.errno() })?;
    let mut guest = Guest::new(&kvm)?;
    if let Some(how) = guest.try_code(&[])? {
        return Err(ProbeError::Run { how });
    }
    let probes = PROBES.iter().filter(|(name, _)| *name != "XRSTOR" || guest.has_xsave);
    let probes: Vec<_> = probes.collect();
    probes
        .into_iter()
        .map(|&(instruction, code)| Ok(Answer { instruction, failure: guest.try_code(code)? }))
        .collect()
}

/// One vCPU and its machine. The fields are dropped in this order: the machine goes last.
struct Guest {
    vcpu: VcpuFd,
    vm: BareVm,
    has_xsave: bool,
}

impl Guest {
    fn new(kvm: &Kvm) -> Result<Self, ProbeError> {
        let step =
            |step| move |error: kvm_ioctls::Error| ProbeError::SetUp { step, errno: error.errno() };
        let ram = GuestRam::anonymous(&[(GuestAddress(0), RAM_BYTES)])
            .map_err(|source| ProbeError::Memory { source })?;
        let vm = BareVm::new(kvm, Arc::new(ram)).map_err(|source| ProbeError::Vm { source })?;
        let vcpu = vm.fd().create_vcpu(0).map_err(step("vCPU"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(step("CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(step("CPUID"))?;
        let features = cpuid.as_slice().iter().find(|leaf| leaf.function == 1);
        let has_xsave = features.is_some_and(|leaf| leaf.ecx & (1 << 26) != 0);
        Ok(Self { vcpu, vm, has_xsave })
    }

    /// Runs `code` followed by [`PASS`] and says how it ended when it did not pass.
    fn try_code(&mut self, code: &[u8]) -> Result<Option<String>, ProbeError> {
        self.write_memory(code).map_err(|source| ProbeError::Memory { source })?;
        self.set_registers()
            .map_err(|error| ProbeError::SetUp { step: "registers", errno: error.errno() })?;
        Ok(match self.vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, &[PASSED])) => None,
            Ok(VcpuExit::InternalError) => Some("internal error".to_owned()),
            Ok(VcpuExit::Shutdown) => Some("shutdown".to_owned()),
            Ok(exit) => Some(format!("unexpected exit {exit:?}")),
            Err(error) => Some(describe(error.errno())),
        })
    }

    fn write_memory(&self, code: &[u8]) -> Result<(), MemoryError> {
        let write = |at: u64, bytes: &[u8]| self.vm.ram().write(GuestAddress(at), bytes);
        // Present and writable; the last level maps 2 MiB at once.
        write(PML4, &(PDPT | 3).to_le_bytes())?;
        write(PDPT, &(PD | 3).to_le_bytes())?;
        write(PD, &0x83_u64.to_le_bytes())?;
        // Null, 64-bit code, data: IRETQ and the interrupt gate load selectors from it.
        write(GDT + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes())?;
        write(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes())?;
        // A 64-bit interrupt gate, present, for vector 3.
        let gate = HANDLER | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32;
        write(IDT + 3 * 16, &gate.to_le_bytes())?;
        write(DATA, &[0; 4096])?;
        write(HANDLER, &PASS)?;
        write(CODE, code)?;
        write(CODE + code.len() as u64, &PASS)
    }

    fn set_registers(&self) -> Result<(), kvm_ioctls::Error> {
        let mut sregs = self.vcpu.get_sregs()?;
        let flat = kvm_segment {
            limit: u32::MAX,
            selector: DATA_SELECTOR,
            type_: 3,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..kvm_segment::default()
        };
        sregs.cs = kvm_segment { selector: CODE_SELECTOR, type_: 11, l: 1, db: 0, ..flat };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (flat, flat, flat, flat, flat);
        sregs.tr = kvm_segment {
            limit: 0x67,
            selector: 0x18,
            type_: 11,
            present: 1,
            ..kvm_segment::default()
        };
        (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x17);
        sregs.cr3 = PML4;
        // PAE, OSFXSR, OSXSAVE.
        sregs.cr4 = 1 << 5 | 1 << 9 | u64::from(self.has_xsave) << 18;
        // PG, NE, ET, PE.
        sregs.cr0 = 1 << 31 | 1 << 5 | 1 << 4 | 1;
        // LMA, LME.
        sregs.efer = 1 << 10 | 1 << 8;
        self.vcpu.set_sregs(&sregs)?;
        self.vcpu.set_regs(&kvm_regs {
            rip: CODE,
            rsp: STACK_END,
            rflags: 2,
            ..kvm_regs::default()
        })
    }
}
