//! Whole images, from layers in memory.

use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use openshell_ext4::Image;
use openshell_ext4::tree::Kind;

use super::*;
use crate::image::BlobError;
use crate::layer::LayerSource;
use crate::progress::Silent;
use crate::tar::{END, Entry, encode, padding};

/// The configuration of every image here.
const CONFIG: &[u8] =
    br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;

/// Layers in memory, and how often one was opened.
#[derive(Default)]
struct Memory {
    layers: Vec<Vec<u8>>,
    opened: AtomicUsize,
}

impl Layers for Memory {
    fn open(&self, layer: usize) -> Result<Box<dyn Read + Send + '_>, BlobError> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(&self.layers[layer][..]))
    }
}

/// A layer of files, directories where the name ends in a slash.
fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, data) in files {
        let kind = if name.ends_with('/') {
            crate::tar::Kind::Directory
        } else {
            crate::tar::Kind::File { size: data.len() as u64, sparse: None }
        };
        let path = name.trim_end_matches('/').as_bytes().to_vec();
        let metadata = openshell_ext4::tree::Metadata::new(0o755, 1, 2);
        archive.extend(encode(&Entry { path, kind, metadata }));
        archive.extend(*data);
        archive.extend(vec![0; padding(data.len() as u64)]);
    }
    archive.extend(END);
    archive
}

fn plan(layers: &[Vec<u8>]) -> (Plan, Memory) {
    let source = |(at, bytes): (usize, &Vec<u8>)| LayerSource {
        name: format!("layer-{at}"),
        media_type: None,
        size: Some(bytes.len() as u64),
        digest: Some(Digest::sha256(bytes)),
        diff_id: Some(Digest::sha256(bytes)),
    };
    let all = layers.concat();
    let plan = Plan {
        identity: Some(Digest::sha256(&all)),
        layers: layers.iter().enumerate().map(source).collect(),
        manifest: Some(b"{}".to_vec()),
        config: Some(CONFIG.to_vec()),
    };
    (plan, Memory { layers: layers.to_vec(), ..Memory::default() })
}

/// A base, what changes it, and what is added.
fn layers() -> Vec<Vec<u8>> {
    let noise: Vec<u8> =
        (0..300_000u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let many: Vec<(String, Vec<u8>)> =
        (0..700u32).map(|at| (format!("many/{at}"), at.to_string().into_bytes())).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(name, data)| (&name[..], &data[..])).collect();
    vec![
        layer(&[("a/", b""), ("a/big", &noise), ("a/gone", b"x"), ("b/c/d", b"deep")]),
        layer(&many),
        layer(&[("a/.wh.gone", b""), ("a/new", b"new"), ("zeros", &[0; 100_000])]),
    ]
}

struct Fixture {
    directory: tempfile::TempDir,
    cache: Cache,
    layout: Layout,
    limits: Limits,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(directory.path()).expect("a cache");
        Self { directory, cache, layout: Layout::default(), limits: Limits::default() }
    }

    fn builder(&self) -> Builder<'_> {
        Builder::new(&self.cache, &self.layout, &self.limits)
    }

    fn staged(&self) -> usize {
        self.directory.path().join("staging").read_dir().expect("a directory").count()
    }
}

fn text(cached: &Cached, path: &str) -> Option<Vec<u8>> {
    let file = std::fs::File::open(cached.image()).expect("there");
    let image = Image::open(file).expect("an image");
    let found = image.find(path.as_bytes()).expect("sound")?;
    let mut bytes = vec![0; usize::try_from(found.size_bytes()).expect("small")];
    image.read(&found, 0, &mut bytes).expect("read");
    Some(bytes)
}

