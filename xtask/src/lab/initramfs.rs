//! What the lab's kernel unpacks: a base (busybox, modules, init) that is cached, and on top of it
//! the files of one run.
//!
//! Linux unpacks cpio archives that follow one another, later ones over earlier ones, so a run
//! appends its archive to a copy of the base and never changes the base itself.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use super::modules::{self, Modules};
use super::{Clock, Spec, kernel};
use crate::{cmd, setup};

const INIT: &str = include_str!("init.sh");

const MODULES_ALWAYS: [&str; 3] = ["virtio_pci", "virtio_console", "kvm_amd"];
const MODULES_SHARE: [&str; 2] = ["9pnet_virtio", "9p"];
const MODULES_SCRATCH: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];
const MODULES_KEPT: [&str; 4] = ["tun", "overlay", "loop", "vhost_vsock"];

/// The parts that all labs share, each a file of the cache.
#[derive(Debug)]
pub(crate) struct Base {
    /// The distribution's kernel, uncompressed.
    pub(crate) vmlinux: PathBuf,
    /// The archive that every run builds on.
    pub(crate) archive: PathBuf,
    /// The text of `modules.dep`, reduced to what the archive holds.
    dep: String,
    builtin: String,
}

impl Base {
    /// Takes the base from the cache, or makes it. Two makers at once do not disturb each other.
    pub(crate) fn prepare() -> Result<Self> {
        let tree = kernel_tree()?;
        let version = modules::version_of(&tree)?;
        let vmlinuz = tree.join("boot").join(format!("vmlinuz-{version}"));
        let busybox = cmd::require("busybox", "busybox-static")?;
        let directory = setup::cache_dir()?.join("lab").join(key(&[&vmlinuz, &busybox])?);
        let base = |directory: &Path| -> Result<Self> {
            Ok(Self {
                vmlinux: directory.join("vmlinux"),
                archive: directory.join("base.cpio"),
                dep: std::fs::read_to_string(directory.join("modules.dep"))?,
                builtin: std::fs::read_to_string(directory.join("modules.builtin"))?,
            })
        };
        if !directory.is_dir() {
            crate::say::step("make the lab's kernel and initramfs", || {
                make(&directory, &tree, &version, &vmlinuz, &busybox)
            })?;
        }
        base(&directory).with_context(|| format!("cannot read {}", directory.display()))
    }

    /// Writes the initramfs of one run to `path`: the base, then the files of the run.
    pub(crate) fn with_files_of(&self, spec: &Spec, mark: &str, path: &Path) -> Result<()> {
        std::fs::copy(&self.archive, path)
            .with_context(|| format!("cannot copy the base to {}", path.display()))?;
        let file = File::options().append(true).open(path)?;
        let mut archive = Archive::new(BufWriter::new(file));
        archive.bytes("lab/mark", 0o400, mark.as_bytes())?;
        archive.bytes("lab/command", 0o755, spec.script().as_bytes())?;
        archive.bytes("lab/modules", 0o444, self.module_lines(spec)?.as_bytes())?;
        archive.bytes("lab/shares", 0o444, share_lines(spec).as_bytes())?;
        if spec.scratch_mib.is_some() {
            archive.bytes("lab/scratch", 0o444, b"")?;
        }
        if spec.terminal {
            archive.bytes("lab/terminal", 0o444, b"")?;
        }
        for file in &spec.files {
            add(&mut archive, &file.lab, file.mode, &file.host)?;
        }
        archive.finish()?;
        Ok(())
    }

    fn module_lines(&self, spec: &Spec) -> Result<String> {
        let mut wanted = MODULES_ALWAYS.to_vec();
        if !spec.shares.is_empty() {
            wanted.extend(MODULES_SHARE);
        }
        if spec.scratch_mib.is_some() {
            wanted.extend(MODULES_SCRATCH);
        }
        wanted.extend(spec.modules.iter().map(String::as_str));
        let modules = Modules::parse(&self.dep, &self.builtin);
        let lines = modules.resolve(&wanted)?;
        Ok(lines.iter().map(|line| format!("{line}\n")).collect())
    }
}

/// The unpacked kernel package. Asking the package manager for its newest version takes seconds, so
/// the answer is good for a day.
fn kernel_tree() -> Result<PathBuf> {
    const DAY: Duration = Duration::from_hours(24);
    let note = setup::cache_dir()?.join("lab").join("kernel-package");
    let recent = std::fs::metadata(&note)
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < DAY));
    if recent {
        let tree = PathBuf::from(std::fs::read_to_string(&note)?);
        if tree.is_dir() {
            return Ok(tree);
        }
    }
    let tree = setup::unpacked("linux-image-amd64")?;
    let parent = note.parent().context("the cache has a parent")?;
    std::fs::create_dir_all(parent)?;
    let mut fresh = tempfile::NamedTempFile::new_in(parent)?;
    fresh.write_all(tree.to_string_lossy().as_bytes())?;
    fresh.persist(&note).with_context(|| format!("cannot write {}", note.display()))?;
    Ok(tree)
}

