use proptest::prelude::*;
use serde_json::{Value, json};

use super::config::ImageConfig;
use super::resolve::{ResolveError, Root, resolve};
use super::*;
use crate::image::BlobError;

const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn digest(seed: u8) -> String {
    Digest::sha256(&[seed]).to_string()
}

fn descriptor(media_type: &str, seed: u8) -> Value {
    json!({"mediaType": media_type, "digest": digest(seed), "size": 1})
}

fn image() -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": descriptor(CONFIG, 0),
           "layers": [descriptor(LAYER, 1)]})
}

fn index(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
}

fn parsed(document: &Value, declared: &[&str]) -> Result<Manifest, ManifestError> {
    parse(document.to_string().as_bytes(), declared)
}

/// `document` with the value at `pointer` replaced.
fn with(mut document: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    document.pointer_mut(parent).unwrap()[key] = value;
    document
}

#[test]
fn an_image_and_an_index_are_told_apart() {
    let Ok(Manifest::Image { config, layers }) = parsed(&image(), &[OCI_IMAGE]) else {
        panic!("not an image");
    };
    assert_eq!((config.media_type.as_str(), layers.len()), (CONFIG, 1));
    let entries = [descriptor(OCI_IMAGE, 1), descriptor(DOCKER_LIST, 2)];
    let Ok(Manifest::Index(entries)) = parsed(&index(&entries), &[OCI_INDEX]) else {
        panic!("not an index");
    };
    assert!(entries[0].is_image() && !entries[0].is_index());
    assert!(entries[1].is_index() && !entries[1].is_image());
}

#[test]
fn a_type_with_parameters_or_that_says_nothing_is_no_contradiction() {
    let mut bare = image();
    bare.as_object_mut().unwrap().remove("mediaType");
    for declared in [
        &["application/json"][..],
        &["text/plain; charset=utf-8"],
        &[],
        &["Application/vnd.oci.image.manifest.v1+JSON; charset=utf-8"],
        &[DOCKER_IMAGE],
    ] {
        assert!(parsed(&bare, declared).is_ok(), "{declared:?}");
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    let both = with(image(), "/manifests", json!([]));
    assert!(matches!(parsed(&both, &[]), Err(ManifestError::Ambiguous)));
    let neither = json!({"schemaVersion": 2});
    assert!(matches!(parsed(&neither, &[]), Err(ManifestError::Neither)));
    for (document, declared) in [
        (image(), vec![OCI_INDEX]),
        (image(), vec![OCI_IMAGE, DOCKER_LIST]),
        (index(&[]), vec![DOCKER_IMAGE]),
        (with(image(), "/mediaType", json!(OCI_INDEX)), vec![]),
        (with(index(&[]), "/mediaType", json!(DOCKER_IMAGE)), vec![OCI_INDEX]),
    ] {
        let refused = parsed(&document, &declared);
        assert!(
            matches!(refused, Err(ManifestError::MediaType { .. })),
            "{declared:?}: {refused:?}"
        );
    }
}

#[test]
fn schema_version_1_is_refused_with_what_to_do() {
    let schema1 = json!({"schemaVersion": 1, "name": "a", "fsLayers": [{"blobSum": digest(0)}]});
    let type1 = "application/vnd.docker.distribution.manifest.v1+prettyjws; charset=utf-8";
    for refused in [
        parsed(&schema1, &[]),
        parsed(&with(image(), "/fsLayers", json!([])), &[]),
        parsed(&image(), &[type1]),
    ] {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("push the image again"), "{text}");
    }
    assert!(matches!(
        parsed(&with(image(), "/schemaVersion", json!(3)), &[]),
        Err(ManifestError::Schema(3))
    ));
}

#[test]
fn layers_from_elsewhere_and_of_other_kinds_are_refused() {
    let layer = |media_type: &str| with(image(), "/layers/0/mediaType", json!(media_type));
    for media_type in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ] {
        let refused = parsed(&layer(media_type), &[]);
        assert!(matches!(refused, Err(ManifestError::Foreign { .. })), "{media_type}");
    }
    let urls = with(image(), "/layers/0/urls", json!(["https://elsewhere.example/blob"]));
    assert!(matches!(parsed(&urls, &[]), Err(ManifestError::Foreign { .. })));
    for media_type in ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "text/html", ""] {
        let refused = parsed(&layer(media_type), &[]);
        assert!(matches!(refused, Err(ManifestError::LayerType { .. })), "{media_type}");
    }
    for media_type in LAYER_TYPES {
        assert!(parsed(&layer(media_type), &[]).is_ok(), "{media_type}");
    }
    let artifact =
        with(image(), "/config/mediaType", json!("application/vnd.cncf.helm.config.v1+json"));
    assert!(matches!(parsed(&artifact, &[]), Err(ManifestError::Artifact(_))));
}

