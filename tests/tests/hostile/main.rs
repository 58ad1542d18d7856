//! Archives that mean harm, given to `openshell-rootfs` as its users give it one: each is refused soon, in little memory, with an error
//! that names the entry and the limit, and leaves nothing behind.
//!
//! `cargo xtask test --only images` runs them. They are a program of their own: the most memory that a child had is never less than what
//! the process had that started it.

#[cfg(test)]
mod archive;
#[cfg(test)]
mod refused;
