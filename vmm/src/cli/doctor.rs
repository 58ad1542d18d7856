//! `doctor`: can this host run a guest, and if not, what is to be done.

use clap::Args;

use super::failure::Failure;

/// Check whether this host can run a guest
///
/// A tiny guest is run to find out. Exits with 1 when something fails.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn doctor(args: &DoctorArgs) -> Result<u8, Failure> {
    let report = openshell_vmm::doctor::examine();
    let text =
        if args.json { openshell_vmm::report::json::line(&report) } else { report.to_string() };
    super::print(text.as_bytes())?;
    Ok(u8::from(report.failed()))
}
