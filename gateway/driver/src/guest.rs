//! What a guest is told: the configuration of its first process and the files with its secrets.
//!
//! Invariant: secrets are in files and never in an environment; what the user sets never replaces what the driver sets. The
//! format is that of docs/guest.md. Pure but for the clock.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

/// The most bytes that the configuration may have, and the most variables.
const MAX_CONFIG_BYTES: usize = 1 << 20;
const MAX_VARIABLES: usize = 4096;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TOKEN_FILE: &str = "/opt/openshell/auth/sandbox.jwt";
const TLS: [(&str, &str, u16); 3] = [
    ("OPENSHELL_TLS_CA", "/opt/openshell/tls/ca.crt", 0o644),
    ("OPENSHELL_TLS_CERT", "/opt/openshell/tls/tls.crt", 0o644),
    ("OPENSHELL_TLS_KEY", "/opt/openshell/tls/tls.key", 0o600),
];

/// Certificates of a guest, in PEM: the authority, its own, its key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct GuestTls {
    /// In the order of the flags.
    pub(crate) files: [Vec<u8>; 3],
}

impl fmt::Debug for GuestTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestTls")
    }
}

/// A file for a guest, root's.
#[derive(Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Its path on the config disk.
    pub path: String,
    /// Its mode.
    pub mode: u16,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for GuestFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:o} ({} bytes)", self.path, self.mode, self.bytes.len())
    }
}

/// All files of a config disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestFiles {
    /// The files.
    pub files: Vec<GuestFile>,
}

/// What a guest's configuration is made from.
#[derive(Debug, Clone)]
pub(crate) struct Guest<'a> {
    pub(crate) sandbox_id: &'a str,
    pub(crate) sandbox_name: &'a str,
    /// The gateway's URL as the guest dials it.
    pub(crate) endpoint: &'a str,
    pub(crate) log_level: &'a str,
    pub(crate) telemetry: bool,
    pub(crate) token: &'a str,
    pub(crate) tls: Option<&'a GuestTls>,
    /// What the user set.
    pub(crate) environment: &'a BTreeMap<String, String>,
    pub(crate) command: &'a [String],
    pub(crate) tty: bool,
    pub(crate) supervisor: &'a str,
}

/// More than a guest takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GuestError {
    /// A variable's name or value cannot be one.
    #[error(
        "environment variable {0:?} cannot be set; a name is not empty and has no '=', and nothing has a NUL"
    )]
    Variable(String),
    /// Too much.
    #[error(
        "command and environment are too large; they may have {MAX_CONFIG_BYTES} bytes as JSON and {MAX_VARIABLES} variables"
    )]
    TooLarge,
}

