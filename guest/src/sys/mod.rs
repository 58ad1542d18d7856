//! What only unsafe code can do: promises about descriptors.

pub mod ready;
