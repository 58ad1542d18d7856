use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use tempfile::TempDir;

use super::*;

/// A host with files, by name below one directory.
struct Home(TempDir);

impl Home {
    fn new(files: &[(&str, &str)]) -> Self {
        let home = Self(TempDir::new().unwrap());
        for (name, text) in files {
            let path = home.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            if name.starts_with("bin/") {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        home
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn keychain(&self, variables: &[(&str, &str)]) -> Keychain {
        let mut all: BTreeMap<String, OsString> = BTreeMap::new();
        all.insert("HOME".into(), self.path().into());
        for (name, value) in variables {
            all.insert((*name).into(), value.replace('~', self.path().to_str().unwrap()).into());
        }
        let mut keychain = Keychain::from_environment(|name| all.get(name).cloned());
        keychain.helpers = Some(self.path().join("bin").into());
        keychain.deadline = Some(Duration::from_secs(20));
        keychain
    }
}

fn basic(username: &str, password: &str) -> Credentials {
    Credentials::Basic { username: username.into(), password: Secret::new(password.into()) }
}

fn found(keychain: &Keychain, host: &str, repository: &str) -> Credentials {
    keychain.for_registry(host, repository).unwrap().credentials
}

// "user:pass", "a:b:c" and "hub:legacy" in base64, one of them unpadded.
const CONFIG: &str = r#"{"auths": {
    "https://index.docker.io/v1/": {"auth": "aHViOmxlZ2FjeQ=="},
    "GHCR.io": {"auth": "dXNlcjpwYXNz"},
    "ghcr.io/owner/private": {"username": "deep", "password": "p"},
    "https://registry.example/v2/": {"auth": "YTpiOmM"},
    "tokens.example": {"auth": "dXNlcjpwYXNz", "identitytoken": "long"},
    "direct.example": {"registrytoken": "short"},
    "empty.example": {}},
    "HttpHeaders": {"User-Agent": "x"}}"#;

#[test]
fn a_registry_gets_what_is_kept_for_it_and_nothing_else() {
    let keychain = Home::new(&[(".docker/config.json", CONFIG)]);
    let keychain_of = keychain.keychain(&[]);
    for (host, repository, expected) in [
        ("docker.io", "library/debian", basic("hub", "legacy")),
        ("ghcr.io", "owner/public", basic("user", "pass")),
        ("ghcr.io", "owner/private", basic("deep", "p")),
        ("ghcr.io", "owner/private/part", basic("deep", "p")),
        ("ghcr.io", "owner/private2", basic("user", "pass")),
        ("registry.example", "a", basic("a", "b:c")),
        ("tokens.example", "a", Credentials::Identity(Secret::new("long".into()))),
        ("direct.example", "a", Credentials::Bearer(Secret::new("short".into()))),
        ("empty.example", "a", Credentials::Anonymous),
        ("registry.example:5000", "a", Credentials::Anonymous),
        ("example", "a", Credentials::Anonymous),
        ("notghcr.io", "a", Credentials::Anonymous),
    ] {
        assert_eq!(found(&keychain_of, host, repository), expected, "{host}/{repository}");
    }
}

#[test]
fn files_are_looked_at_in_order_and_a_named_one_alone() {
    let file = |user: &str| format!(r#"{{"auths": {{"a.example": {{"username": "{user}"}}}}}}"#);
    let home = Home::new(&[
        (".docker/config.json", &file("docker")),
        ("docker/config.json", &file("docker-elsewhere")),
        (".config/containers/auth.json", &file("podman")),
        ("run/containers/auth.json", &file("podman-run")),
        ("named.json", &file("named")),
        ("other.json", "{}"),
    ]);
    for (variables, user) in [
        (&[("XDG_RUNTIME_DIR", "~/run")][..], "podman-run"),
        (&[("XDG_RUNTIME_DIR", "")], "podman"),
        (&[("XDG_CONFIG_HOME", "~/nothing")], "docker"),
        (&[("XDG_CONFIG_HOME", "~/nothing"), ("DOCKER_CONFIG", "~/docker")], "docker-elsewhere"),
        (&[("REGISTRY_AUTH_FILE", "~/named.json")], "named"),
    ] {
        let credentials = found(&home.keychain(variables), "a.example", "x");
        assert_eq!(credentials, basic(user, ""), "{variables:?}");
    }
    let alone = home.keychain(&[("REGISTRY_AUTH_FILE", "~/other.json")]);
    assert_eq!(found(&alone, "a.example", "x"), Credentials::Anonymous);
}

#[test]
fn the_environment_comes_first_and_never_goes_to_a_mirror() {
    let home = Home::new(&[(".docker/config.json", CONFIG)]);
    let token = ("OPENSHELL_REGISTRY_TOKEN", "t");
    let keychain = home.keychain(&[token, ("OPENSHELL_REGISTRY_USERNAME", "u")]);
    assert_eq!(found(&keychain, "ghcr.io", "owner/private"), basic("u", "t"));
    let mirror = keychain.for_mirror("ghcr.io", "owner/public").unwrap();
    assert_eq!(mirror.credentials, basic("user", "pass"));
    let nameless = home.keychain(&[token]);
    assert_eq!(found(&nameless, "ghcr.io", "a"), basic("__token__", "t"));
    let refused = nameless.for_registry("registry.example", "a");
    assert!(matches!(refused, Err(AuthError::NoUsername(_))));
}

/// A program cannot start while another test's child still holds it open for writing.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const HELPER: &str = "#!/bin/sh
read -r server
case $server in
    basic.example) echo '{\"ServerURL\":\"x\",\"Username\":\"u\",\"Secret\":\"s\"}';;
    https://index.docker.io/v1/) echo '{\"Username\":\"<token>\",\"Secret\":\"id\"}';;
    broken.example) echo 'secret-text'; exit 0;;
    failing.example) echo 'cannot unlock'; exit 1;;
    slow.example) exec sleep 60;;
    long.example) exec yes;;
    *) echo 'credentials not found in native keychain'; exit 1;;