#[test]
fn sizes_and_counts_have_limits() {
    let too_large = vec![b' '; MAX_MANIFEST_BYTES + 1];
    assert!(matches!(parse(&too_large, &[]), Err(ManifestError::TooLarge { .. })));
    assert!(matches!(
        ImageConfig::parse(&vec![b' '; MAX_CONFIG_BYTES + 1]),
        Err(ManifestError::TooLarge { .. })
    ));
    let config = with(image(), "/config/size", json!(MAX_CONFIG_BYTES + 1));
    assert!(matches!(parsed(&config, &[]), Err(ManifestError::TooLarge { .. })));
    let layer = with(image(), "/layers/0/size", json!(MAX_LAYER_BYTES + 1));
    assert!(matches!(parsed(&layer, &[]), Err(ManifestError::TooLarge { .. })));
    for size in [json!(-1), json!(1.5), json!("1"), json!(null)] {
        let refused = parsed(&with(image(), "/layers/0/size", size), &[]);
        assert!(matches!(refused, Err(ManifestError::Json { .. })));
    }
    for (count, fine) in [(MAX_LAYERS, true), (MAX_LAYERS + 1, false)] {
        let layers = vec![descriptor(LAYER, 1); count];
        assert_eq!(parsed(&with(image(), "/layers", json!(layers)), &[]).is_ok(), fine, "{count}");
    }
    let entries = vec![descriptor(OCI_IMAGE, 1); MAX_ENTRIES + 1];
    assert!(parsed(&index(&entries), &[]).is_err());
    let nested = "[".repeat(1_000_000);
    assert!(parse(format!("{{\"schemaVersion\":2,\"x\":{nested}").as_bytes(), &[]).is_err());
    let words = format!("[{}\"\"]", "\"\",".repeat(5_000_000));
    let config = format!(r#"{{"os":"linux","architecture":"amd64","config":{{"Env":{words}}}}}"#);
    assert!(ImageConfig::parse(config.as_bytes()).is_err());
}

#[test]
fn a_digest_that_is_a_path_is_refused() {
    for digest in ["sha256:../../etc/passwd", "md5:00", "", "sha256:"] {
        let refused = parsed(&with(image(), "/layers/0/digest", json!(digest)), &[]);
        assert!(matches!(refused, Err(ManifestError::Digest { .. })), "{digest}");
    }
}

fn config() -> Value {
    json!({"os": "linux", "architecture": "arm64", "variant": "v8",
        "config": {"User": "app", "Env": ["PATH=/bin", "A=b=c"], "Entrypoint": ["/init"], "Cmd": null,
            "WorkingDir": "/srv", "StopSignal": "SIGINT", "Labels": {"a": "b"},
            "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [digest(7)]}, "history": [{"created": "never"}]})
}

fn parsed_config(document: &Value) -> Result<ImageConfig, ManifestError> {
    ImageConfig::parse(document.to_string().as_bytes())
}

#[test]
fn a_configuration_says_what_runs_and_as_whom() {
    let parsed = parsed_config(&config()).unwrap();
    assert_eq!(parsed.platform.to_string(), "linux/arm64/v8");
    assert_eq!(parsed.env, ["PATH=/bin", "A=b=c"]);
    assert_eq!(parsed.entrypoint, ["/init"]);
    assert!(parsed.cmd.is_empty());
    assert_eq!((parsed.user.as_str(), parsed.working_dir.as_str()), ("app", "/srv"));
    assert_eq!(parsed.stop_signal, "SIGINT");
    assert_eq!(parsed.labels["a"], "b");
    assert_eq!(parsed.diff_ids, [digest(7).parse::<Digest>().unwrap()]);
    let empty = with(config(), "/config", json!(null));
    assert!(parsed_config(&empty).unwrap().env.is_empty());
}

#[test]
fn a_configuration_without_a_platform_or_with_a_nul_is_refused() {
    for (pointer, value) in [
        ("/architecture", json!("")),
        ("/os", json!(null)),
        ("/rootfs/type", json!("volumes")),
        ("/config/Env", json!(["A=\0"])),
        ("/config/Cmd", json!(["\0"])),
        ("/config/WorkingDir", json!("/\0")),
        ("/rootfs/diff_ids", json!(["sha256:.."])),
    ] {
        assert!(parsed_config(&with(config(), pointer, value)).is_err(), "{pointer}");
    }
}

/// Documents by digest, as a source would have them.
#[derive(Default)]
struct Store(BTreeMap<String, Vec<u8>>);

impl Store {
    fn put(&mut self, media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::sha256(&bytes).to_string();
        let size = bytes.len();
        self.0.insert(digest.clone(), bytes);
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    fn image(&mut self, platform: &str) -> Value {
        let parts: Vec<&str> = platform.split('/').collect();
        let config = json!({"os": parts[0], "architecture": parts[1], "variant": parts.get(2),
            "rootfs": {"type": "layers", "diff_ids": [digest(1)]}});
        let config = self.put(CONFIG, &config);
        let layers = [descriptor(LAYER, 1)];
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut descriptor = self.put(OCI_IMAGE, &manifest);
        descriptor["platform"] =
            json!({"os": parts[0], "architecture": parts[1], "variant": parts.get(2)});
        descriptor
    }

    fn resolve(&self, root: &Value, wanted: &str) -> Result<String, ResolveError> {
        let bytes = root.to_string().into_bytes();
        let digest = Digest::sha256(&bytes);
        let root = Root { bytes, digest, media_type: None };
        let mut fetch = |descriptor: &Descriptor, _: usize| {
            let found = self.0.get(&descriptor.digest.to_string());
            found.cloned().ok_or_else(|| BlobError::from("not there"))
        };
        let image = resolve(root, &wanted.parse().unwrap(), &mut fetch)?;
        let config = ImageConfig::parse(&image.config).expect("it was parsed before");
        assert_eq!(Digest::sha256(&image.manifest), image.manifest_digest);
        Ok(config.platform.to_string())
    }
}

fn without_platform(mut descriptor: Value) -> Value {
    descriptor.as_object_mut().unwrap().remove("platform");
    descriptor
}

#[test]
fn the_best_image_for_the_platform_is_found() {
    let mut store = Store::default();
    let images = ["windows/amd64", "linux/amd64", "linux/amd64/v3", "linux/arm64/v8"];
    let images: Vec<Value> = images.iter().map(|platform| store.image(platform)).collect();
    let mut attestation = store.image("unknown/unknown");
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let all = index(&[vec![attestation], images].concat());
    for (wanted, found) in [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v2", "linux/amd64"),
        ("linux/amd64/v4", "linux/amd64/v3"),
        ("linux/arm64", "linux/arm64/v8"),
    ] {
        assert_eq!(store.resolve(&all, wanted).unwrap(), found, "{wanted}");
    }
}

#[test]
fn never_another_platform_and_the_error_lists_what_there_is() {
    let mut store = Store::default();
    let entries = [store.image("linux/arm64"), store.image("windows/amd64")];
    let text = store.resolve(&index(&entries), "linux/amd64").unwrap_err().to_string();
    assert_eq!(text, "there is no image for linux/amd64; there are: linux/arm64, windows/amd64");
    let lone = without_platform(store.image("linux/arm64"));
    let text = store.resolve(&index(&[lone]), "linux/amd64").unwrap_err().to_string();
    assert_eq!(text, "there is no image for linux/amd64; there are: linux/arm64");
    let hostile = with(store.image("linux/arm64"), "/platform/variant", json!("\u{1b}[2J"));
    let text = store.resolve(&index(&[hostile]), "linux/amd64").unwrap_err().to_string();
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn an_index_that_lies_about_a_platform_is_caught() {
    let mut store = Store::default();
    let mut image = store.image("linux/arm64");
    image["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let refused = store.resolve(&index(&[image]), "linux/amd64");
    assert!(matches!(refused, Err(ResolveError::Lies { .. })), "{refused:?}");
}

#[test]
fn without_a_platform_the_configuration_decides() {
    let mut store = Store::default();
    let signature = store.put(OCI_IMAGE, &with(image(), "/config/mediaType", json!("text/plain")));
    let entries =
        ["linux/arm64", "linux/amd64"].map(|platform| without_platform(store.image(platform)));
    let all = index(&[vec![signature], entries.to_vec()].concat());
    assert_eq!(store.resolve(&all, "linux/amd64").unwrap(), "linux/amd64");
}

#[test]
fn indexes_within_indexes_are_followed_to_a_depth_of_four() {
    let mut store = Store::default();
    let mut inner = index(&[store.image("linux/amd64")]);
    for depth in 1..=6 {
        let found = store.resolve(&inner, "linux/amd64");
        if depth <= 4 {
            assert_eq!(found.unwrap(), "linux/amd64", "{depth}");
        } else {
            assert!(matches!(found, Err(ResolveError::Depth)), "{depth}: {found:?}");
        }
        inner = index(&[store.put(OCI_INDEX, &inner)]);
    }
}

#[test]
fn an_index_that_leads_everywhere_ends() {
    let mut store = Store::default();
    let wide: Vec<Value> = (0..100u32)
        .map(|n| {
            store.put(OCI_INDEX, &with(index(&[]), "/annotations", json!({"n": n.to_string()})))
        })
        .collect();
    assert!(matches!(store.resolve(&index(&wide), "linux/amd64"), Err(ResolveError::Fetches)));
    let same = vec![wide[0].clone(); 4000];
    assert!(matches!(
        store.resolve(&index(&same), "linux/amd64"),
        Err(ResolveError::Platform { .. })
    ));
}

#[test]
fn other_bytes_than_the_digest_says_are_refused() {
    let mut store = Store::default();
    let image = store.image("linux/amd64");
    let digest = image["digest"].as_str().unwrap().to_owned();
    store.0.get_mut(&digest).unwrap().push(b' ');
    let refused = store.resolve(&index(&[image]), "linux/amd64");
    assert!(matches!(refused, Err(ResolveError::Corrupt { .. })), "{refused:?}");
}

#[test]
fn layers_are_as_many_as_the_configuration_says() {
    let mut store = Store::default();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}});
    let config = store.put(CONFIG, &config);
    let refused = store.resolve(&with(image(), "/config", config), "linux/amd64");
    let Err(ResolveError::Refused {
        source: ManifestError::LayerCount { diff_ids, layers }, ..
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!((diff_ids, layers), (0, 1));
}

#[test]
fn a_layer_may_occur_twice() {
    let layers = [descriptor(LAYER, 1), descriptor(LAYER, 1)];
    let Ok(Manifest::Image { layers, .. }) = parsed(&with(image(), "/layers", json!(layers)), &[])
    else {
        panic!("refused");
    };
    assert_eq!(layers[0], layers[1]);
}

const FIELDS: [&str; 8] =
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers", "rootfs", "os"];

/// A document with fields of all kinds, some of the wrong type.
fn scrambled() -> impl Strategy<Value = Value> {
    let value = prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!({})),
        Just(json!("x")),
        (-3i64..1000).prop_map(|n| json!(n)),
        Just(json!([descriptor(LAYER, 1)])),
        Just(json!([descriptor(OCI_INDEX, 2)])),
        Just(descriptor(CONFIG, 0)),
    ];
    proptest::collection::btree_map(proptest::sample::select(&FIELDS[..]), value, 0..8)
        .prop_map(|map| json!(map))
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&bytes, &[]).is_err());
        prop_assert!(ImageConfig::parse(&bytes).is_err());
    }

    #[test]
    fn whatever_parses_is_one_thing_and_within_bounds(document in scrambled()) {
        let _config = parsed_config(&document);
        match parsed(&document, &[]) {
            Err(_) => {}
            Ok(Manifest::Image { config, layers }) => {
                prop_assert!(document.get("manifests").is_none_or(Value::is_null));
                prop_assert!(config.size <= MAX_CONFIG_BYTES as u64 && layers.len() <= MAX_LAYERS);
            }
            Ok(Manifest::Index(entries)) => {
                prop_assert!(document.get("layers").is_none_or(Value::is_null));
                prop_assert!(entries.len() <= MAX_ENTRIES);
            }
        }
    }
}
