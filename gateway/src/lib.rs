//! The gateway: it keeps the rows of all sandboxes, holds the session of each supervisor, and alone says which sandbox is ready.
//!
//! From the bottom up: [`store`] keeps typed rows with versions; [`watch`] tells who follows a sandbox that its row has changed;
//! [`session`] holds the sessions and relays of supervisors; [`compute`] puts what a driver says and what the sessions say together into
//! rows. `session` knows `compute` as an observer only, and calls it outside of its lock. What faces the network is above these:
//! [`auth`] tells who calls, [`certs`] makes what it tells them by, [`exec`] and [`relay_io`] carry bytes, [`logs`] keeps lines, [`managed`] keeps a driver running, [`serve`] has the calls.
//!
//! Invariant: a row is ready only while a session of its sandbox is held in this process.

#![forbid(unsafe_code)]

pub mod auth;
pub mod certs;
pub mod compute;
pub mod config;
pub mod exec;
pub mod logs;
pub mod managed;
pub mod relay_io;
pub mod serve;
pub mod session;
pub mod store;
pub mod watch;
