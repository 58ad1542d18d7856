//! Credentials for registries: where they are kept on a host, and which of them a registry gets.
//!
//! Invariant: a secret is never printed, and a registry gets only what was kept for it; a mirror never gets what was
//! kept for the registry that it stands for. Blocking: a credential helper is a process, and files are read each time.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

mod file;
mod programs;

/// How long a credential helper may take unless said otherwise.
const HELPER_DEADLINE: Duration = Duration::from_secs(10);
/// What the GitHub registry takes for a name beside a token.
const TOKEN_NAME: &str = "__token__";

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text from being printed.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for a request.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// What a registry, or the server that makes its tokens, is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    Anonymous,
    /// A name and a password.
    Basic {
        /// The name.
        username: String,
        /// The password, or a token in its place.
        password: Secret,
    },
    /// A long-lived token that is exchanged for short-lived ones.
    Identity(Secret),
    /// A token that the registry takes as it is.
    Bearer(Secret),
}

/// What was found for a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What to show.
    pub credentials: Credentials,
    /// Why there may be nothing better, for the text of a refusal.
    pub note: Option<String>,
}

impl Found {
    fn anonymous() -> Self {
        Self { credentials: Credentials::Anonymous, note: None }
    }
}

/// Why credentials could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A file is there and cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be. Its text is not quoted: it holds secrets.
    #[error("{path} is not a file of credentials, see line {line}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
    /// An entry of a file cannot be decoded.
    #[error("{path} has an unreadable entry for {key}")]
    Entry {
        /// Which file.
        path: PathBuf,
        /// Whose entry.
        key: String,
    },
    /// A credential helper did not answer.
    #[error("credential helper {helper} for {host}: {why}")]
    Helper {
        /// Which program.
        helper: String,
        /// For which registry.
        host: String,
        /// What went wrong.
        why: String,
    },
    /// A token without the name that goes with it.
    #[error(
        "OPENSHELL_REGISTRY_TOKEN is set for {0}, which also needs OPENSHELL_REGISTRY_USERNAME"
    )]
    NoUsername(String),
}

/// The places that credentials are looked up in.
#[derive(Debug, Clone, Default)]
pub struct Keychain {
    username: Option<String>,
    token: Option<Secret>,
    /// Files in order; those that are not there are passed over.
    files: Vec<PathBuf>,
    deadline: Option<Duration>,
    /// Where helpers are looked for instead of `PATH`.
    helpers: Option<OsString>,
}

impl Keychain {
    /// No credentials for anybody.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// What the environment of a process says, by a function such as [`std::env::var_os`].
    ///
    /// `OPENSHELL_REGISTRY_TOKEN` with `OPENSHELL_REGISTRY_USERNAME` comes before every file, and goes to the registry that a
    /// reference names. Files: `REGISTRY_AUTH_FILE`, or else Podman's two `auth.json` and Docker's `config.json`.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let home = path("HOME");
        let below_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
        let files = match path("REGISTRY_AUTH_FILE") {
            Some(file) => vec![Some(file)],
            None => vec![
                path("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")),
                path("XDG_CONFIG_HOME")
                    .map(|directory| directory.join("containers/auth.json"))
                    .or_else(|| below_home(".config/containers/auth.json")),
                path("DOCKER_CONFIG")
                    .map(|directory| directory.join("config.json"))
                    .or_else(|| below_home(".docker/config.json")),
            ],
        };
        Self {
            username: text("OPENSHELL_REGISTRY_USERNAME"),
            token: text("OPENSHELL_REGISTRY_TOKEN").map(Secret),
            files: files.into_iter().flatten().collect(),
            ..Self::default()
        }
    }

    /// Credentials for a repository of the registry that a reference names.
    ///
    /// # Errors
    ///
    /// When a file is unreadable, or the helper that was chosen for this registry does not answer.
    pub fn for_registry(&self, host: &str, repository: &str) -> Result<Found, AuthError> {
        let Some(token) = &self.token else {
            return self.for_mirror(host, repository);
        };
        let username = match &self.username {
            Some(username) => username.clone(),
            None if host == "ghcr.io" => TOKEN_NAME.to_owned(),
            None => return Err(AuthError::NoUsername(host.to_owned())),
        };
        let credentials = Credentials::Basic { username, password: token.clone() };
        Ok(Found { credentials, note: None })
    }

    /// Credentials for a mirror: only those that files keep under its own name.
    ///
    /// # Errors
    ///
    /// As [`Keychain::for_registry`].
    pub fn for_mirror(&self, host: &str, repository: &str) -> Result<Found, AuthError> {
        let mut note = None;
        for path in &self.files {
            let Some(file) = file::File::read(path)? else { continue };
            let found = file.find(host, repository, &self.helper())?;
            if found.credentials != Credentials::Anonymous {
                return Ok(found);
            }
            note = note.or(found.note);
        }
        Ok(Found { note, ..Found::anonymous() })
    }

    fn helper(&self) -> programs::Helper<'_> {
        let deadline = self.deadline.unwrap_or(HELPER_DEADLINE);
        programs::Helper { deadline, path: self.helpers.as_deref() }
    }
}

#[cfg(test)]
mod tests;
