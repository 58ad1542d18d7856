//! The cache as its users and its accidents leave it.

use std::os::unix::fs::FileExt as _;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::digest::Digest;
use crate::image::Platform;
use crate::layer::{Entry, Kind, Layer, Run};

fn open() -> (tempfile::TempDir, Cache) {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(directory.path()).expect("a cache");
    (directory, cache)
}

fn key(text: &str) -> Digest {
    Digest::sha256(text.as_bytes())
}

/// An image of `bytes` bytes, last used `age` seconds ago.
fn put(cache: &Cache, name: &str, bytes: usize, layers: &[&str], age: u64) -> Cached {
    let staging = cache.stage().expect("staged");
    staging.write("rootfs.ext4", &vec![1; bytes]).expect("written");
    let layers = layers.iter().map(|name| LayerRecord { diff_id: key(name), raw_bytes: 1 });
    let record = Record {
        schema: SCHEMA,
        key: key(name),
        identity: key("identity"),
        layers: layers.collect(),
        bytes: bytes as u64,
        pieces_sha256: Digest::sha256(&vec![1; bytes]),
        nodes: 1,
        raw_bytes: 1,
        created: 0,
        process: Process { cmd: vec!["sh".into()], ..Process::default() },
    };
    let cached = cache.publish(staging, record).expect("published");
    let sidecar = File::open(cached.directory.join("image.json")).expect("there");
    sidecar.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("aged");
    cached
}

fn put_layer(cache: &Cache, name: &str, bytes: u64) {
    let lock = cache.lock_layer(&key(name), &|_| ()).expect("locked");
    let (mut staged, mut writer) = cache.stage_layer(&key(name), lock).expect("staged");
    writer.append(0, &vec![9; usize::try_from(bytes).expect("small")]).expect("stored");
    let runs = writer.finish_file(bytes).expect("stored");
    let kind = Kind::File { size: bytes, runs };
    let metadata = openshell_ext4::tree::Metadata::new(0o600, 1, 2);
    let entries = vec![Entry { path: b"a".to_vec(), metadata, kind }];
    let pack = writer.finish().expect("stored");
    let mut layer = Layer { entries, pack, raw_bytes: bytes, digest: key("d"), diff_id: key(name) };
    staged.write_index(&mut layer).expect("written");
    cache.publish_layer(staged).expect("published");
}

#[test]
fn what_is_published_is_found_and_read_only() {
    let (_directory, cache) = open();
    let put = put(&cache, "a", 5000, &[], 0);
    assert_eq!(cache.find(&key("a")), Some(put.clone()));
    assert!(fs::metadata(put.image()).expect("there").permissions().readonly());
    assert!(cache.find(&key("b")).is_none());
    assert_eq!(cache.images().len(), 1);
}

#[test]
fn an_image_that_is_not_whole_is_not_found_and_is_replaced() {
    let (_directory, cache) = open();
    let cached = put(&cache, "a", 5000, &[], 0);
    fs::set_permissions(cached.image(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("opened up");
    File::options().write(true).open(cached.image()).expect("there").set_len(4000).expect("cut");
    assert!(cache.find(&key("a")).is_none());
    assert!(cache.images().is_empty());
    put(&cache, "a", 5000, &[], 0);
    assert!(cache.find(&key("a")).is_some());
    fs::remove_file(cached.directory.join("image.json")).expect("removed");
    assert!(cache.find(&key("a")).is_none());
}

#[test]
fn an_image_of_an_older_version_is_made_again() {
    let (_directory, cache) = open();
    let cached = put(&cache, "a", 5000, &[], 0);
    let sidecar = cached.directory.join("image.json");
    let mut older: serde_json::Value =
        serde_json::from_slice(&fs::read(&sidecar).expect("read")).expect("JSON");
    older["schema"] = 2.into();
    older.as_object_mut().expect("an object").remove("process");
    fs::remove_file(&sidecar).expect("removed");
    fs::write(&sidecar, older.to_string()).expect("written");
    assert!(cache.find(&key("a")).is_none() && cache.images().is_empty());
    assert_eq!(put(&cache, "a", 6000, &[], 0).record.process.cmd, ["sh"]);
    assert_eq!(cache.find(&key("a")).expect("made again").record.bytes, 6000);
}

#[test]
fn layers_come_back_as_they_were_and_damaged_ones_do_not() {
    let (_directory, cache) = open();
    put_layer(&cache, "l", 10_000);
    let layer = cache.layer(&key("l")).expect("kept");
    assert_eq!((layer.entries.len(), layer.raw_bytes), (1, 10_000));
    let mut bytes = vec![0; 10_000];
    layer.pack.read_at(crate::layer::PACK_START, &mut bytes).expect("stored");
    assert!(bytes == vec![9; 10_000]);
    let index = cache.layer_directory(&key("l")).join("index");
    let mut damaged = fs::read(&index).expect("there");
    damaged[20] ^= 1;
    fs::remove_file(&index).expect("removed");
    fs::write(&index, damaged).expect("written");
    assert!(cache.layer(&key("l")).is_none());
    put_layer(&cache, "l", 10_000);
    assert!(cache.layer(&key("l")).is_some());
}

#[test]
fn a_lock_is_held_by_one_and_passes_on_with_news() {
    let (_directory, cache) = open();
    let mut lock = cache.lock("x", &|_| panic!("nobody holds it")).expect("locked");
    assert!(cache.try_lock("x").expect("asked").is_none());
    lock.tell("half way");
    let heard = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            cache.lock("x", &|news| heard.lock().expect("no panic").push(news.to_owned())).map(drop)
        });
        while heard.lock().expect("no panic").is_empty() {
            std::thread::yield_now();
        }
        drop(lock);
        waiting.join().expect("no panic").expect("locked");
    });
    assert_eq!(heard.lock().expect("no panic")[0], "half way");
    // A swept lock is a new one for everybody.
    cache.sweep_locks();
    assert!(cache.try_lock("x").expect("asked").is_some());
}

