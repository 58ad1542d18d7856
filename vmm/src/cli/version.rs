//! `version`.

use clap::Args;
use serde::Serialize;

use super::failure::Failure;

/// Print the version
#[derive(Debug, Args)]
pub(super) struct VersionArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Version {
    schema: u32,
    name: &'static str,
    version: &'static str,
    target: &'static str,
}

pub(super) fn version(args: &VersionArgs) -> Result<u8, Failure> {
    let version = Version {
        schema: 1,
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        target: std::env::consts::ARCH,
    };
    let text = if args.json {
        openshell_vmm::report::json::line(&version)
    } else {
        format!("{} {}\n", version.name, version.version)
    };
    super::print(text.as_bytes())?;
    Ok(0)
}
