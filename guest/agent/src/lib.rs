//! The host's hand in a guest: one connection per session, one thread per connection.
//!
//! A session starts a process and carries its streams ([`exec`], [`relay`]), or copies files ([`copy`]), or tells what the guest
//! uses ([`stats`]), or sets its clock. Invariant: what a session holds is bounded by its windows, and a session that ends leaves no process of its own behind but
//! the one it was told to leave. One session, which this side begins, carries the streams of the main process ([`main_process`]). `docs/agent.md` has the protocol.

pub mod accounts;
pub mod channel;
pub mod clock;
pub mod copy;
pub mod exec;
pub mod main_process;
pub mod program;
pub mod relay;
pub mod server;
pub mod session;
pub mod stats;
pub mod sys;
pub mod watched;
