//! An image of a distribution, pulled by the command from a docker-registry: what is in it, and what was asked for.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use openshell_tests::machine::fixture;
use openshell_tests::walk::walk;
use serde_json::Value;
use tempfile::TempDir;

use crate::served::{Served, USER, run};

/// Puts the image of this many layers (`base`, `first`, `image`) into a registry, under its own name.
fn push(registry: &Served, tag: &str, more: &[&str]) {
    let from = format!("oci:{}:{tag}", fixture("oci").display());
    let to = format!("docker://{}", reference(registry, tag));
    let always = ["copy", "--insecure-policy", "--dest-tls-verify=false"];
    run("skopeo", &[&always, more, &[&from, &to]].concat());
}

fn reference(registry: &Served, tag: &str) -> String {
    format!("{}/team/app:{tag}", registry.host())
}

fn command(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(fixture("openshell-rootfs"));
    for name in ["OPENSHELL_REGISTRY_TOKEN", "REGISTRY_AUTH_FILE", "OPENSHELL_ROOTFS_HOSTS"] {
        command.env_remove(name);
    }
    command.arg("--cache").arg(cache).args(["--json", "--progress", "json"]).args(arguments);
    command
}

/// What a command printed, as JSON.
#[track_caller]
fn printed(output: &Output) -> Value {
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{talk}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn pull(cache: &Path, reference: &str) -> (PathBuf, String) {
    let output = command(cache, &["pull", "--plain", reference]).output().unwrap();
    let path = printed(&output)["path"].as_str().unwrap().into();
    (path, String::from_utf8(output.stderr).unwrap())
}

/// Requests for layers and configurations, each with the digest that was asked for.
fn requests(log: &str) -> Vec<String> {
    let lines = log.lines().filter(|line| line.contains("\"GET /v2/"));
    let digest = |line: &str| Some(line.split_once("/blobs/")?.1.split(' ').next()?.to_owned());
    lines.filter_map(digest).collect()
}

/// The tree of an image, as the kernel shows it.
fn mounted(image: &Path) -> String {
    let directory = TempDir::new().unwrap();
    let at = directory.path().to_str().unwrap();
    run("mount", &["-t", "ext4", "-o", "loop,ro", image.to_str().unwrap(), at]);
    let seen = walk(directory.path());
    run("umount", &[at]);
    seen.unwrap()
}

#[test]
fn a_distribution_from_a_registry_is_what_umoci_unpacks() {
    let expected = fs::read_to_string(fixture("image.txt")).unwrap();
    assert!(expected.lines().count() > 1000, "{}", expected.lines().count());
    let mut images = Vec::new();
    for more in [&[][..], &["--dest-compress-format", "zstd"], &["--format", "v2s2"]] {
        let (registry, cache) = (Served::open(), TempDir::new().unwrap());
        push(&registry, "image", more);
        let (image, _) = pull(cache.path(), &reference(&registry, "image"));
        run("e2fsck", &["-fn", image.to_str().unwrap()]);
        let seen = mounted(&image);
        let differ = |(left, right): &(&str, &str)| left != right;
        assert_eq!(seen.lines().zip(expected.lines()).find(differ), None, "{more:?}");
        assert_eq!(seen.lines().count(), expected.lines().count(), "{more:?}");
        images.push(fs::read(image).unwrap());
    }
    // How layers are compressed is not seen, only which image it is: the first block holds the identity.
    assert_eq!(images[0].len(), images[1].len());
}

#[test]
fn a_second_image_downloads_and_unpacks_only_what_is_new() {
    let (registry, cache) = (Served::open(), TempDir::new().unwrap());
    push(&registry, "first", &[]);
    push(&registry, "image", &[]);
    pull(cache.path(), &reference(&registry, "first"));
    let before = requests(&registry.log());
    let (_, talk) = pull(cache.path(), &reference(&registry, "image"));
    let after = requests(&registry.log());
    let mut new: Vec<&String> = after[before.len()..].iter().collect();
    new.dedup();
    assert!(new.iter().all(|digest| !before.contains(digest)), "{new:?} after {before:?}");
    assert_eq!(new.len(), 2, "a configuration and a layer: {new:?}");
    let cached = talk.lines().filter(|line| line.contains("\"cached\":true")).count();
    assert_eq!(cached, 2, "{talk}");
    let fresh = TempDir::new().unwrap();
    let image = |cache: &Path| fs::read(pull(cache, &reference(&registry, "image")).0).unwrap();
    assert!(image(cache.path()) == image(fresh.path()), "kept layers make another image");
}

#[test]
fn eight_processes_that_want_one_image_download_it_once() {
    let registry = Served::open();
    push(&registry, "image", &[]);
    let alone = TempDir::new().unwrap();
    pull(alone.path(), &reference(&registry, "image"));
    let once = requests(&registry.log());
    let cache = TempDir::new().unwrap();
    let name = reference(&registry, "image");
    let children: Vec<_> = (0..8)
        .map(|_| {
            let mut command = command(cache.path(), &["pull", "--plain", &name]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let mut keys = Vec::new();
    for child in children {
        keys.push(printed(&child.wait_with_output().unwrap())["pieces_sha256"].clone());
    }
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    // Each asks for the configuration, to know which image it wants.
    let all = requests(&registry.log());
    for layer in large(&once) {
        let count = |log: &[String]| log.iter().filter(|digest| *digest == layer).count();
        assert_eq!(count(&all[once.len()..]), count(&once), "{layer}");
    }
}

/// The layers among the digests of a pull: all but the configuration, which a registry is asked for first.
fn large(once: &[String]) -> Vec<&String> {
    let mut digests: Vec<&String> = once.iter().skip(1).collect();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 3, "{once:?}");
    digests
}

#[test]
fn a_cached_image_needs_no_network_and_no_time() {
    let (mut registry, cache) = (Served::open(), TempDir::new().unwrap());
    push(&registry, "base", &[]);
    let name = reference(&registry, "base");
    let (first, _) = pull(cache.path(), &name);
    registry.kill();
    for when in ["missing", "never"] {
        let begin = Instant::now();
        let again = command(cache.path(), &["pull", "--plain", "--pull", when, &name]).output();
        assert_eq!(printed(&again.unwrap())["path"], first.to_str().unwrap());
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
    let asked = command(cache.path(), &["pull", "--plain", "--pull", "always", &name]).output();
    assert_eq!(asked.unwrap().status.code(), Some(1));
}

#[test]
fn a_credential_helper_opens_a_closed_registry() {
    let (registry, home) = (Served::closed(), TempDir::new().unwrap());
    push(&registry, "base", &["--dest-creds", &format!("{}:{}", USER.0, USER.1)]);
    let helper = home.path().join("docker-credential-proof");
    let answer = format!(r#"{{"ServerURL":"x","Username":"{}","Secret":"{}"}}"#, USER.0, USER.1);
    let write = |script: &str| {
        fs::write(&helper, script).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let config = format!(r#"{{"credHelpers":{{"{}":"proof"}}}}"#, registry.host());
    fs::write(home.path().join("config.json"), config).unwrap();
    let path = format!("{}:{}", home.path().display(), std::env::var("PATH").unwrap());
    let pull = || {
        let mut command = command(home.path(), &["pull", &reference(&registry, "base")]);
        command.env("DOCKER_CONFIG", home.path()).env("PATH", &path).env("HOME", home.path());
        command.env_remove("XDG_RUNTIME_DIR").env_remove("XDG_CONFIG_HOME").output().unwrap()
    };
    // One that never answers has ten seconds.
    write("#!/bin/sh\nexec sleep 1000\n");
    let begin = Instant::now();
    let refused = pull();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("docker-credential-proof"), "{said}");
    let took = begin.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(40)).contains(&took), "{took:?}");
    write(&format!("#!/bin/sh\nread -r host\n[ \"$1\" = get ] && echo '{answer}'\n"));
    printed(&pull());
}
