//! What a container engine of the host gives away: saved images, and the files of a container.

use std::fs;
use std::path::Path;

use openshell_rootfs::cache::Cache;
use openshell_rootfs::limits::Limits;
use openshell_rootfs::reference::Select;
use openshell_rootfs::source::{directory, docker_archive, oci_layout, rootfs_tar};
use tempfile::TempDir;

use crate::images::{Made, build, contents, platform};
use crate::served::run;

const NAME: &str = "localhost/team/app:v3";

/// Podman with a store of its own, which goes away.
struct Engine(TempDir);

impl Engine {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a command of the engine and answers with the last line of what it prints.
    fn run(&self, arguments: &[&str]) -> String {
        let (store, state) = (self.at("store"), self.at("state"));
        let own = ["--root", &store, "--runroot", &state, "--storage-driver", "vfs"];
        // Nothing of the host's: neither its service manager nor its journal.
        let alone = ["--cgroup-manager", "cgroupfs", "--events-backend", "file"];
        let printed = run("podman", &[&own[..], &alone, arguments].concat());
        printed.lines().last().unwrap_or_default().to_owned()
    }
}

#[test]
fn what_podman_saves_and_exports_is_what_it_was_given() {
    let (made, engine, home) = (Made::new(), Engine::new(), TempDir::new().unwrap());
    let cache = Cache::open(home.path()).unwrap();
    let expected = contents(&build(&cache, &directory(&made.unpacked()).unwrap()));
    let given = engine.at("given.tar");
    let (from, to) =
        (format!("oci:{}", made.image("v3")), format!("docker-archive:{given}:{NAME}"));
    run("skopeo", &["copy", "--insecure-policy", &from, &to]);
    engine.run(&["load", "--input", &given]);

    let saved = engine.at("saved.tar");
    engine.run(&["save", "--output", &saved, NAME]);
    let (path, limits) = (Path::new(&saved), Limits::default());
    let local = docker_archive(path, Some(NAME), &platform(), &limits, home.path()).unwrap();
    assert!(contents(&build(&cache, &local)) == expected, "podman save");

    let layout = engine.at("layout");
    engine.run(&["save", "--format", "oci-dir", "--output", &layout, NAME]);
    let select: Option<Select> = None;
    let local = oci_layout(Path::new(&layout), select.as_ref(), &platform()).unwrap();
    assert!(contents(&build(&cache, &local)) == expected, "podman save --format oci-dir");

    // An export has times in seconds: the reference is what GNU tar makes of it.
    let (exported, unpacked) = (engine.at("exported.tar"), engine.at("unpacked"));
    let container = engine.run(&["create", NAME, "/bin/suid"]);
    engine.run(&["export", "--output", &exported, &container]);
    fs::create_dir(&unpacked).unwrap();
    let gnu = ["--xattrs", "--xattrs-include=*", "-xpf", &exported, "-C", &unpacked];
    run("tar", &[&["--numeric-owner"], &gnu[..]].concat());
    // The root has no entry in an export.
    run("chmod", &["755", &unpacked]);
    run("touch", &["-d", "@0", &unpacked]);
    let expected = contents(&build(&cache, &directory(Path::new(&unpacked)).unwrap()));
    let local = rootfs_tar(Path::new(&exported)).unwrap();
    assert!(contents(&build(&cache, &local)) == expected, "podman export");
}