impl Guest<'_> {
    /// The files of the config disk.
    pub(crate) fn files(&self, now_unix_ms: u64) -> Result<GuestFiles, GuestError> {
        let environment = self.build_guest_environment()?;
        let variables: Vec<String> =
            environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let config = json!({
            "version": 1,
            "hostname": hostname(self.sandbox_name),
            "clock_unix_ms": now_unix_ms,
            "network": {
                "interface": "eth0",
                "mode": "static",
                "address": "192.168.127.2/24",
                "gateway": "192.168.127.1",
                "dns": ["192.168.127.1"],
            },
            "hosts": [
                { "address": "192.168.127.254", "names": [
                    "host.openshell.internal", "host.containers.internal", "host.docker.internal",
                ]},
                { "address": "192.168.127.1", "names": ["gateway.containers.internal"] },
            ],
            "directories": [{
                "path": "/sandbox",
                // The guest knows its number: an image may have a user of this name.
                "owner": "sandbox",
                "mode": "0755",
            }],
            "programs": ["ip", "nsenter"],
            "process": {
                "args": [self.supervisor, "--workdir", "/sandbox"],
                "env": variables,
                "cwd": "/",
                "user": "0:0",
                "tty": false,
                "pid1": false,
            },
        });
        let config = config.to_string().into_bytes();
        if config.len() > MAX_CONFIG_BYTES || variables.len() > MAX_VARIABLES {
            return Err(GuestError::TooLarge);
        }
        let mut files =
            vec![GuestFile { path: "/config.json".to_owned(), mode: 0o600, bytes: config }];
        let mut place = |target: &str, mode, bytes| {
            files.push(GuestFile { path: format!("/files{target}"), mode, bytes });
        };
        if let Some(tls) = self.tls {
            for ((_, target, mode), bytes) in TLS.iter().zip(&tls.files) {
                place(target, *mode, bytes.clone());
            }
        }
        if !self.token.is_empty() {
            place(TOKEN_FILE, 0o600, format!("{}\n", self.token).into_bytes());
        }
        Ok(GuestFiles { files })
    }

    /// The environment of the supervisor.
    fn build_guest_environment(&self) -> Result<BTreeMap<String, String>, GuestError> {
        let mut all = BTreeMap::new();
        for (name, value) in self.environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(GuestError::Variable(name.chars().take(60).collect()));
            }
            // Names of ours that a user sets are not passed on under any circumstances.
            if !name.starts_with("OPENSHELL_") {
                all.insert(name.clone(), value.clone());
            }
        }
        let user = serde_json::to_string(&all).unwrap_or_default();
        let mut set = |name: &str, value: &str| all.insert(name.to_owned(), value.to_owned());
        set("OPENSHELL_USER_ENVIRONMENT", &user);
        set("PATH", PATH);
        set("HOME", "/sandbox");
        set("USER", "sandbox");
        set("TERM", "xterm");
        set("OPENSHELL_ENDPOINT", self.endpoint);
        set("OPENSHELL_SANDBOX_ID", self.sandbox_id);
        set("OPENSHELL_SANDBOX", self.sandbox_name);
        set("OPENSHELL_SSH_SOCKET_PATH", "/run/openshell/ssh.sock");
        set("OPENSHELL_LOG_LEVEL", self.log_level);
        set("OPENSHELL_TELEMETRY_ENABLED", if self.telemetry { "true" } else { "false" });
        set("OPENSHELL_NETWORK_RUNTIME_CAPABILITIES", "");
        set("OPENSHELL_SANDBOX_TOKEN_FILE", TOKEN_FILE);
        set("OPENSHELL_MAIN_PROCESS_SPEC", &self.main_process());
        if self.tls.is_some() {
            for (name, target, _) in TLS {
                set(name, target);
            }
        }
        if all.values().any(|value| value.contains('\0')) {
            return Err(GuestError::Variable("OPENSHELL_SANDBOX".to_owned()));
        }
        Ok(all)
    }

    fn main_process(&self) -> String {
        let shell = ["/bin/bash".to_owned(), "-l".to_owned()];
        let (command, tty) =
            if self.command.is_empty() { (&shell[..], true) } else { (self.command, self.tty) };
        let spec = json!({ "version": 1, "command": command, "tty": tty });
        format!("base64url:{}", URL_SAFE_NO_PAD.encode(spec.to_string()))
    }
}