esac
";

#[test]
fn a_helper_answers_for_its_registries() {
    let _alone = ONE_AT_A_TIME.lock();
    let config = r#"{"credsStore": "keep", "credHelpers": {"own.example": "missing"}}"#;
    let home =
        Home::new(&[(".docker/config.json", config), ("bin/docker-credential-keep", HELPER)]);
    let keychain = home.keychain(&[]);
    assert_eq!(found(&keychain, "basic.example", "a"), basic("u", "s"));
    let identity = Credentials::Identity(Secret::new("id".into()));
    assert_eq!(found(&keychain, "docker.io", "library/debian"), identity);
    assert_eq!(found(&keychain, "unknown.example", "a"), Credentials::Anonymous);
    for host in ["broken.example", "failing.example", "long.example"] {
        let found = keychain.for_registry(host, "a").unwrap();
        assert_eq!(found.credentials, Credentials::Anonymous, "{host}");
        let note = found.note.unwrap();
        assert!(note.contains("docker-credential-keep") && !note.contains("secret-text"), "{note}");
    }
    let refused = keychain.for_registry("own.example", "a").unwrap_err().to_string();
    assert!(refused.contains("there is no such program"), "{refused}");
}

#[test]
fn a_helper_that_does_not_answer_is_ended() {
    let _alone = ONE_AT_A_TIME.lock();
    let config = r#"{"credHelpers": {"slow.example": "keep"}}"#;
    let home =
        Home::new(&[(".docker/config.json", config), ("bin/docker-credential-keep", HELPER)]);
    let mut keychain = home.keychain(&[]);
    keychain.deadline = Some(Duration::from_millis(200));
    let start = Instant::now();
    let refused = keychain.for_registry("slow.example", "a").unwrap_err().to_string();
    assert!(refused.contains("no answer within 0.2 s"), "{refused}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_helper_cannot_be_named_by_a_path() {
    for name in ["../evil", "/bin/sh", "a b", "", "a;b"] {
        let config = serde_json::json!({"credHelpers": {"a.example": name}}).to_string();
        let home = Home::new(&[(".docker/config.json", &config)]);
        let refused = home.keychain(&[]).for_registry("a.example", "a");
        assert!(matches!(refused, Err(AuthError::Helper { .. })), "{name:?}: {refused:?}");
    }
}

#[test]
fn no_secret_is_printed() {
    let credentials = [
        basic("name", "hunter2"),
        Credentials::Identity(Secret::new("hunter2".into())),
        Credentials::Bearer(Secret::new("hunter2".into())),
    ];
    let home = Home::new(&[]);
    let keychain = home.keychain(&[
        ("OPENSHELL_REGISTRY_TOKEN", "hunter2"),
        ("OPENSHELL_REGISTRY_USERNAME", "name"),
    ]);
    let printed = format!("{credentials:?} {keychain:?}");
    assert!(printed.contains("name") && !printed.contains("hunter2"), "{printed}");
}

#[test]
fn an_unreadable_file_is_named_and_not_quoted() {
    for text in [r#"{"auths": "hunter2"}"#, r#"{"auths": {"a.example": {"auth": "hunter2"}}}"#] {
        let home = Home::new(&[(".docker/config.json", text)]);
        let error = home.keychain(&[]).for_registry("a.example", "a").unwrap_err();
        let printed = format!("{error} {error:?}");
        assert!(printed.contains("config.json") && !printed.contains("hunter2"), "{printed}");
    }
}
