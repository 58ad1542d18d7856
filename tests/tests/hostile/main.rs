//! Archives that mean harm, given to `openshell-rootfs` as its users give it one: each is refused soon, in little memory, with an error
//! that names the entry and the limit, and leaves nothing behind.
//!
//! `cargo xtask test --only images` runs them. They are a program of their own, because what is measured is the most memory that any child
//! of this process ever had.

#[cfg(test)]
mod archive;
#[cfg(test)]
mod refused;
