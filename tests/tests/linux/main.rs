//! Ordinary Linux guests on real KVM, whole machines from the outside: one file per idea.
//!
//! `cargo xtask test --only lab` runs them, on the host where its KVM runs ordinary kernels and in the lab elsewhere. Sizes and deadlines
//! are those of the lab.

#[cfg(test)]
mod boot;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod distribution;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod guest;
#[cfg(test)]
mod image;
#[cfg(test)]
mod net;
#[cfg(test)]
mod overlay;
#[cfg(test)]
mod sandbox;
#[cfg(test)]
mod shell;
#[cfg(test)]
mod vsock;
