//! Tokens, passwords, and who sees them.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use openshell_rootfs::auth::Keychain;
use openshell_rootfs::registry::{PullError, RegistryError};
use serde_json::json;
use tempfile::TempDir;

use crate::fake::{Fake, MIB, chain, client, client_with, patience, read_all, resolve};
use crate::server::{Reply, Request, Server};

// "user:hunter2" in base64.
const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

/// The credentials `user` and `hunter2` for one host.
fn keychain(host: &str, entry: &serde_json::Value) -> (TempDir, Keychain) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("auth.json");
    std::fs::write(&path, json!({"auths": {host: entry}}).to_string()).unwrap();
    let variable = |name: &str| (name == "REGISTRY_AUTH_FILE").then(|| path.clone().into());
    let keychain = Keychain::from_environment(variable);
    (directory, keychain)
}

fn password() -> serde_json::Value {
    json!({"username": "user", "password": "hunter2"})
}

/// A registry with a token server in it. At certain requests all tokens that there are run out.
struct Tokens {
    fake: Fake,
    run_out: Vec<usize>,
    answered: AtomicUsize,
    /// What the token server wants to see.
    wants: Option<String>,
    issued: AtomicUsize,
    valid: Mutex<HashSet<String>>,
}

impl Tokens {
    fn new(fake: Fake, run_out: &[usize], wants: Option<&str>) -> Self {
        Self {
            fake,
            run_out: run_out.to_vec(),
            answered: AtomicUsize::new(0),
            wants: wants.map(str::to_owned),
            issued: AtomicUsize::new(0),
            valid: Mutex::default(),
        }
    }

    fn start(self) -> Server {
        Server::start(move |request| self.answer(request))
    }

    fn answer(&self, request: &Request) -> Reply {
        if request.target.starts_with("/token") {
            return self.issue(request);
        }
        let shown = request.header("authorization").unwrap_or_default();
        let mut valid = self.valid.lock().unwrap();
        if !valid.contains(shown) {
            let realm = format!("http://{}/token", request.header("host").unwrap());
            let challenge = format!(
                r#"Bearer realm="{realm}",service="fake",scope="repository:other:pull,push""#
            );
            return Reply::new(401, "").with("www-authenticate", challenge);
        }
        if self.run_out.contains(&self.answered.fetch_add(1, Ordering::SeqCst)) {
            valid.clear();
        }
        drop(valid);
        self.fake.answer(request)
    }

    fn issue(&self, request: &Request) -> Reply {
        let shown = request.header("authorization").map(str::to_owned);
        if shown != self.wants && self.wants.as_deref() != Some(request.body.as_str()) {
            return Reply::new(401, r#"{"errors": [{"message": "wrong password"}]}"#);
        }
        let token = format!("token-{}", self.issued.fetch_add(1, Ordering::SeqCst));
        self.valid.lock().unwrap().insert(format!("Bearer {token}"));
        Reply::new(200, json!({"access_token": token, "expires_in": 60}).to_string())
    }
}

#[test]
fn a_public_image_needs_a_token_and_no_password() {
    let server = Tokens::new(Fake::with_layers(&[100]), &[], None).start();
    let registry = client();
    assert!(resolve(&registry, &server.host()).is_ok());
    let asked = server.asked("/token");
    assert_eq!(asked.len(), 1);
    // The scope is what is pulled, not what the registry asks to have a token for.
    assert_eq!(asked[0].target, "/token?scope=repository%3Ateam%2Fapp%3Apull&service=fake");
}

#[test]
fn a_token_that_runs_out_in_the_middle_is_replaced_once() {
    let sizes = [9 * MIB, 9 * MIB, 9 * MIB, 9 * MIB, MIB, MIB, MIB, MIB];
    let fake = Fake::with_layers(&sizes);
    let server = Tokens::new(fake.clone(), &[4, 11], None).start();
    let registry = client();
    let pull = resolve(&registry, &server.host()).unwrap();
    for (n, layer) in read_all(&pull).into_iter().enumerate() {
        assert!(layer.unwrap() == fake.layer(n), "layer {n}");
    }
    // However many requests were under way each time.
    assert_eq!(server.asked("/token").len(), 3);
}

#[test]
fn a_password_goes_to_the_token_server_alone() {
    let server = Tokens::new(Fake::with_layers(&[100]), &[], Some(BASIC)).start();
    let (_directory, keychain) = keychain(&server.host(), &password());
    let registry = client_with(keychain, patience());
    resolve(&registry, &server.host()).unwrap();
    for request in server.requests() {
        let shown = request.header("authorization");
        assert_eq!(shown == Some(BASIC), request.target.starts_with("/token"), "{request:?}");
    }
}

#[test]
fn an_identity_token_is_posted_as_a_form() {
    let form = "scope=repository%3Ateam%2Fapp%3Apull&service=fake&grant_type=refresh_token\
                &client_id=openshell-rootfs&refresh_token=long+lived%26secret";
    let server = Tokens::new(Fake::with_layers(&[100]), &[], Some(form)).start();
    let (_directory, keychain) =
        keychain(&server.host(), &json!({"identitytoken": "long lived&secret"}));
    let registry = client_with(keychain, patience());
    resolve(&registry, &server.host()).unwrap();
    let asked = server.asked("/token");
    assert_eq!((asked.len(), asked[0].method.as_str()), (1, "POST"));
}

#[test]
fn a_wrong_password_is_said_once_and_without_the_password() {
    let server = Tokens::new(Fake::with_layers(&[100]), &[], Some("Basic other")).start();
    let (_directory, keychain) = keychain(&server.host(), &password());
    let error = resolve(&client_with(keychain, patience()), &server.host()).unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains("does not let the user whose credentials were found read team/app"),
        "{text}"
    );
    assert!(!format!("{text} {error:?}").contains("hunter2"));
    assert_eq!(server.asked("/token").len(), 1);
}

