//! From the document behind a name to one image for one platform, through indexes and indexes of indexes.
//!
//! Invariant: every document but the first is checked against the digest and size that led to it, and the image that
//! comes out is for the platform that was asked for, by its index and by its own configuration. Blocking; runs on the
//! caller's thread, and fetches through the caller.

use std::collections::HashSet;

use super::config::ImageConfig;
use super::{Entry, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Manifest, ManifestError, digest_like};
use crate::digest::Digest;
use crate::image::{BlobError, Descriptor, Image, Platform};

/// How many indexes may lie within each other.
const MAX_DEPTH: u32 = 4;
/// Most documents that are fetched for one image.
const MAX_FETCHES: u32 = 64;
/// Most platforms that an error lists.
const MAX_LISTED: usize = 32;

/// The document behind a name.
#[derive(Debug, Clone)]
pub struct Root {
    /// Its bytes, as they came.
    pub bytes: Vec<u8>,
    /// Its digest, which the source has checked or made.
    pub digest: Digest,
    /// The media type that came with it, if any.
    pub media_type: Option<String>,
}

/// Why a name leads to no image.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A document is refused.
    #[error("{digest} is refused")]
    Refused {
        /// Which document.
        digest: Digest,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A document could not be fetched.
    #[error("cannot fetch {digest}")]
    Fetch {
        /// Which document.
        digest: Digest,
        /// Why.
        #[source]
        source: BlobError,
    },
    /// The source gave other bytes than the digest says.
    #[error("{expected} has {expected_bytes} bytes, but {found} with {found_bytes} bytes came")]
    Corrupt {
        /// What was asked for.
        expected: Digest,
        /// Its size.
        expected_bytes: u64,
        /// What came.
        found: Digest,
        /// Its size.
        found_bytes: u64,
    },
    /// Nothing for the platform.
    #[error("there is no image for {wanted}; there are: {}", list(.offered))]
    Platform {
        /// What was asked for.
        wanted: Box<Platform>,
        /// What there is, in order.
        offered: Vec<String>,
    },
    /// An index says one platform and the image another.
    #[error(
        "the index says that {digest} is for {wanted}, and its configuration that it is for {found}"
    )]
    Lies {
        /// Which image.
        digest: Digest,
        /// What was asked for.
        wanted: Box<Platform>,
        /// What the configuration says.
        found: Box<Platform>,
    },
    /// Indexes within indexes.
    #[error("indexes lie more than {MAX_DEPTH} deep within each other")]
    Depth,
    /// A document that leads to more and more documents.
    #[error("more than {MAX_FETCHES} documents lead to the image")]
    Fetches,
}

fn list(offered: &[String]) -> String {
    if offered.is_empty() { "none".into() } else { offered.join(", ") }
}

/// Gets a document of at most so many bytes. The caller of a source; bytes are checked by [`resolve`].
pub type Fetch<'a> = dyn FnMut(&Descriptor, usize) -> Result<Vec<u8>, BlobError> + 'a;

/// Finds the image for a platform.
///
/// # Errors
///
/// When a document cannot be fetched, is not what its digest says or is refused, and when there is no image for the
/// platform.
pub fn resolve(
    root: Root,
    wanted: &Platform,
    fetch: &mut Fetch<'_>,
) -> Result<Image, ResolveError> {
    let mut search = Search { wanted, fetch, fetches: 0, offered: Vec::new() };
    let declared: Vec<&str> = root.media_type.as_deref().into_iter().collect();
    let manifest = super::parse(&root.bytes, &declared).map_err(refused(&root.digest))?;
    match manifest {
        Manifest::Image { config, layers } => {
            let found = search.image(root.digest, root.bytes, &config, layers)?;
            found.map_err(|found| search.nothing(&found))
        }
        Manifest::Index(entries) => {
            let mut candidates = search.collect(entries)?;
            candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.rank));
            search.first(candidates)
        }
    }
}

fn refused(digest: &Digest) -> impl Fn(ManifestError) -> ResolveError + use<> {
    let digest = digest.clone();
    move |source| ResolveError::Refused { digest: digest.clone(), source }
}

/// An image that may be the one. Without a rank, its configuration has to tell.
struct Candidate {
    descriptor: Descriptor,
    rank: Option<u32>,
}

struct Search<'a, 'f> {
    wanted: &'a Platform,
    fetch: &'a mut Fetch<'f>,
    fetches: u32,
    offered: Vec<String>,
}

impl Search<'_, '_> {
    /// All images that may be the one, of an index and those within it, in order.
    fn collect(&mut self, entries: Vec<Entry>) -> Result<Vec<Candidate>, ResolveError> {
        let mut candidates = Vec::new();
        let mut seen = HashSet::new();
        let mut indexes = vec![(entries, 1)];
        while let Some((entries, depth)) = indexes.pop() {
            for entry in entries {
                if entry.attestation || !seen.insert(entry.descriptor.digest.clone()) {
                    continue;
                }
                let rank = entry.platform.as_ref().map(|platform| self.wanted.suits(platform));
                match (rank, &entry.platform) {
                    (Some(None), Some(platform)) => self.offer(platform),
                    _ if entry.is_index() => {
                        let within = self.index(&entry.descriptor, depth)?;
                        indexes.push((within, depth + 1));
                    }
                    _ if entry.is_image() => {
                        let rank = rank.flatten();
                        candidates.push(Candidate { descriptor: entry.descriptor, rank });
                    }
                    _ => {}
                }
            }
        }
        Ok(candidates)
    }

