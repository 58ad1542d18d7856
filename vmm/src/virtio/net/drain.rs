//! What serves a port whose stack has failed: what the driver sends is dropped, so that it never waits.

use openshell_usernet::link::HEAD_LEN;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::net::{LinkEvent, PacketLink, Source};

use super::port::Port;

/// Frames in one turn.
const TURN_FRAMES: usize = 256;

/// Takes everything and gives nothing, until the driver or the device is gone.
pub(super) fn drain(port: &mut Port) -> LinkEvent {
    let Some(epoll) = watch(port) else {
        // A host without descriptors leaves the driver waiting until it resets the device.
        loop {
            match port.wait() {
                LinkEvent::Frames | LinkEvent::Room => {}
                event => return event,
            }
        }
    };
    let mut head = [0; HEAD_LEN];
    let mut events = [EpollEvent::default(); 8];
    loop {
        for _ in 0..TURN_FRAMES {
            if port.next_frame(&mut head).is_none() {
                break;
            }
        }
        let timeout = if port.end_turn() { 0 } else { -1 };
        let count = epoll.wait(timeout, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            let number = u8::try_from(event.data()).unwrap_or(u8::MAX);
            match port.on_ready(number, false) {
                Ok(LinkEvent::Frames | LinkEvent::Room) | Err(_) => {}
                Ok(event) => return event,
            }
        }
    }
}

fn watch(port: &Port) -> Option<Epoll> {
    let epoll = Epoll::new().ok()?;
    for Source { number, fd } in port.sources() {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, u64::from(number));
        epoll.ctl(ControlOperation::Add, fd, event).ok()?;
    }
    Some(epoll)
}
