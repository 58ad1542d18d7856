//! The serial port between a guest and its user, against a model of both directions, and the tail that is kept of what it printed.
#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use openshell_fuzz::Script;
use openshell_vmm::bus::BusDevice;
use openshell_vmm::console_tail::{ConsoleTail, MAX_LINE_BYTES, MAX_LINES};
use openshell_vmm::devices::serial::{PORTS, Serial};
use openshell_vmm::report::panic::PanicKind;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const OUTPUT_BYTES: usize = 64 << 10;
const DATA: u64 = 0;
const FIFO: u64 = 2;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const DIVISOR: u8 = 1 << 7;
const LOOP: u8 = 1 << 4;
const CLEAR_RECEIVED: u8 = 1 << 1;

/// Longest run of one byte that a script prints.
const RUN: usize = 1 << 10;

struct Model {
    port: Serial,
    line_control: u8,
    modem_control: u8,
    input: VecDeque<u8>,
    output: Vec<u8>,
    printed: Vec<u8>,
}

fuzz_target!(|script: &[u8]| {
    let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let mut model = Model {
        port: Serial::new(line).expect("a timer"),
        line_control: 3,
        modem_control: 8,
        input: VecDeque::new(),
        output: Vec::new(),
        printed: Vec::new(),
    };
    let mut script = Script(script);
    while script.goes_on() {
        model.step(&mut script);
    }
    model.take_output();
    tail_of(&model.printed);
});

impl Model {
    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 8 {
            0 => self.write(u64::from(script.byte()) % PORTS, script.byte()),
            1 => self.read(u64::from(script.byte()) % PORTS),
            2 => self.offer(script),
            3 => self.take_output(),
            4 => {
                let byte = script.byte();
                (0..usize::from(script.u16()) % RUN).for_each(|_| self.write(DATA, byte));
            }
            5 => {
                let len = usize::from(script.byte());
                script.bytes(len).iter().for_each(|&byte| self.write(DATA, byte));
            }
            6 => self.odd_access(script),
            _ => self.read(DATA),
        }
    }

    fn write(&mut self, offset: u64, value: u8) {
        let ready = self.register(LINE_STATUS) & 1 << 5 != 0;
        assert!(!ready || self.output.len() < OUTPUT_BYTES);
        match offset {
            DATA if self.line_control & DIVISOR != 0 => {}
            // In loop mode the port is its own other end, with less room than the model cares to know.
            DATA if self.modem_control & LOOP != 0 => {
                self.write_register(offset, value);
                let received = self.register(LINE_STATUS) & 1 != 0;
                assert!(received, "what loops back is there to be read");
                self.drain_input();
                return;
            }
            // A port that reads as full still takes what its FIFO would have held.
            DATA if self.output.len() < OUTPUT_BYTES => self.output.push(value),
            FIFO if value & CLEAR_RECEIVED != 0 => self.input.clear(),
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value,
            _ => {}
        }
        self.write_register(offset, value);
    }

    fn read(&mut self, offset: u64) {
        let value = self.register(offset);
        match offset {
            DATA if self.line_control & DIVISOR == 0 => {
                assert_eq!(value, self.input.pop_front().unwrap_or(0));
            }
            LINE_CONTROL => assert_eq!(value, self.line_control),
            LINE_STATUS => assert_eq!(value & 1 != 0, !self.input.is_empty()),
            _ => {}
        }
    }

    fn offer(&mut self, script: &mut Script<'_>) {
        let len = usize::from(script.byte());
        let bytes = script.bytes(len);
        let taken = self.port.offer_input(bytes);
        self.input.extend(&bytes[..taken]);
        assert!(self.input.len() <= 4096);
    }

    fn take_output(&mut self) {
        let mut taken = Vec::new();
        self.port.take_output(&mut taken);
        assert!(taken == self.output, "bytes were lost or changed");
        assert!(taken.len() <= OUTPUT_BYTES);
        self.output.clear();
        self.printed.append(&mut taken);
    }

    /// A width that no register has does nothing and reads as 0.
    fn odd_access(&mut self, script: &mut Script<'_>) {
        let mut data = [0xee; 8];
        let data = &mut data[..[0, 2, 4, 8][usize::from(script.byte() % 4)]];
        let offset = script.u64();
        let _nothing = self.port.write(offset, data);
        self.port.read(offset, data);
        assert!(data.iter().all(|&byte| byte == 0));
    }

    fn drain_input(&mut self) {
        self.input.clear();
        while self.register(LINE_STATUS) & 1 != 0 {
            self.register(DATA);
        }
    }

    fn register(&self, offset: u64) -> u8 {
        let mut value = [0];
        self.port.read(offset, &mut value);
        value[0]
    }

    fn write_register(&self, offset: u64, value: u8) {
        let _nothing = self.port.write(offset, &[value]);
    }
}

fn tail_of(printed: &[u8]) {
    let mut tail = ConsoleTail::default();
    let (first, rest) = printed.split_at(printed.len() / 2);
    tail.push(first);
    tail.push(rest);
    let lines = tail.lines();
    assert!(lines.len() <= MAX_LINES);
    for line in &lines {
        assert!(line.len() <= 3 * MAX_LINE_BYTES && !line.chars().any(char::is_control));
    }
    if let Some(reason) = tail.panic() {
        let panic = PanicKind::of(&reason);
        drop((panic.why(), panic.fix()));
    }
}
