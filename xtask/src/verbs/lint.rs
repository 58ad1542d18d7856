//! `cargo xtask lint`: everything that is checked without running the product.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::lint::{arrows, deny, names, unsafety};
use crate::{cmd, say, setup};

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 6] = [
    ("format", format),
    ("clippy", clippy),
    ("arrows between crates and modules", arrows::check),
    ("unsafe code where it may be", unsafety::check),
    ("names", names::check),
    ("dependencies (cargo deny)", deny::check),
];

/// Runs the verb: every check, also when one before it failed.
pub(crate) fn run() -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Lint)?;
    let mut failed = Vec::new();
    for (what, check) in CHECKS {
        if let Err(error) = say::step(what, check) {
            say::line(format_args!("{what}: {error:#}"));
            failed.push(what);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

fn format() -> Result<()> {
    cmd::run(cmd::cargo().args(["fmt", "--all", "--", "--check"]))?;
    // Outside the workspace.
    let fuzz = cmd::workspace().join("tests/fuzz/Cargo.toml");
    cmd::run(cmd::cargo().arg("fmt").arg("--manifest-path").arg(fuzz).args(["--", "--check"]))
}

fn clippy() -> Result<()> {
    let mut command = cmd::cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    cmd::run(&mut command)
}