#[test]
fn layers_become_a_sound_read_only_image_with_its_layout() {
    let fixture = Fixture::new();
    let (plan, memory) = plan(&layers());
    let cached = fixture.builder().image(&plan, &memory, &Silent).expect("built");
    assert_eq!(text(&cached, "a/new").as_deref(), Some(&b"new"[..]));
    assert_eq!(text(&cached, "b/c/d").as_deref(), Some(&b"deep"[..]));
    assert_eq!(text(&cached, "zeros").as_deref(), Some(&[0; 100_000][..]));
    assert!(text(&cached, "a/gone").is_none());
    assert!(text(&cached, "etc/passwd").expect("laid out").ends_with(b":/sandbox:/bin/sh\n"));
    let file = std::fs::File::open(cached.image()).expect("there");
    let tree = Image::open(&file).expect("an image").read_tree().expect("sound");
    let big = tree.at(b"a/big").and_then(|id| tree.find(id)).expect("there");
    assert!(matches!(big.kind(), Kind::File(data) if data.size() == 1_200_000));
    let metadata = file.metadata().expect("there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o444);
    assert_eq!(hash(&file, metadata.len()).expect("read"), cached.record.pieces_sha256);
    assert_eq!(std::fs::read(cached.config()).expect("there"), CONFIG);
    assert_eq!(fixture.staged(), 0);
}

#[test]
fn the_same_image_has_the_same_bytes_whatever_the_threads() {
    let (plan, memory) = plan(&layers());
    let digests: Vec<Digest> = [1, 2, 8]
        .into_iter()
        .map(|threads| {
            let fixture = Fixture::new();
            let builder = Builder { parallel: threads, threads, ..fixture.builder() };
            builder.image(&plan, &memory, &Silent).expect("built").record.pieces_sha256
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2]);
}

#[test]
fn a_second_image_reads_only_the_layers_that_are_new() {
    let fixture = Fixture::new();
    let mut all = layers();
    let (first, memory) = plan(&all);
    fixture.builder().image(&first, &memory, &Silent).expect("built");
    fixture.builder().image(&first, &memory, &Silent).expect("found");
    assert_eq!(memory.opened.load(Ordering::Relaxed), 3);
    all.push(layer(&[("more", b"more")]));
    let (second, memory) = plan(&all);
    let cached = fixture.builder().image(&second, &memory, &Silent).expect("built");
    assert_eq!(memory.opened.load(Ordering::Relaxed), 1);
    // What comes from kept layers is what comes from fresh ones.
    let fresh = Fixture::new();
    let again = fresh.builder().image(&second, &memory, &Silent).expect("built");
    assert_eq!(again.record.pieces_sha256, cached.record.pieces_sha256);
}

#[test]
fn many_who_want_one_image_at_once_make_it_once() {
    let fixture = Fixture::new();
    let (plan, memory) = plan(&layers());
    let barrier = Barrier::new(8);
    let results: Vec<Cached> = thread::scope(|scope| {
        let one = || {
            barrier.wait();
            let cache = Cache::open(fixture.directory.path()).expect("a cache");
            let builder = Builder::new(&cache, &fixture.layout, &fixture.limits);
            builder.image(&plan, &memory, &Silent).expect("built")
        };
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, one).expect("a thread");
        let threads: Vec<_> = (0..8).map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(results.iter().all(|cached| cached == &results[0]));
    assert_eq!(memory.opened.load(Ordering::Relaxed), 3);
}

#[test]
fn a_refused_layer_leaves_nothing_but_good_layers() {
    let fixture = Fixture::new();
    let mut all = layers();
    let (plan, mut memory) = plan(&all);
    memory.layers[1] = layer(&[("other", b"content")]);
    let error = fixture.builder().image(&plan, &memory, &Silent).expect_err("refused").to_string();
    assert!(error.contains("layer-1") || error.contains("is damaged"), "{error}");
    assert_eq!(fixture.cache.images().len(), 0);
    assert_eq!(fixture.staged(), 0);
    all[0].truncate(5000);
    let error = Fixture::new().builder().image(
        &plan,
        &Memory { layers: all, ..Memory::default() },
        &Silent,
    );
    assert!(error.is_err());
}

#[test]
fn limits_hold_for_all_layers_together_and_for_kept_ones() {
    let mut fixture = Fixture::new();
    let (plan, memory) = plan(&layers());
    fixture.builder().image(&plan, &memory, &Silent).expect("built");
    fixture.limits = Limits { entries: 600, ..Limits::default() };
    fixture.layout = Layout::none();
    let error = fixture.builder().image(&plan, &memory, &Silent).expect_err("too many").to_string();
    assert!(error.contains("limit of 600 entries"), "{error}");
    fixture.limits = Limits { layers: 2, ..Limits::default() };
    let error = fixture.builder().image(&plan, &memory, &Silent).expect_err("too many").to_string();
    assert!(error.contains("limit of 2 layers"), "{error}");
}

#[test]
fn layout_additions_and_identity_are_part_of_the_key() {
    let mut fixture = Fixture::new();
    let (plan, _) = plan(&layers());
    let identity = plan.identity.clone().expect("known");
    let first = fixture.builder().key(&identity, &plan);
    assert_eq!(fixture.builder().key(&identity, &plan), first);
    assert_ne!(fixture.builder().key(&Digest::sha256(b"else"), &plan), first);
    let source = fixture.directory.path().join("tool");
    std::fs::write(&source, b"tool").expect("written");
    let addition = |mode| Addition::open(source.clone(), b"/bin/tool", mode, 0, 0).expect("opened");
    let keys = [0o755, 0o4755].map(|mode| {
        let additions = [addition(mode)];
        Builder { additions: &additions, ..fixture.builder() }.key(&identity, &plan)
    });
    assert!(keys[0] != first && keys[1] != first && keys[0] != keys[1]);
    fixture.layout = Layout::none();
    assert_ne!(fixture.builder().key(&identity, &plan), first);
}

#[test]
fn additions_are_in_the_image() {
    let fixture = Fixture::new();
    let (plan, memory) = plan(&layers());
    let source = fixture.directory.path().join("tool");
    std::fs::write(&source, vec![7; 10_000]).expect("written");
    let additions = [Addition::open(source, b"/usr/bin/tool", 0o755, 3, 4).expect("opened")];
    let builder = Builder { additions: &additions, ..fixture.builder() };
    let cached = builder.image(&plan, &memory, &Silent).expect("built");
    assert!(text(&cached, "usr/bin/tool").expect("there") == vec![7; 10_000]);
}

#[test]
fn a_stream_is_known_by_its_bytes_once_it_was_read() {
    let fixture = Fixture::new();
    let (mut plan, memory) = plan(&layers()[..1]);
    plan.identity = None;
    (plan.layers[0].digest, plan.layers[0].diff_id) = (None, None);
    let cached = fixture.builder().image(&plan, &memory, &Silent).expect("built");
    assert_eq!(cached.record.identity, Digest::sha256(&memory.layers[0]));
    let again = fixture.builder().image(&plan, &memory, &Silent).expect("found");
    assert_eq!(again.record, cached.record);
}

#[test]
fn a_writable_disk_has_room_and_the_files_of_the_image() {
    let fixture = Fixture::new();
    let (plan, memory) = plan(&layers());
    let cached = fixture.builder().image(&plan, &memory, &Silent).expect("built");
    let image = Image::open(std::fs::File::open(cached.image()).expect("there")).expect("sound");
    let mut tree = image.read_tree().expect("sound");
    tree.remove(Tree::ROOT, b"lost+found");
    let path = fixture.directory.path().join("disk");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(path);
    let file = file.expect("new");
    let disk = Disk { size_bytes: None };
    let key = &cached.record.key;
    let summary = fixture.builder().disk(&tree, &image, disk, key, &file).expect("written");
    assert!(summary.size_bytes >= 256 << 20);
    let written = Image::open(&file).expect("sound");
    assert!(written.check().expect("read").is_clean());
    let found = written.find(b"a/new").expect("read").expect("there");
    assert_eq!(found.size_bytes(), 3);
}
