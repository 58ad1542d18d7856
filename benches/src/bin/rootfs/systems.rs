//! Who makes an image: our command, and the packaged programs that come to the same result.
//!
//! Invariant: everybody starts from the same layout with nothing of an earlier run on the disk, and what a run left is removed, and
//! everything written back, outside the time that is taken.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use openshell_benches::process::{Process, Spent};

use crate::input::{Input, Packing, TAG};

/// What making an image took; several processes one after the other count as one.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) peak_kib: u64,
    /// The parts by name, where there are several.
    pub(crate) steps: Vec<(&'static str, Duration)>,
    /// Bytes that the result takes on the disk.
    pub(crate) disk_bytes: u64,
}

/// Our command.
pub(crate) struct Ours {
    pub(crate) command: PathBuf,
}

/// The reference to an input.
pub(crate) fn reference(input: &Input) -> String {
    format!("oci:{}:{TAG}", input.layout.display())
}

impl Ours {
    pub(crate) fn call(&self, cache: &Path) -> Command {
        let mut command = Command::new(&self.command);
        command.arg("--cache").arg(cache).args(["--progress", "none"]);
        command
    }

    /// Makes a verified image in a cache that was not there before.
    pub(crate) fn make(&self, input: &Input, scratch: &Path) -> Result<Made> {
        let cache = scratch.join("cache");
        let spent = run(self.call(&cache).args(["pull", &reference(input)]))?;
        let disk_bytes = allocated(&image_in(&cache)?)?;
        fs::remove_dir_all(&cache)?;
        settle();
        let Spent { wall, cpu, peak_kib, .. } = spent;
        Ok(Made { wall, cpu, peak_kib, steps: Vec::new(), disk_bytes })
    }
}

/// The one image in a cache.
pub(crate) fn image_in(cache: &Path) -> Result<PathBuf> {
    let mut images = fs::read_dir(cache.join("images"))?;
    let image = images.next().context("the cache has no image")??;
    Ok(image.path().join("rootfs.ext4"))
}

/// Packaged programs: an unpacker and mke2fs. The image is neither verified nor synced.
pub(crate) struct Packaged {
    mke2fs: PathBuf,
}

impl Packaged {
    /// The programs, where they are installed.
    pub(crate) fn find() -> Result<Self> {
        let mke2fs = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].map(PathBuf::from);
        let mke2fs = mke2fs.into_iter().find(|it| it.exists());
        Ok(Self { mke2fs: mke2fs.context("no mke2fs (package e2fsprogs)")? })
    }

    /// What unpacks. Packaged umoci may be too old for zstd; GNU tar is then the quickest there is.
    pub(crate) fn name(packing: Packing) -> &'static str {
        match packing {
            Packing::Gzip => "umoci + mke2fs",
            Packing::Zstd => "tar + mke2fs",
        }
    }

    pub(crate) fn make(&self, input: &Input, packing: Packing, scratch: &Path) -> Result<Made> {
        let (bundle, image) = (scratch.join("bundle"), scratch.join("peer.ext4"));
        let (tree, unpacked) = match packing {
            Packing::Gzip => {
                let mut command = Command::new("umoci");
                command.arg("unpack").arg("--image");
                command.arg(format!("{}:{TAG}", input.layout.display())).arg(&bundle);
                (bundle.join("rootfs"), run(&mut command)?)
            }
            Packing::Zstd => {
                fs::create_dir_all(&bundle)?;
                let mut command = Command::new("tar");
                command
                    .args(["--zstd", "--xattrs", "-xpf"])
                    .arg(&input.blob)
                    .arg("-C")
                    .arg(&bundle);
                (bundle.clone(), run(&mut command)?)
            }
        };
        // What somebody would give it: blocks of the files, an inode each, and a quarter more.
        let inodes = input.files * 5 / 4 + 1024;
        let mib = (input.tar_bytes + input.files * 4096 + inodes * 256) * 5 / 4 / (1 << 20) + 16;
        let mut command = Command::new(&self.mke2fs);
        command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-N", &inodes.to_string(), "-d"]);
        command.arg(&tree).arg(&image).arg(format!("{mib}M"));
        let formatted = run(&mut command)?;
        let disk_bytes = allocated(&image)?;
        fs::remove_dir_all(&bundle)?;
        fs::remove_file(&image)?;
        settle();
        Ok(Made {
            wall: unpacked.wall + formatted.wall,
            cpu: unpacked.cpu + formatted.cpu,
            peak_kib: unpacked.peak_kib.max(formatted.peak_kib),
            steps: vec![("unpack", unpacked.wall), ("mke2fs", formatted.wall)],
            disk_bytes,
        })
    }
}

/// Runs a program that has to succeed.
pub(crate) fn run(command: &mut Command) -> Result<Spent> {
    let errors = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
    let spent = Process::start(command)?.wait()?;
    if spent.code != 0 {
        let mut text = String::new();
        let mut errors = errors;
        std::io::Seek::rewind(&mut errors)?;
        std::io::Read::read_to_string(&mut errors, &mut text)?;
        bail!("{} ended with {}: {text}", command.get_program().display(), spent.code);
    }
    Ok(spent)
}

/// Checks an image with the file system's own checker.
pub(crate) fn check(image: &Path) -> Result<()> {
    let e2fsck = ["/usr/sbin/e2fsck", "/sbin/e2fsck"].map(PathBuf::from);
    let e2fsck = e2fsck.into_iter().find(|it| it.exists()).context("no e2fsck (e2fsprogs)")?;
    let status = Command::new(e2fsck).arg("-fn").arg(image).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "e2fsck refuses {}", image.display());
    Ok(())
}

/// Bytes that a file takes on the disk.
pub(crate) fn allocated(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    const UNIT: u64 = 512;
    Ok(File::open(path)?.metadata()?.blocks() * UNIT)
}

/// Writes back what is in the page cache, so that nobody pays for another's writes.
pub(crate) fn settle() {
    drop(Command::new("sync").status());
}
