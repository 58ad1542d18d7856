//! Platform devices that are not virtio.

pub mod event;
pub mod i8042;
pub mod power;
pub mod serial;
