//! The VMM of openshell-vmm: one process, one machine.
//!
//! The crate reads from the top down, and arrows point down only:
//!
//! ```text
//! main -> machine -> {config, boot, vcpu, control, machines, jail} -> {devices, virtio} -> {bus, disk, net, event} -> {memory, kvm} -> sys
//! ```
//!
//! What the user wrote becomes a [`config::spec::Spec`], which becomes a [`config::plan::Plan`]: files open, sizes
//! checked. [`machine`] builds the plan into threads and runs it. What must flow up (an exit, a reset, a fault) is a
//! value that is returned or sent, never a call.

pub mod agent;
pub mod boot;
pub mod bus;
pub mod config;
pub mod console_tail;
pub mod control;
pub mod devices;
pub mod disk;
pub mod doctor;
pub mod event;
pub mod explain;
pub mod jail;
pub mod kvm;
pub mod launch;
pub mod layout;
pub mod logbook;
pub mod machine;
pub mod machines;
pub mod memory;
pub mod net;
pub mod report;
pub mod streams;
pub mod sys;
pub mod trace;
pub mod vcpu;
pub mod virtio;
