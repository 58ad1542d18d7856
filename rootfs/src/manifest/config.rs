//! An image's configuration: what runs in it, as whom, and the digests of its layers.
//!
//! Invariant: no text of a configuration holds a NUL character, so that each can become an argument or a variable of a
//! process in the guest. Pure; the image specification, "OCI Image Configuration".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::seq::{PairsUpTo, UpTo, nullable};
use super::{MAX_CONFIG_BYTES, MAX_LAYERS, ManifestError, json, within};
use crate::digest::Digest;
use crate::image::Platform;

/// Most variables, arguments or labels of one image.
const MAX_WORDS: usize = 16_384;

/// What an image says of the process in it, and of its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageConfig {
    /// What it runs on.
    pub platform: Platform,
    /// `user`, `uid`, `user:group` and so on; empty for root.
    pub user: String,
    /// `NAME=VALUE`, in the order they stand.
    pub env: Vec<String>,
    /// The program and its first arguments; may be empty.
    pub entrypoint: Vec<String>,
    /// Arguments behind the entry point, or the program if there is none.
    pub cmd: Vec<String>,
    /// The directory that the process starts in; empty for `/`.
    pub working_dir: String,
    /// Which signal ends it, such as `SIGTERM`; empty for the default.
    pub stop_signal: String,
    /// Labels, by name.
    pub labels: BTreeMap<String, String>,
    /// The digests of the uncompressed layers, base first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, deserialize_with = "nullable")]
    os: String,
    #[serde(default, deserialize_with = "nullable")]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    config: Process,
    rootfs: Rootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    #[serde(deserialize_with = "nullable")]
    user: String,
    #[serde(deserialize_with = "nullable")]
    env: UpTo<String, MAX_WORDS>,
    #[serde(deserialize_with = "nullable")]
    entrypoint: UpTo<String, MAX_WORDS>,
    #[serde(deserialize_with = "nullable")]
    cmd: UpTo<String, MAX_WORDS>,
    #[serde(deserialize_with = "nullable")]
    working_dir: String,
    #[serde(deserialize_with = "nullable")]
    stop_signal: String,
    #[serde(deserialize_with = "nullable")]
    labels: PairsUpTo<MAX_WORDS>,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "nullable")]
    diff_ids: UpTo<Digest, MAX_LAYERS>,
}

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    ///
    /// When the bytes are over [`MAX_CONFIG_BYTES`], are no configuration of an image, or hold a NUL character where
    /// none can be.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        within("the configuration", bytes, MAX_CONFIG_BYTES)?;
        let raw: Raw = json("the configuration", bytes)?;
        if raw.rootfs.kind != "layers" {
            return Err(ManifestError::Config("does not consist of layers"));
        }
        if raw.os.is_empty() || raw.architecture.is_empty() {
            return Err(ManifestError::Config("does not say which platform it is for"));
        }
        let variant = raw.variant.filter(|variant| !variant.is_empty());
        let Process { user, env, entrypoint, cmd, working_dir, stop_signal, labels } = raw.config;
        let config = Self {
            platform: Platform { os: raw.os, architecture: raw.architecture, variant },
            user,
            env: env.0,
            entrypoint: entrypoint.0,
            cmd: cmd.0,
            working_dir,
            stop_signal,
            labels: labels.0.into_iter().collect(),
            diff_ids: raw.rootfs.diff_ids.0,
        };
        if config.has_nul() {
            return Err(ManifestError::Config("holds a NUL character"));
        }
        Ok(config)
    }

    fn has_nul(&self) -> bool {
        let words = [&self.env, &self.entrypoint, &self.cmd].into_iter().flatten();
        let texts = [&self.user, &self.working_dir, &self.stop_signal].into_iter();
        words.chain(texts).any(|text| text.contains('\0'))
    }
}
