//! Damaged images: what is wrong is noticed, and nothing panics or runs away.

use openshell_ext4::tree::{FileData, Holes, Kind, MemoryContents, Metadata, Piece, Source, Tree};
use openshell_ext4::{Checksums, Image, Options, Output, ReadError, write};
use proptest::prelude::*;
use std::io;
use std::sync::Mutex;

use crate::support::{BASE, read_write, tree};

/// An image as plain bytes.
#[derive(Debug, Default)]
struct Plain(Mutex<Vec<u8>>);

impl Output for Plain {
    fn reset(&self, size_bytes: u64) -> io::Result<()> {
        *self.0.lock().unwrap() = vec![0; size_bytes as usize];
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// A small image with every kind of structure.
fn sample(options: &Options) -> Vec<u8> {
    let mut contents = MemoryContents::new();
    let id = contents.add(vec![0xd5; 4096]);
    let mut tree = tree();
    let metadata = |value: usize| Metadata {
        xattrs: [(b"user.x".to_vec(), vec![9; value])].into(),
        ..Metadata::new(0o644, 1, 1)
    };
    let large = tree.insert(Tree::ROOT, b"large", Kind::Directory, metadata(0)).unwrap();
    for at in 0..600 {
        tree.insert(large, format!("{at}").as_bytes(), Kind::Fifo, Metadata::default()).unwrap();
    }
    let piece = |at: u64| Piece { at: at * 8192, length: 4096, source: Source::Stored(id, 0) };
    let data = FileData::new(8192 * 50, (0..50).map(piece).collect(), Holes::Known).unwrap();
    let file = tree.insert(Tree::ROOT, b"f", Kind::File(data), metadata(500)).unwrap();
    tree.link(large, b"again", file).unwrap();
    tree.insert(Tree::ROOT, b"short", Kind::Symlink(vec![b'x'; 20]), metadata(30)).unwrap();
    tree.insert(Tree::ROOT, b"long", Kind::Symlink(vec![b'x'; 200]), metadata(3000)).unwrap();
    let image = Plain::default();
    write(&tree, &contents, &image, options).unwrap();
    image.0.into_inner().unwrap()
}

/// What our reader says of an image: the first fault, if any.
fn fault(image: &[u8]) -> Option<String> {
    fault_with(image, Checksums::Compared)
}

fn fault_with(image: &[u8], checksums: Checksums) -> Option<String> {
    let said = |error: ReadError| match error {
        ReadError::Fault(fault) => Some(fault.to_string()),
        ReadError::Input { .. } => Some("the image ends".to_owned()),
    };
    match Image::open_with(image, checksums) {
        Err(error) => said(error),
        Ok(opened) => match opened.check() {
            Err(error) => said(error),
            Ok(report) => {
                // What is clean is read without a fault, and the other way round.
                assert_eq!(opened.read_tree().is_ok(), report.is_clean());
                report.faults().first().map(ToString::to_string)
            }
        },
    }
}

/// Blocks with structures.
fn structures(image: &[u8]) -> Vec<usize> {
    let block = |at: usize| &image[at * 4096..][..4096];
    let is_data = |at: usize| block(at).iter().all(|byte| *byte == 0xd5);
    let is_zero = |at: usize| block(at).iter().all(|byte| *byte == 0);
    (0..image.len() / 4096).filter(|at| !is_data(*at) && !is_zero(*at)).collect()
}

#[test]
fn a_flipped_bit_of_any_structure_is_noticed() {
    let mut image = sample(&BASE);
    assert_eq!(fault(&image), None);
    let mut silent = Vec::new();
    for block in structures(&image) {
        // The bytes of a target have no checksum, like those of a file.
        let target = if image[block * 4096..].starts_with(&[b'x'; 200]) { 200 } else { 0 };
        // A prime number of bits apart, so that every kind of field is met.
        for bit in (block % 7..4096 * 8).step_by(211).filter(|bit| *bit >= target * 8) {
            let at = block * 4096 + bit / 8;
            image[at] ^= 1 << (bit % 8);
            if fault(&image).is_none() {
                silent.push((block, bit / 8));
            }
            image[at] ^= 1 << (bit % 8);
        }
    }
    assert_eq!(silent, []);
}

#[test]
fn a_flipped_bit_of_the_superblock_is_noticed() {
    for options in [BASE, read_write(8 << 20)] {
        let mut image = sample(&options);
        for bit in 0..1024 * 8 {
            image[1024 + bit / 8] ^= 1 << (bit % 8);
            assert!(fault(&image).is_some(), "bit {bit}");
            image[1024 + bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(fault(&image), None);
    }
}

#[test]
fn an_image_that_was_cut_is_noticed() {
    let image = sample(&BASE);
    for end in [0, 1024, 2047, 2048, 4096, 8192, image.len() / 2, image.len() - 1] {
        assert!(fault(&image[..end]).is_some(), "{end}");
    }
}

#[test]
fn faults_say_where_they_are() {
    let clean = sample(&BASE);
    let table = u32::from_le_bytes(clean[4096 + 8..][..4].try_into().unwrap()) as usize * 4096;
    for (at, expected) in [
        (1024 + 0x38, "superblock: no ext4 signature"),
        (1024 + 0x5c, "superblock: features are not those of our images"),
        (1024 + 0x78, "superblock: checksum does not match"),
        (4096 + 0xc, "group 0: checksum of the descriptor does not match"),
        (2 * 4096, "group 0: checksum of the block bitmap does not match"),
        (3 * 4096, "group 0: checksum of the inode bitmap does not match"),
        (table + 256, "inode 2: checksum does not match"),
    ] {
        let mut image = clean.clone();
        image[at] ^= 0x10;
        assert_eq!(fault(&image).as_deref(), Some(expected));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Damage that no checksum gives away: what a hostile image looks like.
    #[test]
    fn hostile_images_end_in_a_fault_or_a_tree(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..6),
        disk in any::<bool>(),
    ) {
        let mut image = sample(&if disk { read_write(8 << 20) } else { BASE });
        let blocks = structures(&image);
        for (block, byte, value) in damage {
            image[blocks[block.index(blocks.len())] * 4096 + byte.index(4096)] = value;
        }
        let _noticed = fault_with(&image, Checksums::Ignored);
    }
}
