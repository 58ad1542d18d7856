//! Names of images, platforms and digests, as users and documents write them.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use openshell_rootfs::digest::Digest;
use openshell_rootfs::image::Platform;
use openshell_rootfs::reference::{Reference, RegistryReference};
use openshell_rootfs::registry::Hosts;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&what, rest)) = data.split_first() else { return Corpus::Reject };
    let Ok(text) = std::str::from_utf8(rest) else { return Corpus::Reject };
    match what {
        b'r' => reference(text),
        b'p' => platform(text),
        b'd' => digest(text),
        b'h' => drop(Hosts::parse(text)),
        _ => return Corpus::Reject,
    }
    Corpus::Keep
});

fn reference(text: &str) {
    match text.parse::<Reference>() {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(Reference::Registry(reference)) => {
            let shown = reference.to_string();
            let safe = |c: char| c.is_ascii_alphanumeric() || ".:/@_-".contains(c);
            assert!(shown.chars().all(safe), "{shown}");
            assert!(
                reference
                    .repository()
                    .split('/')
                    .all(|part| !part.is_empty() && !part.starts_with('.'))
            );
            assert!(!reference.selector().contains('/'));
            assert_eq!(shown.parse::<RegistryReference>().as_ref(), Ok(&reference));
        }
        // Paths are the user's own; what is written is what is read again.
        Ok(local) => assert_eq!(local.to_string().parse::<Reference>(), Ok(local)),
    }
}

fn platform(text: &str) {
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().as_ref(), Ok(&platform));
        assert!(platform.suits(&platform).is_some(), "{platform}");
    }
}

fn digest(text: &str) {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(digest.hex().bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    }
}