#[test]
fn what_dead_makers_left_is_swept_and_what_living_ones_make_is_not() {
    let (directory, cache) = open();
    let living = cache.stage().expect("staged");
    living.write("file", b"x").expect("written");
    let dead = directory.path().join("staging/dead");
    fs::create_dir(&dead).expect("made");
    fs::write(dead.join("rootfs.ext4"), b"half").expect("written");
    Cache::open(directory.path()).expect("opened");
    assert!(!dead.exists());
    assert!(living.path().join("file").exists());
    let path = living.path().to_owned();
    drop(living);
    assert!(!path.exists());
}

#[test]
fn a_reference_leads_to_an_image_until_that_is_gone() {
    let (_directory, cache) = open();
    let platform = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
    let cached = put(&cache, "a", 100, &[], 0);
    let tag = Tag {
        schema: SCHEMA,
        reference: "example/app:1".into(),
        platform: platform.clone(),
        key: key("a"),
        identity: key("m"),
        checked: 7,
    };
    cache.remember(&tag).expect("remembered");
    assert_eq!(cache.recall("example/app:1", &platform), Some((tag, cached)));
    let other = Platform { architecture: "arm64".into(), ..platform.clone() };
    assert!(cache.recall("example/app:1", &other).is_none());
    assert!(cache.remove(&key("a")).expect("removed"));
    assert!(cache.recall("example/app:1", &platform).is_none());
    assert!(cache.tags().is_empty());
}

#[test]
fn what_was_not_used_for_longest_goes_first_and_only_as_much_as_must() {
    let (_directory, cache) = open();
    for (name, age) in [("old", 300), ("middle", 200), ("new", 100)] {
        put(&cache, name, 1 << 20, &[name], age);
        put_layer(&cache, name, 1 << 20);
    }
    put_layer(&cache, "orphan", 1 << 20);
    let kept = |cache: &Cache, name: &str| {
        (cache.peek(&key(name)).is_some(), cache.layer(&key(name)).is_some())
    };
    let dry = cache.prune(Prune { budget: Some(0), dry_run: true }).expect("counted");
    assert_eq!((dry.images.len(), dry.layers.len()), (3, 4));
    let freed = cache.prune(Prune::default()).expect("pruned");
    assert_eq!((freed.images.len(), freed.layers.len()), (0, 1));
    let budget = Some(freed.left - (3 << 19));
    cache.prune(Prune { budget, dry_run: false }).expect("pruned");
    assert_eq!(kept(&cache, "old"), (false, false));
    assert_eq!((kept(&cache, "middle"), kept(&cache, "new")), ((true, true), (true, true)));
}

#[test]
fn what_is_pinned_or_open_stays() {
    let (_directory, cache) = open();
    let open = put(&cache, "open", 1000, &[], 10);
    put(&cache, "pinned", 1000, &[], 10);
    put(&cache, "free", 1000, &[], 10);
    cache.pin("sandbox-1", &key("pinned")).expect("pinned");
    let machine = File::open(open.image()).expect("there");
    machine.lock_shared().expect("locked");
    let all = Prune { budget: Some(0), dry_run: false };
    assert_eq!(cache.prune(all).expect("pruned").images, [key("free")]);
    assert!(!cache.remove(&key("open")).expect("asked"));
    drop(machine);
    cache.unpin("sandbox-1").expect("let go");
    cache.unpin("sandbox-1").expect("let go twice");
    assert_eq!(cache.prune(all).expect("pruned").images.len(), 2);
}

#[test]
fn a_pack_that_was_cut_is_not_used() {
    let (_directory, cache) = open();
    put_layer(&cache, "l", 10_000);
    let pack = cache.layer_directory(&key("l")).join("pack");
    fs::remove_file(&pack).expect("removed");
    File::create_new(&pack).expect("new").write_all_at(&[0; 5000], 0).expect("written");
    assert!(cache.layer(&key("l")).is_none());
}

proptest! {
    #[test]
    fn an_index_is_read_back_or_not_at_all(
        paths in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
        runs in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..5),
        at: prop::sample::Index, bit in 0u8..8,
    ) {
        let runs: Vec<Run> = runs.into_iter().map(|(at, length, pack)| Run { at, length, pack }).collect();
        let entries: Vec<Entry> = paths.into_iter().enumerate().map(|(at, path)| {
            let kind = match at % 5 {
                0 => Kind::File { size: 77, runs: runs.clone() },
                1 => Kind::Symlink(path.clone()),
                2 => Kind::HardLink(path.clone()),
                3 => Kind::CharDevice(openshell_ext4::tree::Device { major: 1, minor: 3 }),
                _ => Kind::Directory,
            };
            let mut metadata = openshell_ext4::tree::Metadata::new(0o1755, 70_000, 80_000);
            metadata.xattrs.insert(b"user.a".to_vec(), path.clone());
            Entry { path, metadata, kind }
        }).collect();
        let facts = codec::Facts { raw_bytes: 5, pack_bytes: 6 };
        let mut bytes = codec::encode(facts, b"aside", &entries);
        let expected = (facts, b"aside".to_vec(), entries);
        prop_assert_eq!(codec::decode(&bytes), Some(expected));
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(codec::decode(&bytes), None);
    }
}
