//! The VMM of openshell-vmm: one process, one machine.
//!
//! The crate reads from the top down, and arrows point down only:
//!
//! ```text
//! main -> machine -> {config, boot, vcpu, jail} -> {devices, virtio} -> {bus, disk, net, event} -> {memory, kvm} -> sys
//! ```
//!
//! What the user wrote becomes a [`config::spec::Spec`], which becomes a [`config::plan::Plan`]: files open, sizes
//! checked. [`machine`] builds the plan into threads and runs it. What must flow up (an exit, a reset, a fault) is a
//! value that is returned or sent, never a call.

pub mod boot;
pub mod bus;
pub mod config;
pub mod console_tail;
pub mod devices;
pub mod disk;
pub mod doctor;
pub mod event;
pub mod explain;
pub mod jail;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod net;
pub mod report;
pub mod sys;
pub mod trace;
pub mod vcpu;
pub mod virtio;
