use std::fs;

use super::source::{Decision, Tested, Versions};
use super::*;

fn config(text: &str) -> Config {
    Config::parse(text).unwrap()
}

#[test]
fn an_option_line_means_the_same_with_and_without_a_comment() {
    let plain = config("CONFIG_A=y\nCONFIG_N=32\n# CONFIG_B is not set\nCONFIG_S=\"a # b\"\n");
    let explained = config(
        "# Why\n\nCONFIG_A=y   # because\nCONFIG_N=32 # limit\n# CONFIG_B is not set  # why\nCONFIG_S=\"a # b\"  # c\n",
    );
    assert_eq!(plain, explained);
    assert_eq!(config("CONFIG_B=n\n"), config("# CONFIG_B is not set\n"));
}

#[test]
fn a_config_survives_being_written_and_read() {
    for profile in Profile::ALL {
        let wanted = profile.wanted().unwrap();
        assert_eq!(Config::parse(&wanted.to_string()).unwrap(), wanted);
    }
}

#[test]
fn a_malformed_line_is_refused_with_its_number() {
    let lines = [
        "CONFIG_A",
        "CONFIG_A=",
        "CONFIG_A=y z",
        "CONFIG_A=y# no space",
        "CONFIG_A=\"open",
        "CONFIG_A=\"open\\\"",
        "CONFIG_=y",
        "FOO=y",
        "CONFIG_A-B=y",
        "CONFIG_FIRST=y",
        "# CONFIG_A is not setx",
    ];
    for line in lines {
        let error = Config::parse(&format!("CONFIG_FIRST=y\n{line}\n")).unwrap_err();
        assert!(format!("{error:#}").contains("line 2"), "{line}: {error:#}");
    }
}

#[test]
fn a_later_fragment_wins() {
    let mut merged = config("CONFIG_A=y\nCONFIG_B=y\n");
    merged.merge(config("# CONFIG_A is not set\nCONFIG_C=1\n"));
    assert_eq!(merged, config("# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=1\n"));
}

#[test]
fn each_broken_promise_is_named_and_nothing_else() {
    let built = config("CONFIG_A=y\nCONFIG_N=8\nCONFIG_MOD=m\nCONFIG_ON=y\n");
    let required = config(
        "CONFIG_A=y\nCONFIG_N=32\nCONFIG_GONE=y\nCONFIG_MOD=y\n# CONFIG_ON is not set\n# CONFIG_OFF is not set\n",
    );
    let error = built.must_have(&required).unwrap_err().to_string();
    let named: Vec<&str> = error.lines().skip(1).map(str::trim).collect();
    assert_eq!(named, ["CONFIG_GONE=y", "CONFIG_MOD=y", "CONFIG_N=32", "# CONFIG_ON is not set"]);
}

#[test]
fn the_fragments_set_what_a_profile_promises_unless_kconfig_does() {
    for profile in Profile::ALL {
        let wanted = profile.wanted().unwrap();
        assert!(wanted.to_string().contains(&format!("CONFIG_BUILD_SALT=\"{}\"", profile.salt())));
        // What the required list turns off must not be turned on by a fragment.
        for line in profile.required().lines().filter(|line| line.starts_with("# CONFIG_")) {
            let on = format!("{}=", line.trim_start_matches("# ").split(' ').next().unwrap());
            assert!(!wanted.to_string().lines().any(|line| line.starts_with(&on)), "{on}");
        }
    }
}

#[test]
fn every_fragment_option_says_why() {
    for fragment in Profile::ALL.iter().flat_map(|profile| profile.fragments()) {
        for line in fragment.lines().filter(|line| line.contains("CONFIG_")) {
            let why = line.rsplit_once(" # ").map(|(_, why)| why.trim());
            assert!(why.is_some_and(|why| why.len() > 3), "{line}");
        }
    }
}

