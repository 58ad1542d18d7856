//! The event device: user space in the guest marks phases of its boot and reports how its main process ended.
//!
//! Byte registers at `layout::EVENT_PORT`, for `outb` and `inb` after `ioperm(2)`:
//!
//! | offset | read | write |
//! |---|---|---|
//! | 0 | 0x4f (`O`), to tell the device from an empty port | boot mark: 1 = user space runs |
//! | 1 | interface version, 1 | exit code of the main process: the machine stops |
//! | 2 | 0 | signal that ended the main process: the machine stops |

use std::sync::Arc;

use crate::bus::{BusDevice, Effect, GuestExit, StopCause};
use crate::trace::{Marks, Phase};

const IDENTITY: u8 = b'O';
const VERSION: u8 = 1;
const MARK_OFFSET: u64 = 0;
const EXIT_CODE_OFFSET: u64 = 1;
const EXIT_SIGNAL_OFFSET: u64 = 2;
const MARK_INIT: u8 = 1;

/// The device.
#[derive(Debug)]
pub struct EventDevice {
    marks: Arc<Marks>,
}

impl EventDevice {
    /// A device that stamps `marks`.
    #[must_use]
    pub fn new(marks: Arc<Marks>) -> Self {
        Self { marks }
    }
}

impl BusDevice for EventDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [value] = data {
            *value = match offset {
                MARK_OFFSET => IDENTITY,
                EXIT_CODE_OFFSET => VERSION,
                _ => 0,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        let &[value] = data else {
            return Effect::None;
        };
        match offset {
            MARK_OFFSET if value == MARK_INIT => {
                self.marks.stamp(Phase::Init);
                Effect::None
            }
            EXIT_CODE_OFFSET => Effect::Stop(StopCause::Exit(GuestExit::Code(value))),
            EXIT_SIGNAL_OFFSET => Effect::Stop(StopCause::Exit(GuestExit::Signal(value))),
            _ => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_stamped_and_exits_stop_the_machine() {
        let marks = Arc::new(Marks::default());
        let device = EventDevice::new(Arc::clone(&marks));
        assert_eq!(device.write(0, &[2]), Effect::None);
        assert_eq!(marks.at(Phase::Init), None);
        assert_eq!(device.write(0, &[1]), Effect::None);
        assert!(marks.at(Phase::Init).is_some());
        let exit = |exit| Effect::Stop(StopCause::Exit(exit));
        assert_eq!(device.write(1, &[42]), exit(GuestExit::Code(42)));
        assert_eq!(device.write(2, &[9]), exit(GuestExit::Signal(9)));
        assert_eq!(device.write(1, &[42, 0]), Effect::None);
        assert_eq!(device.write(7, &[1]), Effect::None);
    }

    #[test]
    fn the_device_can_be_told_from_an_empty_port() {
        let device = EventDevice::new(Arc::new(Marks::default()));
        let mut byte = [0xff];
        device.read(0, &mut byte);
        assert_eq!(byte, [b'O']);
        device.read(1, &mut byte);
        assert_eq!(byte, [1]);
    }
}
