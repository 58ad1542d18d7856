//! Room for reads that is as large as what comes.

use crate::DATA_MAX;

/// What the first read finds, in bytes.
pub(crate) const FIRST: usize = 4 << 10;

/// Room for reads of a stream: a page until a read has filled it, twice as much from then on, up to [`DATA_MAX`] bytes.
///
/// Most processes write a line. Room that is not used would be memory that a guest touches for the first time.
#[derive(Debug, Default)]
pub struct Room {
    bytes: Vec<u8>,
}

impl Room {
    /// Reads at most `limit` bytes and gives those that were read; `read` is told where they go.
    ///
    /// # Errors
    /// Those of `read`.
    ///
    /// # Panics
    /// When `read` says that it has read more than there was room for.
    pub fn read<E>(
        &mut self,
        limit: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<&[u8], E> {
        let room = self.bytes.len().max(FIRST);
        self.bytes.resize(room, 0);
        let len = read(&mut self.bytes[..room.min(limit)])?;
        if len == room {
            self.bytes.resize(DATA_MAX.min(2 * room), 0);
        }
        Ok(&self.bytes[..len])
    }
}
