//! Images of registries: names to manifests, and layers as streams.
//!
//! Invariant: nothing that a registry, a mirror or a proxy sends is taken for more than bytes: sizes are bounded before
//! and while reading, digests decide, and credentials stay with the host that they are for. One thread of ours has all
//! sockets; callers block. The distribution specification 1.1; HTTP through reqwest, for the reasons in
//! `docs/dependencies.md`.

use std::io::Read;
use std::sync::Arc;

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use tokio::sync::Semaphore;

use crate::auth::Keychain;
use crate::digest::Digest;
use crate::image::{BlobError, Blobs, Descriptor, Image, Platform};
use crate::manifest::resolve::{ResolveError, Root, resolve};
use crate::manifest::{MAX_MANIFEST_BYTES, digest_like, is_manifest_type};
use crate::reference::RegistryReference;

mod blob;
mod error;
mod hosts;
mod http;
mod retry;
mod session;
mod thread;
mod token;
mod verified;

pub use error::RegistryError;
pub use hosts::Hosts;
pub use retry::Patience;
pub use verified::{Mismatch, Verified};

use blob::{BlobReader, PARTS_PER_IMAGE, Pool, part_bytes};
use http::{Ask, Http};
use session::Session;
use thread::Thread;

/// The types that are asked for, as one header.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The header with a manifest's digest.
const DIGEST: &str = "docker-content-digest";

/// Why a reference leads to no image.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry does not give what the reference names.
    #[error("cannot pull {reference}")]
    Registry {
        /// The reference.
        reference: String,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// What it gives leads to no image.
    #[error("cannot pull {reference}")]
    Image {
        /// The reference.
        reference: String,
        /// Why.
        #[source]
        source: ResolveError,
    },
}

/// A client of registries.
#[derive(Debug)]
pub struct Registry {
    thread: Arc<Thread>,
    http: Arc<Http>,
    keychain: Arc<Keychain>,
}

/// An image of a registry, resolved: its layers can be opened.
#[derive(Debug)]
pub struct Pull {
    /// What it is.
    pub image: Image,
    places: Arc<[Arc<Session>]>,
    pool: Pool,
    /// Sockets live as long as somebody may read from them.
    _thread: Arc<Thread>,
}

impl Registry {
    /// Makes a client, with a thread of its own that ends with it and its pulls.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started or a certificate of the configuration cannot be read.
    pub fn new(
        hosts: Hosts,
        keychain: Keychain,
        patience: Patience,
    ) -> Result<Self, RegistryError> {
        Ok(Self {
            thread: Arc::new(Thread::start()?),
            http: Arc::new(Http::new(hosts, patience)?),
            keychain: Arc::new(keychain),
        })
    }

    /// The digest that a reference has now: of an image or of an index. One question, without a body.
    ///
    /// Blocks; not to be called from a task of a runtime.
    ///
    /// # Errors
    ///
    /// When no place answers, or none says.
    pub fn digest(&self, reference: &RegistryReference) -> Result<Digest, PullError> {
        if let Some(digest) = reference.digest() {
            return Ok(digest.clone());
        }
        let places = self.places(reference).map_err(failed(reference))?;
        let digest = first(&places, |place| self.thread.run(head(place, reference.selector())));
        digest.map_err(failed(reference))
    }

    /// Finds the image of a reference for a platform. Layers are not fetched yet.
    ///
    /// Blocks; not to be called from a task of a runtime.
    ///
    /// # Errors
    ///
    /// When the registry does not give it, a document is refused, or there is nothing for the platform.
    pub fn resolve(
        &self,
        reference: &RegistryReference,
        platform: &Platform,
    ) -> Result<Pull, PullError> {
        let places = self.places(reference).map_err(failed(reference))?;
        let root = first(&places, |place| self.thread.run(root(place, reference.clone())));
        let mut fetch = |descriptor: &Descriptor, limit: usize| {
            let get = |place| self.thread.run(document(place, descriptor.clone(), limit));
            first(&places, get).map_err(BlobError::from)
        };
        let image = resolve(root.map_err(failed(reference))?, platform, &mut fetch)
            .map_err(|source| PullError::Image { reference: reference.to_string(), source })?;
        let pool = Pool {
            handle: self.thread.handle().clone(),
            permits: Arc::new(Semaphore::new(PARTS_PER_IMAGE)),
            part_bytes: part_bytes(&image.layers),
        };
        Ok(Pull { image, places, pool, _thread: self.thread.clone() })
    }