#[test]
fn only_tested_or_newer_sources_of_the_series_are_built() {
    let versions = Versions {
        series: "6.1".to_owned(),
        package: "linux-source-6.1".to_owned(),
        tested: ["6.1.190-1", "6.1.192-2"]
            .map(|version| Tested { version: version.to_owned(), sha256: "aa".to_owned() })
            .into(),
    };
    let decide = |version, sha256| match versions.decide(version, sha256) {
        Decision::Build => "build",
        Decision::Notice(_) => "notice",
        Decision::Outdated(_) => "outdated",
        Decision::Refuse(_) => "refuse",
    };
    let cases = [
        ("6.1.192-2", "aa", "build"),
        ("6.1.190-1", "aa", "build"),
        ("6.1.192-2", "bb", "refuse"),
        ("6.1.192-3", "bb", "notice"),
        ("6.1.200-1", "bb", "notice"),
        ("6.1.192-2+b1", "bb", "notice"),
        ("6.1.192-1", "bb", "outdated"),
        ("6.1.99-1", "bb", "outdated"),
        ("6.12.5-1", "aa", "refuse"),
        ("6.10-1", "aa", "refuse"),
        ("5.10.200-1", "aa", "refuse"),
        ("6.1", "aa", "refuse"),
        ("6.1.x-1", "aa", "refuse"),
        ("", "aa", "refuse"),
    ];
    for (version, sha256, expected) in cases {
        assert_eq!(decide(version, sha256), expected, "{version}");
    }
}

#[test]
fn the_version_table_of_the_repository_is_sound() {
    let versions = Versions::load().unwrap();
    assert_eq!(versions.package, format!("linux-source-{}", versions.series));
    assert!(!versions.tested.is_empty());
    for tested in &versions.tested {
        assert_eq!(versions.decide(&tested.version, &tested.sha256), Decision::Build);
        assert_eq!(tested.sha256.len(), 64);
    }
}

#[test]
fn the_cache_key_changes_with_each_input() {
    let (one, two) = (config("CONFIG_A=y\n"), config("CONFIG_A=m\n"));
    let key = cache_key("s", &one, "c");
    assert_eq!(key, cache_key("s", &one, "c"));
    for other in [cache_key("t", &one, "c"), cache_key("s", &two, "c"), cache_key("s", &one, "d")] {
        assert_ne!(key, other);
    }
}

/// One segment or note segment of a made image: type, file offset, physical address, contents.
type Segment<'a> = (u32, u64, u64, &'a [u8]);

