//! The receive queue: frames for the guest are spread over the buffers that it made available.
//!
//! Invariants: a frame is written whole or not at all, and a chain that was taken is either waiting in `spare` or on its way back. Which
//! of a guest's buffers a frame fills depends on their lengths alone. The net thread owns it.

use std::collections::VecDeque;

use crate::memory::GuestRam;
use crate::virtio::{Chain, Completion, Queue, QueueError};

use crate::net::vnet_header::{HEADER_BYTES, NUM_BUFFERS_OFFSET};

/// Why a frame was not written.
#[derive(Debug)]
pub(super) enum Refused {
    /// There is no room now.
    Full,
    /// There never is: the driver's buffers are too small for it, all together.
    TooLarge,
    /// The driver broke the rules of the queue.
    Broken(QueueError),
}

impl From<QueueError> for Refused {
    fn from(error: QueueError) -> Self {
        Self::Broken(error)
    }
}

/// The receive queue of an active device.
#[derive(Debug)]
pub(super) struct Receive {
    queue: Queue,
    /// One frame may fill several chains.
    mergeable: bool,
    spare: VecDeque<Chain>,
    spare_bytes: u64,
    done: Vec<Completion>,
    /// A frame found no room, and the doorbell is on.
    starved: bool,
    wants_interrupt: bool,
}

impl Receive {
    pub(super) fn new(queue: Queue, mergeable: bool) -> Self {
        Self {
            queue,
            mergeable,
            spare: VecDeque::new(),
            spare_bytes: 0,
            done: Vec::new(),
            starved: false,
            wants_interrupt: false,
        }
    }

    /// The doorbell rang. True when a frame waits for room.
    pub(super) fn on_bell(&mut self) -> bool {
        self.queue.disable_doorbell();
        std::mem::take(&mut self.starved)
    }

    /// Writes `header`, `head` and `body` one behind the other.
    ///
    /// # Errors
    /// [`Refused`]: nothing was written.
    pub(super) fn send(
        &mut self,
        ram: &GuestRam,
        mut header: [u8; HEADER_BYTES],
        head: &[u8],
        body: &[&[u8]],
    ) -> Result<(), Refused> {
        let len = body.iter().fold(HEADER_BYTES + head.len(), |len, piece| len + piece.len());
        let count = self.reserve(len as u64)?;
        header[NUM_BUFFERS_OFFSET..].copy_from_slice(&count.to_le_bytes());
        let mut cursor = Cursor { ram, receive: self, offset: 0 };
        cursor.write(&header);
        cursor.write(head);
        for piece in body {
            cursor.write(piece);
        }
        cursor.finish();
        // The guest is to refill while a long turn goes on.
        if self.done.len() >= usize::from(self.queue.size()) / 4 {
            self.publish();
        }
        Ok(())
    }

    /// Has enough chains in `spare` for `len` bytes, and says how many it takes.
    fn reserve(&mut self, len: u64) -> Result<u16, Refused> {
        let size = usize::from(self.queue.size());
        loop {
            let front = self.spare.front().map_or(0, Chain::writable_len);
            if front >= len {
                return Ok(1);
            }
            if self.mergeable && self.spare_bytes >= len {
                return Ok(self.count(len));
            }
            if self.spare.len() == size || (!self.mergeable && !self.spare.is_empty()) {
                return Err(Refused::TooLarge);
            }
            match self.queue.pop()? {
                Some(chain) if chain.writable_len() == 0 => self.done.push(chain.complete(0)),
                Some(chain) => {
                    self.spare_bytes = self.spare_bytes.saturating_add(chain.writable_len());
                    self.spare.push_back(chain);
                }
                None => {
                    self.publish();
                    if !self.queue.enable_doorbell()? {
                        self.starved = true;
                        return Err(Refused::Full);
                    }
                    self.queue.disable_doorbell();
                }
            }
        }
    }

    /// How many chains of `spare` hold `len` bytes.
    fn count(&self, len: u64) -> u16 {
        let mut left = len;
        let needed = self.spare.iter().take_while(|chain| {
            let more = left > 0;
            left = left.saturating_sub(chain.writable_len());
            more
        });
        u16::try_from(needed.count()).unwrap_or(u16::MAX)
    }

    /// Hands what was filled to the driver.
    fn publish(&mut self) {
        if !self.done.is_empty() {
            self.queue.complete_all(self.done.drain(..));
            self.wants_interrupt |= self.queue.wants_interrupt();
        }
    }

    /// Hands what was filled to the driver; whether it wants an interrupt for it.
    pub(super) fn end_turn(&mut self) -> bool {
        self.publish();
        std::mem::take(&mut self.wants_interrupt)
    }
}

/// Where the next byte goes: `offset` bytes into the first spare chain.
struct Cursor<'a> {
    ram: &'a GuestRam,
    receive: &'a mut Receive,
    offset: u64,
}

impl Cursor<'_> {
    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(chain) = self.receive.spare.front() else { return };
            let room = usize::try_from(chain.writable_len() - self.offset).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            // The chain was found to lie in RAM when it was taken.
            chain.write(self.ram, self.offset, now).ok();
            self.offset += now.len() as u64;
            bytes = later;
            if self.offset == chain.writable_len() {
                self.finish();
            }
        }
    }

    /// The chain that was written to goes back.
    fn finish(&mut self) {
        let written = std::mem::take(&mut self.offset);
        if written == 0 {
            return;
        }
        if let Some(chain) = self.receive.spare.pop_front() {
            self.receive.spare_bytes -= chain.writable_len();
            let written = u32::try_from(written).unwrap_or(u32::MAX);
            self.receive.done.push(chain.complete(written));
        }
    }
}
