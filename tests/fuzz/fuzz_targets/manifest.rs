//! What a registry, a layout or an archive says of an image: documents, and the way through them.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::{Corpus, fuzz_target};
use openshell_rootfs::digest::Digest;
use openshell_rootfs::image::{BlobError, Descriptor, Platform};
use openshell_rootfs::manifest::config::ImageConfig;
use openshell_rootfs::manifest::resolve::{Root, resolve};
use openshell_rootfs::manifest::{self, MAX_CONFIG_BYTES, MAX_ENTRIES, MAX_LAYERS, Manifest};

// Documents are lines; one that names the line behind it by `@N` gets its digest and size in that place.
fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&what, rest)) = data.split_first() else { return Corpus::Reject };
    match what {
        b'm' => parsed(rest, &[]),
        b'i' => parsed(rest, &["application/vnd.oci.image.index.v1+json; charset=utf-8"]),
        b'c' => configured(rest),
        b'r' => resolved(rest),
        _ => return Corpus::Reject,
    }
    Corpus::Keep
});

fn parsed(bytes: &[u8], declared: &[&str]) {
    match manifest::parse(bytes, declared) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(Manifest::Image { config, layers }) => {
            assert!(declared.is_empty() && layers.len() <= MAX_LAYERS);
            assert!(config.size <= MAX_CONFIG_BYTES as u64);
        }
        Ok(Manifest::Index(entries)) => {
            assert!(entries.len() <= MAX_ENTRIES);
            assert!(entries.iter().all(|entry| !(entry.is_image() && entry.is_index())));
        }
    }
}

fn configured(bytes: &[u8]) {
    let Ok(config) = ImageConfig::parse(bytes) else { return };
    let mut words = config.env.iter().chain(&config.entrypoint).chain(&config.cmd);
    assert!(!words.any(|word| word.contains('\0')));
    assert!(!config.platform.os.is_empty() && !config.platform.architecture.is_empty());
    assert!(config.diff_ids.len() <= MAX_LAYERS);
    // A platform that can be written can be read, or is none that an image can be asked for by.
    if let Ok(platform) = config.platform.to_string().parse::<Platform>() {
        assert!(platform.suits(&config.platform).is_some());
    }
}

fn resolved(script: &[u8]) {
    let Ok(text) = std::str::from_utf8(script) else { return };
    let mut documents: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
    let mut last: Vec<String> = Vec::new();
    // From the last line to the first, so that a line can name those behind it.
    for line in text.lines().rev().take(16) {
        let mut document = line.to_owned();
        for (n, descriptor) in last.iter().rev().enumerate() {
            document = document.replace(&format!("@{n}"), descriptor);
        }
        if document.len() > 1 << 16 {
            return;
        }
        let digest = Digest::sha256(document.as_bytes());
        last.push(format!(r#""digest":"{digest}","size":{}"#, document.len()));
        documents.insert(digest, document.into_bytes());
    }
    let Some(first) = text.lines().take(16).count().checked_sub(1).map(|_| last.len() - 1) else {
        return;
    };
    let digest = last[first][10..].split('"').next().and_then(|digest| digest.parse().ok());
    let digest: Digest = digest.expect("it was made here");
    let root = Root { bytes: documents[&digest].clone(), digest, media_type: None };
    let wanted: Platform = "linux/amd64/v2".parse().expect("it is one");
    let mut fetches = 0;
    let mut fetch = |descriptor: &Descriptor, limit: usize| {
        fetches += 1;
        let document = documents.get(&descriptor.digest).ok_or_else(|| BlobError::from("none"))?;
        assert!(descriptor.size <= limit as u64);
        Ok(document.clone())
    };
    if let Ok(image) = resolve(root, &wanted, &mut fetch) {
        assert_eq!(Digest::sha256(&image.manifest), image.manifest_digest);
        assert_eq!(image.layers.len(), image.diff_ids.len());
        let config = ImageConfig::parse(&image.config).expect("it was parsed");
        assert!(wanted.suits(&config.platform).is_some());
    }
    assert!(fetches <= 64);
}
