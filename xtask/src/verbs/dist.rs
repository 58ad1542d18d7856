//! `cargo xtask dist`: what a release consists of, in one archive with checksums.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::{binaries, cmd, fixtures, kernel, say};

/// Runs the verb: `target/dist/openshell-vmm-VERSION-x86_64-linux.tar.gz` and its checksum.
pub(crate) fn run() -> Result<ExitCode> {
    let name = format!("openshell-vmm-{}-x86_64-linux", env!("CARGO_PKG_VERSION"));
    let dist = cmd::target().join("dist");
    let place = dist.join(&name);
    if place.exists() {
        std::fs::remove_dir_all(&place)
            .with_context(|| format!("cannot remove {}", place.display()))?;
    }
    std::fs::create_dir_all(&place)?;
    copy(&binaries::vmm()?, &place.join("openshell-vmm"))?;
    let init = binaries::guest_init()?;
    let [gateway, driver, supervisor] = binaries::released()?;
    let rootfs = binaries::rootfs_release()?;
    for program in [&init, &gateway, &driver, &supervisor, &rootfs] {
        copy(program, &place.join(program.file_name().context("a program has a name")?))?;
    }
    fixtures::tools_disk(&rootfs, &[&init, &supervisor], &place.join("tools.ext4"))?;
    copy(&kernel::build(kernel::Profile::Sandbox)?.vmlinux, &place.join("vmlinux"))?;
    for text in ["LICENSE", "README.md", "CHANGELOG.md"] {
        let from = cmd::workspace().join(text);
        if from.is_file() {
            copy(&from, &place.join(text))?;
        }
    }
    let archive = format!("{name}.tar.gz");
    say::step(&format!("pack {archive}"), || -> Result<()> {
        let inside = sums(&place, &list(&place)?)?;
        std::fs::write(place.join("SHA256SUMS"), inside)?;
        // The same input gives the same archive: names sorted, no owner, no time.
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]);
        tar.args(["--use-compress-program=gzip -n", "-cf", &archive, &name]);
        cmd::output(tar.current_dir(&dist))?;
        std::fs::write(
            dist.join(format!("{archive}.sha256")),
            sums(&dist, std::slice::from_ref(&archive))?,
        )?;
        Ok(())
    })?;
    say::line(format_args!("wrote {}", dist.join(&archive).display()));
    Ok(ExitCode::SUCCESS)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn list(directory: &Path) -> Result<Vec<String>> {
    let mut names = std::fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn sums(directory: &Path, names: &[String]) -> Result<String> {
    cmd::text(Command::new("sha256sum").args(names).current_dir(directory))
}
