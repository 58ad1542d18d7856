//! The command as its users run it, and as it is killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use openshell_rootfs::build::hash;
use openshell_rootfs::cache::{Cache, Prune};
use openshell_rootfs::digest::Digest;
use serde_json::Value;
use tempfile::TempDir;

use crate::layout::Layout;

fn command(cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openshell-rootfs"));
    command.arg("--cache").arg(cache).env_remove("OPENSHELL_ROOTFS_HOSTS");
    command
}

fn run(cache: &Path, arguments: &[&str]) -> Output {
    command(cache).args(arguments).output().expect("started")
}

fn json(cache: &Path, arguments: &[&str]) -> Value {
    let output = run(cache, &[&["--json"], arguments].concat());
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {talk}");
    assert!(talk.is_empty(), "{talk}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The exit code and the only line of an error.
fn error(cache: &Path, arguments: &[&str]) -> (i32, String) {
    let output = run(cache, &[&["--progress", "none"], arguments].concat());
    let talk = String::from_utf8(output.stderr).expect("text");
    assert_eq!(talk.lines().count(), 1, "{talk}");
    (output.status.code().expect("no signal"), talk)
}

#[test]
fn an_image_is_pulled_looked_at_and_removed() {
    let (home, layout) = (TempDir::new().expect("a directory"), Layout::new());
    let cache = home.path();
    let reference = layout.reference();
    let pulled = json(cache, &["pull", &reference]);
    assert_eq!(json(cache, &["pull", &reference])["pieces_sha256"], pulled["pieces_sha256"]);
    let listed = json(cache, &["ls"]);
    assert_eq!(listed[0]["key"], pulled["key"]);
    assert_eq!(listed[0]["references"][0], reference);
    let key = pulled["key"].as_str().expect("a key").trim_start_matches("sha256:").to_owned();
    assert_eq!(json(cache, &["inspect", &key[..8]])["config"]["architecture"], "amd64");
    assert_eq!(json(cache, &["verify"])[0]["sound"], true);
    assert_eq!(run(cache, &["cat", &key, "/etc/link"]).stdout, b"hello\n");
    let archive = run(cache, &["export-tar", &reference]).stdout;
    let mut archive = tar::Archive::new(&archive[..]);
    let names: Vec<String> = archive
        .entries()
        .expect("an archive")
        .map(|entry| entry.expect("an entry").path().expect("a path").display().to_string())
        .collect();
    assert!(names.contains(&"etc/motd".to_owned()) && !names.contains(&"etc/gone".to_owned()));
    assert_eq!(json(cache, &["rm", &key])["removed"][0], pulled["key"]);
    assert_eq!(json(cache, &["ls"]), Value::Array(vec![]));
    assert_eq!(json(cache, &["prune"])["layers"].as_array().expect("a list").len(), 2);
}

#[test]
fn the_sandbox_user_has_the_numbers_that_are_asked_for() {
    let (home, layout) = (TempDir::new().expect("a directory"), Layout::new());
    let cache = home.path();
    let reference = layout.reference();
    let usual = json(cache, &["pull", &reference]);
    let other = json(cache, &["pull", "--sandbox-user", "2000:2001", &reference]);
    assert_ne!(usual["key"], other["key"], "another image");
    for (pulled, numbers) in [(usual, ":10001:10001:"), (other, ":2000:2001:")] {
        let accounts = run(cache, &["cat", pulled["key"].as_str().expect("a key"), "/etc/passwd"]);
        let accounts = String::from_utf8(accounts.stdout).expect("text");
        let user = accounts.lines().find(|line| line.starts_with("sandbox:")).expect("a user");
        assert!(user.contains(numbers), "{user}");
    }
}

#[test]
fn disks_are_written_where_they_shall_be() {
    let (home, layout) = (TempDir::new().expect("a directory"), Layout::new());
    let cache = home.path().join("cache");
    let (output, tool) = (home.path().join("rootfs.ext4"), home.path().join("tool"));
    std::fs::write(&tool, b"tool").expect("written");
    let (out, add) =
        (output.to_str().expect("text"), format!("{}:/bin/tool:4755:7:8", tool.display()));
    let reference = layout.reference();
    let built = json(&cache, &["build", &reference, "-o", out, "--size", "64M", "--add", &add]);
    assert_eq!(built["size_bytes"], 64 << 20);
    assert_eq!(json(&cache, &["verify", out])[0]["sound"], true);
    let file = std::fs::File::open(&output).expect("there");
    let image = openshell_ext4::Image::open(file).expect("an image");
    let tree = image.read_tree().expect("sound");
    let node = tree.at(b"bin/tool").and_then(|id| tree.find(id)).expect("added");
    let metadata = &node.metadata;
    assert_eq!((metadata.mode, metadata.uid, metadata.gid), (0o4755, 7, 8));
    let read_only = json(&cache, &["build", &reference, "-o", out, "--read-only"]);
    assert_eq!(json(&cache, &["inspect", &reference])["key"], read_only["key"]);
    let bytes = std::fs::read(&output).expect("there").len() as u64;
    assert_eq!(read_only["size_bytes"], bytes);
    let left: Vec<_> = home.path().read_dir().expect("a directory").flatten().collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn the_disks_of_a_sandbox_have_the_given_files() {
    let home = TempDir::new().expect("a directory");
    let at = |name: &str| home.path().join(name);
    std::fs::write(at("token"), b"secret").expect("written");
    let add = format!("{}:/auth/token:0600:1:2", at("token").display());
    let cache = at("cache");
    for (verb, name, path) in
        [("make-upper", "upper", "upper/auth/token"), ("make-config", "config", "auth/token")]
    {
        let out = at(name);
        let out_text = out.to_str().expect("text");
        let made = json(&cache, &[verb, "-o", out_text, "--add", &add]);
        let length = std::fs::metadata(&out).expect("there").len();
        assert_eq!(made["size_bytes"], length);
        let file = std::fs::File::open(&out).expect("there");
        let image = openshell_ext4::Image::open(file).expect("an image");
        assert!(image.check().expect("read").is_clean());
        let found = image.find(path.as_bytes()).expect("read").expect("there");
        assert_eq!(found.size_bytes(), 6);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&out).expect("there").permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn errors_are_one_line_with_the_thing_and_the_fix() {
    let (home, layout) = (TempDir::new().expect("a directory"), Layout::new());
    let cache = home.path();
    let (code, text) = error(cache, &["inspect", "nothing"]);
    assert!(
        code == 3 && text.contains("\"nothing\"") && text.contains("`openshell-rootfs ls`"),
        "{text}"
    );
    let (code, text) = error(cache, &["pull", "oci:/does/not/exist"]);
    assert!(code == 1 && text.contains("/does/not/exist"), "{text}");
    let (code, text) = error(cache, &["pull", "--pull", "never", "registry.invalid/app:1"]);
    assert!(code == 3 && text.contains("registry.invalid/app:1"), "{text}");
    let (code, text) = error(cache, &["pull", &layout.reference(), "--platform", "linux/s390x"]);
    assert!(code == 1 && text.contains("s390x") && text.contains("amd64"), "{text}");
    let few = ["pull", &layout.reference(), "--max-metadata", "1K"];
    let (code, text) = error(cache, &few);
    assert!(code == 1 && text.contains("limit of 1024 bytes of names"), "{text}");
    assert!(text.contains("allow more with --max-metadata"), "{text}");
    layout.damage();
    let (code, text) = error(cache, &["pull", &layout.reference()]);
    assert!(code == 1 && text.contains("is damaged") && text.contains("again"), "{text}");
    assert_eq!(run(cache, &["build"]).status.code(), Some(2));
}

#[test]
fn a_flipped_bit_anywhere_is_noticed_by_verify() {
    let (home, layout) = (TempDir::new().expect("a directory"), Layout::new());
    let pulled = json(home.path(), &["pull", &layout.reference()]);
    let path = pulled["path"].as_str().expect("a path").to_owned();
    let key = pulled["key"].as_str().expect("a key").to_owned();
    let mut permissions = std::fs::metadata(&path).expect("there").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(&path, permissions).expect("opened up");
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("there");
    let bits = file.metadata().expect("there").len() * 8;
    let flip = |bit: u64| {
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, bit / 8).expect("read");
        byte[0] ^= 1 << (bit % 8);
        std::os::unix::fs::FileExt::write_all_at(&file, &byte, bit / 8).expect("written");
    };
    assert_eq!(json(home.path(), &["verify"])[0]["sound"], true);
    // Of the superblock, of files and between them: a prime number of bits apart.
    for bit in (0..40).map(|at| (at * 1_299_709 * 8 + at) % bits) {
        flip(bit);
        let output = run(home.path(), &["--json", "verify", &key]);
        assert_eq!(output.status.code(), Some(1), "bit {bit}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report[0]["sound"], false, "bit {bit}");
        let faults = report[0]["faults"].to_string();
        assert!(faults.contains("its bytes have the digest sha256:"), "bit {bit}: {faults}");
        flip(bit);
    }
    assert_eq!(json(home.path(), &["verify"])[0]["sound"], true);
}

#[test]
fn who_waits_is_shown_how_far_the_leader_is() {
    let (home, layout) = (TempDir::new().expect("a directory"), Layout::new());
    let reference = layout.reference();
    let pulled = json(home.path(), &["pull", &reference]);
    let key: Digest = serde_json::from_value(pulled["key"].clone()).expect("a key");
    let cache = Cache::open(home.path()).expect("a cache");
    cache.remove(&key).expect("removed");
    let name = format!("image-{}", key.hex());
    let mut leader = cache.try_lock(&name).expect("asked").expect("nobody else has it");
    leader.tell("layers, 12 MiB read");
    let mut waiting = command(home.path())
        .args(["--progress", "plain", "pull", &reference])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(waiting.stderr.take().expect("piped")).lines();
    let heard = lines.by_ref().map(|line| line.expect("text")).any(|line| line.contains("12 MiB"));
    assert!(heard, "the news of the leader are not shown");
    assert!(cache.find(&key).is_none());
    drop(leader);
    drop(lines.by_ref().collect::<Vec<_>>());
    assert!(waiting.wait().expect("waited").success());
    assert!(cache.find(&key).is_some());
}

#[test]
fn an_archive_of_an_engine_comes_in_by_the_standard_input() {
    let (home, layout) = (TempDir::new().expect("a directory"), Layout::new());
    run(home.path(), &["pull", &layout.reference()]);
    let archive = run(home.path(), &["export-tar", &layout.reference()]).stdout;
    let mut child = command(home.path())
        .args(["--json", "--progress", "none", "pull", "rootfs-tar:-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    child.stdin.take().expect("piped").write_all(&archive).expect("read");
    let output = child.wait_with_output().expect("waited");
    assert!(output.status.success());
    let pulled: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let key = pulled["key"].as_str().expect("a key");
    assert_eq!(run(home.path(), &["cat", key, "/etc/motd"]).stdout, b"hello\n");
    // The same bytes from a file are the same image.
    let file = home.path().join("archive");
    std::fs::write(&file, &archive).expect("written");
    let again = json(home.path(), &["pull", &format!("rootfs-tar:{}", file.display())]);
    assert_eq!(
        (&again["key"], &again["pieces_sha256"]),
        (&pulled["key"], &pulled["pieces_sha256"])
    );
}

#[test]
fn two_hundred_kills_leave_a_good_cache() {
    let (home, layout) = (TempDir::new().expect("a directory"), Layout::new());
    let reference = layout.reference();
    let begin = Instant::now();
    assert!(run(home.path(), &["pull", &reference]).status.success());
    let whole = begin.elapsed().max(Duration::from_millis(10));
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut unfinished = 0;
    for round in 0..200 {
        let cache = Cache::open(home.path()).expect("a cache");
        let budget = Some(0).filter(|_| round % 3 == 0);
        cache.prune(Prune { budget, dry_run: false }).expect("pruned");
        for image in cache.images() {
            cache.remove(&image.record.key).expect("removed");
        }
        let mut child = command(home.path())
            .args(["pull", &reference])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(whole.mul_f64(f64::from(u8::try_from(seed >> 56).expect("a byte")) / 255.0));
        child.kill().expect("killed");
        unfinished += usize::from(!child.wait().expect("waited").success());
        check(home.path());
    }
    assert!(unfinished > 20, "only {unfinished} were killed before their end");
    assert!(run(home.path(), &["pull", &reference]).status.success());
    check(home.path());
    let staging = home.path().join("staging");
    assert_eq!(staging.read_dir().expect("a directory").count(), 0);
}

/// Whatever has a name in the cache is complete.
fn check(home: &Path) {
    let cache = Cache::open(home).expect("a cache");
    let named = home.join("images").read_dir().expect("a directory").count();
    let images = cache.images();
    assert_eq!(images.len(), named, "an image without a good record");
    for image in images {
        let file = std::fs::File::open(image.image()).expect("there");
        assert_eq!(hash(&file, image.record.bytes).expect("read"), image.record.pieces_sha256);
    }
    for layer in home.join("layers").read_dir().expect("a directory").flatten() {
        let name = layer.file_name().into_string().expect("text").replace('-', ":");
        assert!(cache.layer(&name.parse().expect("a digest")).is_some(), "{name}");
    }
}
