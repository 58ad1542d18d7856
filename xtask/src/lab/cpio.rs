//! Writes the `newc` cpio archives that Linux unpacks as its initramfs.
//!
//! Invariant: the same entries in the same order give the same bytes (owner 0, time 0), so that an
//! archive can be cached. Format: Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;
const BLOCK_BYTES: u64 = 512;

/// An archive being written. Directories above an entry are made without being asked.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    sink: W,
    written: u64,
    inode: u32,
    directories: BTreeSet<String>,
}

struct Header<'a> {
    path: &'a str,
    mode: u32,
    size: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    /// Starts an archive; nothing is written yet.
    pub(crate) fn new(sink: W) -> Self {
        Self { sink, written: 0, inode: 0, directories: BTreeSet::new() }
    }

    /// Adds a directory (0755) and those above it; one that is there already is left alone.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        let path = relative(path)?;
        for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
            let part = &path[..end];
            if !part.is_empty() && self.directories.insert(part.to_owned()) {
                self.header(&Header {
                    path: part,
                    mode: DIRECTORY | 0o755,
                    size: 0,
                    device: (0, 0),
                })?;
            }
        }
        Ok(())
    }

    /// Adds a regular file with these bytes.
    pub(crate) fn bytes(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let size = u32::try_from(bytes.len()).context("a cpio entry holds less than 4 GiB")?;
        self.above(path)?;
        self.header(&Header { path: relative(path)?, mode: REGULAR | mode, size, device: (0, 0) })?;
        self.write(bytes)?;
        self.align(4)
    }

    /// Adds a copy of a file of the host; fails when it is 4 GiB or larger.
    pub(crate) fn file(&mut self, path: &str, mode: u32, host: &Path) -> Result<()> {
        let mut file =
            File::open(host).with_context(|| format!("cannot open {}", host.display()))?;
        let length = file.metadata()?.len();
        let size = u32::try_from(length)
            .with_context(|| format!("{} is too large for an initramfs", host.display()))?;
        self.above(path)?;
        self.header(&Header { path: relative(path)?, mode: REGULAR | mode, size, device: (0, 0) })?;
        let copied = io::copy(&mut (&mut file).take(length), &mut self.sink)?;
        ensure!(copied == length, "{} shrank while it was copied", host.display());
        self.written += copied;
        self.align(4)
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, to: &str) -> Result<()> {
        let size = u32::try_from(to.len()).context("symlink target too long")?;
        self.above(path)?;
        self.header(&Header {
            path: relative(path)?,
            mode: SYMLINK | 0o777,
            size,
            device: (0, 0),
        })?;
        self.write(to.as_bytes())?;
        self.align(4)
    }

    /// Adds a character device (0600).
    pub(crate) fn character(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        self.above(path)?;
        let device = (major, minor);
        self.header(&Header { path: relative(path)?, mode: CHARACTER | 0o600, size: 0, device })
    }

    /// Writes the trailer, pads to whole blocks (another archive may follow) and gives the sink back.
    pub(crate) fn finish(mut self) -> Result<W> {
        self.inode = 0;
        self.header(&Header { path: "TRAILER!!!", mode: 0, size: 0, device: (0, 0) })?;
        self.align(BLOCK_BYTES)?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    fn above(&mut self, path: &str) -> Result<()> {
        match relative(path)?.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn header(&mut self, entry: &Header<'_>) -> Result<()> {
        let name_bytes = u32::try_from(entry.path.len() + 1).context("path too long")?;
        let links = if entry.mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let (major, minor) = entry.device;
        let mut head = String::from("070701");
        for field in
            [self.inode, entry.mode, 0, 0, links, 0, entry.size, 0, 0, major, minor, name_bytes, 0]
        {
            head.push_str(&format!("{field:08X}"));
        }
        self.inode += 1;
        self.write(head.as_bytes())?;
        self.write(entry.path.as_bytes())?;
        self.write(&[0])?;
        self.align(4)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn align(&mut self, to: u64) -> Result<()> {
        const ZEROES: [u8; 512] = [0; 512];
        let missing = usize::try_from(self.written.next_multiple_of(to) - self.written)?;
        self.write(&ZEROES[..missing])
    }
}

fn relative(path: &str) -> Result<&str> {
    let path = path.trim_matches('/');
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        bail!("`{path}` is not a plain path");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.bytes("/a/b/odd", 0o640, b"12345").unwrap();
        archive.bytes("a/b/empty", 0o755, b"").unwrap();
        archive.symlink("a/link", "b/odd").unwrap();
        archive.character("dev/console", 5, 1).unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn is_a_whole_number_of_blocks_and_repeats_itself() {
        assert_eq!(sample().len() % 512, 0);
        assert_eq!(sample(), sample());
    }

    #[test]
    fn names_each_directory_once_and_before_what_it_holds() {
        let text = String::from_utf8_lossy(&sample()).into_owned();
        assert_eq!(text.matches("\u{0}a/b/odd").count() + text.matches("a/b/odd\u{0}").count(), 1);
        assert_eq!(text.matches("a/b\u{0}").count(), 1);
        assert!(text.find("a/b\u{0}").unwrap() < text.find("a/b/odd\u{0}").unwrap());
    }

    #[test]
    fn first_header_follows_the_format() {
        let mut archive = Archive::new(Vec::new());
        archive.bytes("x", 0o644, b"hi").unwrap();
        let bytes = archive.finish().unwrap();
        let expected = concat!(
            "070701", "00000000", "000081A4", "00000000", "00000000", "00000001", "00000000",
            "00000002", "00000000", "00000000", "00000000", "00000000", "00000002", "00000000",
        );
        assert_eq!(std::str::from_utf8(&bytes[..110]).unwrap(), expected);
        assert_eq!(&bytes[110..116], b"x\0hi\0\0");
    }

    #[test]
    fn refuses_paths_that_leave_the_archive() {
        let mut archive = Archive::new(Vec::new());
        for path in ["../x", "a//b", "a/./b", "", "/"] {
            assert!(archive.bytes(path, 0o644, b"").is_err(), "{path}");
        }
    }

    #[test]
    fn cpio_unpacks_it() {
        let Some(cpio) = crate::cmd::find("cpio") else { return };
        let directory = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.bytes("a/b/odd", 0o640, b"12345").unwrap();
        archive.symlink("a/link", "b/odd").unwrap();
        let bytes = archive.finish().unwrap();
        let mut child = Command::new(cpio)
            .args(["-i", "-d", "--quiet"])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(directory.path().join("a/link")).unwrap(), b"12345");
    }
}
