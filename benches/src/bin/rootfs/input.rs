//! Images to work on: OCI layouts of one layer, compressed in two ways, written as they are made.
//!
//! Invariant: an input follows from its tree alone, so that its digest is the same wherever it is made; nothing of it is ever whole in
//! memory, because the peak of this process would count as its children's.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::content::{Content, Random};

/// What is in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// 6,000 files of all sizes in 400 directories.
    Libraries,
    /// 30,000 small files, 16,926 of them in one directory.
    SmallFiles,
    /// 120,000 files of a few bytes in one directory.
    OneDirectory,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Zstd,
}

/// An image on the disk.
#[derive(Debug)]
pub(crate) struct Input {
    /// The layout, with one image of the tag [`TAG`] .
    pub(crate) layout: PathBuf,
    /// The blob of its layer.
    pub(crate) blob: PathBuf,
    pub(crate) files: u64,
    /// Bytes of the archive.
    pub(crate) tar_bytes: u64,
    /// Bytes of the layer as it is transferred.
    pub(crate) packed_bytes: u64,
}

/// The tag of the image in its layout.
pub(crate) const TAG: &str = "bench";

const MTIME: u64 = 1_700_000_000;

impl Packing {
    fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

impl Input {
    /// Makes the image of a shape in a new directory.
    pub(crate) fn make(shape: Shape, packing: Packing, layout: &Path) -> Result<Self> {
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let path = layout.join("layer");
        let file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
        let packed = Hashed::new(file);
        let (files, diff_id, tar_bytes, packed) = match packing {
            Packing::Gzip => {
                let encoder = flate2::write::GzEncoder::new(packed, flate2::Compression::new(6));
                let (files, raw) = archive(shape, encoder)?;
                (files, raw.digest(), raw.bytes, raw.inner.finish()?)
            }
            Packing::Zstd => {
                let encoder = zstd::Encoder::new(packed, 3)?;
                let (files, raw) = archive(shape, encoder)?;
                (files, raw.digest(), raw.bytes, raw.inner.finish()?)
            }
        };
        let (digest, packed_bytes) = (packed.digest(), packed.bytes);
        packed.inner.into_inner().context("cannot write the layer")?;
        let blob = blobs.join(&digest);
        fs::rename(path, &blob)?;
        let config = json!({
            "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        });
        let config = document(&blobs, "application/vnd.oci.image.config.v1+json", &config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [{
                "mediaType": packing.media_type(),
                "digest": format!("sha256:{digest}"),
                "size": packed_bytes,
            }],
        });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let mut descriptor = document(&blobs, kind, &manifest)?;
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": TAG });
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        fs::write(layout.join("index.json"), index.to_string())?;
        fs::write(layout.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;
        Ok(Self { layout: layout.to_owned(), blob, files, tar_bytes, packed_bytes })
    }
}

/// Writes a document under its digest, and answers its descriptor.
fn document(blobs: &Path, kind: &str, value: &serde_json::Value) -> Result<serde_json::Value> {
    let bytes = value.to_string();
    let digest = hex(&Sha256::digest(&bytes));
    fs::write(blobs.join(&digest), &bytes)?;
    Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
}

/// Writes the archive of a shape, and answers how many files it has.
fn archive<W: Write>(shape: Shape, packed: W) -> Result<(u64, Hashed<W>)> {
    let mut archive = Archive {
        tar: tar::Builder::new(Hashed::new(packed)),
        content: Content::new(1),
        buffer: Vec::new(),
        files: 0,
    };
    let mut random = Random::new(2);
    match shape {
        Shape::Libraries => {
            archive.directories(&["usr", "usr/lib"])?;
            for directory in 0..400 {
                archive.directory(&format!("usr/lib/package-{directory:03}"))?;
                for file in 0..15 {
                    // Most are small and few are large, as in real images: half of the bytes are in files of more than 128 KiB.
                    let base = 1 << (9 + random.below(4) + random.below(5) + random.below(4));
                    let length = (base + random.below(base)) * 3 / 5;
                    let path = format!("usr/lib/package-{directory:03}/libbench-{file:02}.so.1");
                    archive.file(&path, length)?;
                }
            }
        }
        Shape::SmallFiles => {
            archive.directories(&["usr", "usr/share", "usr/share/info"])?;
            for file in 0..16_926 {
                archive.file(&format!("usr/share/info/entry-{file}.gz"), small(&mut random))?;
            }
            for file in 0..13_074 {
                if file % 100 == 0 {
                    archive.directory(&format!("usr/share/doc-{:03}", file / 100))?;
                }
                let path = format!("usr/share/doc-{:03}/page-{file}.txt", file / 100);
                archive.file(&path, small(&mut random))?;
            }
        }
        Shape::OneDirectory => {
            archive.directories(&["var", "var/one"])?;
            for file in 0..120_000 {
                archive.file(&format!("var/one/name-{file}"), 1 + random.below(200))?;
            }
        }
    }
    let Archive { tar, files, .. } = archive;
    Ok((files, tar.into_inner()?))
}

/// Bytes of a small file: 4.3 KiB in the mean.
fn small(random: &mut Random) -> usize {
    1 + random.below(2048) + random.below(2048) + random.below(4700)
}

struct Archive<W: Write> {
    tar: tar::Builder<W>,
    content: Content,
    buffer: Vec<u8>,
    files: u64,
}

impl<W: Write> Archive<W> {
    fn directories(&mut self, paths: &[&str]) -> Result<()> {
        paths.iter().try_for_each(|path| self.directory(path))
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        Ok(self.tar.append_data(&mut header, path, io::empty())?)
    }

    fn file(&mut self, path: &str, length: usize) -> Result<()> {
        self.content.fill(&mut self.buffer, length);
        let mut header = header(tar::EntryType::Regular, 0o644, length as u64);
        header.set_mtime(MTIME + self.files);
        self.files += 1;
        Ok(self.tar.append_data(&mut header, path, &self.buffer[..])?)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_size(size);
    header
}

/// Counts and hashes what is written.
struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    fn digest(&self) -> String {
        hex(&self.hasher.clone().finalize())
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
