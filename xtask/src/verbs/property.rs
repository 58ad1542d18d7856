//! `cargo xtask property`: the property tests of images, on as many random cases as are asked for.
//!
//! `cargo xtask test` runs the same tests on 200 cases.

use std::process::ExitCode;

use anyhow::Result;

use crate::{cmd, say, setup};

/// The tests: arguments of `cargo test`, and of the test program.
const TESTS: [(&str, &[&str], &[&str]); 4] = [
    ("layers, archives and caches", &["--package", "openshell-rootfs", "--lib"], &[]),
    ("trees of ext4", &["--package", "openshell-ext4", "--lib"], &[]),
    ("images of ext4", &["--package", "openshell-ext4", "--test", "ext4"], &["random::", "laid::"]),
    ("the largest directories", &["--package", "openshell-ext4", "--test", "largest"], &[]),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Random cases of each property
    #[arg(long, default_value_t = 10_000)]
    cases: u32,
}

/// Runs the verb. The first failure ends it, with the smallest case that fails.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Tests)?;
    for (what, of_cargo, of_program) in TESTS {
        let mut command = cmd::cargo();
        command.arg("test").args(of_cargo).arg("--").args(of_program);
        command.env("PROPTEST_CASES", arguments.cases.to_string());
        say::step(&format!("{what}, {} cases", arguments.cases), || cmd::run(&mut command))?;
    }
    Ok(ExitCode::SUCCESS)
}
