//! Mirrors: asked in order, believed in nothing but digests, shown no credentials but their own.

use openshell_rootfs::auth::Keychain;
use openshell_rootfs::registry::{Hosts, Registry};

use crate::fake::{Fake, chain, patience, read_all, reference, resolve};
use crate::server::{Body, Reply, Server};

fn serving(fake: &Fake) -> Server {
    let fake = fake.clone();
    Server::start(move |request| fake.answer(request))
}

fn with_mirrors(origin: &Server, mirrors: &[String], keychain: Keychain) -> Registry {
    let text = format!("[registry.\"{}\"]\nmirrors = {mirrors:?}\n", origin.host());
    Registry::new(Hosts::parse(&text).unwrap(), keychain, patience()).unwrap()
}

#[test]
fn a_mirror_that_has_everything_is_the_only_one_asked() {
    let fake = Fake::with_layers(&[5000]);
    let (origin, mirror) = (serving(&fake), serving(&fake));
    let registry = with_mirrors(&origin, &[mirror.url("/hub")], Keychain::empty());
    let pull = resolve(&registry, &origin.host()).unwrap();
    assert!(read_all(&pull).into_iter().all(|layer| layer.is_ok()));
    assert!(origin.requests().is_empty());
    for request in mirror.requests() {
        assert!(request.target.starts_with("/hub/v2/team/app/"), "{}", request.target);
        let namespace = format!("?ns={}", origin.host().replace(':', "%3A"));
        assert!(request.target.ends_with(&namespace), "{}", request.target);
    }
}

#[test]
fn mirrors_that_fail_are_passed_over_in_order() {
    let fake = Fake::with_layers(&[5000, 5000]);
    let gone = serving(&fake).url("");
    let empty = serving(&Fake::default());
    let broken = Server::start(|_| Reply::new(500, ""));
    let mut half = fake.clone();
    half.blobs.clear();
    let half = serving(&half);
    let origin = serving(&fake);
    let mirrors = [gone, empty.url(""), broken.url(""), half.url("")];
    let registry = with_mirrors(&origin, &mirrors, Keychain::empty());
    let pull = resolve(&registry, &origin.host()).unwrap();
    assert!(read_all(&pull).into_iter().all(|layer| layer.is_ok()));
    assert!(!empty.requests().is_empty() && !broken.requests().is_empty());
    assert!(origin.asked("/manifests/").is_empty());
    assert_eq!(origin.asked("/blobs/").len(), 3);
}

#[test]
fn a_mirror_that_gives_other_bytes_for_a_digest_is_passed_over() {
    let fake = Fake::with_layers(&[5000]);
    let digest = fake.manifests.keys().find(|name| name.starts_with("sha256:")).unwrap().clone();
    let liar = Server::start(|_| Reply::new(200, "{}"));
    let origin = serving(&fake);
    let registry = with_mirrors(&origin, &[liar.url("")], Keychain::empty());
    let pinned = format!("{}/team/app@{digest}", origin.host()).parse().unwrap();
    let pull = registry.resolve(&pinned, &crate::fake::platform()).unwrap();
    assert_eq!(pull.image.manifest_digest.to_string(), digest);
    assert!(!liar.requests().is_empty());
}

#[test]
fn a_layer_that_a_mirror_breaks_off_is_finished_elsewhere() {
    let fake = Fake::with_layers(&[500_000]);
    let cutting = fake.clone();
    let mirror = Server::start(move |request| {
        let reply = cutting.answer(request);
        match &reply.body {
            Body::Plain(bytes) if bytes.len() > 1000 && request.range().is_none() => {
                let cut = Body::Announced(bytes.len(), bytes[..100_000].to_vec());
                reply.body(cut)
            }
            Body::Plain(bytes) if bytes.len() > 1000 => Reply::new(500, ""),
            _ => reply,
        }
    });
    let origin = serving(&fake);
    let registry = with_mirrors(&origin, &[mirror.url("")], Keychain::empty());
    let pull = resolve(&registry, &origin.host()).unwrap();
    let layers = read_all(&pull);
    assert!(layers.into_iter().next().unwrap().unwrap() == fake.layer(0));
    let asked = origin.asked("/blobs/");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].range().unwrap().1, 499_999);
    assert!(asked[0].range().unwrap().0 > 0);
}

#[test]
fn a_mirror_never_sees_the_credentials_of_the_registry() {
    let fake = Fake::with_layers(&[100]);
    let mirror =
        Server::start(|_| Reply::new(401, "").with("www-authenticate", "Basic realm=\"mirror\""));
    let origin = Server::start(move |request| match request.header("authorization") {
        Some(_) => fake.answer(request),
        None => Reply::new(401, "").with("www-authenticate", "Basic realm=\"origin\""),
    });
    let variables = |name: &str| match name {
        "OPENSHELL_REGISTRY_USERNAME" => Some("user".into()),
        "OPENSHELL_REGISTRY_TOKEN" => Some("hunter2".into()),
        _ => None,
    };
    let registry = with_mirrors(&origin, &[mirror.url("")], Keychain::from_environment(variables));
    assert!(resolve(&registry, &origin.host()).is_ok());
    assert!(!mirror.requests().is_empty());
    for request in mirror.requests() {
        assert_eq!(request.header("authorization"), None);
    }
}

#[test]
fn when_nobody_has_it_the_registry_is_the_one_that_is_named() {
    let (origin, mirror) = (serving(&Fake::default()), serving(&Fake::default()));
    let registry = with_mirrors(&origin, &[mirror.url("")], Keychain::empty());
    let error = chain(&resolve(&registry, &origin.host()).unwrap_err());
    assert!(error.contains(&format!("{} answered 404", origin.host())), "{error}");
    let error = chain(&registry.digest(&reference(&origin.host())).unwrap_err());
    assert!(error.contains(&format!("{} answered 404", origin.host())), "{error}");
}
