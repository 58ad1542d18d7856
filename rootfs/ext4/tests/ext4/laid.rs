//! Images around data that has its place: the same whether it is there already or copied, and sound.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use openshell_ext4::tree::{
    Contents, FileData, Holes, Kind, MemoryContents, Metadata, Piece, Source, Tree,
};
use openshell_ext4::{Image, Laid, Options, Profile, WriteError, write};
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::NamedTempFile;

use crate::support::{BASE, Sparse, assert_same, fsck, refused, tree};

const BLOCK: u64 = 4096;
const START: u64 = 256 << 10;

/// A file in laid data: the blocks before each of its pieces that are a hole, and the bytes of the piece.
type Shape = Vec<(u64, u64)>;

/// A tree of files in one source, of files that keep bytes of their own, and the source.
fn laid(shapes: &[Shape], own: &[usize]) -> (Tree, Vec<u8>) {
    let (mut tree, mut source) = (tree(), vec![0; START as usize]);
    let contents = MemoryContents::new().add(Vec::new());
    for (number, shape) in shapes.iter().enumerate() {
        let (mut size, mut pieces) = (0_u64, Vec::new());
        for (gap, length) in shape {
            let at = size.next_multiple_of(BLOCK) + gap * BLOCK;
            let begin = source.len() as u64;
            pieces.push(Piece { at, length: *length, source: Source::Stored(contents, begin) });
            source.extend((0..*length).map(|at| (at / 3) as u8 | 1));
            source.resize(source.len().next_multiple_of(BLOCK as usize), 0);
            size = at + length;
        }
        let data = FileData::new(size, pieces, Holes::Known).unwrap();
        let metadata = Metadata::new(0o644, 1, 2);
        tree.insert(Tree::ROOT, format!("laid-{number}").as_bytes(), Kind::File(data), metadata)
            .unwrap();
    }
    for (number, length) in own.iter().enumerate() {
        let data = FileData::bytes(vec![7; *length]);
        let metadata = Metadata::new(0o600, 3, 4);
        tree.insert(Tree::ROOT, format!("own-{number}").as_bytes(), Kind::File(data), metadata)
            .unwrap();
    }
    (tree, source)
}

fn options(end: u64, is_written: bool) -> Options {
    let id = MemoryContents::new().add(Vec::new());
    Options { profile: Profile::Around(Laid { id, start: START, end, is_written }), ..BASE }
}

proptest! {
    // `PROPTEST_CASES` asks for more.
    #![proptest_config(ProptestConfig {
        cases: crate::random::cases(100),
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_there_and_what_is_copied_make_the_same_image(
        shapes in vec(vec((0..4_u64, 1..30_000_u64), 1..6), 1..40),
        own in vec(0..20_000_usize, 0..20),
    ) {
        let (tree, source) = laid(&shapes, &own);
        let end = source.len() as u64;
        let mut contents = MemoryContents::new();
        contents.add(source.clone());
        let copied = Sparse::default();
        let summary = write(&tree, &contents, &copied, &options(end, false)).unwrap();
        let file = NamedTempFile::new().unwrap();
        let output = File::options().read(true).write(true).open(file.path()).unwrap();
        output.write_all_at(&source, 0).unwrap();
        let around = write(&tree, &contents, &output, &options(end, true)).unwrap();
        prop_assert_eq!(summary, around);
        fsck(file.path());
        let mut whole = vec![0; summary.size_bytes as usize];
        output.read_exact_at(&mut whole, 0).unwrap();
        let blocks = copied.blocks();
        for (block, number) in whole.chunks(BLOCK as usize).zip(0_u64..) {
            let is_same = match blocks.get(&number) {
                Some(copied) => copied == block,
                None => block.iter().all(|byte| *byte == 0),
            };
            prop_assert!(is_same, "block {}", number);
        }
        let image = Image::open(&output).unwrap();
        prop_assert!(image.check().unwrap().is_clean());
        assert_same(&tree, &contents, &image.read_tree().unwrap(), &image);
    }
}

#[test]
fn a_file_that_is_not_all_laid_in_whole_blocks_moves() {
    let (mut tree, source) = laid(&[vec![(0, 10_000)]], &[]);
    let mut contents = MemoryContents::new();
    let id = contents.add(source);
    let end = START + 3 * BLOCK;
    // From the middle of a block, from before the laid part, and in two pieces of which one lies outside.
    let shifted = FileData::stored(id, START + 1, 5000);
    let before = FileData::stored(id, START - BLOCK, 2 * BLOCK);
    let piece = |at, offset| Piece { at, length: BLOCK, source: Source::Stored(id, offset) };
    let halves = vec![piece(0, START), piece(2 * BLOCK, end)];
    let halves = FileData::new(3 * BLOCK, halves, Holes::Known).unwrap();
    for (name, data) in [("shifted", shifted), ("before", before), ("halves", halves)] {
        let metadata = Metadata::new(0o644, 1, 2);
        tree.insert(Tree::ROOT, name.as_bytes(), Kind::File(data), metadata).unwrap();
    }
    let mut longer = vec![0; end as usize + BLOCK as usize];
    contents.read_at(id, 0, &mut longer[..end as usize]).unwrap();
    longer[end as usize..].fill(9);
    let mut contents = MemoryContents::new();
    contents.add(longer);
    let sparse = Sparse::default();
    write(&tree, &contents, &sparse, &options(end, false)).unwrap();
    let image = Image::open(&sparse).unwrap();
    assert!(image.check().unwrap().is_clean());
    assert_same(&tree, &contents, &image.read_tree().unwrap(), &image);
}

#[test]
fn a_place_that_cannot_be_kept_is_refused() {
    for (start, end) in [(START + 1, START + BLOCK), (START, START - BLOCK), (0, BLOCK)] {
        let Options { profile: Profile::Around(laid), .. } = options(end, false) else {
            panic!("it is around something")
        };
        let profile = Profile::Around(Laid { start, ..laid });
        let error = refused(&tree(), &Options { profile, ..BASE });
        assert!(matches!(error, WriteError::TooLarge), "{error}");
    }
}
