//! The small JSON files of the cache.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::Platform;
use crate::manifest::config::ImageConfig;

/// The version of these files. Others are not read: what they are about is made again.
pub const SCHEMA: u32 = 3;

/// What is known of a complete image: `image.json` beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What the image was made from, and by which rules.
    pub key: Digest,
    /// The digest of the platform's manifest, or of what stands for it.
    pub identity: Digest,
    /// The layers, base first.
    pub layers: Vec<LayerRecord>,
    /// Bytes of `rootfs.ext4`, holes included.
    pub bytes: u64,
    /// What stands for the bytes of `rootfs.ext4`: the SHA-256 of the SHA-256 of each 4 MiB, so that all processors can derive it.
    pub pieces_sha256: Digest,
    /// Files, directories and other nodes.
    pub nodes: u64,
    /// Uncompressed bytes of all layers.
    pub raw_bytes: u64,
    /// When it was made: seconds since 1970.
    pub created: u64,
    /// What its configuration says of the process in it.
    pub process: Process,
}

/// What an image says of the process that runs in it, with the defaults of the image specification left empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// `user`, `uid`, `user:group` and so on; empty for root.
    pub user: String,
    /// `NAME=VALUE`, in the order they stand.
    pub env: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments behind the entry point, or the program if there is none.
    pub cmd: Vec<String>,
    /// The directory that the process starts in; empty for `/`.
    pub working_dir: String,
    /// Which signal ends it; empty for the default.
    pub stop_signal: String,
    /// Labels, by name.
    pub labels: BTreeMap<String, String>,
}

impl Process {
    /// What a configuration says; nothing where an image has none.
    pub fn of(config: Option<&ImageConfig>) -> Self {
        let Some(config) = config.cloned() else { return Self::default() };
        let ImageConfig { user, env, entrypoint, cmd, working_dir, stop_signal, labels, .. } =
            config;
        Self { user, env, entrypoint, cmd, working_dir, stop_signal, labels }
    }
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The digest of its uncompressed archive.
    pub diff_id: Digest,
    /// Bytes of its uncompressed archive.
    pub raw_bytes: u64,
}

/// What a reference led to when it was last looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The reference, as the user writes it.
    pub reference: String,
    /// The platform.
    pub platform: Platform,
    /// The image.
    pub key: Digest,
    /// The digest of the platform's manifest.
    pub identity: Digest,
    /// When: seconds since 1970.
    pub checked: u64,
}

/// Somebody who needs an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Who, in words of their own, such as a directory.
    pub holder: String,
    /// The image.
    pub key: Digest,
}
