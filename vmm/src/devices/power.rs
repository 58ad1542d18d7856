//! The sleep and reset registers of hardware-reduced ACPI (ACPI 6.5 sections 4.8.3.7 and 4.8.3.6).

use crate::bus::{BusDevice, Effect, StopCause};
use crate::layout::{
    ACPI_RESET_PORT, ACPI_RESET_VALUE, ACPI_S5_SLEEP_TYPE, ACPI_SLEEP_CONTROL_PORT,
};

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0x7;
const CONTROL_OFFSET: u64 = 0;
const RESET_OFFSET: u64 = (ACPI_RESET_PORT - ACPI_SLEEP_CONTROL_PORT) as u64;

/// Length of the register block at `layout::ACPI_SLEEP_CONTROL_PORT`.
pub const PORTS: u64 = RESET_OFFSET + 1;

/// Sleep control, sleep status and reset: three byte registers.
#[derive(Debug)]
pub struct PowerRegisters;

impl BusDevice for PowerRegisters {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        let &[value] = data else {
            return Effect::None;
        };
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
        match offset {
            CONTROL_OFFSET if value & SLEEP_ENABLE != 0 && sleep_type == ACPI_S5_SLEEP_TYPE => {
                Effect::Stop(StopCause::PowerOff)
            }
            RESET_OFFSET if value == ACPI_RESET_VALUE => Effect::Stop(StopCause::Reset),
            _ => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_sleep_enable_and_the_reset_value_stop_the_machine() {
        let s5 = ACPI_S5_SLEEP_TYPE << SLEEP_TYPE_SHIFT;
        for (offset, data, want) in [
            (0, &[s5 | SLEEP_ENABLE][..], Effect::Stop(StopCause::PowerOff)),
            (0, &[s5], Effect::None),
            (0, &[SLEEP_ENABLE], Effect::None),
            (1, &[s5 | SLEEP_ENABLE], Effect::None),
            (2, &[ACPI_RESET_VALUE], Effect::Stop(StopCause::Reset)),
            (2, &[0], Effect::None),
            (2, &[ACPI_RESET_VALUE, 0], Effect::None),
        ] {
            assert_eq!(PowerRegisters.write(offset, data), want, "{offset} {data:x?}");
        }
    }
}
