//! Credit: how much of a stream may be sent before the receiver has used what it has.
//!
//! Both sides start at [`WINDOW_BYTES`]. Invariant: a receiver never holds more than that of one stream, and a sender
//! that goes on without credit is found out.

use crate::WINDOW_BYTES;
use crate::wire::WireError;

/// The sender's half.
#[derive(Debug)]
pub struct SendWindow {
    left: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { left: WINDOW_BYTES }
    }
}

impl SendWindow {
    /// Bytes that may be sent now.
    #[must_use]
    pub fn left(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    /// `len` bytes were sent.
    pub fn sent(&mut self, len: usize) {
        self.left = self.left.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// The receiver gave credit.
    ///
    /// # Errors
    /// When it gave more than it can have used.
    pub fn credit(&mut self, bytes: u32) -> Result<(), WireError> {
        let left = self.left.checked_add(bytes).filter(|left| *left <= WINDOW_BYTES);
        self.left = left.ok_or(WireError::Value("credit"))?;
        Ok(())
    }
}

/// The receiver's half.
#[derive(Debug)]
pub struct ReceiveWindow {
    /// What the sender may still send.
    granted: u32,
    /// What was used since credit was last given.
    used: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { granted: WINDOW_BYTES, used: 0 }
    }
}

impl ReceiveWindow {
    /// `len` bytes have arrived.
    ///
    /// # Errors
    /// When there was no credit for them.
    pub fn received(&mut self, len: usize) -> Result<(), WireError> {
        let left = u32::try_from(len).ok().and_then(|len| self.granted.checked_sub(len));
        self.granted = left.ok_or(WireError::Overrun)?;
        Ok(())
    }

    /// `len` bytes were passed on. Returns the credit to be given now: nothing until it is worth a frame.
    #[must_use]
    pub fn used(&mut self, len: usize) -> Option<u32> {
        self.used = self.used.saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
        if self.used < WINDOW_BYTES / 4 {
            return None;
        }
        let credit = std::mem::take(&mut self.used).min(WINDOW_BYTES - self.granted);
        self.granted += credit;
        Some(credit)
    }
}
