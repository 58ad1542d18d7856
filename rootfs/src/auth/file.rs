//! Docker's `config.json` and Podman's `auth.json`, which share a format.
//!
//! Invariant: the most specific key wins, `HOST/a/b` before `HOST/a` before `HOST`, and nothing but the entry of a
//! registry is ever returned for it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::programs::{Answer, Helper};
use super::{AuthError, Credentials, Found, Secret};
use crate::reference::DOCKER_HUB;

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;
/// The name that Docker keeps Docker Hub's credentials under.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Tools differ in whether they pad.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One file, read.
pub(super) struct File {
    path: PathBuf,
    raw: Raw,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Raw {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl File {
    /// Reads a file; `None` if there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, AuthError> {
        let failed = |source| AuthError::Read { path: path.into(), source };
        let file = match std::fs::File::open(path) {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(None);
            }
            other => other.map_err(failed)?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        let malformed = |line| AuthError::Malformed { path: path.into(), line };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(malformed(1));
        }
        if bytes.trim_ascii().is_empty() {
            return Ok(None);
        }
        let raw = serde_json::from_slice(&bytes).map_err(|error| malformed(error.line()))?;
        Ok(Some(Self { path: path.into(), raw }))
    }

    /// Looks a repository up: its registry's own helper, then what is written here, then the helper for all.
    pub(super) fn find(
        &self,
        host: &str,
        repository: &str,
        helper: &Helper<'_>,
    ) -> Result<Found, AuthError> {
        let own = self.raw.cred_helpers.iter().find(|(key, _)| key_of(key) == host);
        if let Some((_, name)) = own
            && let Answer::Found(credentials) = helper.ask(name, host, &server(host))?
        {
            return Ok(Found { credentials, note: None });
        }
        for key in keys(host, repository) {
            let entries = self.raw.auths.iter().filter(|(name, _)| key_of(name) == key);
            for (name, entry) in entries {
                if let Some(credentials) = self.credentials(name, entry)? {
                    return Ok(Found { credentials, note: None });
                }
            }
        }
        if self.raw.creds_store.is_empty() {
            return Ok(Found::anonymous());
        }
        // The helper for all is asked for registries that it may know nothing of: when it is broken, public images can
        // still be had.
        match helper.ask(&self.raw.creds_store, host, &server(host)) {
            Ok(Answer::Found(credentials)) => Ok(Found { credentials, note: None }),
            Ok(Answer::Nothing) => Ok(Found::anonymous()),
            Err(error) => Ok(Found { note: Some(error.to_string()), ..Found::anonymous() }),
        }
    }

    fn credentials(&self, key: &str, entry: &Entry) -> Result<Option<Credentials>, AuthError> {
        let secret = |text: &str| Secret::new(text.to_owned());
        if !entry.identitytoken.is_empty() {
            return Ok(Some(Credentials::Identity(secret(&entry.identitytoken))));
        }
        if !entry.registrytoken.is_empty() {
            return Ok(Some(Credentials::Bearer(secret(&entry.registrytoken))));
        }
        if !entry.username.is_empty() {
            let (username, password) = (entry.username.clone(), secret(&entry.password));
            return Ok(Some(Credentials::Basic { username, password }));
        }
        if entry.auth.is_empty() {
            return Ok(None);
        }
        let decoded = BASE64.decode(entry.auth.trim()).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|text| text.split_once(':'));
        let Some((username, password)) = pair else {
            return Err(AuthError::Entry { path: self.path.clone(), key: key.to_owned() });
        };
        // Some tools leave zero bytes behind the password.
        let password = secret(password.trim_end_matches('\0'));
        Ok(Some(Credentials::Basic { username: username.to_owned(), password }))
    }
}

/// The keys of a repository, the most specific first.
fn keys<'a>(host: &'a str, repository: &str) -> impl Iterator<Item = String> + use<'a> {
    let mut path = repository.to_owned();
    let mut keys = Vec::new();
    while !path.is_empty() {
        keys.push(format!("{host}/{path}"));
        path.truncate(path.rfind('/').unwrap_or(0));
    }
    keys.push(host.to_owned());
    keys.into_iter()
}

/// A key as it is compared: with a scheme it stands for a whole host, and Docker Hub has one name.
fn key_of(key: &str) -> String {
    let key = match key.split_once("://") {
        Some((_, rest)) => rest.split('/').next().unwrap_or_default(),
        None => key.trim_end_matches('/'),
    };
    let key = ["/v1", "/v2"].iter().find_map(|end| key.strip_suffix(end)).unwrap_or(key);
    let (host, path) = match key.split_once('/') {
        Some((host, path)) => (host, Some(path)),
        None => (key, None),
    };
    let host = host.to_ascii_lowercase();
    let hub = ["index.docker.io", "registry-1.docker.io"].contains(&host.as_str());
    let host = if hub { DOCKER_HUB.to_owned() } else { host };
    path.map_or_else(|| host.clone(), |path| format!("{host}/{path}"))
}

/// How a helper knows a registry.
fn server(host: &str) -> String {
    if host == DOCKER_HUB { HUB_KEY.to_owned() } else { host.to_owned() }
}
