//! From an image reference to a bootable ext4 image, in one process, without root.
//!
//! Image bytes are hostile. Nothing in them ever becomes a host path, an argument or shell text: the only host names
//! made from an image are validated digests, and layers are merged in memory.

#![forbid(unsafe_code)]

pub mod auth;
pub mod build;
pub mod cache;
pub mod clone;
pub mod digest;
pub mod export;
pub mod image;
pub mod layer;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod merge;
pub mod path;
pub mod pieces;
mod platform;
pub mod progress;
pub mod reference;
pub mod registry;
pub mod resolve;
pub mod sandbox;
pub mod source;
pub mod tar;

pub use platform::InvalidPlatform;
