//! The net thread: asleep until a driver is ready, then confined and the stack's until the device is gone.
//!
//! Invariant: a stack that panics is gone before anything else happens, and the link is down until the driver resets the device; queues
//! and machine live on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::net::{LinkEvent, PacketLink};
use crate::sys::panics;

use super::drain;
use super::port::Port;

/// Makes a network stack and drives it on the port until [`LinkEvent::Ended`], on the net thread. Called when the first driver is ready,
/// and again for the next driver after a panic.
pub type Serve = Box<dyn FnMut(&mut Port)>;

/// Makes that, on the net thread before it is confined, when the first driver is ready.
pub type Prepare = Box<dyn FnOnce() -> Serve + Send>;

/// Sleeps until a driver is ready; `None` when the device is gone before.
pub(super) fn wait(mut port: Port, prepare: Prepare) -> Option<(Port, Serve)> {
    while !port.is_active() {
        match port.wait() {
            LinkEvent::Ended => return None,
            LinkEvent::Reset => port.finish_reset(),
            LinkEvent::Frames | LinkEvent::Room => {}
        }
    }
    Some((port, prepare()))
}

/// The thread's body, from then on.
pub(super) fn run((mut port, mut serve): (Port, Serve), link_up: &Arc<AtomicBool>) {
    while !port.has_ended() {
        if !port.is_active() {
            if port.wait() == LinkEvent::Reset {
                port.finish_reset();
            }
            continue;
        }
        match panics::contain(|| serve(&mut port)) {
            // A stack that gives up though the device is there has failed too.
            Ok(()) if port.has_ended() => return,
            Ok(()) | Err(panics::Panicked) => {}
        }
        if port.is_resetting() {
            // It failed at letting go: what it held went with it.
            port.finish_reset();
            continue;
        }
        link_up.store(false, Ordering::SeqCst);
        port.raise_config();
        if drain::drain(&mut port) == LinkEvent::Reset {
            link_up.store(true, Ordering::SeqCst);
            port.finish_reset();
        }
    }
}
