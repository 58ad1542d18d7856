//! SipHash-1-3, keyed per machine.
//!
//! A guest chooses its ports and its peers, so what indexes them must not be guessed by it; and the sequence numbers of one connection
//! must say nothing about another's (RFC 6528). Pure.

/// A secret of one machine.
#[derive(Clone, Copy)]
pub struct SipKey {
    k0: u64,
    k1: u64,
}

impl std::fmt::Debug for SipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SipKey(..)")
    }
}

impl SipKey {
    /// The key of these random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
        let (k0, k1) = (both as u64, (both >> 64) as u64);
        Self { k0, k1 }
    }

    /// Another key, that tells nothing of this one.
    #[must_use]
    pub const fn derive(self, purpose: u64) -> Self {
        Self { k0: self.hash(&[purpose, 0]), k1: self.hash(&[purpose, 1]) }
    }

    /// The hash of `words`, as little-endian bytes.
    #[must_use]
    pub const fn hash(self, words: &[u64]) -> u64 {
        let mut v = [
            self.k0 ^ 0x736f_6d65_7073_6575,
            self.k1 ^ 0x646f_7261_6e64_6f6d,
            self.k0 ^ 0x6c79_6765_6e65_7261,
            self.k1 ^ 0x7465_6462_7974_6573,
        ];
        let mut rest = words;
        while let [word, others @ ..] = rest {
            v[3] ^= *word;
            v = round(v);
            v[0] ^= *word;
            rest = others;
        }
        // The length in bytes, modulo 256, is the last byte of the last word.
        let last = (words.len() as u64 * 8) << 56;
        v[3] ^= last;
        v = round(v);
        v[0] ^= last;
        v[2] ^= 0xff;
        v = round(round(round(v)));
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }
}

const fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    c = c.wrapping_add(d);
    b = b.rotate_left(13) ^ a;
    d = d.rotate_left(16) ^ c;
    a = a.rotate_left(32);
    c = c.wrapping_add(b);
    a = a.wrapping_add(d);
    b = b.rotate_left(17) ^ c;
    d = d.rotate_left(21) ^ a;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher as _};

    use super::*;

    #[test]
    fn it_is_the_siphash_of_the_standard_library() {
        let key = SipKey::new([0; 16]);
        for len in 0..9 {
            let words: Vec<u64> = (0..len).map(|at| 0x0123_4567_89ab_cdef_u64 << at).collect();
            let mut hasher = DefaultHasher::new();
            for word in &words {
                hasher.write(&word.to_le_bytes());
            }
            assert_eq!(key.hash(&words), hasher.finish(), "{len} words");
        }
    }

    #[test]
    fn keys_and_purposes_differ() {
        let key = SipKey::new([7; 16]);
        assert_ne!(key.hash(&[1]), SipKey::new([8; 16]).hash(&[1]));
        assert_ne!(key.derive(1).hash(&[1]), key.derive(2).hash(&[1]));
        assert_eq!(format!("{key:?}"), "SipKey(..)");
    }
}
