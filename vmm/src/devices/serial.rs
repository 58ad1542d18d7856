//! An 8250-family serial port (16550A) whose other end is the machine's event loop.
//!
//! Invariant: both directions are bounded and neither ever blocks a vCPU. When the output buffer is full the transmitter reads as busy until
//! [`Serial::take_output`] makes room; when the input buffer is full [`Serial::offer_input`] takes nothing and rings `input_wanted` once
//! there is room again. vCPU threads call it as a bus device, the event loop calls the other methods; one mutex, never held across a
//! blocking call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::bus::{BusDevice, Effect};

/// Number of ports.
pub const PORTS: u64 = 8;

const OUTPUT_CAPACITY: usize = 64 << 10;
/// What a driver may write after it has found the transmitter empty, without looking again.
const FIFO_BYTES: usize = 16;
const INPUT_CAPACITY: usize = 4096;
/// Output is taken in bursts: a system call for each byte would double the cost of a boot with a console.
const BURST: Duration = Duration::from_millis(2);

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMIT_EMPTY: u8 = 1 << 1;
const IER_BITS: u8 = 0x0f;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFOS: u8 = 0xc0;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVED: u8 = 1 << 1;
const LCR_DIVISOR: u8 = 1 << 7;
const MCR_LOOP: u8 = 1 << 4;
const MCR_OUT2: u8 = 1 << 3;
const LSR_DATA_READY: u8 = 1 << 0;
const LSR_TRANSMIT_EMPTY: u8 = 1 << 5;
const LSR_IDLE: u8 = 1 << 6;
/// Carrier, data set ready, clear to send: the other end is always there.
const MSR_CONNECTED: u8 = 0xb0;
/// Divisor for 115200 baud.
const DIVISOR: u16 = 1;

struct State {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    fifos: bool,
    divisor: u16,
    /// A transmit-empty interrupt waits to be read from IIR.
    transmit_pending: bool,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    /// The event loop is on its way to take the output.
    burst_running: bool,
    /// The event loop has input and found no room.
    input_refused: bool,
    burst: TimerFd,
}

/// The port.
pub struct Serial {
    state: Mutex<State>,
    line: EventFd,
    input_wanted: EventFd,
    burst_fd: RawFd,
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial").finish_non_exhaustive()
    }
}

