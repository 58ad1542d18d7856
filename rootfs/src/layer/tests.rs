//! Layers as registries serve them, and as they should not.

use std::io::Write as _;

use super::*;
use crate::digest::Digest;
use crate::limits::{Limit, Limits};

/// An archive of files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("in memory")
}

fn read_with(bytes: &[u8], source: &LayerSource, limits: &Limits) -> Result<Layer, LayerError> {
    let directory = tempfile::tempdir().expect("a directory");
    let pack = PackWriter::unnamed(directory.path(), 1 << 20);
    read(bytes, source, &Budget::new(limits), pack, &|_| ())
}

fn source_of(bytes: &[u8], raw: &[u8]) -> LayerSource {
    LayerSource {
        name: "L".to_owned(),
        media_type: None,
        size: Some(bytes.len() as u64),
        digest: Some(Digest::sha256(bytes)),
        diff_id: Some(Digest::sha256(raw)),
    }
}

fn read_ok(bytes: &[u8], raw: &[u8]) -> Layer {
    read_with(bytes, &source_of(bytes, raw), &Limits::default()).expect("a layer")
}

fn data_of(layer: &Layer, name: &str) -> Vec<u8> {
    let entry = layer.entries.iter().find(|entry| entry.path == name.as_bytes()).expect("listed");
    let Kind::File { size, runs } = &entry.kind else { panic!("{name} is a file") };
    let mut data = vec![0; usize::try_from(*size).expect("small")];
    for run in runs {
        let start = usize::try_from(run.at).expect("small");
        let end = start + usize::try_from(run.length).expect("small");
        layer.pack.read_at(run.pack, &mut data[start..end]).expect("stored");
    }
    data
}

#[test]
fn every_compression_gives_the_same_layer() {
    let big: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let raw = archive(&[("a", b"hello"), ("big", &big), ("empty", b"")]);
    let (front, back) = raw.split_at(1000);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(&raw)].concat();
    let trailing = [&zstd(&raw)[..], &[0x5f, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9]].concat();
    for bytes in [
        raw.clone(),
        gzip(&raw),
        [gzip(front), gzip(b""), gzip(back)].concat(),
        zstd(&raw),
        [zstd(front), zstd(back)].concat(),
        skippable,
        trailing,
    ] {
        let layer = read_ok(&bytes, &raw);
        assert_eq!(layer.entries.len(), 3);
        assert_eq!(layer.raw_bytes, raw.len() as u64);
        assert_eq!(data_of(&layer, "a"), b"hello");
        assert_eq!(data_of(&layer, "empty"), b"");
        assert!(data_of(&layer, "big") == big);
    }
}

#[test]
fn a_layer_that_is_not_what_was_promised_is_refused() {
    let raw = archive(&[("a", &[7; 10_000])]);
    let bytes = gzip(&raw);
    let good = source_of(&bytes, &raw);
    let refused = |bytes: &[u8], source: LayerSource| {
        read_with(bytes, &source, &Limits::default()).expect_err("refused").to_string()
    };
    let wrong = Digest::sha256(b"else");
    let with = |change: fn(&mut LayerSource, Digest)| {
        let mut source = good.clone();
        change(&mut source, wrong.clone());
        refused(&bytes, source)
    };
    assert!(with(|source, wrong| source.digest = Some(wrong)).contains("is damaged"));
    assert!(with(|source, wrong| source.diff_id = Some(wrong)).contains("unpacks to"));
    assert!(with(|source, _| source.size = Some(10)).contains("its descriptor says 10"));
    assert!(with(|source, _| source.size = Some(1 << 20)).contains("its descriptor says 1048576"));
    let media = |media_type: &str| {
        refused(&bytes, LayerSource { media_type: Some(media_type.to_owned()), ..good.clone() })
    };
    assert!(media("application/vnd.oci.image.layer.v1.tar").contains("is gzip"));
    assert!(media("application/vnd.oci.image.layer.v1.tar+zstd").contains("is gzip"));
    assert!(
        media("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
            .contains("not a layer of files")
    );
    assert!(refused(&bytes[..bytes.len() - 20], good.clone()).contains("descriptor says"));
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    assert!(refused(&flipped, good.clone()).contains("is damaged"));
    let cut = &bytes[..bytes.len() - 20];
    let cut_source = LayerSource { name: "L".to_owned(), ..LayerSource::default() };
    assert!(refused(cut, cut_source).contains("does not decompress"));
    assert!(refused(b"\xfd7zXZ\0rest", source_of(b"\xfd7zXZ\0rest", b"")).contains("is xz"));
}

#[test]
fn a_truncated_archive_ends_with_an_error() {
    let raw = archive(&[("a", &[7; 10_000])]);
    for length in [100, 512, 600, 5000, 10_500] {
        let cut = &raw[..length];
        let error = read_with(cut, &source_of(cut, cut), &Limits::default()).expect_err("refused");
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains("ends in the middle"), "{length}: {text}");
    }
}

