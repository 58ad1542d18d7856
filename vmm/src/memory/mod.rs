//! Guest RAM: the one owner of every byte the guest can address.
//!
//! Invariant: a range handed out by this module lies inside one region of RAM for as long as the [`GuestRam`] lives, and
//! no Rust reference is ever formed to guest memory, because the guest writes it at any time. Any thread may use it.

#![expect(
    unsafe_code,
    reason = "guest RAM is mapped, and its mapping is read and written, only here"
)]

mod access;
mod gather;
mod region;
mod transfer;

pub use access::{IoBuf, Window};
pub use gather::Gather;
pub use region::{GuestRam, MemoryError, RamRange};
pub use vm_memory::GuestAddress;
