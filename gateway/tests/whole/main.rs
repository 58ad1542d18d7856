//! The gateway's program and its client, with the driver and the supervisor as they are and machines that are stubs.

#![cfg(test)]

mod client;
mod restarts;
mod rig;
mod scale;
mod supervisor;

use rig::Rig;

fn database(place: &std::path::Path) -> (String, Box<dyn std::any::Any + Send>) {
    Rig::in_a_file(place)
}
