//! Image references as a user writes them: a registry's image or something on this host, parsed into one enum.
//!
//! Invariant: what a [`RegistryReference`] holds is safe in a URL: a host with an optional port, a lower-case repository,
//! an ASCII tag and a validated digest. The grammar of registry names is that of `oci-client`, which is distribution's,
//! narrowed where it lets more through than a registry takes. Pure.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::digest::{Digest, InvalidDigest};

/// The registry that a name without a host means.
pub const DOCKER_HUB: &str = "docker.io";

/// Longest reference that is looked at, in bytes.
const MAX_LEN: usize = 4096;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// An image of a registry: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, with or without `docker://`.
    Registry(RegistryReference),
    /// `oci:DIRECTORY[:NAME|@DIGEST]`: an image layout.
    Layout {
        /// The directory with `index.json`.
        directory: PathBuf,
        /// Which of its images; the only one unless given.
        select: Option<Select>,
    },
    /// `docker-archive:FILE[:NAME]`: what `docker save` wrote.
    DockerArchive {
        /// The archive.
        file: PathBuf,
        /// Which of its images; the only one unless given.
        name: Option<String>,
    },
    /// `rootfs-tar:FILE`: a root file system in one archive, plain or compressed.
    RootfsTar(PathBuf),
    /// `dir:DIRECTORY`, or a path that starts with `/`, `./` or `../`: a root file system as it lies there.
    Directory(PathBuf),
}

/// An image among those of a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Select {
    /// By `org.opencontainers.image.ref.name`.
    Name(String),
    /// By the digest of its manifest or index.
    Digest(Digest),
}

/// A validated name of an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text that names no image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Longer than any name can be.
    #[error("the reference has {0} bytes; at most {MAX_LEN} are looked at")]
    TooLong(usize),
    /// Outside the grammar of registry names.
    #[error("{text:?} does not name an image")]
    Name {
        /// The reference.
        text: String,
        /// What the grammar says.
        #[source]
        source: oci_client::ParseError,
    },
    /// The tag has characters that only look like those of a tag.
    #[error("tag {0:?} has characters outside ASCII")]
    Tag(String),
    /// The repository has upper-case letters, as a host may and a repository may not.
    #[error("repository {0:?} must be lower-case")]
    Uppercase(String),
    /// The port does not exist.
    #[error("{0:?} has no port between 1 and 65535")]
    Port(String),
    /// The part behind `@` is no digest.
    #[error("{text:?} does not name an image")]
    Digest {
        /// The reference.
        text: String,
        /// What is wrong with the digest.
        #[source]
        source: InvalidDigest,
    },
    /// A form that needs a path has none.
    #[error("{0:?} names no file or directory")]
    NoPath(String),
    /// A path or name with a NUL byte, which no file has.
    #[error("{0:?} holds a NUL character")]
    Nul(String),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_LEN {
            return Err(ReferenceError::TooLong(text.len()));
        }
        if text.contains('\0') {
            return Err(ReferenceError::Nul(text.into()));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            return layout(text, rest);
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, name) = match rest.split_once(':') {
                Some((file, name)) => (file, Some(name.to_owned())),
                None => (rest, None),
            };
            return Ok(Self::DockerArchive { file: path(text, file)?, name });
        }
        if let Some(rest) = text.strip_prefix("rootfs-tar:") {
            return Ok(Self::RootfsTar(path(text, rest)?));
        }
        if let Some(rest) = text.strip_prefix("dir:") {
            return Ok(Self::Directory(path(text, rest)?));
        }
        let local = ["/", "./", "../"].iter().any(|prefix| text.starts_with(prefix));
        if local || text == "." || text == ".." {
            return Ok(Self::Directory(text.into()));
        }
        text.strip_prefix("docker://").unwrap_or(text).parse().map(Self::Registry)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout { directory, select } => {
                write!(f, "oci:{}", directory.display())?;
                match select {
                    None => Ok(()),
                    Some(Select::Name(name)) => write!(f, ":{name}"),
                    Some(Select::Digest(digest)) => write!(f, "@{digest}"),
                }
            }
            Self::DockerArchive { file, name } => {
                write!(f, "docker-archive:{}", file.display())?;
                name.iter().try_for_each(|name| write!(f, ":{name}"))
            }
            Self::RootfsTar(file) => write!(f, "rootfs-tar:{}", file.display()),
            Self::Directory(directory) => write!(f, "dir:{}", directory.display()),
        }
    }
}

/// `DIRECTORY`, `DIRECTORY:NAME` or `DIRECTORY@DIGEST`. The first colon ends the directory, as in other tools.
fn layout(text: &str, rest: &str) -> Result<Reference, ReferenceError> {
    if let Some((directory, digest)) = rest.rsplit_once('@')
        && let Ok(digest) = digest.parse()
    {
        let directory = path(text, directory)?;
        return Ok(Reference::Layout { directory, select: Some(Select::Digest(digest)) });
    }
    let (directory, name) = match rest.split_once(':') {
        Some((directory, name)) => (directory, Some(name)),
        None => (rest, None),
    };
    let select = name.filter(|name| !name.is_empty()).map(|name| Select::Name(name.to_owned()));
    Ok(Reference::Layout { directory: path(text, directory)?, select })
}

fn path(text: &str, path: &str) -> Result<PathBuf, ReferenceError> {
    if path.is_empty() {
        return Err(ReferenceError::NoPath(text.into()));
    }
    Ok(path.into())
}

impl RegistryReference {
    /// The host, with a port where one was given; `docker.io` for Docker Hub.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository, such as `library/debian`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag: `latest` where neither a tag nor a digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index, if the reference pins one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the registry is asked for: the digest if there is one, the tag otherwise.
    #[must_use]
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl FromStr for RegistryReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_LEN {
            return Err(ReferenceError::TooLong(text.len()));
        }
        let parsed: oci_client::Reference =
            text.parse().map_err(|source| ReferenceError::Name { text: text.into(), source })?;
        let digest = parsed
            .digest()
            .map(Digest::from_str)
            .transpose()
            .map_err(|source| ReferenceError::Digest { text: text.into(), source })?;
        if let Some(tag) = parsed.tag().filter(|tag| !tag.is_ascii()) {
            return Err(ReferenceError::Tag(tag.into()));
        }
        // The grammar takes the first component for a host, which it then may turn out not to be.
        if parsed.repository().bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(parsed.repository().into()));
        }
        let registry = parsed.registry().to_ascii_lowercase();
        if let Some((_, port)) = registry.split_once(':')
            && !port.parse::<u16>().is_ok_and(|port| port > 0)
        {
            return Err(ReferenceError::Port(registry));
        }
        Ok(Self {
            registry,
            repository: parsed.repository().to_owned(),
            tag: parsed.tag().map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests;
