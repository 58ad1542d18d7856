//! Which layer's data an image is made around.
//!
//! The largest layer's pack is a file that begins with a hole for the head of an image. When nothing in it is hidden by other layers,
//! the image is that very file, with everything else written behind: its data is written once, while it is inflated, and the cache
//! keeps it once. Invariant: the layer follows from the plan and the places from its archive, so that a copy comes out the same.

use openshell_ext4::Laid;
use openshell_ext4::tree::{ContentId, Kind, NodeId, Source, Tree};

use crate::layer::{PACK_START, Pack};
use crate::source::Plan;

/// The place of the layer that an image of the plan is made around: the one that is the most to transfer, of those that the cache can
/// keep.
pub(super) fn layer(plan: &Plan) -> Option<usize> {
    let layers = plan.layers.iter().enumerate();
    let known = layers.filter(|(_, layer)| layer.diff_id.is_some());
    let largest = known.max_by_key(|(at, layer)| (layer.size, std::cmp::Reverse(*at)));
    largest.map(|(at, _)| at)
}

/// Where the data of a pack stands in the image.
pub(super) fn place(id: ContentId, pack: &Pack) -> Option<Laid> {
    let (start, end) = (PACK_START, pack.length());
    (end > start).then_some(Laid { id, start, end, is_written: false })
}

/// Whether every block that was stored in the pack is one of a file of the tree.
pub(super) fn is_all_live(tree: &Tree, laid: &Laid, pack: &Pack) -> bool {
    let mut seen = vec![false; tree.arena_len()];
    let mut live = 0_u64;
    for entry in tree.walk(Tree::ROOT) {
        if !std::mem::replace(&mut seen[entry.node.index()], true) {
            live += blocks(tree, entry.node, laid);
        }
    }
    pack.stored() > 0 && live == pack.stored()
}

/// Bytes of the blocks of a file that are laid.
fn blocks(tree: &Tree, node: NodeId, laid: &Laid) -> u64 {
    let Some(Kind::File(data)) = tree.find(node).map(openshell_ext4::tree::Node::kind) else {
        return 0;
    };
    let is_laid = |source: &Source| {
        matches!(source, Source::Stored(id, offset)
            if *id == laid.id && (laid.start..laid.end).contains(offset))
    };
    let pieces = data.pieces().iter().filter(|piece| is_laid(&piece.source));
    pieces.map(|piece| piece.length.next_multiple_of(openshell_ext4::tree::BLOCK)).sum()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt as _;

    use openshell_ext4::Image;
    use openshell_ext4::tree::Metadata;

    use crate::build::Builder;
    use crate::cache::{Cache, Cached};
    use crate::digest::Digest;
    use crate::image::BlobError;
    use crate::layer::LayerSource;
    use crate::layout::Layout;
    use crate::limits::Limits;
    use crate::progress::Silent;
    use crate::source::{Layers, Plan};
    use crate::tar::{END, Entry, Kind, encode, padding};

    struct One(Vec<u8>);

    impl Layers for One {
        fn open(&self, _: usize) -> Result<Box<dyn Read + Send + '_>, BlobError> {
            Ok(Box::new(&self.0[..]))
        }
    }

    /// An archive with a large file between small ones, and an account file that every image changes.
    fn archive() -> Vec<u8> {
        let large: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut archive = Vec::new();
        for (path, data) in [
            ("a", &b"small"[..]),
            ("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
            ("large", &large),
            ("zeros", &[0; 3 << 20]),
            ("z", b"last"),
        ] {
            let kind = Kind::File { size: data.len() as u64, sparse: None };
            let metadata = Metadata::new(0o644, 1, 2);
            archive.extend(encode(&Entry { path: path.into(), kind, metadata }));
            archive.extend(data);
            archive.extend(vec![0; padding(data.len() as u64)]);
        }
        archive.extend(END);
        archive
    }

    fn image(cache: &Cache, bytes: &[u8], layout: &Layout) -> Cached {
        let digest = Digest::sha256(bytes);
        let source = LayerSource {
            name: "layer".to_owned(),
            media_type: None,
            size: Some(bytes.len() as u64),
            digest: Some(digest.clone()),
            diff_id: Some(digest.clone()),
        };
        let plan =
            Plan { identity: Some(digest), layers: vec![source], manifest: None, config: None };
        let limits = Limits::default();
        let builder = Builder::new(cache, layout, &limits);
        builder.image(&plan, &One(bytes.to_vec()), &Silent).expect("built")
    }

    #[test]
    fn an_image_is_the_file_of_its_layer_and_a_copy_has_the_same_bytes() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(directory.path()).expect("a cache");
        let (bytes, layout) = (archive(), Layout::default());
        let adopted = image(&cache, &bytes, &layout);
        assert_eq!(fs::metadata(adopted.image()).expect("there").nlink(), 2);
        let first = fs::read(adopted.image()).expect("there");
        assert!(cache.remove(&adopted.record.key).expect("removed"));
        let copied = image(&cache, &bytes, &layout);
        assert_eq!(fs::metadata(copied.image()).expect("there").nlink(), 1);
        assert_eq!(copied.record.pieces_sha256, adopted.record.pieces_sha256);
        assert!(fs::read(copied.image()).expect("there") == first);
        let file = fs::File::open(copied.image()).expect("there");
        let image = Image::open(&file).expect("an image");
        assert!(image.check().expect("read").is_clean());
        let tree = image.read_tree().expect("sound");
        let large = tree.at(b"large").and_then(|id| tree.find(id)).expect("there");
        let openshell_ext4::tree::Kind::File(data) = large.kind() else { panic!("a file") };
        let mut start = [0; 8];
        data.read_at(&image, 4096, &mut start).expect("read");
        assert_eq!(start, [0, 4, 0, 0, 1, 4, 0, 0]);
    }
}
