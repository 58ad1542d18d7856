//! Builds the programs that leave the developer's machine: static, so that they run in the lab, in
//! a container and on any distribution.
//!
//! They have a target directory of their own; other flags would throw out the developer's cache.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{cmd, say};

/// The target of every static program.
pub(crate) const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds the command `openshell-vmm` for release and returns its path.
pub(crate) fn vmm() -> Result<PathBuf> {
    program("release", "vmm", "openshell-vmm")
}

/// Builds the program of the package at `tests/` that runs inside guests and returns its path.
pub(crate) fn guest_probe() -> Result<PathBuf> {
    program("dev", "tests", "guest-probe")
}

/// Builds the program of guests, which is their first process and the host's agent, and returns its path.
pub(crate) fn guest_init() -> Result<PathBuf> {
    program("guest", "guest/program", "openshell-init")
}

/// Builds the command `openshell-rootfs` as it is tested and returns its path.
pub(crate) fn rootfs() -> Result<PathBuf> {
    program("dev", "rootfs", "openshell-rootfs")
}

/// Builds the command `openshell-rootfs` as it is delivered and returns its path.
pub(crate) fn rootfs_release() -> Result<PathBuf> {
    program("release", "rootfs", "openshell-rootfs")
}

const GATEWAY: (&str, &str) = ("gateway", "openshell-gateway");
const DRIVER: (&str, &str) = ("gateway/driver", "openshell-driver-vm");
const SUPERVISOR: (&str, &str) = ("guest", "openshell-supervisor");

/// Builds gateway, driver and supervisor as they are delivered, and returns their paths in this order.
pub(crate) fn released() -> Result<[PathBuf; 3]> {
    programs("release", [GATEWAY, DRIVER, SUPERVISOR])
}

/// Builds gateway, driver and supervisor as they are tested, and returns their paths in this order.
pub(crate) fn control_plane() -> Result<[PathBuf; 3]> {
    programs("tested", [GATEWAY, DRIVER, SUPERVISOR])
}

/// Builds an end-to-end test target of the package at `tests/` and returns the test program.
pub(crate) fn end_to_end(target: &str) -> Result<PathBuf> {
    let package = package_at("tests")?;
    say::step(&format!("build the end-to-end tests `{target}` (static)"), || {
        let mut command = cargo("test");
        command.args(["--no-run", "--package", &package, "--test", target]);
        executable(&mut command, "test", target)
    })
}

/// Builds a benchmark of the package at `benches/` for release and returns the program.
pub(crate) fn bench(name: &str) -> Result<PathBuf> {
    program("release", "benches", name)
}

/// Name of the workspace's package whose manifest lies in `directory`.
pub(crate) fn package_at(directory: &str) -> Result<String> {
    let manifest = cmd::workspace().join(directory).join("Cargo.toml");
    let metadata = metadata()?;
    packages(&metadata)
        .find(|package| package["manifest_path"].as_str().map(Path::new) == Some(&manifest))
        .and_then(|package| package["name"].as_str().map(str::to_owned))
        .with_context(|| format!("the workspace has no package at {directory}/Cargo.toml"))
}

/// What cargo says about the workspace's own packages.
pub(crate) fn metadata() -> Result<Value> {
    let mut command = cmd::cargo();
    command.args(["metadata", "--format-version", "1", "--no-deps"]);
    serde_json::from_slice(&cmd::output(&mut command)?).context("cargo metadata printed no JSON")
}

/// The packages in the answer of [`metadata`].
pub(crate) fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

fn program(profile: &str, directory: &str, name: &str) -> Result<PathBuf> {
    let [program] = programs(profile, [(directory, name)])?;
    Ok(program)
}

/// Builds programs, each by the directory of its package and its name, in one call of cargo.
fn programs<const N: usize>(profile: &str, wanted: [(&str, &str); N]) -> Result<[PathBuf; N]> {
    let names = wanted.map(|(_, name)| name);
    say::step(&format!("build {} (static, {profile})", names.join(", ")), || {
        let mut command = cargo("build");
        command.args(["--profile", profile]);
        for (directory, name) in wanted {
            command.args(["--package", &package_at(directory)?, "--bin", name]);
        }
        executables(&mut command, "bin", names)
    })
}

fn cargo(verb: &str) -> Command {
    let mut command = cmd::cargo();
    // Flags from the environment would take the place of those below.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.arg(verb).args(["--target", TRIPLE, "--message-format", "json-render-diagnostics"]);
    command.arg("--target-dir").arg(cmd::target().join("static"));
    command.arg("--config");
    command.arg(format!("target.{TRIPLE}.rustflags=[\"-C\", \"target-feature=+crt-static\"]"));
    command
}

/// Runs cargo and returns the program that it says it built.
fn executable(command: &mut Command, kind: &str, name: &str) -> Result<PathBuf> {
    let [path] = executables(command, kind, [name])?;
    Ok(path)
}

fn executables<const N: usize>(
    command: &mut Command,
    kind: &str,
    names: [&str; N],
) -> Result<[PathBuf; N]> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`{}` does not build", names.join("`, `"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut paths = names.map(|_| PathBuf::new());
    for (name, path) in names.iter().zip(&mut paths) {
        let found = text.lines().find_map(|line| executable_of(line, kind, name));
        *path = found.with_context(|| format!("cargo built no program `{name}`"))?;
    }
    Ok(paths)
}

fn executable_of(line: &str, kind: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let target = &message["target"];
    let kinds = target["kind"].as_array()?;
    if target["name"].as_str() != Some(name) || !kinds.iter().any(|one| one == kind) {
        return None;
    }
    message["executable"].as_str().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_program_among_the_messages() {
        let line = |name: &str, kind: &str, path: &str| {
            format!(r#"{{"target":{{"name":"{name}","kind":["{kind}"]}},"executable":{path}}}"#)
        };
        for (text, expected) in [
            (line("linux", "test", "\"/x/linux\""), Some("/x/linux")),
            (line("linux", "lib", "\"/x/linux\""), None),
            (line("other", "test", "\"/x/linux\""), None),
            (line("linux", "test", "null"), None),
            ("not json".to_owned(), None),
        ] {
            let found = executable_of(&text, "test", "linux");
            assert_eq!(found.as_deref(), expected.map(Path::new), "{text}");
        }
    }
}
