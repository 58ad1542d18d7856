//! The largest directory: more leaves than two levels of index below its root point to. It takes gigabytes and a minute, so that
//! `cargo xtask property` runs it and `cargo test` does not.

#[cfg(test)]
mod directory;