    fn index(&mut self, descriptor: &Descriptor, depth: u32) -> Result<Vec<Entry>, ResolveError> {
        if depth >= MAX_DEPTH {
            return Err(ResolveError::Depth);
        }
        let bytes = self.fetched(descriptor, "the manifest", MAX_MANIFEST_BYTES)?;
        match super::parse(&bytes, &[&descriptor.media_type]) {
            Ok(Manifest::Index(entries)) => Ok(entries),
            Ok(Manifest::Image { .. }) => Ok(Vec::new()),
            Err(error) => Err(refused(&descriptor.digest)(error)),
        }
    }

    /// The first candidate that is what it should be. One that its index wrongly said to suit ends the search.
    fn first(&mut self, candidates: Vec<Candidate>) -> Result<Image, ResolveError> {
        for Candidate { descriptor, rank } in candidates {
            let bytes = self.fetched(&descriptor, "the manifest", MAX_MANIFEST_BYTES)?;
            let manifest = super::parse(&bytes, &[&descriptor.media_type]);
            let image = match manifest.map_err(refused(&descriptor.digest)) {
                Ok(Manifest::Image { config, layers }) => {
                    self.image(descriptor.digest.clone(), bytes, &config, layers)
                }
                Ok(Manifest::Index(_)) => continue,
                // Without a platform it may be anything, such as a signature.
                Err(_) if rank.is_none() => continue,
                Err(error) => return Err(error),
            };
            match image? {
                Ok(image) => return Ok(image),
                Err(found) if rank.is_none() => self.offer(&found),
                Err(found) => {
                    let (wanted, found) = (Box::new(self.wanted.clone()), Box::new(found));
                    let digest = descriptor.digest;
                    return Err(ResolveError::Lies { digest, wanted, found });
                }
            }
        }
        Err(ResolveError::Platform {
            wanted: Box::new(self.wanted.clone()),
            offered: std::mem::take(&mut self.offered),
        })
    }

    /// Reads the configuration; the inner error is the platform that the image is for instead.
    fn image(
        &mut self,
        manifest_digest: Digest,
        manifest: Vec<u8>,
        config: &Descriptor,
        layers: Vec<Descriptor>,
    ) -> Result<Result<Image, Platform>, ResolveError> {
        let bytes = self.fetched(config, "the configuration", MAX_CONFIG_BYTES)?;
        let parsed = ImageConfig::parse(&bytes).map_err(refused(&config.digest))?;
        if self.wanted.suits(&parsed.platform).is_none() {
            return Ok(Err(parsed.platform));
        }
        let diff_ids = parsed.diff_ids;
        if diff_ids.len() != layers.len() {
            let (diff_ids, layers) = (diff_ids.len(), layers.len());
            return Err(refused(&config.digest)(ManifestError::LayerCount { diff_ids, layers }));
        }
        Ok(Ok(Image { manifest_digest, manifest, config: bytes, layers, diff_ids }))
    }

    fn fetched(
        &mut self,
        descriptor: &Descriptor,
        what: &'static str,
        limit: usize,
    ) -> Result<Vec<u8>, ResolveError> {
        let digest = descriptor.digest.clone();
        if descriptor.size > limit as u64 {
            let (bytes, limit) = (descriptor.size, limit as u64);
            return Err(refused(&digest)(ManifestError::TooLarge { what, bytes, limit }));
        }
        if self.fetches == MAX_FETCHES {
            return Err(ResolveError::Fetches);
        }
        self.fetches += 1;
        let bytes = (self.fetch)(descriptor, limit)
            .map_err(|source| ResolveError::Fetch { digest: digest.clone(), source })?;
        let found = digest_like(&bytes, &digest);
        if found != digest || bytes.len() as u64 != descriptor.size {
            return Err(ResolveError::Corrupt {
                expected: digest,
                expected_bytes: descriptor.size,
                found,
                found_bytes: bytes.len() as u64,
            });
        }
        Ok(bytes)
    }

    fn offer(&mut self, platform: &Platform) {
        // What is printed comes from the image: short, and nothing that moves a cursor.
        let text: String = platform.to_string().chars().take(64).collect();
        let text = text.escape_default().to_string();
        if self.offered.len() < MAX_LISTED && !self.offered.contains(&text) {
            self.offered.push(text);
        }
    }

    fn nothing(&self, found: &Platform) -> ResolveError {
        let offered = vec![found.to_string().escape_default().to_string()];
        ResolveError::Platform { wanted: Box::new(self.wanted.clone()), offered }
    }
}
