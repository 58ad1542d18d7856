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
    say::step("build openshell-vmm (static, release)", || {
        let mut command = cargo("build");
        command.args(["--release", "--package", "openshell-vmm", "--bin", "openshell-vmm"]);
        executable(&mut command, "bin", "openshell-vmm")
    })
}

/// Builds the program of the package at `tests/` that runs inside guests and returns its path.
pub(crate) fn guest_probe() -> Result<PathBuf> {
    let package = package_at("tests")?;
    say::step("build guest-probe (static)", || {
        let mut command = cargo("build");
        command.args(["--package", &package, "--bin", "guest-probe"]);
        executable(&mut command, "bin", "guest-probe")
    })
}

/// Builds the first process of guests and returns its path.
pub(crate) fn guest_init() -> Result<PathBuf> {
    let package = package_at("guest/init")?;
    say::step("build openshell-init (static, small)", || {
        let mut command = cargo("build");
        command.args(["--profile", "guest", "--package", &package, "--bin", "openshell-init"]);
        executable(&mut command, "bin", "openshell-init")
    })
}

/// Builds the command `openshell-rootfs` as it is tested and returns its path.
pub(crate) fn rootfs() -> Result<PathBuf> {
    say::step("build openshell-rootfs (static)", || {
        let mut command = cargo("build");
        command.args(["--package", "openshell-rootfs", "--bin", "openshell-rootfs"]);
        executable(&mut command, "bin", "openshell-rootfs")
    })
}

/// Builds the command `openshell-rootfs` as it is delivered and returns its path.
pub(crate) fn rootfs_release() -> Result<PathBuf> {
    say::step("build openshell-rootfs (static, release)", || {
        let mut command = cargo("build");
        command.args(["--release", "--package", "openshell-rootfs", "--bin", "openshell-rootfs"]);
        executable(&mut command, "bin", "openshell-rootfs")
    })
}

/// Builds what sandboxes need besides the machine, for release: gateway, driver, supervisor and `openshell-rootfs`, in this order.
pub(crate) fn released() -> Result<[PathBuf; 4]> {
    say::step("build gateway, driver, supervisor and openshell-rootfs (static, release)", || {
        let mut command = cargo("build");
        command.args(["--release", "--bins"]);
        for directory in ["gateway", "gateway/driver", "guest", "rootfs"] {
            command.args(["--package", &package_at(directory)?]);
        }
        let names = [
            "openshell-gateway",
            "openshell-driver-vm",
            "openshell-supervisor",
            "openshell-rootfs",
        ];
        executables(&mut command, "bin", names)
    })
}

/// Builds gateway, driver and supervisor as they are tested, and returns their paths in this order.
pub(crate) fn control_plane() -> Result<[PathBuf; 3]> {
    let names = ["openshell-gateway", "openshell-driver-vm", "openshell-supervisor"];
    let packages = ["gateway", "gateway/driver", "guest"].map(package_at);
    say::step("build gateway, driver and supervisor (static)", || {
        let mut command = cargo("build");
        command.args(["--profile", "tested", "--bins"]);
        for package in packages {
            command.args(["--package", &package?]);
        }
        let [gateway, driver, supervisor] = executables(&mut command, "bin", names)?;
        Ok([gateway, driver, supervisor])
    })
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

/// Builds a bench target of the package at `benches/` for release and returns the program.
pub(crate) fn bench(target: &str) -> Result<PathBuf> {
    let package = package_at("benches")?;
    say::step(&format!("build the benchmark `{target}` (static, release)"), || {
        let mut command = cargo("build");
        command.args(["--release", "--package", &package, "--bin", target]);
        executable(&mut command, "bin", target)
    })
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
