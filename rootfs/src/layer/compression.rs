//! How a layer is compressed: told by its first bytes, and held against its media type.

use std::io::{self, BufRead, Read};
use std::ops::Range;

use super::inflate::Gunzip;
use crate::limits::Limits;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, in one member or several.
    Gzip,
    /// zstd, in one frame or several.
    Zstd,
}

/// The first bytes that tell one format from another.
pub(super) const MAGIC_BYTES: usize = 6;

impl Compression {
    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "not compressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The uncompressed bytes of an archive of archives; none when it is not compressed.
    pub(crate) fn decoder<R: BufRead + 'static>(
        mut source: R,
        limits: &Limits,
    ) -> io::Result<Option<Box<dyn Read>>> {
        let head = source.fill_buf()?;
        let compression = Self::of_bytes(head).map_err(|name| {
            io::Error::other(format!("it is compressed with {name}; use gzip, zstd or nothing"))
        })?;
        Ok(match compression {
            Self::None => None,
            other => Some(Box::new(Decoder::new(source, other, limits.zstd_window_log)?)),
        })
    }

    /// What the first bytes of a layer say; the error is the name of a format that layers do not have.
    pub(super) fn of_bytes(head: &[u8]) -> Result<Self, &'static str> {
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame, or a skippable one in front of it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err("bzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => Err("lz4"),
            [b'P', b'K', 3, 4, ..] => Err("zip"),
            _ => Ok(Self::None),
        }
    }

    /// What a media type says; none for one that is not a layer whose bytes can be had.
    pub(super) fn of_media_type(media_type: &str) -> Option<Self> {
        const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
        const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";
        let rest = media_type.strip_prefix(OCI).or_else(|| media_type.strip_prefix(DOCKER))?;
        match rest {
            "" => Some(Self::None),
            "+gzip" | ".gzip" => Some(Self::Gzip),
            "+zstd" | ".zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// The uncompressed bytes of a layer.
pub(super) enum Decoder<'a, R: BufRead> {
    None(R),
    Gzip(Box<Gunzip<R>>),
    Zstd(zstd::stream::read::Decoder<'a, R>),
}

impl<R: BufRead> Decoder<'_, R> {
    /// `window_log` bounds the memory of a zstd frame.
    pub(super) fn new(source: R, compression: Compression, window_log: u32) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(source),
            Compression::Gzip => Self::Gzip(Box::new(Gunzip::new(source))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(window_log)?;
                Self::Zstd(decoder)
            }
        })
    }

    /// More uncompressed bytes, in `buffer` or in the one that it is exchanged for. Which bytes of it they are: none at the end.
    pub(super) fn fill(&mut self, buffer: &mut Vec<u8>) -> io::Result<Range<usize>> {
        let filled = match self {
            Self::None(source) => fill(source, buffer)?,
            Self::Gzip(decoder) => return decoder.fill(buffer),
            Self::Zstd(decoder) => fill(decoder, buffer)?,
        };
        Ok(0..filled)
    }

    /// What is below: all of it is read when nothing is left to decode.
    pub(super) fn get_mut(&mut self) -> &mut R {
        match self {
            Self::None(source) => source,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

impl<R: BufRead> Read for Decoder<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

fn fill(source: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<usize> {
    const BUFFER: usize = 256 << 10;
    buffer.resize(BUFFER, 0);
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
