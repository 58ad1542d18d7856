//! The control queue (VIRTIO 1.2 section 5.1.6.5): the driver changes what it takes.
//!
//! Invariant: every command is answered, in its last writable byte; one that is not known, with an error. The net thread owns it.

use crate::memory::GuestRam;
use crate::virtio::{Chain, Queue, QueueError};

use super::features::GUEST_OFFLOADS;

const OK: u8 = 0;
const ERR: u8 = 1;

const CLASS_GUEST_OFFLOADS: u8 = 5;
const GUEST_OFFLOADS_SET: u8 = 0;
/// Class, command, 64 bits.
const SET_BYTES: usize = 10;

/// The control queue of an active device.
#[derive(Debug)]
pub(super) struct Control {
    queue: Queue,
    /// There may be commands; otherwise the doorbell is on.
    ready: bool,
}

impl Control {
    pub(super) fn new(queue: Queue) -> Self {
        Self { queue, ready: true }
    }

    /// The doorbell rang.
    pub(super) fn on_bell(&mut self) {
        self.ready = true;
        self.queue.disable_doorbell();
    }

    /// Whether there may be a command.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Obeys the commands that wait, a queue's worth at most; `negotiated` are the features, `taken` the offloads in use. Whether the
    /// driver wants an interrupt.
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub(super) fn serve(
        &mut self,
        ram: &GuestRam,
        negotiated: u64,
        taken: &mut u64,
    ) -> Result<bool, QueueError> {
        for _ in 0..self.queue.size() {
            if !self.ready {
                break;
            }
            let Some(chain) = self.queue.pop()? else {
                self.ready = self.queue.enable_doorbell()?;
                continue;
            };
            let wanted = read_command(&chain, ram);
            let answer = match wanted.filter(|bits| bits & !(negotiated & GUEST_OFFLOADS) == 0) {
                Some(bits) => {
                    *taken = bits;
                    OK
                }
                None => ERR,
            };
            self.queue.complete(chain.into_tail().complete(ram, answer, 0));
        }
        Ok(self.queue.wants_interrupt())
    }
}

/// The bits of a command to set offloads; `None` for any other command.
fn read_command(chain: &Chain, ram: &GuestRam) -> Option<u64> {
    let [class, command, bits @ ..] = chain.read_start::<SET_BYTES>(ram).ok()?;
    let known = (class, command) == (CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET);
    known.then_some(u64::from_le_bytes(bits))
}