#[test]
fn a_registry_that_never_has_enough_is_left() {
    let server = Server::start(|request| {
        if request.target.starts_with("/token") {
            return Reply::new(200, r#"{"token": "t"}"#);
        }
        let realm = format!("http://{}/token", request.header("host").unwrap());
        Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\""))
    });
    let error = resolve(&client(), &server.host()).unwrap_err();
    let PullError::Registry { source: RegistryError::Unauthorized { .. }, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(server.asked("/token").len(), 2);
}

#[test]
fn a_registry_with_passwords_gets_the_one_that_is_kept_for_it() {
    let fake = Fake::with_layers(&[100]);
    let server = Server::start(move |request| match request.header("authorization") {
        Some(BASIC) => fake.answer(request),
        _ => Reply::new(401, "").with("www-authenticate", "Basic realm=\"fake\""),
    });
    let (_directory, kept) = keychain(&server.host(), &password());
    assert!(resolve(&client_with(kept, patience()), &server.host()).is_ok());
    let (_directory, other) = keychain("127.0.0.1:1", &password());
    let error = chain(&resolve(&client_with(other, patience()), &server.host()).unwrap_err());
    assert!(error.contains("does not let anybody read team/app"), "{error}");
}

#[test]
fn a_redirect_to_another_host_takes_no_credentials_along() {
    let fake = Fake::with_layers(&[5000]);
    let store = fake.clone();
    let elsewhere = Server::start(move |request| store.answer(request));
    let target = elsewhere.url("");
    let server = Server::start(move |request| {
        if request.header("authorization") != Some(BASIC) {
            return Reply::new(401, "").with("www-authenticate", "Basic realm=\"fake\"");
        }
        if request.target.contains("/blobs/") {
            return Reply::new(307, "").with("location", format!("{target}{}", request.target));
        }
        fake.answer(request)
    });
    let (_directory, keychain) = keychain(&server.host(), &password());
    let registry = client_with(keychain, patience());
    let pull = resolve(&registry, &server.host()).unwrap();
    assert!(read_all(&pull).into_iter().all(|layer| layer.is_ok()));
    let asked = elsewhere.requests();
    assert_eq!(asked.len(), 2);
    for request in asked {
        assert_eq!(request.header("authorization"), None, "{}", request.target);
        assert_eq!(request.header("cookie"), None);
        assert_eq!(request.header("referer"), None);
    }
}

#[test]
fn another_host_that_asks_for_a_password_gets_none() {
    let elsewhere = Server::start(|_| {
        Reply::new(401, "").with("www-authenticate", "Basic realm=\"elsewhere\"")
    });
    let target = elsewhere.url("/v2/team/app/manifests/1");
    let server = Server::start(move |_| Reply::new(302, "").with("location", target.clone()));
    let (_directory, keychain) = keychain(&server.host(), &password());
    let error = resolve(&client_with(keychain, patience()), &server.host()).unwrap_err();
    assert!(chain(&error).contains("answered 401"), "{error:?}");
    assert_eq!(elsewhere.requests().len(), 1);
}

#[test]
fn a_token_server_must_be_one_that_may_be_spoken_to() {
    for realm in ["http://192.0.2.1/token", "ftp://127.0.0.1/token", "file:///etc/passwd", "/token"]
    {
        let server = Server::start(move |_| {
            let challenge = format!("Bearer realm=\"{realm}\"");
            Reply::new(401, "").with("www-authenticate", challenge)
        });
        let (_directory, keychain) = keychain(&server.host(), &password());
        let error = resolve(&client_with(keychain, patience()), &server.host()).unwrap_err();
        let PullError::Registry { source, .. } = error else { panic!("{error:?}") };
        let refused =
            matches!(source, RegistryError::Redirect { .. } | RegistryError::Challenge { .. });
        assert!(refused, "{realm}: {source:?}");
    }
}

#[test]
fn what_a_token_server_says_is_bounded_and_not_repeated() {
    for (body, text) in [
        (crate::server::Body::Endless, "more than 1048576 bytes for a token"),
        (crate::server::Body::Plain(b"{\"secret\": \"hunter2\"}".to_vec()), "gave no token"),
        (crate::server::Body::Plain(b"hunter2".to_vec()), "gave no token"),
        (crate::server::Body::Plain(b"{\"token\": \"hunter2\\n\"}".to_vec()), "gave no token"),
    ] {
        let server = Server::start(move |request| {
            if request.target.starts_with("/token") {
                return Reply::new(200, "").body(body.clone());
            }
            let realm = format!("http://{}/token", request.header("host").unwrap());
            Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\""))
        });
        let error = resolve(&client(), &server.host()).unwrap_err();
        let printed = format!("{} {error:?}", chain(&error));
        assert!(printed.contains(text) && !printed.contains("hunter2"), "{printed}");
    }
}
