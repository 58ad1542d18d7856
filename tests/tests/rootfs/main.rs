//! The rootfs pipeline against packaged programs: registries, image tools, file system checkers.
//!
//! `cargo xtask test --only images` runs them. They need no KVM; what they need is in the table of `cargo xtask setup`.

#[cfg(test)]
mod distribution;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod images;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod served;
