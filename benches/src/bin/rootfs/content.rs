//! Bytes of files that nobody had to download: the same on every machine, and about as compressible as libraries are.
//!
//! Invariant: everything follows from the seed. Text is made of words that repeat as words do, with bytes between them that nothing
//! predicts, in shares that bring gzip to the ratio and the speed it has with a directory of libraries.

/// Words to choose from: few enough that a window of 32 KiB has seen the frequent ones.
const WORDS: usize = 2048;
/// The longest word in bytes.
const WORD_MAX: usize = 24;

/// Numbers that follow from a seed (`SplitMix64`).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("less than a usize")
    }

    /// Less than `bound`, and small numbers more often: the product of two choices.
    fn skewed(&mut self, bound: usize) -> usize {
        self.below(bound) * (self.below(bound) + 1) / bound
    }
}

/// Makes the bytes of files.
pub(crate) struct Content {
    random: Random,
    words: Vec<Vec<u8>>,
}

impl Content {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let words = (0..WORDS)
            .map(|_| {
                let length = 3 + random.skewed(WORD_MAX - 3);
                (0..length).map(|_| byte(&mut random)).collect()
            })
            .collect();
        Self { random, words }
    }

    /// Replaces what is in `buffer` by the next `length` bytes.
    pub(crate) fn fill(&mut self, buffer: &mut Vec<u8>, length: usize) {
        buffer.clear();
        while buffer.len() < length {
            match self.random.below(16) {
                // Addresses, offsets, literals.
                0..=3 => {
                    let count = 1 + self.random.below(4);
                    buffer.extend_from_slice(&self.random.next().to_le_bytes()[..count]);
                }
                // Padding and tables.
                4 => buffer.resize(buffer.len() + 4 + self.random.below(28), 0),
                // Something that stood here a moment ago.
                5..=6 if buffer.len() > 4096 => {
                    let from = buffer.len() - 64 - self.random.below(4000);
                    let count = 16 + self.random.below(48);
                    buffer.extend_from_within(from..from + count);
                }
                _ => {
                    let word = self.random.skewed(WORDS);
                    buffer.extend_from_slice(&self.words[word]);
                }
            }
        }
        buffer.truncate(length);
    }
}

/// A byte of a word: any, but some more often.
fn byte(random: &mut Random) -> u8 {
    const FREQUENT: &[u8] = b"\0\0\x0f\x48\x89\x8b\xff\xe8 etaoinsrhld_.";
    if random.below(4) == 0 {
        random.next().to_le_bytes()[0]
    } else {
        FREQUENT[random.below(FREQUENT.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_they_compress_as_libraries_do() {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        Content::new(7).fill(&mut one, 1 << 20);
        Content::new(7).fill(&mut two, 1 << 20);
        assert!(one == two && one.len() == 1 << 20);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        std::io::Write::write_all(&mut packed, &one).unwrap();
        let packed = packed.finish().unwrap().len();
        assert!((240 << 10..400 << 10).contains(&packed), "{packed} bytes of 1 MiB");
    }
}
