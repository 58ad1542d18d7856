//! Sandboxes from end to end: gateway, driver, machine, first process and supervisor as processes, spoken to over TLS.
//!
//! `cargo xtask test --only lab` runs them, on the host where its KVM runs ordinary kernels and in the lab elsewhere. A boot takes the lab
//! many seconds: a test asks as much of each as it can.

#[cfg(test)]
mod cycles;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod managed;
#[cfg(test)]
mod path;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod tokens;
