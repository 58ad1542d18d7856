//! Layers over layers: the tree that comes out is one, whatever the entries say.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use openshell_ext4::tree::{ContentId, Device, Metadata, Tree};
use openshell_rootfs::layer::{Entry, Kind};
use openshell_rootfs::limits::Limits;
use openshell_rootfs::merge::Merge;
use openshell_rootfs::path::normal;

fuzz_target!(|data: &[u8]| -> Corpus {
    let limits = Limits { entries: 1000, followed_bytes: 1 << 20, ..Limits::default() };
    let mut layers = vec![Vec::new(); 4];
    let mut rest = data;
    while let Some((&head, behind)) = rest.split_first() {
        let (path, behind) = text(behind);
        let (target, behind) = text(behind);
        rest = behind;
        let Ok(path) = normal(path, &limits) else { continue };
        let Some(kind) = kind(head & 15, target, &limits) else { continue };
        let metadata = Metadata::new(u16::from(head), 0, 0);
        layers[usize::from(head >> 4) % 4].push(Entry { path, metadata, kind });
    }
    let mut merge = Merge::new(&limits);
    for entries in layers {
        if merge.apply(ContentId(0), entries).is_err() {
            return Corpus::Keep;
        }
    }
    let tree = merge.finish();
    assert!(tree.len() as u64 <= limits.entries + 1);
    let mut names = 1;
    for entry in tree.walk(Tree::ROOT) {
        names += 1;
        assert!(!entry.name.contains(&b'/') && !matches!(entry.name, b"." | b".." | b""));
        assert!(!entry.name.starts_with(b".wh."));
        assert!(entry.depth <= limits.depth);
        assert!(tree.find(entry.node).is_some());
    }
    assert!(names >= tree.len());
    Corpus::Keep
});

fn text(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (&bytes[..end], bytes.get(end + 1..).unwrap_or_default())
}

fn kind(kind: u8, target: &[u8], limits: &Limits) -> Option<Kind> {
    Some(match kind {
        0 => Kind::Directory,
        2 => Kind::HardLink(normal(target, limits).ok()?),
        3 if !target.is_empty() && target.len() < limits.path_bytes => {
            Kind::Symlink(target.to_vec())
        }
        4 => Kind::CharDevice(Device { major: 0, minor: 0 }),
        5 => Kind::Fifo,
        _ => Kind::File { size: 1, runs: Vec::new() },
    })
}