#[test]
fn bombs_meet_a_limit() {
    let zeros = vec![0; 3 << 20];
    let raw = archive(&[("zeros", &zeros)]);
    let limits = Limits { ratio_free_bytes: 1 << 20, ratio: 50, ..Limits::default() };
    for bytes in [gzip(&raw), zstd(&raw)] {
        let error = read_with(&bytes, &source_of(&bytes, &raw), &limits).expect_err("a bomb");
        assert!(matches!(error, LayerError::Limit { limit: Limit::Ratio(50), .. }), "{error}");
        let limits = Limits { raw_bytes: 1 << 20, ..Limits::default() };
        let error = read_with(&bytes, &source_of(&bytes, &raw), &limits).expect_err("too long");
        assert!(matches!(error, LayerError::Limit { limit: Limit::RawBytes(_), .. }), "{error}");
    }
    let limits = Limits { entries: 2, ..Limits::default() };
    let raw = archive(&[("a", b""), ("b", b""), ("c", b"")]);
    let error = read_with(&raw, &source_of(&raw, &raw), &limits).expect_err("too many");
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("\"c\"") && text.contains("limit of 2 entries"), "{text}");
}

#[test]
fn zstd_windows_are_bounded() {
    let raw = archive(&[("a", &vec![1; 1 << 20])]);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("in memory");
    encoder.window_log(27).expect("a parameter");
    encoder.include_contentsize(false).expect("a parameter");
    encoder.write_all(&raw).expect("in memory");
    let bytes = encoder.finish().expect("in memory");
    read_ok(&bytes, &raw);
    let limits = Limits { zstd_window_log: 20, ..Limits::default() };
    let error = read_with(&bytes, &source_of(&bytes, &raw), &limits).expect_err("refused");
    assert!(matches!(error, LayerError::Decompress { .. }), "{error}");
}

#[test]
fn blocks_of_zeros_are_left_out_wherever_they_stand() {
    let mut data = vec![0; 5 * 4096 + 100];
    data[4096] = 1;
    data[2 * 4096 + 4095] = 2;
    data[5 * 4096 + 99] = 3;
    let raw = archive(&[("sparse", &data), ("zeros", &[0; 9000])]);
    let layer = read_ok(&raw, &raw);
    let Kind::File { size, runs } = &layer.entries[0].kind else { panic!("a file") };
    assert_eq!(*size, data.len() as u64);
    let expected =
        [Run { at: 4096, length: 8192, pack: 0 }, Run { at: 5 * 4096, length: 100, pack: 8192 }];
    assert_eq!(runs[..], expected);
    assert!(data_of(&layer, "sparse") == data);
    let Kind::File { runs, .. } = &layer.entries[1].kind else { panic!("a file") };
    assert!(runs.is_empty());
}

#[test]
fn a_pack_that_outgrows_its_memory_goes_on_in_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let data: Vec<u8> = (0..5_000_000u32).map(|at| at.to_le_bytes()[1] | 1).collect();
    let mut writer = PackWriter::unnamed(directory.path(), 2 << 20);
    let mut offset = 0;
    for chunk in data.chunks(10_007) {
        writer.append(offset, chunk).expect("stored");
        offset += chunk.len() as u64;
    }
    let runs = writer.finish_file(offset).expect("stored");
    assert_eq!(runs, [Run { at: 0, length: data.len() as u64, pack: 0 }]);
    let pack = writer.finish().expect("stored");
    assert!(pack.file().is_some());
    let mut read = vec![0; data.len()];
    pack.read_at(0, &mut read).expect("stored");
    assert!(read == data);
    assert_eq!(directory.path().read_dir().expect("a directory").count(), 0);
}
