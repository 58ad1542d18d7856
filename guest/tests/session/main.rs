//! The supervisor as a process, with a gateway of the tests over real sockets; no machine is needed.

#[cfg(test)]
mod ends;
#[cfg(test)]
mod gateway;
#[cfg(test)]
mod relays;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod supervisor;
#[cfg(test)]
mod unserved;
