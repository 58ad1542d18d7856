//! Stand-in until the kernel verb is merged.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Everything a container workload expects.
    Sandbox,
    /// Benchmarks.
    Tiny,
}

impl Profile {
    /// The name of the profile.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Tiny => "tiny",
        }
    }
}

/// A built guest kernel.
#[derive(Debug)]
pub(crate) struct Built {
    /// The stripped ELF file.
    pub(crate) vmlinux: PathBuf,
}

/// Takes the kernel from the directory that `OPENSHELL_VMM_KERNELS` names.
pub(crate) fn build(profile: Profile) -> Result<Built> {
    let directory = std::env::var_os("OPENSHELL_VMM_KERNELS").context("OPENSHELL_VMM_KERNELS")?;
    Ok(Built { vmlinux: PathBuf::from(directory).join(profile.name()).join("vmlinux") })
}
