//! Takes the uncompressed kernel out of a distribution's bzImage.
//!
//! An emulated processor needs seconds to uncompress it at every boot; the host does it once. QEMU
//! then enters the ELF through its PVH note. Header fields: Documentation/x86/boot.rst.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::cmd;

const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;

/// Writes the ELF file that `vmlinuz` carries to `vmlinux`.
pub(crate) fn uncompress(vmlinuz: &Path, vmlinux: &Path) -> Result<()> {
    let image =
        std::fs::read(vmlinuz).with_context(|| format!("cannot read {}", vmlinuz.display()))?;
    let payload = payload(&image).with_context(|| format!("in {}", vmlinuz.display()))?;
    let (program, package) = uncompressor(payload)?;
    let program = cmd::require(program, package)?;
    let mut child = Command::new(&program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(vmlinux)?)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let fed = child.stdin.take().context("stdin is a pipe")?.write_all(payload);
    let status = child.wait()?;
    if !status.success() {
        bail!("{} refused the kernel in {}: {status}", program.display(), vmlinuz.display());
    }
    fed.with_context(|| format!("cannot feed {}", program.display()))
}

/// The compressed kernel inside a bzImage, without the four size bytes that follow it.
fn payload(image: &[u8]) -> Result<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        bail!("no bzImage header");
    }
    let sectors = image.get(SETUP_SECTORS).copied().filter(|&count| count != 0).unwrap_or(4);
    let body = (usize::from(sectors) + 1) * SECTOR_BYTES;
    let range = || {
        let begin = body.checked_add(word(PAYLOAD_OFFSET)?)?;
        let end = begin.checked_add(word(PAYLOAD_LENGTH)?)?.checked_sub(4)?;
        image.get(begin..end)
    };
    range().context("the bzImage header points past the end of the file")
}

/// Program and package for the compression at hand.
fn uncompressor(payload: &[u8]) -> Result<(&'static str, &'static str)> {
    const KNOWN: [(&[u8], &str, &str); 4] = [
        (b"\xfd7zXZ\0", "xz", "xz-utils"),
        (b"\x28\xb5\x2f\xfd", "zstd", "zstd"),
        (b"\x1f\x8b", "gzip", "gzip"),
        (b"\x02\x21\x4c\x18", "lz4", "lz4"),
    ];
    KNOWN
        .iter()
        .find(|(magic, ..)| payload.starts_with(magic))
        .map(|&(_, program, package)| (program, package))
        .context("the kernel is compressed in a way that is not known here")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(offset: u32, length: u32) -> Vec<u8> {
        let mut image = vec![0; 2048];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&offset.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image[1024 + 16..1024 + 22].copy_from_slice(b"\xfd7zXZ\0");
        image
    }

    #[test]
    fn finds_the_payload() {
        let image = image(16, 104);
        let payload = payload(&image).unwrap();
        assert_eq!(payload.len(), 100);
        assert_eq!(uncompressor(payload).unwrap().0, "xz");
    }

    #[test]
    fn refuses_what_is_no_kernel() {
        assert!(payload(b"").is_err());
        assert!(payload(&[0; 4096]).is_err());
        for (offset, length) in [(16, 2048), (u32::MAX, 8), (0, 3), (16, u32::MAX)] {
            assert!(payload(&image(offset, length)).is_err(), "{offset} {length}");
        }
        assert!(uncompressor(b"plain").is_err());
    }
}
