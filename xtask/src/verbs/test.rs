//! `cargo xtask test`: every test of the workspace, each on a machine that can run it.
//!
//! Five levels: `unit` needs no KVM; `images` needs packaged registries, image tools and a
//! database, and no KVM; `net` runs the network stack alone, with the host's kernel as its guest; `native` runs
//! bare-metal guests on the host's /dev/kvm; `lab` boots ordinary Linux guests, on the host where
//! its KVM can do that and in the lab elsewhere.

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::fixtures::{Fixtures, VARIABLE};
use crate::lab::Spec;
use crate::{binaries, cmd, say, setup};

const LAB_DEADLINE: Duration = Duration::from_mins(30);
const LAB_MEMORY_MIB: u64 = 4096;
const LAB_SCRATCH_MIB: u64 = 8192;
/// How many sandboxes come and go, for who has the time for more than the test's own number.
const CYCLES: &str = "OPENSHELL_VMM_CYCLES";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only this level
    #[arg(long, value_enum)]
    only: Option<Level>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    /// Unit and property tests, no KVM
    Unit,
    /// The rootfs pipeline against packaged programs, no KVM
    Images,
    /// The network stack alone, in network namespaces of the tests' own
    Net,
    /// Bare-metal guests on this host's KVM
    Native,
    /// Linux guests, on this host or in the lab
    Lab,
}

/// Runs the verb. Every level runs even when one before it failed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let filter = arguments.filter.as_deref();
    let mut verdicts = Vec::new();
    for level in [Level::Unit, Level::Images, Level::Net, Level::Native, Level::Lab] {
        if arguments.only.is_some_and(|only| only != level) {
            continue;
        }
        let begin = Instant::now();
        let outcome = match level {
            Level::Unit => unit(filter),
            Level::Images => images(filter),
            Level::Net => net(filter),
            Level::Native => native(filter),
            Level::Lab => linux(filter).and(machines(filter)).and(sandboxes(filter)),
        };
        let verdict = match &outcome {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("FAILED: {error:#}"),
        };
        let name = format!("{level:?}").to_lowercase();
        let seconds = begin.elapsed().as_secs_f64();
        verdicts
            .push((outcome.is_ok(), format!("tests, level {name}: {verdict} ({seconds:.1} s)")));
    }
    for (_, text) in &verdicts {
        say::line(text);
    }
    let all_well = verdicts.iter().all(|(well, _)| *well);
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn unit(filter: Option<&str>) -> Result<()> {
    let mut commands = Vec::new();
    let mut all = cmd::cargo();
    all.args(["test", "--workspace"]);
    if let Ok(package) = binaries::package_at("tests") {
        all.args(["--exclude", &package]);
        let mut shared = cmd::cargo();
        shared.args(["test", "--package", &package, "--lib"]);
        commands.push(shared);
    }
    commands.insert(0, all);
    say::step("run unit and property tests", || {
        for command in &mut commands {
            if let Some(filter) = filter {
                command.args(["--", filter]);
            }
            cmd::run(command)?;
        }
        Ok(())
    })
}

fn images(filter: Option<&str>) -> Result<()> {
    setup::ensure(setup::Purpose::Tests)?;
    let fixtures = Fixtures::for_images()?;
    let programs = ["rootfs", "hostile"].map(binaries::end_to_end);
    for program in programs {
        let mut command = Command::new(program?);
        command.args(filter).env(VARIABLE, fixtures.directory());
        say::step("run the tests of images", || cmd::run(&mut command))?;
    }
    let mut database = cmd::cargo();
    database.args(["test", "--package", "openshell-gateway", "--test", "postgres", "--"]);
    database.args(filter);
    say::step("run the tests of rows in Postgres", || cmd::run(&mut database))?;
    Ok(())
}

fn net(filter: Option<&str>) -> Result<()> {
    setup::ensure(setup::Purpose::Net)?;
    let fixtures = Fixtures::with_command()?;
    let program = binaries::end_to_end("net")?;
    // Without root the tests are root in a user namespace of their own, where they may make network namespaces.
    let mut command = if setup::is_root()? {
        Command::new(program)
    } else {
        may_have_networks()?;
        let mut command = inside_user_namespace();
        command.arg(program);
        command
    };
    command.args(filter).env(VARIABLE, fixtures.directory()).arg("--test-threads=2");
    say::step("run the tests of the network stack", || cmd::run(&mut command))
}

fn inside_user_namespace() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net"]);
    command
}

/// Whether this user, who is not root, may make what the tests need: one refusal that says what to do instead of one for each test.
fn may_have_networks() -> Result<()> {
    const TUN: &str = "/dev/net/tun";
    File::options().read(true).write(true).open(TUN).with_context(|| {
        format!(
            "cannot make tap devices: run as root, or let this user open it: sudo chmod 666 {TUN}"
        )
    })?;
    let made = inside_user_namespace().arg("true").output().context("cannot start unshare")?;
    ensure!(
        made.status.success(),
        "this user cannot make namespaces: run as root, or allow it: sudo sysctl kernel.unprivileged_userns_clone=1, \
         or kernel.apparmor_restrict_unprivileged_userns=0 ({})",
        String::from_utf8_lossy(&made.stderr).trim()
    );
    Ok(())
}

