//! The registry client against a registry that misbehaves, from the outside.
//!
//! The registry is a few threads of the test itself on loopback; nothing else is needed.

#[cfg(test)]
mod auth;
#[cfg(test)]
mod blobs;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod manifests;
#[cfg(test)]
mod mirrors;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod server;