fn image(segments: &[Segment<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[16..18].copy_from_slice(&2u16.to_le_bytes());
    bytes[18..20].copy_from_slice(&62u16.to_le_bytes());
    bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
    for (kind, offset, physical, contents) in segments {
        let mut header = [0; 56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&offset.to_le_bytes());
        header[24..32].copy_from_slice(&physical.to_le_bytes());
        header[32..40].copy_from_slice(&(contents.len() as u64).to_le_bytes());
        bytes.extend(header);
    }
    for (_, offset, _, contents) in segments {
        let start = usize::try_from(*offset).unwrap();
        if bytes.len() < start + contents.len() {
            bytes.resize(start + contents.len(), 0);
        }
        bytes[start..start + contents.len()].copy_from_slice(contents);
    }
    bytes
}

fn note(name: &[u8], kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let [name_len, data_len] = [name, data].map(|part| u32::try_from(part.len()).unwrap());
    for field in [name_len, data_len, kind] {
        bytes.extend(field.to_le_bytes());
    }
    for part in [name, data] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn notes(salt: &str) -> Vec<u8> {
    let salt = format!("{salt}\0");
    [
        note(b"GNU\0", 3, &[0xab, 0x01]),
        note(b"Linux\0", 0x101, &[0; 4]),
        note(b"Linux\0", 0x100, salt.as_bytes()),
        note(b"Xen\0", 18, &[0; 8]),
    ]
    .concat()
}

#[test]
fn the_notes_of_an_image_are_read() {
    let notes = notes("openshell-vmm/1 tiny mptable");
    let found =
        elf::check(&image(&[(1, 0x1000, 0x100_0000, b"text"), (4, 0x1800, 0, &notes)])).unwrap();
    assert_eq!(found.build_id, "ab01");
    assert_eq!(found.salt, "openshell-vmm/1 tiny mptable");
    assert!(found.pvh);
}

#[test]
fn an_image_that_cannot_be_mapped_or_named_is_refused() {
    let notes = notes("s");
    let load: Segment<'_> = (1, 0x1000, 0x100_0000, b"text");
    let cases = [
        (image(&[(1, 0x1010, 0x100_0000, b"text"), (4, 0x1800, 0, &notes)]), "page phase"),
        (image(&[(4, 0x1800, 0, &notes)]), "no segment to load"),
        (image(&[load]), "no build id"),
        (image(&[load, (4, 0x1800, 0, &note(b"GNU\0", 3, &[1]))]), "no build salt"),
        (image(&[load, (4, 0x1800, 0, &notes[..notes.len() - 5])]), "past its segment"),
        (b"\x1f\x8b\x08".to_vec(), "not a little-endian"),
        (Vec::new(), "not a little-endian"),
    ];
    for (bytes, expected) in cases {
        let error = format!("{:#}", elf::check(&bytes).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_cut_image_is_an_error_and_never_a_panic() {
    let whole = image(&[(1, 0x100, 0x100, b"text"), (4, 0x200, 0, &notes("s"))]);
    assert!(elf::check(&whole).is_ok());
    for length in 0..whole.len() {
        assert!(elf::check(&whole[..length]).is_err() || length > 0x200, "{length}");
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] = 0xff;
        drop(elf::check(&changed));
    }
}

/// A finished build whose config is `config`, as `make_entry` would leave it.
fn finished(profile: Profile, config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let notes = notes(&profile.salt());
    let vmlinux = image(&[(1, 0x1000, 0x100_0000, b"text"), (4, 0x1800, 0, &notes)]);
    let manifest = Manifest {
        profile,
        tables: profile.tables(),
        source_version: "6.1.192-2".to_owned(),
        source_sha256: sha256(b""),
        config_sha256: sha256(config.as_bytes()),
        build_id: "ab01".to_owned(),
        vmlinux_sha256: sha256(&vmlinux),
    };
    fs::write(dir.path().join("vmlinux"), vmlinux).unwrap();
    fs::write(dir.path().join("config"), config).unwrap();
    fs::write(dir.path().join("kernel.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    dir
}

/// A config that keeps every promise of `profile`.
fn complete(profile: Profile) -> Config {
    let mut config = profile.wanted().unwrap();
    config.merge(Config::parse(profile.required()).unwrap());
    config
}

#[test]
fn a_build_without_one_required_option_fails_by_name() {
    for profile in Profile::ALL {
        let whole = complete(profile).to_string();
        verify(profile, finished(profile, &whole).path()).unwrap();
        for line in Config::parse(profile.required()).unwrap().to_string().lines() {
            let option = line.trim_start_matches("# ").split(['=', ' ']).next().unwrap();
            let changed = if line.starts_with('#') {
                format!("{whole}{option}=y\n").replace(&format!("# {option} is not set\n"), "")
            } else {
                whole.replace(&format!("{line}\n"), "")
            };
            let error = verify(profile, finished(profile, &changed).path()).unwrap_err();
            assert!(format!("{error:#}").contains(line), "{line}: {error:#}");
        }
    }
}

/// Turns a file's contents into other contents.
type Change = fn(Vec<u8>) -> Vec<u8>;

#[test]
fn a_finished_build_that_was_changed_is_refused() {
    let whole = complete(Profile::Tiny).to_string();
    let cases: [(&str, Change); 3] = [
        ("vmlinux", |mut bytes| {
            *bytes.last_mut().unwrap() ^= 1;
            bytes
        }),
        ("config", |bytes| [bytes, b"CONFIG_MORE=y\n".to_vec()].concat()),
        ("kernel.json", |bytes| bytes[..bytes.len() - 1].to_vec()),
    ];
    for (file, change) in cases {
        let dir = finished(Profile::Tiny, &whole);
        let path = dir.path().join(file);
        fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
        assert!(verify(Profile::Tiny, dir.path()).is_err(), "{file}");
    }
    let dir = finished(Profile::Tiny, &whole);
    assert!(verify(Profile::Sandbox, dir.path()).is_err());
}

#[test]
fn installing_replaces_an_older_kernel_and_keeps_the_file_of_a_running_one() {
    let whole = complete(Profile::Tiny).to_string();
    let (old, new) = (finished(Profile::Tiny, &whole), finished(Profile::Tiny, "CONFIG_NEW=y\n"));
    let target = tempfile::tempdir().unwrap();
    let dir = target.path().join("kernels/tiny");
    install(old.path(), &dir).unwrap();
    let running = fs::File::open(dir.join("vmlinux")).unwrap();
    install(new.path(), &dir).unwrap();
    for file in FILES {
        assert_eq!(fs::read(dir.join(file)).unwrap(), fs::read(new.path().join(file)).unwrap());
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), FILES.len());
    assert_eq!(
        running.metadata().unwrap().len(),
        fs::metadata(old.path().join("vmlinux")).unwrap().len()
    );
}
