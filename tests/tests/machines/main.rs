//! Machines of images from end to end: `openshell-vmm run IMAGE -- CMD` and the verbs of a machine's life, from the outside.
//!
//! `cargo xtask test --only lab` runs them, on the host where its KVM runs ordinary kernels and in the lab elsewhere. A boot takes the lab
//! many seconds: a test asks as much of each as it can.

#[cfg(test)]
mod agent;
#[cfg(test)]
mod life;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod run;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod trouble;
