use proptest::prelude::*;

use super::*;

const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn registry(text: &str) -> RegistryReference {
    match text.parse() {
        Ok(Reference::Registry(reference)) => reference,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_short_name_means_docker_hub() {
    for (text, canonical) in [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("user/app", "docker.io/user/app:latest"),
        ("index.docker.io/debian", "docker.io/library/debian:latest"),
        ("docker.io/debian:12", "docker.io/library/debian:12"),
        ("docker://debian:12", "docker.io/library/debian:12"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
        ("GHCR.IO/owner/app:V1", "ghcr.io/owner/app:V1"),
        // Without a slash behind it, the part behind the colon is a tag.
        ("localhost:5000", "docker.io/library/localhost:5000"),
    ] {
        assert_eq!(registry(text).to_string(), canonical, "{text}");
    }
}

#[test]
fn a_digest_pins_and_a_tag_beside_it_is_kept() {
    let reference = registry(&format!("ghcr.io/o/app:1@sha256:{HEX}"));
    assert_eq!(reference.tag(), Some("1"));
    assert_eq!(reference.selector(), format!("sha256:{HEX}"));
    let reference = registry(&format!("ghcr.io/o/app@sha256:{HEX}"));
    assert_eq!(reference.tag(), None);
    assert_eq!(registry("ghcr.io/o/app").selector(), "latest");
}

#[test]
fn what_a_registry_would_not_take_is_refused() {
    let refused = [
        String::new(),
        ":tag".into(),
        "Upper/Case".into(),
        "5Ztf08oT2zc/x".into(),
        "a//b".into(),
        "a/../b".into(),
        "host.example/a b".into(),
        "host.example/a?x=1".into(),
        "host.example/a#x".into(),
        "host.example/a%2e".into(),
        "user@host.example/a".into(),
        "host.example:0/a".into(),
        "host.example:65536/a".into(),
        "host.example:99999999999999999999/a".into(),
        "a:tag\n".into(),
        "a\n:tag".into(),
        "a:t\u{e4}g".into(),
        "a:\0".into(),
        format!("a:{}", "t".repeat(129)),
        format!("host.example/{}", "a".repeat(256)),
        format!("a@sha256:{}", &HEX[1..]),
        format!("a@sha256:{}", HEX.to_uppercase()),
        format!("a@sha384:{}", "0".repeat(96)),
        format!("a@md5:{}", &HEX[..32]),
        "a".repeat(MAX_LEN + 1),
    ];
    for text in refused {
        assert!(text.parse::<Reference>().is_err(), "{text:?}");
    }
}

#[test]
fn what_lies_on_this_host_has_its_own_forms() {
    let layout =
        |directory: &str, select| Reference::Layout { directory: directory.into(), select };
    let archive = |file: &str, name: Option<&str>| Reference::DockerArchive {
        file: file.into(),
        name: name.map(str::to_owned),
    };
    let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
    for (text, expected) in [
        ("oci:images".to_owned(), layout("images", None)),
        ("oci:/srv/images:1.2".into(), layout("/srv/images", Some(Select::Name("1.2".into())))),
        (
            "oci:/srv/i:ghcr.io/a/b:1".into(),
            layout("/srv/i", Some(Select::Name("ghcr.io/a/b:1".into()))),
        ),
        (format!("oci:i@sha256:{HEX}"), layout("i", Some(Select::Digest(digest)))),
        ("docker-archive:a.tar".into(), archive("a.tar", None)),
        ("docker-archive:a.tar:debian:12".into(), archive("a.tar", Some("debian:12"))),
        ("rootfs-tar:/a:b.tar".into(), Reference::RootfsTar("/a:b.tar".into())),
        ("/srv/root".into(), Reference::Directory("/srv/root".into())),
        ("./root".into(), Reference::Directory("./root".into())),
        ("..".into(), Reference::Directory("..".into())),
        ("dir:root".into(), Reference::Directory("root".into())),
    ] {
        assert_eq!(text.parse::<Reference>().unwrap(), expected, "{text}");
        let again = expected.to_string();
        assert_eq!(again.parse::<Reference>().unwrap(), expected, "{again}");
    }
    for text in ["oci:", "oci::tag", "docker-archive:", "rootfs-tar:", "dir:"] {
        assert!(matches!(text.parse::<Reference>(), Err(ReferenceError::NoPath(_))), "{text}");
    }
}

proptest! {
    #[test]
    fn no_text_panics_and_what_parses_is_safe_in_a_url(text in "\\PC{0,80}|[a-zA-Z0-9.:/@_-]{0,80}") {
        if let Ok(Reference::Registry(reference)) = text.parse::<Reference>() {
            let safe = |c: char| c.is_ascii_alphanumeric() || ".:/@_-".contains(c);
            prop_assert!(reference.to_string().chars().all(safe), "{reference}");
            prop_assert!(!reference.repository().split('/').any(|part| part.starts_with('.') || part.is_empty()));
            prop_assert_eq!(reference.to_string().parse::<RegistryReference>().unwrap(), reference);
        }
    }

    #[test]
    fn a_canonical_name_reads_back(
        host in "[a-z0-9]{1,8}(\\.[a-z0-9]{1,8}){1,3}(:[1-9][0-9]{0,3})?",
        repository in "[a-z0-9]{1,8}([._-][a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}){0,3}",
        tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
    ) {
        let text = format!("{host}/{repository}:{tag}");
        let reference = text.parse::<RegistryReference>().unwrap();
        prop_assert_eq!(reference.registry(), host);
        prop_assert_eq!(reference.tag(), Some(tag.as_str()));
        prop_assert_eq!(reference.to_string(), text);
    }
}