/// Kernel command line of the lab. Everything here takes seconds off an emulated boot.
pub(crate) fn kernel_line(clock: Clock) -> String {
    let common = "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr mitigations=off \
                  tsc=reliable no_timer_check random.trust_cpu=on cryptomgr.notests \
                  rcupdate.rcu_expedited=1 nmi_watchdog=0 nosoftlockup 8250.nr_uarts=1 sysrq_always_enabled";
    match clock {
        // The emulator's SVM helpers clear their bit of a processor's pending-interrupt word without its lock, and so may clear
        // the bit that its I/O thread sets at the same moment. The controller keeps the interrupt and raises it with the
        // next one: with a periodic tick that is 4 ms later, with a one-shot timer it is never.
        Clock::Wall => format!("{common} nohz=off highres=off"),
        // An idle loop that polls would count instructions nobody asked for.
        Clock::Instructions => format!("{common} idle=halt nowatchdog"),
    }
}

fn share_lines(spec: &Spec) -> String {
    spec.shares
        .iter()
        .enumerate()
        .map(|(index, share)| {
            let mode = if share.writable { "rw,cache=none" } else { "ro,cache=loose" };
            format!("share{index} {} {mode}\n", share.lab)
        })
        .collect()
}

fn make(dir: &Path, tree: &Path, version: &str, vmlinuz: &Path, busybox: &Path) -> Result<()> {
    let parent = dir.parent().context("the cache has a parent")?;
    std::fs::create_dir_all(parent)?;
    let fresh = tempfile::Builder::new().prefix("new-").tempdir_in(parent)?;
    kernel::uncompress(vmlinuz, &fresh.path().join("vmlinux"))?;

    let all = Modules::of_package(tree, version)?;
    let wanted: Vec<&str> = [MODULES_ALWAYS.as_slice(), &MODULES_SHARE, &MODULES_SCRATCH]
        .concat()
        .into_iter()
        .chain(MODULES_KEPT)
        .collect();
    let files = all.resolve(&wanted)?;
    let mut archive = Archive::new(BufWriter::new(File::create(fresh.path().join("base.cpio"))?));
    for directory in ["dev", "proc", "sys", "tmp", "run", "root", "var", "etc", "scratch"] {
        archive.directory(directory)?;
    }
    archive.character("dev/console", 5, 1)?;
    archive.bytes("init", 0o755, INIT.as_bytes())?;
    archive.bytes("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.bytes("etc/group", 0o644, b"root:x:0:\n")?;
    archive.file("bin/busybox", 0o755, busybox)?;
    for applet in cmd::text(Command::new(busybox).arg("--list"))?.lines() {
        if applet != "busybox" {
            archive.symlink(&format!("bin/{applet}"), "busybox")?;
        }
    }
    let from = tree.join("lib/modules").join(version);
    for file in &files {
        archive.file(&format!("lib/modules/{file}"), 0o644, &from.join(file))?;
    }
    archive.finish()?;
    std::fs::write(fresh.path().join("modules.dep"), all.lines_of(&files))?;
    std::fs::copy(from.join("modules.builtin"), fresh.path().join("modules.builtin"))?;
    publish(fresh, dir)
}

/// Puts a finished directory in its place; when another maker was first, theirs stays.
fn publish(fresh: tempfile::TempDir, place: &Path) -> Result<()> {
    std::fs::set_permissions(fresh.path(), std::fs::Permissions::from_mode(0o755))?;
    let path = fresh.keep();
    if let Err(error) = std::fs::rename(&path, place) {
        std::fs::remove_dir_all(&path)?;
        if !place.is_dir() {
            bail!("cannot publish {}: {error}", place.display());
        }
    }
    Ok(())
}

/// Adds a file, or a directory with all that is in it.
fn add<W: std::io::Write>(
    to: &mut Archive<W>,
    lab: &str,
    mode: Option<u32>,
    host: &Path,
) -> Result<()> {
    let metadata = std::fs::metadata(host)
        .with_context(|| format!("cannot read {} for the lab", host.display()))?;
    if !metadata.is_dir() {
        let mode = mode.unwrap_or_else(|| metadata.permissions().mode() & 0o7777);
        return to.file(lab, mode, host);
    }
    to.directory(lab)?;
    let mut entries = std::fs::read_dir(host)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    entries.sort();
    for entry in entries {
        let name = entry.file_name().context("a directory entry has a name")?;
        add(to, &format!("{lab}/{}", name.to_string_lossy()), mode, &entry)?;
    }
    Ok(())
}

/// What the base depends on: the files it is made of, and the text of this module.
fn key(files: &[&Path]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    (INIT, MODULES_ALWAYS, MODULES_SHARE, MODULES_SCRATCH, MODULES_KEPT).hash(&mut hasher);
    for file in files {
        let metadata =
            std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        (file.file_name(), metadata.len(), metadata.mtime()).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}
