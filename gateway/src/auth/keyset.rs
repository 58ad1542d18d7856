//! The key that signs tokens, in files: `signing.pem`, `public.pem` and `kid` in a directory of their own.
//!
//! Called at start and by `generate-certs`. A set is made once and then only read: a new one makes every token void.
//!
//! Invariant: `kid` is written last, so that a set with a name is whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use sha2::{Digest as _, Sha256};

use super::token::{TokenError, new_pkcs8};

/// Only its owner reads it.
pub(crate) const SECRET: u32 = 0o600;
/// Everybody may read it.
pub(crate) const PUBLIC: u32 = 0o644;
/// What stands before the 32 bytes of a public Ed25519 key (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why there is no set.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// A file or directory of the set cannot be made or read.
    #[error("{} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no key to write.
    #[error("no key can be made")]
    Key(#[source] TokenError),
}

/// Files of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet {
    /// The signing key, Ed25519 in PKCS #8, PEM. Secret.
    pub signing: PathBuf,
    /// Its public half, PEM.
    pub public: PathBuf,
    /// The name of the key.
    pub kid: PathBuf,
}

impl KeySet {
    /// The files that a directory has, or would have.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        Self {
            signing: dir.join("signing.pem"),
            public: dir.join("public.pem"),
            kid: dir.join("kid"),
        }
    }

    /// Whether the set can be read.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.signing.is_file() && self.kid.is_file()
    }

    /// The set of a directory, made if there is none.
    ///
    /// # Errors
    ///
    /// [`KeySetError`].
    pub fn keep(dir: &Path) -> Result<Self, KeySetError> {
        let set = Self::of(dir);
        if !set.is_whole() {
            set.make(dir)?;
        }
        Ok(set)
    }

    fn make(&self, dir: &Path) -> Result<(), KeySetError> {
        make_dir(dir).map_err(|source| KeySetError::File { path: dir.to_owned(), source })?;
        let key = new_pkcs8().map_err(KeySetError::Key)?;
        let pair = Ed25519KeyPair::from_pkcs8(&key)
            .map_err(|_| KeySetError::Key(TokenError::SigningKey))?;
        let public = pair.public_key().as_ref();
        let spki = [&SPKI[..], public].concat();
        let digest = Sha256::digest(public);
        let kid = URL_SAFE_NO_PAD.encode(digest.get(..12).unwrap_or(&digest));
        for (path, text, mode) in [
            (&self.signing, pem("PRIVATE KEY", &key), SECRET),
            (&self.public, pem("PUBLIC KEY", &spki), PUBLIC),
            (&self.kid, kid, PUBLIC),
        ] {
            replace(path, text.as_bytes(), mode)
                .map_err(|source| KeySetError::File { path: path.clone(), source })?;
        }
        Ok(())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// A directory for secrets, with those above it.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes a file whole or not at all, and has it on the disk.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let staged = path.with_file_name(name);
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::auth::token::Keys;

    fn keys(set: &KeySet) -> Keys {
        let read = |path| fs::read_to_string(path).unwrap();
        Keys::from_pem(&read(&set.signing), &read(&set.kid), "here", None).unwrap()
    }

    #[test]
    fn a_token_outlives_the_process_that_made_it() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("state/jwt");
        let token = keys(&KeySet::keep(&dir).unwrap()).mint("a").unwrap().text;
        assert_eq!(keys(&KeySet::keep(&dir).unwrap()).verify(&token), Ok("a".to_owned()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let set = KeySet::of(&dir);
        assert_eq!((mode(&dir), mode(&set.signing), mode(&set.public)), (0o700, 0o600, 0o644));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "nothing staged is left");
    }

    #[test]
    fn a_set_without_a_name_is_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let set = KeySet::keep(place.path()).unwrap();
        let token = keys(&set).mint("a").unwrap().text;
        fs::remove_file(&set.kid).unwrap();
        assert!(!set.is_whole());
        assert!(keys(&KeySet::keep(place.path()).unwrap()).verify(&token).is_err());
    }
}
