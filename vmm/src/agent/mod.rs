//! The host's side of a guest's agent: commands, copies and figures of a machine that runs, through its vsock socket.
//!
//! Used by processes of the command, one session at a time, on the calling thread; a machine's own process has no part in it. Invariant: what a
//! guest sends is bounded by the protocol's windows, and nothing of it is trusted. `docs/agent.md` has the protocol.

mod connection;
mod copy;
mod error;
mod exec;
mod figures;
mod keys;
#[cfg(test)]
mod tests;

pub use connection::Connection;
pub use copy::{copy_in, copy_out, stream_in, stream_out};
pub use error::AgentError;
pub use exec::{Streams, attach, exec};
pub use figures::{set_clock, stats};
pub use openshell_agent_proto::{Exec, ExecError, Exit, GuestPath, Size, Stats, Stdio};
