//! Stand-in until the kernel verb is merged.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// A built guest kernel.
#[derive(Debug)]
pub(crate) struct Built {
    /// The stripped ELF file.
    pub(crate) vmlinux: PathBuf,
}

/// Takes the kernel from the directory that `OPENSHELL_VMM_KERNELS` names.
pub(crate) fn build(profile: &str) -> Result<Built> {
    let directory = std::env::var_os("OPENSHELL_VMM_KERNELS").context("OPENSHELL_VMM_KERNELS")?;
    Ok(Built { vmlinux: PathBuf::from(directory).join(profile).join("vmlinux") })
}
