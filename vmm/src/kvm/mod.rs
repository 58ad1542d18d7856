//! KVM: the host's device, one virtual machine, its processors.
//!
//! Invariant: a [`Vm`] exists only with its memory slots registered and then its interrupt controllers made, in that order: the
//! other way round costs one or two scheduler ticks per slot on current kernels. There is never a PIT.

mod cpuid;
mod kept;
mod msrs;
mod vm;

use std::io;

use kvm_ioctls::{Cap, Kvm};

pub(crate) use vm::BareVm;
pub use vm::{Registers, Vcpu, Vm};

/// What [`Host::open`] opens.
const DEVICE: &str = "/dev/kvm";
const API_VERSION: i32 = 12;

/// What the VMM cannot do without, and the name that the kernel's documentation gives it.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
];

/// Why KVM cannot run the machine.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device could not be opened.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// Another API version.
    #[error("/dev/kvm speaks API version {0}, not 12")]
    ApiVersion(i32),
    /// A capability is missing.
    #[error("this host's KVM lacks {0}, which the machine needs")]
    MissingCapability(&'static str),
    /// More processors than KVM gives one machine.
    #[error("this host's KVM gives a machine at most {max} vCPUs, not {wanted}")]
    TooManyVcpus {
        /// Asked for.
        wanted: u8,
        /// The host's limit.
        max: usize,
    },
    /// A KVM call failed.
    #[error("{call} failed")]
    Call {
        /// The ioctl's name.
        call: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host refused a model-specific register of the boot set.
    #[error("KVM refused model-specific register {index:#x}")]
    Msr {
        /// The register.
        index: u32,
    },
}

pub(crate) fn call(name: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Call { call: name, source: io::Error::from_raw_os_error(error.errno()) }
}

/// The host's KVM, checked for what machines need.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
}

impl Host {
    /// Opens /dev/kvm and checks its version and capabilities.
    ///
    /// # Errors
    /// [`KvmError::Open`], [`KvmError::ApiVersion`], [`KvmError::MissingCapability`].
    pub fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new()
            .map_err(|error| KvmError::Open(io::Error::from_raw_os_error(error.errno())))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::ApiVersion(version));
        }
        for (cap, name) in NEEDED {
            if !kvm.check_extension(cap) {
                return Err(KvmError::MissingCapability(name));
            }
        }
        Ok(Self { kvm })
    }

    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }
}
