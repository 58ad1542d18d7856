//! The first process of a sandbox's guest: from a bare kernel to the main process, and from its end to the machine's.
//!
//! [`boot`] is the order of steps; `docs/guest.md` says what each does. Everything that reads what others wrote
//! ([`config`], [`cmdline`], [`accounts`], [`dhcp`], [`environment`]) is pure. Invariant: a step that fails returns a
//! [`failure::Failure`], which becomes the one line that the host sees; nothing is retried without a bound.

pub mod accounts;
pub mod agent;
pub mod boot;
pub mod clock;
pub mod cmdline;
pub mod config;
pub mod dhcp;
pub mod disks;
pub mod environment;
pub mod failure;
pub mod files;
pub mod machine;
pub mod mounts;
pub mod netlink;
pub mod network;
pub mod process;
pub mod reap;
pub mod stop;
pub mod streams;
pub mod sys;
pub mod terminal;
pub mod texts;
pub mod tools;