    fn places(&self, reference: &RegistryReference) -> Result<Arc<[Arc<Session>]>, RegistryError> {
        let endpoints = self.http.hosts.endpoints(reference.registry())?;
        let session = |endpoint| {
            let (http, keychain) = (self.http.clone(), self.keychain.clone());
            Arc::new(Session::new(http, keychain, endpoint, reference.repository().to_owned()))
        };
        Ok(endpoints.into_iter().map(session).collect())
    }
}

impl Blobs for Pull {
    /// Opens a layer, which begins to be fetched at once. The reader must not be used in a task of a runtime.
    fn open(&self, layer: &Descriptor) -> Result<Box<dyn Read + Send + '_>, BlobError> {
        Ok(Box::new(BlobReader::open(self.pool.clone(), self.places.clone(), layer)))
    }
}

fn failed(reference: &RegistryReference) -> impl Fn(RegistryError) -> PullError + use<> {
    let reference = reference.to_string();
    move |source| PullError::Registry { reference: reference.clone(), source }
}

/// Asks one place after the other. The registry itself is the last, and its error the one that counts.
fn first<T>(
    places: &[Arc<Session>],
    ask: impl Fn(Arc<Session>) -> Result<T, RegistryError>,
) -> Result<T, RegistryError> {
    let mut failure = RegistryError::Ended;
    for place in places.iter().filter(|place| place.is_up()) {
        match ask(place.clone()) {
            Ok(answer) => return Ok(answer),
            Err(error) => failure = error,
        }
        if matches!(failure, RegistryError::Transport { .. }) {
            place.set_down();
        }
    }
    Err(failure)
}

/// The digest that a tag has.
async fn head(place: Arc<Session>, selector: String) -> Result<Digest, RegistryError> {
    let url = place.url("manifests", &selector);
    let ask = Ask { method: Method::HEAD, accept: Some(ACCEPT), ..Ask::get(url) };
    let answer = place.document(&ask, "a manifest", MAX_MANIFEST_BYTES).await?;
    let digest = header(&answer.headers, DIGEST).and_then(|text| text.parse().ok());
    let host = || place.endpoint.host.clone();
    digest.ok_or_else(|| RegistryError::NoDigest { host: host(), what: selector })
}

/// The document that a reference names, checked against the digest that it pins, if it pins one.
async fn root(place: Arc<Session>, reference: RegistryReference) -> Result<Root, RegistryError> {
    let url = place.url("manifests", &reference.selector());
    let ask = Ask { accept: Some(ACCEPT), ..Ask::get(url) };
    let answer = place.document(&ask, "a manifest", MAX_MANIFEST_BYTES).await?;
    let announced = || header(&answer.headers, DIGEST).and_then(|text| text.parse().ok());
    let expected: Option<Digest> = reference.digest().cloned().or_else(announced);
    let digest = match &expected {
        Some(expected) => digest_like(&answer.bytes, expected),
        None => Digest::sha256(&answer.bytes),
    };
    if let Some(expected) = expected
        && expected != digest
    {
        let host = place.endpoint.host.clone();
        return Err(RegistryError::Digest { host, expected, found: digest });
    }
    let media_type = header(&answer.headers, CONTENT_TYPE.as_str()).map(str::to_owned);
    Ok(Root { bytes: answer.bytes, digest, media_type })
}

/// A manifest or configuration by its descriptor. Wrong bytes of a mirror are passed over.
async fn document(
    place: Arc<Session>,
    descriptor: Descriptor,
    limit: usize,
) -> Result<Vec<u8>, RegistryError> {
    let manifest = is_manifest_type(&descriptor.media_type);
    let (kind, what) =
        if manifest { ("manifests", "a manifest") } else { ("blobs", "a configuration") };
    let url = place.url(kind, &descriptor.digest.to_string());
    let ask = Ask { accept: manifest.then_some(ACCEPT), ..Ask::get(url) };
    let bytes = place.document(&ask, what, limit).await?.bytes;
    let found = digest_like(&bytes, &descriptor.digest);
    if found != descriptor.digest {
        let (host, expected) = (place.endpoint.host.clone(), descriptor.digest);
        return Err(RegistryError::Digest { host, expected, found });
    }
    Ok(bytes)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