fn native(filter: Option<&str>) -> Result<()> {
    let fixtures = Fixtures::with_command()?;
    let program = binaries::end_to_end("native")?;
    on_host(&program, &fixtures, filter)
}

fn linux(filter: Option<&str>) -> Result<()> {
    guests(&binaries::end_to_end("linux")?, Fixtures::complete, filter)
}

fn machines(filter: Option<&str>) -> Result<()> {
    guests(&binaries::end_to_end("machines")?, Fixtures::for_machines, filter)
}

fn sandboxes(filter: Option<&str>) -> Result<()> {
    let fixtures = || Fixtures::for_sandboxes(binaries::control_plane);
    guests(&binaries::end_to_end("sandbox")?, fixtures, filter)
}

fn guests(program: &Path, fixtures: fn() -> Result<Fixtures>, filter: Option<&str>) -> Result<()> {
    // A lab that runs no test is not worth its boot.
    if filter.is_some()
        && !cmd::text(Command::new(program).arg("--list").args(filter))?.contains(": test")
    {
        return Ok(());
    }
    let fixtures = &fixtures()?;
    match host_refusal(&fixtures.path("openshell-vmm"))? {
        None => on_host(program, fixtures, filter),
        Some(reason) => {
            say::line(format_args!("Linux guests run in the lab: {reason}"));
            in_lab(program, fixtures, filter)
        }
    }
}

fn on_host(program: &Path, fixtures: &Fixtures, filter: Option<&str>) -> Result<()> {
    let mut command = Command::new(program);
    command.args(filter).env(VARIABLE, fixtures.directory());
    say::step("run the tests on this host's KVM", || cmd::run(&mut command))
}

fn in_lab(program: &Path, fixtures: &Fixtures, filter: Option<&str>) -> Result<()> {
    let mut spec = Spec {
        memory_mib: LAB_MEMORY_MIB,
        scratch_mib: Some(LAB_SCRATCH_MIB),
        env: vec![
            ("TMPDIR".into(), "/scratch".into()),
            // What takes a guest minutes here is done in smaller sizes.
            ("OPENSHELL_VMM_LAB".into(), "1".into()),
            ("RUST_TEST_THREADS".into(), "1".into()),
            ("RUST_BACKTRACE".into(), "1".into()),
        ],
        timeout: LAB_DEADLINE,
        // With two emulated processors guests of two vCPUs were seen to hang now and then.
        cpus: 1,
        ..Spec::default()
    };
    if let Ok(cycles) = std::env::var(CYCLES) {
        spec.env.push((CYCLES.into(), cycles));
    }
    carry(fixtures, &mut spec);
    spec.add_file(program, "/root/tests");
    spec.command = vec!["/root/tests".into()];
    spec.command.extend(filter.map(str::to_owned));
    say::step("run the tests in the lab", || {
        let outcome = spec.run()?;
        say::line(format_args!("the lab was up after {:.1} s", outcome.boot.as_secs_f64()));
        match outcome.code {
            0 => Ok(()),
            code => bail!("the tests ended with exit code {code} in the lab"),
        }
    })
}

/// Puts the fixtures into the memory of a lab. A guest's kernel is paged in while its processors run: what lies in a
/// shared directory would make them wait for the emulator's file server.
pub(crate) fn carry(fixtures: &Fixtures, spec: &mut Spec) {
    spec.add_file(fixtures.directory(), "/fixtures");
    spec.env.push((VARIABLE.into(), "/fixtures".into()));
}

/// Why this host's KVM does not run an ordinary kernel; nothing when it does.
pub(crate) fn host_refusal(vmm: &Path) -> Result<Option<String>> {
    let output = Command::new(vmm)
        .args(["doctor", "--json"])
        .output()
        .with_context(|| format!("cannot start {}", vmm.display()))?;
    refusal_of(&output.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("openshell-vmm doctor ended with {}: {}", output.status, said.trim())
    })
}

fn refusal_of(report: &[u8]) -> Result<Option<String>> {
    let report: Value = serde_json::from_slice(report).context("the report is no JSON")?;
    let kvm = &report["kvm"];
    match kvm["ordinary_guest"].as_bool() {
        Some(true) => Ok(None),
        Some(false) => {
            let reason = kvm["reason"].as_str().unwrap_or("its KVM cannot run an ordinary kernel");
            Ok(Some(reason.to_owned()))
        }
        None => bail!("the report has no kvm.ordinary_guest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_linux_guests_run() {
        let refusal = |text: &str| refusal_of(text.as_bytes()).ok();
        assert_eq!(refusal(r#"{"kvm":{"ordinary_guest":true}}"#), Some(None));
        assert_eq!(
            refusal(r#"{"kvm":{"ordinary_guest":false,"reason":"PVM"}}"#),
            Some(Some("PVM".into()))
        );
        assert!(matches!(refusal(r#"{"kvm":{"ordinary_guest":false}}"#), Some(Some(_))));
        for wrong in ["", "{}", r#"{"kvm":{}}"#, r#"{"kvm":{"ordinary_guest":"yes"}}"#] {
            assert_eq!(refusal(wrong), None, "{wrong}");
        }
    }
}
