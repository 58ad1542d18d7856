//! A stream whose end is reached only if its bytes are those of its descriptor.
//!
//! Invariant: no reader sees the end of wrong bytes: it gets an error in its place.

use std::io::{self, ErrorKind, Read};

use crate::digest::{Digest, Hasher};
use crate::image::Descriptor;

/// A reader that hashes what passes through it.
#[derive(Debug)]
pub struct Verified<R> {
    inner: R,
    hasher: Option<Hasher>,
    descriptor: Descriptor,
    read: u64,
}

/// Other bytes than the descriptor says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{expected} has {expected_bytes} bytes, but {found_bytes} bytes came{}", .found.as_ref().map_or(String::new(), |found| format!(": {found}")))]
pub struct Mismatch {
    /// What should come.
    pub expected: Digest,
    /// How many bytes should come.
    pub expected_bytes: u64,
    /// What came, if as many bytes came as should.
    pub found: Option<Digest>,
    /// How many bytes came, or were there before it was clear that they are too many.
    pub found_bytes: u64,
}

impl<R: Read> Verified<R> {
    /// Checks a stream against a descriptor while it is read.
    pub fn new(inner: R, descriptor: Descriptor) -> Self {
        let hasher = Some(Hasher::new(descriptor.digest.algorithm()));
        Self { inner, hasher, descriptor, read: 0 }
    }

    fn mismatch(&self, found: Option<Digest>) -> io::Error {
        let (expected, expected_bytes) = (self.descriptor.digest.clone(), self.descriptor.size);
        let mismatch = Mismatch { expected, expected_bytes, found, found_bytes: self.read };
        io::Error::new(ErrorKind::InvalidData, mismatch)
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let taken = self.inner.read(buffer)?;
        self.read += taken as u64;
        if self.read > self.descriptor.size {
            return Err(self.mismatch(None));
        }
        if taken > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..taken]);
            }
            return Ok(taken);
        }
        if self.read < self.descriptor.size {
            return Err(self.mismatch(None));
        }
        // A second look at the end is as good as the first, which was.
        let Some(hasher) = self.hasher.take() else { return Ok(0) };
        let found = hasher.clone().finish();
        if found != self.descriptor.digest {
            self.hasher = Some(hasher);
            return Err(self.mismatch(Some(found)));
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_bytes_end() {
        let descriptor = |bytes: &[u8]| Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(bytes),
            size: bytes.len() as u64,
        };
        for (expected, came, fine) in [
            (&b"right"[..], &b"right"[..], true),
            (b"", b"", true),
            (b"right", b"wrong", false),
            (b"right", b"righ", false),
            (b"right", b"right!", false),
            (b"", b"x", false),
        ] {
            let mut reader = Verified::new(came, descriptor(expected));
            let mut bytes = Vec::new();
            let result = reader.read_to_end(&mut bytes);
            assert_eq!(result.is_ok(), fine, "{came:?} for {expected:?}");
            // Asked again, it says the same.
            assert_eq!(reader.read(&mut [0; 8]).is_ok(), fine);
        }
    }
}
