//! Manifests that are too large, lie, or lead in circles.

use openshell_rootfs::registry::{PullError, RegistryError};
use serde_json::json;

use crate::fake::{Fake, INDEX, MANIFEST, chain, client, noise, platform, reference, resolve};
use crate::server::{Body, Reply, Server};

fn serving(fake: &Fake) -> Server {
    let fake = fake.clone();
    Server::start(move |request| fake.answer(request))
}

/// The error of the registry, if it is one.
fn fault_of<T: std::fmt::Debug>(result: Result<T, PullError>) -> RegistryError {
    match result.unwrap_err() {
        PullError::Registry { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tag_leads_through_an_index_to_the_image() {
    let mut fake = Fake::default();
    let image = fake.image(&[noise(1, 100)]);
    let mut entry = fake.tag("image", MANIFEST, image.to_string());
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    let inner = fake.tag("inner", INDEX, inner.to_string());
    let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]});
    let root = fake.tag("1", INDEX, outer.to_string());
    let server = serving(&fake);
    let registry = client();
    let pull = resolve(&registry, &server.host()).unwrap();
    assert_eq!(pull.image.manifest, image.to_string().into_bytes());
    assert_eq!(pull.image.layers.len(), 1);
    let digest = registry.digest(&reference(&server.host())).unwrap();
    assert_eq!(digest.to_string(), root["digest"].as_str().unwrap());
    let asked = server.requests();
    assert_eq!(asked.last().unwrap().method, "HEAD");
    assert!(asked[0].header("accept").unwrap().contains(INDEX));
}

#[test]
fn a_digest_pins_what_is_pulled() {
    let mut fake = Fake::with_layers(&[10]);
    let digest = fake.manifests.keys().find(|name| name.starts_with("sha256:")).unwrap().clone();
    let server = serving(&fake);
    let registry = client();
    let pinned = format!("{}/team/app:1@{digest}", server.host()).parse().unwrap();
    assert_eq!(
        registry.resolve(&pinned, &platform()).unwrap().image.manifest_digest.to_string(),
        digest
    );
    // The registry gives something else for the digest.
    let other = fake.image(&[noise(9, 10)]).to_string().into_bytes();
    fake.manifests.insert(digest, (MANIFEST.into(), other));
    let server = Server::start(move |request| fake.answer(request));
    let pinned = pinned.to_string().replace(pinned.registry(), &server.host()).parse().unwrap();
    let error = fault_of(registry.resolve(&pinned, &platform()));
    assert!(matches!(error, RegistryError::Digest { .. }), "{error:?}");
}

#[test]
fn a_tag_whose_bytes_are_not_those_that_were_announced_is_refused() {
    let fake = Fake::with_layers(&[10]);
    let server = Server::start(move |request| {
        let digest = format!("sha256:{}", "0".repeat(64));
        let mut reply = fake.answer(request);
        reply.headers.retain(|(name, _)| name != "docker-content-digest");
        reply.with("docker-content-digest", digest)
    });
    let error = fault_of(resolve(&client(), &server.host()));
    assert!(matches!(error, RegistryError::Digest { .. }), "{error:?}");
}

#[test]
fn a_manifest_over_the_limit_is_not_read() {
    for body in [
        Body::Announced(9 << 20, vec![b' '; 9 << 20]),
        Body::Chunked(vec![b' '; 9 << 20]),
        Body::Endless,
    ] {
        let sends = body.clone();
        let server = Server::start(move |_| Reply::new(200, "").body(sends.clone()));
        let error = fault_of(resolve(&client(), &server.host()));
        assert!(matches!(error, RegistryError::TooLarge { .. }), "{error:?}");
        assert_eq!(server.requests().len(), 1);
        // What was under way when the connection was closed.
        assert!(server.sent() < 24 << 20, "{}", server.sent());
    }
}

#[test]
fn a_manifest_that_breaks_off_is_asked_for_again() {
    let fake = Fake::with_layers(&[10]);
    let count = std::sync::atomic::AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let reply = fake.answer(request);
        let Body::Plain(bytes) = &reply.body else { panic!("a plain body") };
        let cut = Body::Announced(bytes.len(), bytes[..bytes.len() / 2].to_vec());
        match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 3 {
            2 => reply,
            _ => reply.body(cut),
        }
    });
    assert!(resolve(&client(), &server.host()).is_ok());
}

#[test]
fn an_index_that_names_itself_is_refused() {
    let digest = format!("sha256:{}", "1".repeat(64));
    let entry = json!({"mediaType": INDEX, "digest": digest, "size": 1});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string();
    let server = Server::start(move |_| Reply::new(200, index.clone()).with("content-type", INDEX));
    let error = chain(&resolve(&client(), &server.host()).unwrap_err());
    assert!(error.contains("cannot fetch sha256:111"), "{error}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn schema_1_and_confusion_are_refused_with_a_clear_text() {
    let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    for (media_type, document, text) in [
        (schema1, r#"{"schemaVersion": 1, "fsLayers": []}"#, "schema version 1"),
        (INDEX, r#"{"schemaVersion": 2, "config": {}, "layers": []}"#, "cannot be read"),
        (MANIFEST, r#"{"schemaVersion": 2, "manifests": []}"#, "was declared as"),
        ("text/html", "<html>", "cannot be read"),
    ] {
        let server =
            Server::start(move |_| Reply::new(200, document).with("content-type", media_type));
        let error = chain(&resolve(&client(), &server.host()).unwrap_err());
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn an_error_names_the_reference_the_host_and_what_it_said() {
    let server = serving(&Fake::default());
    let host = server.host();
    let error = chain(&resolve(&client(), &host).unwrap_err());
    assert_eq!(
        error,
        format!("cannot pull {host}/team/app:1: {host} answered 404: manifest unknown")
    );
}

#[test]
fn a_host_that_is_not_there_is_an_error_in_no_time() {
    let server = serving(&Fake::default());
    let host = server.host();
    drop(server);
    let error = fault_of(resolve(&client(), &host));
    assert!(matches!(error, RegistryError::Transport { .. }), "{error:?}");
}
