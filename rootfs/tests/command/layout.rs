//! An image layout of two layers, made without other programs.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use openshell_rootfs::digest::Digest;
use serde_json::json;
use tempfile::TempDir;

pub(crate) struct Layout {
    directory: TempDir,
    layer: Digest,
}

impl Layout {
    /// Some files, a link, two megabytes that do not compress; then a removal.
    pub(crate) fn new() -> Self {
        let noise: Vec<u8> =
            (0..500_000u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let base = archive(&[
            ("etc/motd", Some(b"hello\n")),
            ("etc/gone", Some(b"")),
            ("srv/noise", Some(&noise)),
            ("etc/link", None),
        ]);
        let change = archive(&[("etc/.wh.gone", Some(b""))]);
        let directory = TempDir::new().expect("a directory");
        let mut layout = Self { directory, layer: Digest::sha256(b"") };
        fs::create_dir_all(layout.blobs()).expect("made");
        let mut descriptors = Vec::new();
        for raw in [&base, &change] {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(raw).expect("in memory");
            let blob = encoder.finish().expect("in memory");
            descriptors.push(layout.put(&blob, "application/vnd.oci.image.layer.v1.tar+gzip"));
        }
        layout.layer = serde_json::from_value(descriptors[0]["digest"].clone()).expect("a digest");
        let config = json!({
            "os": "linux",
            "architecture": "amd64",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [Digest::sha256(&base), Digest::sha256(&change)] },
        });
        let config =
            layout.put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": descriptors });
        let manifest = layout
            .put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
        fs::write(layout.directory.path().join("index.json"), index).expect("written");
        let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
        fs::write(layout.directory.path().join("oci-layout"), version).expect("written");
        layout
    }

    pub(crate) fn reference(&self) -> String {
        format!("oci:{}", self.directory.path().display())
    }

    /// Changes a byte in the middle of the base.
    pub(crate) fn damage(&self) {
        let path = self.blobs().join(self.layer.hex());
        let mut bytes = fs::read(&path).expect("there");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).expect("written");
    }

    fn blobs(&self) -> PathBuf {
        self.directory.path().join("blobs/sha256")
    }

    /// Stores a blob and describes it.
    fn put(&self, bytes: &[u8], media_type: &str) -> serde_json::Value {
        let digest = Digest::sha256(bytes);
        fs::write(self.blobs().join(digest.hex()), bytes).expect("written");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }
}

/// An archive of files; what has no data is a link to `motd`.
fn archive(files: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        let Some(data) = data else {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, name, "motd").expect("in memory");
            continue;
        };
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, *data).expect("in memory");
    }
    builder.into_inner().expect("in memory")
}