/// A name that a host can have, made from a sandbox's.
fn hostname(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let name: String = name.chars().filter(|c| allowed(*c)).take(63).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "sandbox".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn check(
        name: &str,
        tls: Option<&GuestTls>,
        command: &[String],
    ) -> (GuestFiles, Value, BTreeMap<String, String>) {
        let user = BTreeMap::from([
            ("A".to_owned(), "1".to_owned()),
            ("PATH".to_owned(), "/evil".to_owned()),
            ("OPENSHELL_SANDBOX_TOKEN".to_owned(), "stolen".to_owned()),
        ]);
        let guest = Guest {
            sandbox_id: "id-1",
            sandbox_name: name,
            endpoint: "https://host.openshell.internal:1",
            log_level: "info",
            telemetry: false,
            token: "secret-token",
            tls,
            environment: &user,
            command,
            tty: false,
            supervisor: "/bin/supervisor",
        };
        let files = guest.files(1_790_000_000_000).expect("files");
        let config: Value = serde_json::from_slice(&files.files[0].bytes).expect("JSON");
        // What the guest's first process does not know it refuses.
        openshell_init::config::parse(&files.files[0].bytes).expect("taken by the guest");
        let variables = config["process"]["env"].as_array().expect("a list");
        let variables = variables.iter().map(|variable| {
            let (name, value) =
                variable.as_str().and_then(|v| v.split_once('=')).expect("NAME=VALUE");
            (name.to_owned(), value.to_owned())
        });
        let variables = variables.collect();
        (files, config, variables)
    }

    #[test]
    fn build_guest_environment_uses_token_file_without_raw_token_env() {
        let (files, _, env) = check("work", None, &[]);
        assert_eq!(env["OPENSHELL_SANDBOX_TOKEN_FILE"], "/opt/openshell/auth/sandbox.jwt");
        assert!(!env.contains_key("OPENSHELL_SANDBOX_TOKEN"));
        assert!(!env.contains_key("OPENSHELL_GATEWAY_TLS_SERVER_NAME"));
        assert!(env.values().all(|value| !value.contains("secret-token")));
        let token = &files.files[1];
        assert_eq!(token.path, "/files/opt/openshell/auth/sandbox.jwt");
        assert_eq!((token.mode, &token.bytes[..]), (0o600, &b"secret-token\n"[..]));
        assert!(!format!("{files:?}").contains("secret"));
    }

    #[test]
    fn the_user_sets_what_the_driver_does_not() {
        let (_, _, env) = check("work", None, &[]);
        assert_eq!(env["A"], "1");
        assert_eq!(env["PATH"], PATH);
        assert_eq!(env["OPENSHELL_USER_ENVIRONMENT"], r#"{"A":"1","PATH":"/evil"}"#);
        assert_eq!(env["OPENSHELL_ENDPOINT"], "https://host.openshell.internal:1");
        assert_eq!((&*env["OPENSHELL_SANDBOX_ID"], &*env["OPENSHELL_SANDBOX"]), ("id-1", "work"));
        assert_eq!((&*env["HOME"], &*env["USER"]), ("/sandbox", "sandbox"));
    }

    #[test]
    fn stage_guest_tls_materials_places_files_with_private_key_mode() {
        let tls = GuestTls { files: [b"ca".to_vec(), b"crt".to_vec(), b"key".to_vec()] };
        let (files, _, env) = check("work", Some(&tls), &[]);
        let shown: Vec<_> =
            files.files[1..4].iter().map(|f| (f.path.as_str(), f.mode, &f.bytes[..])).collect();
        assert_eq!(
            shown,
            [
                ("/files/opt/openshell/tls/ca.crt", 0o644, &b"ca"[..]),
                ("/files/opt/openshell/tls/tls.crt", 0o644, &b"crt"[..]),
                ("/files/opt/openshell/tls/tls.key", 0o600, &b"key"[..]),
            ]
        );
        assert_eq!(env["OPENSHELL_TLS_KEY"], "/opt/openshell/tls/tls.key");
        let (_, _, plain) = check("work", None, &[]);
        assert!(!plain.contains_key("OPENSHELL_TLS_CA"));
    }

    #[test]
    fn the_main_process_travels_encoded() {
        let decoded = |env: &BTreeMap<String, String>| -> Value {
            let text =
                env["OPENSHELL_MAIN_PROCESS_SPEC"].strip_prefix("base64url:").expect("a prefix");
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).expect("base64")).expect("JSON")
        };
        let (_, _, env) = check("work", None, &[]);
        assert_eq!(
            decoded(&env),
            json!({"version": 1, "command": ["/bin/bash", "-l"], "tty": true})
        );
        let command = ["sh".to_owned(), "-c".to_owned(), "echo \"a b\" é".to_owned()];
        let (_, _, env) = check("work", None, &command);
        assert_eq!(decoded(&env), json!({"version": 1, "command": command, "tty": false}));
    }

    #[test]
    fn the_guest_gets_its_place_in_the_network() {
        let (_, config, _) = check("-My work_1.", None, &[]);
        assert_eq!(config["hostname"], "Mywork1");
        assert_eq!(config["version"], 1);
        assert_eq!(config["network"]["address"], "192.168.127.2/24");
        assert_eq!(config["hosts"][0]["address"], "192.168.127.254");
        assert_eq!(config["directories"][0]["owner"], "sandbox");
        assert_eq!(config["process"]["args"][0], "/bin/supervisor");
        assert_eq!(config["clock_unix_ms"], 1_790_000_000_000_u64);
        assert_eq!(hostname("é_"), "sandbox");
        assert_eq!(hostname(&"a".repeat(80)).len(), 63);
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        let files = |name: &str, value: &str| {
            let environment = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let guest = Guest {
                sandbox_id: "a",
                sandbox_name: "a",
                endpoint: "",
                log_level: "",
                telemetry: false,
                token: "",
                tls: None,
                environment: &environment,
                command: &[],
                tty: false,
                supervisor: "/bin/supervisor",
            };
            guest.files(0)
        };
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
            assert!(matches!(files(name, value), Err(GuestError::Variable(_))), "{name:?}");
        }
        assert_eq!(files("A", &"x".repeat(1 << 20)), Err(GuestError::TooLarge));
        assert!(files("A", "x").is_ok());
    }
}