impl Serial {
    /// A port that raises `line`.
    ///
    /// # Errors
    /// What the host said when no timer or eventfd could be made.
    pub fn new(line: EventFd) -> io::Result<Self> {
        let burst = TimerFd::new().map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        let burst_fd = burst.as_raw_fd();
        let state = State {
            ier: 0,
            lcr: 0x03,
            mcr: MCR_OUT2,
            scr: 0,
            fifos: false,
            divisor: DIVISOR,
            transmit_pending: false,
            input: VecDeque::new(),
            output: VecDeque::new(),
            burst_running: false,
            input_refused: false,
            burst,
        };
        let input_wanted = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { state: Mutex::new(state), line, input_wanted, burst_fd })
    }

    /// The eventfd of the interrupt line.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Readable when output waits; [`Self::take_output`] makes it unreadable.
    #[must_use]
    pub fn output_fd(&self) -> RawFd {
        self.burst_fd
    }

    /// Rung when input that was refused would be taken now.
    #[must_use]
    pub fn input_wanted(&self) -> &EventFd {
        &self.input_wanted
    }

    /// Takes all output, appending it to `into`.
    pub fn take_output(&self, into: &mut Vec<u8>) {
        let mut state = self.lock();
        if state.burst_running {
            state.burst_running = false;
            // Clearing makes the timer unreadable; a timer that refuses would only wake the loop once more.
            state.burst.clear().ok();
        }
        let was_full = !has_room(&state);
        into.extend(state.output.drain(..));
        if was_full {
            self.transmitter_empty(&mut state);
        }
    }

    /// Offers input; returns how many bytes of it were taken.
    pub fn offer_input(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let room = INPUT_CAPACITY - state.input.len().min(INPUT_CAPACITY);
        let taken = room.min(bytes.len());
        let was_empty = state.input.is_empty();
        state.input.extend(&bytes[..taken]);
        state.input_refused = taken < bytes.len();
        if was_empty && taken > 0 && state.ier & IER_RECEIVED != 0 {
            self.raise();
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self) {
        // An eventfd write fails only when the counter is about to overflow, and then the line is up already.
        drop(self.line.write(1));
    }

    fn transmitter_empty(&self, state: &mut State) {
        let first = !state.transmit_pending;
        state.transmit_pending = true;
        if first && state.ier & IER_TRANSMIT_EMPTY != 0 {
            self.raise();
        }
    }

    fn transmit(&self, state: &mut State, byte: u8) {
        if state.mcr & MCR_LOOP != 0 {
            if state.input.len() < INPUT_CAPACITY {
                state.input.push_back(byte);
                if state.ier & IER_RECEIVED != 0 {
                    self.raise();
                }
            }
            return;
        }
        if state.output.len() >= OUTPUT_CAPACITY {
            // The guest wrote to a busy transmitter: hardware loses the byte as well.
            return;
        }
        state.output.push_back(byte);
        if !state.burst_running {
            state.burst_running = state.burst.reset(BURST, None).is_ok();
        }
        if has_room(state) {
            self.transmitter_empty(state);
        }
    }

    fn receive(&self, state: &mut State) -> u8 {
        let byte = state.input.pop_front().unwrap_or(0);
        if state.input.is_empty() && state.input_refused {
            state.input_refused = false;
            drop(self.input_wanted.write(1));
        }
        if !state.input.is_empty() && state.ier & IER_RECEIVED != 0 {
            self.raise();
        }
        byte
    }

    fn identify(&self, state: &mut State) -> u8 {
        let fifos = if state.fifos { IIR_FIFOS } else { 0 };
        if state.ier & IER_RECEIVED != 0 && !state.input.is_empty() {
            return IIR_RECEIVED | fifos;
        }
        if state.ier & IER_TRANSMIT_EMPTY != 0 && state.transmit_pending {
            state.transmit_pending = false;
            return IIR_TRANSMIT_EMPTY | fifos;
        }
        IIR_NONE | fifos
    }

    fn enable_interrupts(&self, state: &mut State, ier: u8) {
        let newly = ier & !state.ier;
        state.ier = ier & IER_BITS;
        if newly & IER_TRANSMIT_EMPTY != 0 && has_room(state) {
            state.transmit_pending = true;
            self.raise();
        }
        if newly & IER_RECEIVED != 0 && !state.input.is_empty() {
            self.raise();
        }
    }

    fn line_status(state: &State) -> u8 {
        let ready = if state.input.is_empty() { 0 } else { LSR_DATA_READY };
        let empty = if has_room(state) { LSR_TRANSMIT_EMPTY | LSR_IDLE } else { 0 };
        ready | empty
    }

    fn modem_status(state: &State) -> u8 {
        if state.mcr & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        // In loop mode the outputs come back as inputs: DTR as DSR, RTS as CTS, OUT1 as RI, OUT2 as DCD.
        let mcr = state.mcr;
        (mcr & 0x01) << 5 | (mcr & 0x02) << 3 | (mcr & 0x04) << 4 | (mcr & 0x08) << 4
    }
}

