//! Test data that says where it belongs: every sector carries its own number, the rest comes from a seed.
//!
//! Invariant: two sectors are equal only when seed and number are, so that a lost, misplaced, torn or stale sector is found. Cheap
//! enough for an emulated processor: filling and checking are copies and comparisons of memory.

/// Size of a sector; offsets and lengths are multiples of it.
pub const SECTOR: usize = 512;

const STAMP: usize = 16;

/// The data of one seed.
#[derive(Debug, Clone)]
pub struct Pattern {
    seed: u64,
    sector: [u8; SECTOR],
}

impl Pattern {
    /// The data of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut sector = [0; SECTOR];
        let mut state = seed;
        for word in sector.chunks_exact_mut(8) {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut value = state;
            value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(value ^ (value >> 31)).to_le_bytes());
        }
        Self { seed, sector }
    }

    /// Fills `buffer` with what belongs at `offset`, in bytes.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        for (number, sector) in (offset / SECTOR as u64..).zip(buffer.chunks_mut(SECTOR)) {
            let len = sector.len();
            sector.copy_from_slice(&self.numbered(number)[..len]);
        }
    }

    /// Compares `buffer` with what belongs at `offset`, in bytes.
    ///
    /// # Errors
    /// Says in words what is in the first wrong sector.
    pub fn check(&self, offset: u64, buffer: &[u8]) -> Result<(), String> {
        for (number, sector) in (offset / SECTOR as u64..).zip(buffer.chunks(SECTOR)) {
            if sector != &self.numbered(number)[..sector.len()] {
                return Err(format!("sector {number} of seed {} {}", self.seed, describe(sector)));
            }
        }
        Ok(())
    }

    fn numbered(&self, number: u64) -> [u8; SECTOR] {
        let mut sector = self.sector;
        sector[..8].copy_from_slice(&number.to_le_bytes());
        sector[8..STAMP].copy_from_slice(&self.seed.to_le_bytes());
        sector
    }
}

fn describe(sector: &[u8]) -> String {
    if sector.iter().all(|&byte| byte == 0) {
        return "is all zeroes".to_owned();
    }
    let word = |at: usize| {
        let bytes = sector.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    format!("looks like sector {} of seed {}", word(0), word(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_is_right_only_in_its_place() {
        let pattern = Pattern::new(7);
        let mut data = vec![0; 5 * SECTOR + 100];
        pattern.fill(1024, &mut data);
        assert_eq!(pattern.check(1024, &data), Ok(()));
        assert_eq!(pattern.check(1024 + SECTOR as u64, &data[SECTOR..]), Ok(()));
        assert!(pattern.check(0, &data).unwrap_err().contains("looks like sector 2 of seed 7"));
        assert!(Pattern::new(8).check(1024, &data).is_err());
        let last = data.len() - 1;
        data[last] ^= 1;
        assert!(pattern.check(1024, &data).unwrap_err().contains("sector 7"));
        assert!(pattern.check(0, &[0; 512]).unwrap_err().contains("all zeroes"));
    }
}
