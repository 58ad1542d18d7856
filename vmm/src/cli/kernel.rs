//! `kernel`: which guest kernel would be taken, and whether it is intact.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use openshell_vmm::config::failure::PlanError;
use openshell_vmm::config::kernel::{KernelPlaces, Profile, verify};

use super::failure::Failure;
use super::print;

/// Find and check the guest kernel
///
/// Looked for, in this order: --kernel; $OPENSHELL_VMM_KERNEL; openshell-vmm/kernels/PROFILE/vmlinux in $XDG_DATA_HOME
/// (~/.local/share), in lib beside the directory of this program, and in /usr/lib.
#[derive(Debug, Args)]
pub(super) struct KernelArgs {
    #[command(subcommand)]
    verb: KernelVerb,
}

#[derive(Debug, Subcommand)]
enum KernelVerb {
    /// Print the path of the kernel that `run` takes
    Path(Which),
    /// Compare the kernel with the manifest that was installed with it
    Verify(Which),
}

#[derive(Debug, Args)]
struct Which {
    /// This image
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// What the kernel is built for
    #[arg(
        long,
        default_value = "sandbox",
        value_parser = clap::builder::PossibleValuesParser::new(Profile::NAMES)
    )]
    profile: String,
}

impl Which {
    fn find(&self) -> Result<PathBuf, Failure> {
        let profile = Profile::named(&self.profile).unwrap_or_default();
        let role = openshell_vmm::config::failure::FileRole::Kernel;
        let path = KernelPlaces::of_process()
            .find(self.kernel.as_deref(), profile)
            .map_err(|searched| PlanError::NoKernel { searched })
            .and_then(|path| match path.exists() {
                true => Ok(path),
                false => Err(PlanError::Missing { role, path }),
            });
        path.map_err(|error| Failure::of(&error, 1))
    }
}

pub(super) fn kernel(args: &KernelArgs) -> Result<u8, Failure> {
    match &args.verb {
        KernelVerb::Path(which) => {
            let path = which.find()?;
            print(&line(&path))?;
        }
        KernelVerb::Verify(which) => {
            let path = which.find()?;
            let manifest = verify(&path).map_err(|error| Failure::of(&error, 1))?;
            let text = format!(
                "{}: Linux {}, profile {}, {}, build id {}, SHA-256 as installed\n",
                path.display(),
                manifest.source_version,
                manifest.profile,
                manifest.tables,
                manifest.build_id
            );
            print(text.as_bytes())?;
        }
    }
    Ok(0)
}

fn line(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut line = path.as_os_str().as_bytes().to_vec();
    line.push(b'\n');
    line
}
