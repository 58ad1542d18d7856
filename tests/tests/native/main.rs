//! Bare-metal guests on the host's KVM: how machines end, what devices do to hostile drivers, what a run leaves behind.

mod console;
mod ends;
mod guest;
mod hygiene;
mod machine;
mod signals;
mod trace;