/// Whether the transmitter is empty: whatever the driver fills its FIFO with then is kept.
fn has_room(state: &State) -> bool {
    state.output.len() + FIFO_BYTES <= OUTPUT_CAPACITY
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let [value] = data else {
            return;
        };
        let mut state = self.lock();
        let divisor = state.lcr & LCR_DIVISOR != 0;
        let [divisor_low, divisor_high] = state.divisor.to_le_bytes();
        *value = match offset {
            DATA if divisor => divisor_low,
            DATA => self.receive(&mut state),
            IER if divisor => divisor_high,
            IER => state.ier,
            IIR_FCR => self.identify(&mut state),
            LCR => state.lcr,
            MCR => state.mcr,
            LSR => Self::line_status(&state),
            MSR => Self::modem_status(&state),
            SCR => state.scr,
            _ => 0,
        };
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        let &[value] = data else {
            return Effect::None;
        };
        let mut state = self.lock();
        let divisor = state.lcr & LCR_DIVISOR != 0;
        match offset {
            DATA if divisor => state.divisor = (state.divisor & 0xff00) | u16::from(value),
            DATA => self.transmit(&mut state, value),
            IER if divisor => state.divisor = (state.divisor & 0x00ff) | u16::from(value) << 8,
            IER => self.enable_interrupts(&mut state, value),
            IIR_FCR => {
                state.fifos = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVED != 0 {
                    state.input.clear();
                }
            }
            LCR => state.lcr = value,
            MCR => state.mcr = value & 0x1f,
            SCR => state.scr = value,
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> Serial {
        Serial::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap()
    }

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut data = [0xaa];
        serial.read(offset, &mut data);
        data[0]
    }

    fn write(serial: &Serial, offset: u64, value: u8) {
        assert_eq!(serial.write(offset, &[value]), Effect::None);
    }

    fn raised(serial: &Serial) -> bool {
        serial.line.read().is_ok()
    }

    #[test]
    fn output_comes_out_in_order() {
        let serial = port();
        for byte in *b"hello" {
            write(&serial, DATA, byte);
        }
        let mut out = b"> ".to_vec();
        serial.take_output(&mut out);
        assert_eq!(out, b"> hello");
    }

    #[test]
    fn a_full_transmitter_is_busy_until_output_is_taken() {
        // A few bytes first, so that full FIFOs do not fit exactly.
        for single in 0..FIFO_BYTES {
            let serial = port();
            (0..single).for_each(|_| write(&serial, DATA, b'x'));
            let mut written = single;
            while read(&serial, LSR) & LSR_TRANSMIT_EMPTY != 0 {
                (0..FIFO_BYTES).for_each(|_| write(&serial, DATA, b'x'));
                written += FIFO_BYTES;
            }
            let _ = raised(&serial);
            write(&serial, IER, IER_TRANSMIT_EMPTY);
            assert!(!raised(&serial));
            let mut out = Vec::new();
            serial.take_output(&mut out);
            assert_eq!(out, vec![b'x'; written]);
            assert!(raised(&serial) && written + FIFO_BYTES > OUTPUT_CAPACITY);
            assert_ne!(read(&serial, LSR) & LSR_TRANSMIT_EMPTY, 0);
        }
    }

    #[test]
    fn what_is_written_to_a_busy_transmitter_is_lost() {
        let serial = port();
        (0..OUTPUT_CAPACITY).for_each(|_| write(&serial, DATA, b'x'));
        write(&serial, DATA, b'y');
        let mut out = Vec::new();
        serial.take_output(&mut out);
        assert_eq!(out, vec![b'x'; OUTPUT_CAPACITY]);
    }

    #[test]
    fn transmit_interrupt_comes_once_per_identification() {
        let serial = port();
        write(&serial, IER, IER_TRANSMIT_EMPTY);
        assert!(raised(&serial));
        assert_eq!(read(&serial, IIR_FCR), IIR_TRANSMIT_EMPTY);
        assert_eq!(read(&serial, IIR_FCR), IIR_NONE);
        write(&serial, DATA, b'a');
        write(&serial, DATA, b'b');
        assert_eq!(serial.line.read().unwrap(), 1);
        assert_eq!(read(&serial, IIR_FCR), IIR_TRANSMIT_EMPTY);
    }

    #[test]
    fn input_is_bounded_and_asked_for_again() {
        let serial = port();
        write(&serial, IER, IER_RECEIVED);
        let bytes = vec![7; INPUT_CAPACITY + 10];
        assert_eq!(serial.offer_input(&bytes), INPUT_CAPACITY);
        assert!(raised(&serial));
        assert_eq!(serial.offer_input(b"z"), 0);
        for left in (0..INPUT_CAPACITY).rev() {
            assert_eq!(read(&serial, IIR_FCR), IIR_RECEIVED);
            assert!(serial.input_wanted.read().is_err());
            assert_eq!(read(&serial, DATA), 7);
            assert_eq!(raised(&serial), left > 0);
        }
        assert!(serial.input_wanted.read().is_ok());
        assert_eq!(read(&serial, LSR) & LSR_DATA_READY, 0);
    }

    #[test]
    fn fifos_show_when_enabled() {
        let serial = port();
        assert_eq!(read(&serial, IIR_FCR), IIR_NONE);
        write(&serial, IIR_FCR, FCR_ENABLE);
        assert_eq!(read(&serial, IIR_FCR), IIR_NONE | IIR_FIFOS);
    }

    #[test]
    fn loop_mode_brings_output_and_modem_lines_back() {
        let serial = port();
        write(&serial, MCR, MCR_LOOP | 0x0a);
        assert_eq!(read(&serial, MSR) & 0xf0, 0x90);
        write(&serial, DATA, b'q');
        assert_eq!(read(&serial, DATA), b'q');
        let mut out = Vec::new();
        serial.take_output(&mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn the_divisor_latch_hides_data_and_interrupt_enable() {
        let serial = port();
        write(&serial, LCR, LCR_DIVISOR);
        write(&serial, DATA, 0x34);
        write(&serial, IER, 0x12);
        assert_eq!((read(&serial, DATA), read(&serial, IER)), (0x34, 0x12));
        write(&serial, LCR, 0x03);
        assert_eq!(read(&serial, IER), 0);
    }

    #[test]
    fn odd_widths_and_offsets_are_harmless() {
        let serial = port();
        for offset in 0..16 {
            for width in 0..9 {
                let mut data = vec![0xff; width];
                serial.read(offset, &mut data);
                if width != 1 {
                    assert_eq!(data, vec![0; width]);
                }
                assert_eq!(serial.write(offset, &vec![0xff; width]), Effect::None);
            }
        }
    }
}
