//! The compute driver `openshell-driver-vm`: one microVM per sandbox, served over a Unix socket.
//!
//! It speaks `openshell.compute.v1.ComputeDriver` to a gateway and runs two programs, `openshell-rootfs` for disks and
//! `openshell-vmm` for machines, each as a process of its own: neither image bytes nor a guest come near this process.
//! docs/driver.md has the flags, the state directory and the conditions.
//!
//! ```text
//! service    the RPCs; validate: what is refused, and with which code; wire: messages to values and back
//! sandbox    what is known of each sandbox, and the task that keeps its machine
//! backend    the two programs, or a stub
//! state      the state directory
//! listen     the socket and whom it hears; parent: the gateway that started the driver; launcher: how programs are started
//! guest      what a guest is told; endpoint, resources, quantity, events, id: values
//! ```

#![forbid(unsafe_code)]

pub mod backend;
pub mod endpoint;
pub mod events;
mod guest;
mod id;
pub mod launcher;
pub mod listen;
pub mod parent;
mod quantity;
pub mod resources;
pub mod sandbox;
pub mod serve;
pub mod service;
pub mod state;
mod validate;
mod wire;

pub use guest::{GuestFile, GuestFiles};
pub use id::{InvalidId, SandboxId};
pub use validate::decoder;
