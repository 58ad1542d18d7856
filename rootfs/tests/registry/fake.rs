//! A registry in memory: images of made-up layers, by the rules of the distribution specification.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::Duration;

use openshell_rootfs::auth::Keychain;
use openshell_rootfs::digest::Digest;
use openshell_rootfs::image::{Blobs as _, Descriptor, Platform};
use openshell_rootfs::reference::RegistryReference;
use openshell_rootfs::registry::{Hosts, Patience, Pull, PullError, Registry, Verified};
use serde_json::{Value, json};

use crate::server::{Reply, Request};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(crate) const MIB: usize = 1 << 20;

/// What a registry has. Tags and digests alike name manifests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fake {
    pub(crate) manifests: BTreeMap<String, (String, Vec<u8>)>,
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
}

impl Fake {
    /// An image tagged `1` with layers of these sizes in bytes.
    pub(crate) fn with_layers(sizes: &[usize]) -> Self {
        let mut fake = Self::default();
        let layers: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(n, len)| noise(n, *len)).collect();
        let manifest = fake.image(&layers);
        fake.tag("1", MANIFEST, manifest.to_string());
        fake
    }

    /// Puts an image's blobs there; what comes back is its manifest.
    pub(crate) fn image(&mut self, layers: &[Vec<u8>]) -> Value {
        let layers: Vec<Value> =
            layers.iter().map(|bytes| self.blob(LAYER, bytes.clone())).collect();
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({"os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.blob(CONFIG, config.to_string().into_bytes());
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
    }

    pub(crate) fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::sha256(&bytes).to_string();
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }

    /// Puts a manifest there, by its digest and by a tag; what comes back is its descriptor.
    pub(crate) fn tag(&mut self, tag: &str, media_type: &str, manifest: String) -> Value {
        let bytes = manifest.into_bytes();
        let digest = Digest::sha256(&bytes).to_string();
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        for name in [tag.to_owned(), digest] {
            self.manifests.insert(name, (media_type.to_owned(), bytes.clone()));
        }
        descriptor
    }

    /// The answer of a registry that does what it should.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        let path = request.target.split('?').next().unwrap();
        let Some((_, name)) = path.rsplit_once('/') else { return Reply::new(404, "") };
        if path.contains("/manifests/") {
            return match self.manifests.get(name) {
                None => Reply::new(404, r#"{"errors": [{"message": "manifest unknown"}]}"#),
                Some((media_type, bytes)) => Reply::new(200, bytes.clone())
                    .with("content-type", media_type)
                    .with("docker-content-digest", Digest::sha256(bytes).to_string()),
            };
        }
        match self.blobs.get(name) {
            None => Reply::new(404, ""),
            Some(bytes) => part(bytes, request.range()),
        }
    }

    pub(crate) fn layer(&self, n: usize) -> &[u8] {
        let manifest: Value = serde_json::from_slice(&self.manifests["1"].1).unwrap();
        &self.blobs[manifest["layers"][n]["digest"].as_str().unwrap()]
    }
}

/// Bytes, or a part of them.
pub(crate) fn part(bytes: &[u8], range: Option<(usize, usize)>) -> Reply {
    match range {
        None => Reply::new(200, bytes),
        Some((first, _)) if first >= bytes.len() => Reply::new(416, ""),
        Some((first, last)) => {
            let last = last.min(bytes.len() - 1);
            let range = format!("bytes {first}-{last}/{}", bytes.len());
            Reply::new(206, &bytes[first..=last]).with("content-range", range)
        }
    }
}

/// Bytes that do not repeat, the same each time.
pub(crate) fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A client that waits little.
pub(crate) fn patience() -> Patience {
    Patience {
        backoff: Duration::from_millis(5),
        retry_after_cap: Duration::from_secs(5),
        response: Duration::from_secs(10),
        pace: Duration::from_secs(10),
        ..Patience::default()
    }
}

pub(crate) fn client() -> Registry {
    client_with(Keychain::empty(), patience())
}

pub(crate) fn client_with(keychain: Keychain, patience: Patience) -> Registry {
    Registry::new(Hosts::default(), keychain, patience).unwrap()
}

/// The reference of image `1` in the repository of these tests.
pub(crate) fn reference(host: &str) -> RegistryReference {
    format!("{host}/team/app:1").parse().unwrap()
}

pub(crate) fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

pub(crate) fn resolve(registry: &Registry, host: &str) -> Result<Pull, PullError> {
    registry.resolve(&reference(host), &platform())
}

/// Reads one layer to its end and checks it.
pub(crate) fn read(pull: &Pull, layer: &Descriptor) -> std::io::Result<Vec<u8>> {
    let reader = pull.open(layer).unwrap();
    let mut bytes = Vec::new();
    Verified::new(reader, layer.clone()).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads all layers at once, as a build does.
pub(crate) fn read_all(pull: &Pull) -> Vec<std::io::Result<Vec<u8>>> {
    std::thread::scope(|scope| {
        let readers = pull.image.layers.iter().map(|layer| scope.spawn(|| read(pull, layer)));
        let readers: Vec<_> = readers.collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    })
}

/// An error and all its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
