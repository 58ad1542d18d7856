//! `cargo xtask bench NAME [-- ARGS]`: builds and runs a program of the package at `benches/`.
//!
//! A benchmark program is called up to three times with the same arguments after one word:
//! `host` on this machine, `lab` inside a lab whose clock counts instructions, and `report`, which
//! prints the table. `OPENSHELL_VMM_FIXTURES` names kernels, disks and the command;
//! `OPENSHELL_VMM_RESULTS` names the directory for JSON, the same for all three. A word that the
//! program has no use for ends with exit code 0 and no file.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::test::carry;
use crate::fixtures::{Fixtures, VARIABLE};
use crate::lab::{Clock, Share, Spec};
use crate::{binaries, cmd, say, setup};

const RESULTS: &str = "OPENSHELL_VMM_RESULTS";
/// Benchmarks that boot no guest, and have nothing to do in the lab.
const IMAGES: &str = "rootfs";
const NETWORK: &str = "net";
/// Machines of images, which need other things than machines of disks.
const MACHINES: &str = "run";
/// Sandboxes from end to end, in the lab only: the test of one counts its phases.
const SANDBOX: &str = "sandbox";
const SANDBOX_TEST: &str = "path::a_sandbox_from_create_to_delete";
/// The control plane's own: it lies beside the gateway, whose program it runs.
const GATEWAY: &str = "gateway";
const DEADLINE: Duration = Duration::from_mins(60);
const QEMU_FIRMWARE: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Name of the benchmark: a program of the package at benches/
    name: String,
    /// Run only this part
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Another VMM, or network stack, to measure beside ours
    #[arg(long, value_name = "NAME=PATH")]
    peer: Vec<String>,
    /// Arguments for the benchmark
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// On this machine
    Host,
    /// In the lab, with the instruction clock
    Lab,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.name == GATEWAY {
        return gateway(arguments);
    }
    if arguments.name == SANDBOX {
        return sandbox();
    }
    // Guest kernels take long to build: who boots none does without.
    let (in_lab, fixtures) = match arguments.name.as_str() {
        IMAGES => (false, Fixtures::with_rootfs()?),
        NETWORK => {
            setup::ensure(setup::Purpose::NetPeers)?;
            (false, Fixtures::with_command()?)
        }
        MACHINES => (true, Fixtures::for_machines()?),
        _ => (true, Fixtures::complete()?),
    };
    let program = binaries::bench(&arguments.name)?;
    let results = cmd::target().join("bench").join(&arguments.name);
    std::fs::create_dir_all(&results)
        .with_context(|| format!("cannot make {}", results.display()))?;
    let peers = peers(&arguments.peer)?;
    let wants = |part| match arguments.only {
        Some(only) => only == part,
        None => part == Part::Host || arguments.name != IMAGES,
    };
    let here = |word: &str| {
        let mut command = Command::new(&program);
        command.arg(word).args(&arguments.arguments);
        for (name, path) in &peers {
            command.arg(format!("--peer={name}={}", path.display()));
        }
        command.env(VARIABLE, fixtures.directory()).env(RESULTS, &results);
        command
    };
    if wants(Part::Host) {
        say::step("measure on this machine", || cmd::run(&mut here("host")))?;
    }
    if wants(Part::Lab) && in_lab {
        say::step("measure in the lab by its instruction clock", || {
            let spec = clocked(&program, &arguments.arguments, &fixtures, &results, &peers)?;
            match spec.run()?.code {
                0 => Ok(()),
                code => bail!("the benchmark ended with exit code {code} in the lab"),
            }
        })?;
    }
    cmd::run(&mut here("report"))?;
    say::line(format_args!("raw samples: {}", results.display()));
    Ok(ExitCode::SUCCESS)
}

fn gateway(arguments: &Arguments) -> Result<ExitCode> {
    let results = cmd::target().join("bench").join(GATEWAY);
    std::fs::create_dir_all(&results)
        .with_context(|| format!("cannot make {}", results.display()))?;
    for word in ["host", "report"] {
        let mut command = cmd::cargo();
        command.args(["bench", "--quiet", "--package", "openshell-gateway", "--bench", GATEWAY]);
        command.args(["--", word]).args(&arguments.arguments).env(RESULTS, &results);
        cmd::run(&mut command)?;
    }
    say::line(format_args!("raw samples: {}", results.display()));
    Ok(ExitCode::SUCCESS)
}

/// From `create` to the output of a command, by phases, in a lab whose clock counts instructions.
fn sandbox() -> Result<ExitCode> {
    let fixtures = Fixtures::for_sandboxes(binaries::released)?;
    let program = binaries::end_to_end(SANDBOX)?;
    let mut spec = Spec {
        clock: Clock::Instructions,
        memory_mib: 6144,
        env: vec![("OPENSHELL_VMM_CLOCK".into(), "instructions".into())],
        timeout: DEADLINE,
        ..Spec::default()
    };
    carry(&fixtures, &mut spec);
    spec.add_file(&program, "/root/tests");
    spec.command =
        ["/root/tests", SANDBOX_TEST, "--exact", "--nocapture"].map(str::to_owned).to_vec();
    say::step("measure in the lab by its instruction clock", || match spec.run()?.code {
        0 => Ok(()),
        code => bail!("the test ended with exit code {code} in the lab"),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A lab for measurements. Everything measured lies in the lab's memory before the first sample:
/// waiting for a shared directory would be counted as work.
fn clocked(
    program: &Path,
    arguments: &[String],
    fixtures: &Fixtures,
    results: &Path,
    peers: &[(String, PathBuf)],
) -> Result<Spec> {
    let mut spec = Spec {
        clock: Clock::Instructions,
        memory_mib: 6144,
        shares: vec![Share { host: results.to_owned(), lab: "/results".into(), writable: true }],
        env: vec![(RESULTS.into(), "/results".into())],
        timeout: DEADLINE,
        ..Spec::default()
    };
    carry(fixtures, &mut spec);
    spec.add_file(program, "/root/bench");
    spec.command = ["/root/bench", "lab"].map(str::to_owned).to_vec();
    spec.command.extend(arguments.iter().cloned());
    spec.add_tool(&cmd::require("mke2fs", "e2fsprogs")?)?;
    if let Some(qemu) = cmd::find("qemu-system-x86_64") {
        spec.add_tool(&qemu)?;
        for directory in QEMU_FIRMWARE.map(Path::new).iter().filter(|path| path.is_dir()) {
            spec.add_file(directory, &directory.to_string_lossy());
        }
    }
    for (name, path) in peers {
        spec.add_tool(path)?;
        spec.command.push(format!("--peer={name}={}", path.display()));
    }
    Ok(spec)
}

fn peers(pairs: &[String]) -> Result<Vec<(String, PathBuf)>> {
    pairs
        .iter()
        .map(|pair| {
            let (name, path) =
                pair.split_once('=').with_context(|| format!("`{pair}` is not NAME=PATH"))?;
            let path = std::fs::canonicalize(path).with_context(|| format!("no peer at {path}"))?;
            Ok((name.to_owned(), path))
        })
        .collect()
}
