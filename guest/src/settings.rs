//! What the supervisor is told, by its environment and its arguments.
//!
//! Pure: [`Settings::read`] takes both as values. The names are OpenShell's (`docs/guest.md`). Invariant: secrets are in no error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

const SPEC_PREFIX: &str = "base64url:";
const SPEC_MAX: usize = 1 << 20;
const DEFAULT_SOCKET: &str = "/run/openshell/ssh.sock";
/// Names that are the supervisor's own and not for the sandbox's processes.
const OWN: &str = "OPENSHELL_";

/// Where the token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// The environment.
    Value(String),
    /// A file, read anew for each session.
    File(PathBuf),
}

impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Files of a TLS client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The only authority that is trusted.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The name to expect instead of the endpoint's host.
    pub server_name: Option<String>,
}

/// What to run as the main process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MainSpec {
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
}

/// Everything the supervisor is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The gateway's URL.
    pub endpoint: String,
    /// The sandbox.
    pub sandbox_id: String,
    /// Where the token comes from.
    pub token: TokenSource,
    /// Files for an `https` endpoint.
    pub tls: Option<TlsFiles>,
    /// Where the SSH server listens.
    pub ssh_socket: PathBuf,
    /// The main process.
    pub main: MainSpec,
    /// Where processes start.
    pub workdir: PathBuf,
    /// Environment of the sandbox's processes.
    pub environment: BTreeMap<String, String>,
    /// Whose they are, when the policy does not say.
    pub user: String,
}

/// What is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Something that is needed is missing.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A value cannot be.
    #[error("{name} cannot be used: {reason}")]
    Bad {
        /// The variable.
        name: &'static str,
        /// Why.
        reason: String,
    },
    /// An argument is not known.
    #[error("argument {0:?} is not known")]
    Argument(String),
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// What is missing or cannot be.
    pub fn read(
        variables: impl IntoIterator<Item = (String, String)>,
        args: impl IntoIterator<Item = String>,
    ) -> Result<Self, SettingsError> {
        let all: BTreeMap<String, String> = variables.into_iter().collect();
        let text = |name: &str| all.get(name).filter(|value| !value.is_empty()).cloned();
        let need = |name: &'static str| text(name).ok_or(SettingsError::Missing(name));
        let endpoint = need("OPENSHELL_ENDPOINT")?;
        let token = match (text("OPENSHELL_SANDBOX_TOKEN"), text("OPENSHELL_SANDBOX_TOKEN_FILE")) {
            (Some(token), _) => TokenSource::Value(token),
            (None, Some(path)) => TokenSource::File(path.into()),
            (None, None) => return Err(SettingsError::Missing("OPENSHELL_SANDBOX_TOKEN_FILE")),
        };
        let tls = endpoint.starts_with("https://").then(|| {
            let file = |name| need(name).map(PathBuf::from);
            Ok(TlsFiles {
                ca: file("OPENSHELL_TLS_CA")?,
                cert: file("OPENSHELL_TLS_CERT")?,
                key: file("OPENSHELL_TLS_KEY")?,
                server_name: text("OPENSHELL_GATEWAY_TLS_SERVER_NAME"),
            })
        });
        let main = match text("OPENSHELL_MAIN_PROCESS_SPEC") {
            Some(spec) => main_spec(&spec)?,
            None => MainSpec::shell(),
        };
        let user = text("OPENSHELL_SANDBOX_USER").unwrap_or_else(|| "sandbox".to_owned());
        Ok(Self {
            sandbox_id: need("OPENSHELL_SANDBOX_ID")?,
            token,
            tls: tls.transpose()?,
            ssh_socket: text("OPENSHELL_SSH_SOCKET_PATH")
                .map_or(DEFAULT_SOCKET.into(), PathBuf::from),
            main,
            workdir: workdir(args)?,
            environment: environment(&all)?,
            user,
            endpoint,
        })
    }
}

impl MainSpec {
    /// A login shell on a terminal: what an empty command means.
    fn shell() -> Self {
        Self { command: vec!["/bin/bash".to_owned(), "-l".to_owned()], tty: true }
    }
}

/// The environment of the sandbox's processes: what the user gave, over what is set here without being ours.
fn environment(all: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, SettingsError> {
    let name = "OPENSHELL_USER_ENVIRONMENT";
    let mut found: BTreeMap<String, String> =
        all.iter().filter(|(name, _)| !name.starts_with(OWN)).map(clone).collect();
    if let Some(json) = all.get(name).filter(|json| !json.is_empty()) {
        // The parser's words may quote what it read.
        let given: BTreeMap<String, String> = serde_json::from_str(json).map_err(|error| {
            let reason = format!("no map of strings at column {}", error.column());
            SettingsError::Bad { name, reason }
        })?;
        found.extend(given.into_iter().filter(|(name, _)| !name.starts_with(OWN)));
    }
    Ok(found)
}

fn clone((name, value): (&String, &String)) -> (String, String) {
    (name.clone(), value.clone())
}

/// `base64url:` and JSON `{version: 1, command: [...], tty: bool}`.
fn main_spec(text: &str) -> Result<MainSpec, SettingsError> {
    #[derive(Deserialize)]
    struct Wire {
        version: u32,
        #[serde(default)]
        command: Vec<String>,
        #[serde(default)]
        tty: bool,
    }
    let bad = |reason: &str| SettingsError::Bad {
        name: "OPENSHELL_MAIN_PROCESS_SPEC",
        reason: reason.to_owned(),
    };
    let encoded = text.strip_prefix(SPEC_PREFIX).ok_or_else(|| bad("no base64url"))?;
    if encoded.len() > SPEC_MAX {
        return Err(bad("too long"));
    }
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| bad("no base64url"))?;
    let wire: Wire = serde_json::from_slice(&bytes).map_err(|_| bad("not the JSON expected"))?;
    if wire.version != 1 {
        return Err(bad("not version 1"));
    }
    if wire.command.iter().any(|word| word.contains('\0')) {
        return Err(bad("a NUL in a word"));
    }
    match wire.command.first() {
        None => Ok(MainSpec::shell()),
        Some(program) if program.is_empty() => Err(bad("no program")),
        Some(_) => Ok(MainSpec { command: wire.command, tty: wire.tty }),
    }
}

