//! `cargo xtask fuzz [--smoke] [TARGET]`: the fuzz targets of `tests/fuzz`, which is outside the
//! workspace because its instrumentation needs compiler features that are not stable.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cmd, say};

const VERSION: &str = "0.13.2";
const SMOKE_SECONDS: u32 = 60;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One target; all of them unless given
    target: Option<String>,
    /// Run each target for 60 seconds
    #[arg(long)]
    smoke: bool,
    /// Run each target for this many seconds; until a fault is found unless given
    #[arg(long, value_name = "SECONDS", conflicts_with = "smoke")]
    seconds: Option<u32>,
}

/// Runs the verb. Every target runs even when one before it failed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let targets = targets()?;
    let chosen: Vec<&String> = match &arguments.target {
        None => targets.iter().collect(),
        Some(name) => targets.iter().filter(|target| *target == name).collect(),
    };
    ensure!(!chosen.is_empty(), "no such fuzz target; there are: {}", targets.join(", "));
    if !cmd::cargo_has("fuzz") {
        say::step("install cargo-fuzz", || {
            let mut command = cmd::cargo();
            cmd::run(command.args(["install", "--locked", "--version", VERSION, "cargo-fuzz"]))
        })?;
    }
    let seconds = if arguments.smoke { Some(SMOKE_SECONDS) } else { arguments.seconds };
    if seconds.is_none() && chosen.len() > 1 {
        bail!("without a time only one target runs: name it, or say --smoke");
    }
    let mut failed = Vec::new();
    for target in chosen {
        let what = format!("fuzz {target}");
        if say::step(&what, || cmd::run(&mut fuzz(target, seconds))).is_err() {
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("fuzz targets failed: {}", failed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

fn fuzz(target: &str, seconds: Option<u32>) -> Command {
    let mut command = cmd::cargo();
    command.env("RUSTC_BOOTSTRAP", "1");
    command.args(["fuzz", "run", "--fuzz-dir", "tests/fuzz", "--target-dir"]);
    command.arg(cmd::target().join("fuzz")).arg(target);
    if let Some(seconds) = seconds {
        command.args(["--", &format!("-max_total_time={seconds}"), "-timeout=10"]);
        command.args(["-print_final_stats=1", "-verbosity=1"]);
    }
    command
}

fn targets() -> Result<Vec<String>> {
    let directory = cmd::workspace().join("tests/fuzz/fuzz_targets");
    let entries = std::fs::read_dir(&directory)
        .with_context(|| format!("no fuzz targets: cannot list {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}
