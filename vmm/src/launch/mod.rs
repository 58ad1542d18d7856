//! From an image and what the user wants of it to the disks of a machine.
//!
//! Bytes of an image are handled by `openshell-rootfs`, a process of its own; here its disk is only named. What is written here is ours: the
//! disk that a machine writes on, and the one that tells its first process what to do. Invariant: nothing of an image is read in this
//! process. Runs on the main thread, before anything is confined.

pub mod disks;
pub mod environment;
pub mod image;
pub mod process;

mod places;

pub use places::{Places, PlacesError};
