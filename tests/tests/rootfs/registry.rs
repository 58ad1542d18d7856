//! Pulls from a docker-registry that skopeo has filled.

use std::io::Read as _;
use std::time::Duration;

use openshell_rootfs::auth::Keychain;
use openshell_rootfs::digest::Digest;
use openshell_rootfs::image::{Blobs as _, Platform};
use openshell_rootfs::manifest::config::ImageConfig;
use openshell_rootfs::reference::RegistryReference;
use openshell_rootfs::registry::{
    Hosts, Patience, Pull, PullError, Registry, RegistryError, Verified,
};

use crate::served::{Layout, Served, USER};

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn client(keychain: Keychain) -> Registry {
    let patience =
        Patience { tries: 20, backoff: Duration::from_millis(50), ..Patience::default() };
    Registry::new(Hosts::default(), keychain, patience).unwrap()
}

fn reference(registry: &Served, tag: &str) -> RegistryReference {
    format!("{}/team/app:{tag}", registry.host()).parse().unwrap()
}

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

fn pull(registry: &Served, tag: &str) -> Pull {
    let client = client(Keychain::empty());
    client.resolve(&reference(registry, tag), &platform("linux/amd64")).unwrap()
}

/// The layers, each checked against its descriptor.
fn layers(pull: &Pull) -> Vec<Vec<u8>> {
    let read = |layer| {
        let mut bytes = Vec::new();
        let mut reader = Verified::new(pull.open(layer).unwrap(), layer.clone());
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    };
    std::thread::scope(|scope| {
        let readers = pull.image.layers.iter().map(|layer| scope.spawn(move || read(layer)));
        let readers: Vec<_> = readers.collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    })
}

#[test]
fn what_is_pulled_is_what_was_pushed() {
    let (layout, registry) = (Layout::new(), Served::open());
    layout.push(&registry, "team/app:1", &[]);
    let pull = pull(&registry, "1");
    let stored = |digest: &Digest| std::fs::read(layout.blob(digest.hex())).unwrap();
    assert_eq!(pull.image.manifest, stored(&pull.image.manifest_digest));
    let config = ImageConfig::parse(&pull.image.config).unwrap();
    assert_eq!((config.entrypoint, config.env), (vec!["/init".into()], vec!["A=b".to_owned()]));
    assert_eq!(config.diff_ids.len(), 4);
    for (layer, bytes) in pull.image.layers.iter().zip(layers(&pull)) {
        assert!(bytes == stored(&layer.digest), "{}", layer.digest);
    }
    // The large layer came in parts.
    assert!(registry.log().matches("http.response.status=206").count() >= 2, "{}", registry.log());
    let now = client(Keychain::empty()).digest(&reference(&registry, "1")).unwrap();
    assert_eq!(now, pull.image.manifest_digest);
}

#[test]
fn images_in_dockers_format_and_in_zstd_are_pulled_too() {
    let (layout, registry) = (Layout::new(), Served::open());
    layout.push(&registry, "team/app:docker", &["--format", "v2s2"]);
    // One that cannot take the layers as the first one has them.
    let other = Served::open();
    layout.push(&other, "team/app:zstd", &["--dest-compress-format", "zstd"]);
    let docker = pull(&registry, "docker");
    assert!(String::from_utf8_lossy(&docker.image.manifest).contains(DOCKER));
    assert_eq!(layers(&docker).len(), 4);
    let zstd = pull(&other, "zstd");
    assert_eq!(zstd.image.diff_ids, docker.image.diff_ids);
    for (layer, bytes) in zstd.image.layers.iter().zip(layers(&zstd)) {
        assert!(layer.media_type.ends_with("+zstd"), "{}", layer.media_type);
        assert_eq!(bytes[..4], [0x28, 0xb5, 0x2f, 0xfd]);
    }
}

#[test]
fn an_index_leads_to_its_platform_and_to_no_other() {
    let (layout, registry) = (Layout::new(), Served::open());
    layout.push(&registry, "team/app:amd64", &[]);
    let image = pull(&registry, "amd64").image;
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": image.manifest_digest.to_string(), "size": image.manifest.len(),
        "platform": {"os": "linux", "architecture": "amd64"}}]});
    registry.put("all", index_type, &index.to_string());
    assert_eq!(pull(&registry, "all").image, image);
    let other = platform("linux/arm64");
    let refused = client(Keychain::empty()).resolve(&reference(&registry, "all"), &other);
    let Err(PullError::Image { source, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(source.to_string(), "there is no image for linux/arm64; there are: linux/amd64");
}

#[test]
fn a_registry_with_passwords_takes_the_right_one() {
    let (layout, registry) = (Layout::new(), Served::closed());
    let credentials = format!("{}:{}", USER.0, USER.1);
    layout.push(&registry, "team/app:1", &["--dest-creds", &credentials]);
    let with = |password: &'static str| {
        Keychain::from_environment(move |name| match name {
            "OPENSHELL_REGISTRY_USERNAME" => Some(USER.0.into()),
            "OPENSHELL_REGISTRY_TOKEN" => Some(password.into()),
            _ => None,
        })
    };
    for (keychain, fine) in
        [(with(USER.1), true), (with("wrong"), false), (Keychain::empty(), false)]
    {
        match client(keychain).resolve(&reference(&registry, "1"), &platform("linux/amd64")) {
            Ok(pull) => assert!(fine && layers(&pull).len() == 4),
            Err(PullError::Registry { source: RegistryError::Unauthorized { .. }, .. }) => {
                assert!(!fine);
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn a_registry_with_its_own_authority_is_trusted_where_that_is_configured() {
    let (layout, registry) = (Layout::new(), Served::secure());
    layout.push(&registry, "team/app:1", &[]);
    let pull = |more: &str| {
        let text = format!("[registry.\"{}\"]\nplain-http = false\n{more}", registry.host());
        let hosts = Hosts::parse(&text).unwrap();
        let patience = Patience { tries: 1, ..Patience::default() };
        let client = Registry::new(hosts, Keychain::empty(), patience).unwrap();
        client.resolve(&reference(&registry, "1"), &platform("linux/amd64"))
    };
    let trusting = pull(&format!("ca = {:?}", registry.authority()));
    assert_eq!(layers(&trusting.unwrap()).len(), 4);
    let refused = pull("");
    let Err(PullError::Registry { source: RegistryError::Transport { source, .. }, .. }) = refused
    else {
        panic!("{refused:?}");
    };
    let causes =
        std::iter::successors(Some(&source as &dyn std::error::Error), |error| error.source());
    let text: String = causes.map(|cause| format!("{cause}: ")).collect();
    assert!(text.contains("certificate"), "{text}");
}

#[test]
fn a_registry_that_dies_in_the_middle_and_comes_back_loses_nothing() {
    let (layout, mut registry) = (Layout::new(), Served::open());
    layout.push(&registry, "team/app:1", &[]);
    let pull = pull(&registry, "1");
    let large = pull.image.layers.iter().max_by_key(|layer| layer.size).unwrap();
    let mut reader = Verified::new(pull.open(large).unwrap(), large.clone());
    let mut start = vec![0; 1 << 20];
    reader.read_exact(&mut start).unwrap();
    registry.kill();
    registry.run();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!((start.len() + rest.len()) as u64, large.size);
}
