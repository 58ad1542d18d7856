//! The supervisor of a sandbox: its session with the gateway, its main process, an SSH server for what the gateway relays.
//!
//! ```text
//! supervise -> {session, logs, main_process} -> ssh -> process -> children -> sys
//! ```
//!
//! Everything that reads what others wrote ([`settings`], [`ssh::simple`]) is pure. Invariant: every wait has a bound, and every queue
//! too; what the gateway sends can end a session and nothing else.

pub mod children;
pub mod connect;
pub mod logs;
pub mod main_process;
pub mod process;
pub mod pty;
pub mod session;
pub mod settings;
pub mod ssh;
pub mod supervise;
pub mod sys;
pub mod token;
