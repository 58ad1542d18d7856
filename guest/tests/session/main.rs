//! The supervisor as a process, with a gateway of the tests over real sockets; no machine is needed.

mod gateway;
mod supervisor;
mod unserved;

#[cfg(test)]
mod ends;
#[cfg(test)]
mod relays;
#[cfg(test)]
mod sessions;