fn workdir(args: impl IntoIterator<Item = String>) -> Result<PathBuf, SettingsError> {
    let mut workdir = PathBuf::from("/sandbox");
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let value = match arg.strip_prefix("--workdir") {
            Some("") => args.next(),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        let path = value.filter(|path| path.starts_with('/')).map(PathBuf::from);
        workdir = path.ok_or(SettingsError::Argument(arg))?;
    }
    Ok(workdir)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(json: &str) -> String {
        format!("{SPEC_PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    fn base() -> Vec<(String, String)> {
        [
            ("OPENSHELL_ENDPOINT", "http://host.openshell.internal:17670"),
            ("OPENSHELL_SANDBOX_ID", "id-1"),
            ("OPENSHELL_SANDBOX_TOKEN_FILE", "/opt/openshell/auth/sandbox.jwt"),
            ("PATH", "/bin"),
            ("A", "outer"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    fn with(more: &[(&str, &str)], args: &[&str]) -> Result<Settings, SettingsError> {
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::read(base().into_iter().chain(more), args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn the_least_has_defaults() {
        let settings = with(&[], &[]).unwrap();
        assert_eq!(settings.main, MainSpec::shell());
        assert_eq!(settings.ssh_socket, PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(settings.workdir, PathBuf::from("/sandbox"));
        assert_eq!(settings.user, "sandbox");
        assert_eq!(settings.tls, None);
        let names: Vec<&String> = settings.environment.keys().collect();
        assert_eq!(names, ["A", "PATH"], "nothing of ours reaches the sandbox");
    }

    #[test]
    fn the_users_environment_wins_and_cannot_be_ours() {
        let json = r#"{"A": "user", "OPENSHELL_SANDBOX_TOKEN": "x", "B": "é\n"}"#;
        let settings = with(&[("OPENSHELL_USER_ENVIRONMENT", json)], &[]).unwrap();
        let expected = [("A", "user"), ("B", "é\n"), ("PATH", "/bin")];
        assert_eq!(
            settings.environment,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        );
    }

    #[test]
    fn main_processes_are_read() {
        let read = |json: &str| with(&[("OPENSHELL_MAIN_PROCESS_SPEC", &spec(json))], &[]);
        let main = read(r#"{"version":1,"command":["sleep","1"],"tty":false}"#).unwrap().main;
        assert_eq!(main, MainSpec { command: vec!["sleep".into(), "1".into()], tty: false });
        let main = read(r#"{"version":1,"command":[],"tty":false}"#).unwrap().main;
        assert_eq!(main, MainSpec::shell());
        for json in [
            r#"{"version":2,"command":["a"]}"#,
            r#"{"version":1,"command":[""]}"#,
            r#"{"version":1,"command":["a\u0000"]}"#,
            "[]",
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        assert!(with(&[("OPENSHELL_MAIN_PROCESS_SPEC", "e30")], &[]).is_err());
    }

    #[test]
    fn https_needs_its_files() {
        let https = ("OPENSHELL_ENDPOINT", "https://h:1");
        assert_eq!(with(&[https], &[]), Err(SettingsError::Missing("OPENSHELL_TLS_CA")));
        let files = [
            https,
            ("OPENSHELL_TLS_CA", "/a"),
            ("OPENSHELL_TLS_CERT", "/b"),
            ("OPENSHELL_TLS_KEY", "/c"),
        ];
        assert_eq!(with(&files, &[]).unwrap().tls.unwrap().key, PathBuf::from("/c"));
    }

    #[test]
    fn a_working_directory_is_given_as_an_argument() {
        for args in [&["--workdir", "/w"][..], &["--workdir=/w"]] {
            assert_eq!(with(&[], args).unwrap().workdir, PathBuf::from("/w"));
        }
        for args in [&["--workdir"][..], &["--workdir", "w"], &["--odd"], &["--workdirs"]] {
            assert!(matches!(with(&[], args), Err(SettingsError::Argument(_))), "{args:?}");
        }
    }

    #[test]
    fn secrets_are_in_no_text() {
        let settings = with(&[("OPENSHELL_SANDBOX_TOKEN", "secret")], &[]).unwrap();
        assert!(!format!("{settings:?}").contains("secret"));
        let error = with(&[("OPENSHELL_USER_ENVIRONMENT", r#"{"A": secret}"#)], &[]).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    proptest! {
        #[test]
        fn any_values_are_judged(spec in ".{0,60}", json in ".{0,60}") {
            drop(with(&[("OPENSHELL_MAIN_PROCESS_SPEC", &spec), ("OPENSHELL_USER_ENVIRONMENT", &json)], &[]));
        }
    }
}
