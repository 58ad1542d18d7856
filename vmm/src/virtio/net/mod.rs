//! virtio-net (VIRTIO 1.2 section 5.1): the guest's network card, and the queues behind it as a link of the user-mode stack.

mod control;
mod counters;
pub mod features;
mod link;
mod receive;
mod transmit;

#[cfg(test)]
mod tests;

pub use counters::Counters;
pub use link::QueueLink;
pub use transmit::GuestBytes;
