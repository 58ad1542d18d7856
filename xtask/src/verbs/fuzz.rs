//! `cargo xtask fuzz [--smoke] [TARGET]`: the fuzz targets of `tests/fuzz`, which is outside the
//! workspace because its instrumentation needs compiler features that are not stable.

use std::path::PathBuf;
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
    let seconds = if arguments.smoke { Some(SMOKE_SECONDS) } else { arguments.seconds };
    if seconds.is_none() && chosen.len() > 1 {
        bail!("without a time only one target runs: name it, or say --smoke");
    }
    cmd::require("c++", "g++")?;
    if !cmd::cargo_has("fuzz") {
        say::step("install cargo-fuzz", || {
            let mut command = cmd::cargo();
            cmd::run(command.args(["install", "--locked", "--version", VERSION, "cargo-fuzz"]))
        })?;
    }
    say::step("build the fuzz targets", || cmd::run(&mut fuzz("build")))?;
    let mut failed = Vec::new();
    for target in chosen {
        let what = format!("fuzz {target}");
        if let Err(error) = say::step(&what, || run_target(target, seconds)) {
            say::line(format_args!("{what}: {error:#}"));
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("fuzz targets failed: {}", failed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

/// `cargo fuzz VERB`, by the pinned compiler.
fn fuzz(verb: &str) -> Command {
    let mut command = cmd::cargo();
    command.env("RUSTC_BOOTSTRAP", "1");
    command.args(["fuzz", verb, "--fuzz-dir", "tests/fuzz", "--target-dir"]);
    command.arg(built());
    command
}

fn run_target(target: &str, seconds: Option<u32>) -> Result<()> {
    // What is learnt goes to the first directory; the seeds of the repository stay as they are.
    let learnt = built().join("corpus").join(target);
    std::fs::create_dir_all(&learnt)
        .with_context(|| format!("cannot make {}", learnt.display()))?;
    let mut command = fuzz("run");
    command.arg(target).arg(learnt).arg(seeds(target));
    command.args(["--", "-timeout=10", "-print_final_stats=1", "-verbosity=1"]);
    if let Some(seconds) = seconds {
        command.arg(format!("-max_total_time={seconds}"));
    }
    cmd::run(&mut command)
}

fn built() -> PathBuf {
    cmd::target().join("fuzz")
}

fn seeds(target: &str) -> PathBuf {
    cmd::workspace().join("tests/fuzz/corpus").join(target)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds_and_a_line_in_the_table() {
        let table = std::fs::read_to_string(cmd::workspace().join("tests/fuzz/README.md")).unwrap();
        let manifest =
            std::fs::read_to_string(cmd::workspace().join("tests/fuzz/Cargo.toml")).unwrap();
        let targets = targets().unwrap();
        assert!(targets.len() >= 5, "{targets:?}");
        for target in targets {
            assert!(table.contains(&format!("| `{target}` |")), "{target} is not in the table");
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not built");
            let seeds = std::fs::read_dir(seeds(&target)).unwrap().count();
            assert!(seeds > 0, "{target} has no seeds");
        }
    }
}
