//! A stretch of a frame.

/// Why bytes are not what they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Less is there than the header needs or says.
    #[error("cut short")]
    Truncated,
    /// Headers reach beyond the bytes that are looked at.
    #[error("headers too long")]
    HeadersTooLong,
    /// A version or a hardware type other than the one expected.
    #[error("wrong version")]
    Version,
    /// A length that contradicts another one.
    #[error("contradictory length")]
    Length,
    /// The checksum of the IPv4 header is wrong.
    #[error("wrong header checksum")]
    Checksum,
    /// An extension header or option that is not served.
    #[error("unserved extension")]
    Extension,
}

/// A stretch of a frame: its bytes as far as they are at hand, where it begins in the frame, and how long it truly is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    bytes: &'a [u8],
    offset: usize,
    len: usize,
}

impl<'a> Part<'a> {
    /// A frame of `len` bytes that begins with `head`. Of a `head` that is longer, the first `len` bytes count.
    #[must_use]
    pub fn frame(head: &'a [u8], len: usize) -> Self {
        Self { bytes: head.get(..len).unwrap_or(head), offset: 0, len }
    }

    /// Bytes that are all at hand.
    #[must_use]
    pub fn whole(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0, len: bytes.len() }
    }

    /// The bytes at hand; never more than [`Self::len`].
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of the frame before this.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Its true length.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether its true length is zero.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes, where all of them are at hand.
    #[must_use]
    pub fn all(&self) -> Option<&'a [u8]> {
        (self.bytes.len() == self.len).then_some(self.bytes)
    }

    /// Without the first `count` bytes; `None` where it is shorter.
    #[must_use]
    pub fn skip(self, count: usize) -> Option<Self> {
        let len = self.len.checked_sub(count)?;
        let bytes = self.bytes.get(count..).unwrap_or_default();
        Some(Self { bytes, offset: self.offset + count, len })
    }

    /// Without what follows the first `len` bytes.
    #[must_use]
    pub fn truncate(self, len: usize) -> Self {
        let len = len.min(self.len);
        Self { bytes: self.bytes.get(..len).unwrap_or(self.bytes), len, ..self }
    }

    /// Its first `N` bytes and what follows them.
    pub(super) fn split<const N: usize>(self) -> Result<(&'a [u8; N], Self), Malformed> {
        let rest = self.skip(N).ok_or(Malformed::Truncated)?;
        let first = self.bytes.first_chunk().ok_or(Malformed::HeadersTooLong)?;
        Ok((first, rest))
    }

    /// Its first `count` bytes, all at hand, and what follows them.
    pub(super) fn split_at(self, count: usize) -> Result<(&'a [u8], Self), Malformed> {
        let rest = self.skip(count).ok_or(Malformed::Truncated)?;
        let first = self.bytes.get(..count).ok_or(Malformed::HeadersTooLong)?;
        Ok((first, rest))
    }
}
