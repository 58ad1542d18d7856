//! The command port of an i8042 keyboard controller, for the one command that matters: pulse the reset line.

use crate::bus::{BusDevice, Effect, StopCause};

const PULSE_RESET: u8 = 0xfe;

/// The command and status port, one byte at `layout::I8042_PORT + 4`.
#[derive(Debug)]
pub struct I8042;

impl BusDevice for I8042 {
    fn read(&self, _: u64, data: &mut [u8]) {
        // Status: both buffers empty, so that the guest sends its command at once.
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) -> Effect {
        match data {
            [PULSE_RESET] => Effect::Stop(StopCause::Reset),
            _ => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_stops_the_machine() {
        assert_eq!(I8042.write(0, &[PULSE_RESET]), Effect::Stop(StopCause::Reset));
        assert_eq!(I8042.write(0, &[0xaa]), Effect::None);
        assert_eq!(I8042.write(0, &[PULSE_RESET, 0]), Effect::None);
        let mut status = [0xff];
        I8042.read(0, &mut status);
        assert_eq!(status, [0]);
    }
}
