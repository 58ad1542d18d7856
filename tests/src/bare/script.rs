//! Scripts for the guest of [`super::interpreter`]: what a driver does, written in Rust, one operation after the other.
//!
//! Invariant: every wait in a script is bounded, and a guest whose expectation fails says which one and ends, so that a test never has to
//! guess.

use std::panic::Location;

use super::interpreter::{self, Op, SCRIPT_ADDR};

/// Tries of a wait: some seconds on the slowest KVM.
const TRIES: u64 = 2_000_000;

/// Counters of loops, in low memory that nothing else is in.
const COUNTERS_ADDR: u64 = 0x6_0000;

/// A program for a bare-metal guest. It ends with [`Script::exit`] or another operation that never ends; one that runs off its end exits
/// with 0.
#[derive(Debug, Default, Clone)]
pub struct Script {
    bytes: Vec<u8>,
    origins: Vec<(u64, &'static Location<'static>)>,
    counters: u64,
}

/// A place in a script to go back to.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    counter: u64,
    target: u64,
}

impl Script {
    /// An empty script.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The ELF image of a guest that runs the script.
    #[must_use]
    pub fn elf(&self) -> Vec<u8> {
        let mut code = interpreter::code();
        code.extend(&self.bytes);
        code.extend([0; 16]);
        super::elf(&code)
    }

    /// The line of the test that made the operation which a guest's output says failed.
    #[must_use]
    pub fn explain(&self, output: &str) -> Option<String> {
        let said = output.lines().rev().find_map(|line| line.strip_prefix("FAIL "))?;
        let (addr, value) = said.split_once(' ')?;
        let addr = u64::from_str_radix(addr, 16).ok()?;
        let (_, origin) = self.origins.iter().rev().find(|(at, _)| *at <= addr)?;
        Some(format!("the operation made at {origin} failed in the guest: found 0x{value}"))
    }

    /// The address of the next operation.
    #[must_use]
    pub fn here(&self) -> u64 {
        SCRIPT_ADDR + self.bytes.len() as u64
    }

    #[track_caller]
    fn op(&mut self, op: Op, words: &[u64]) -> &mut Self {
        self.origins.push((self.here(), Location::caller()));
        self.bytes.extend((op as u64).to_le_bytes());
        self.bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        self
    }

    fn data(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self
    }

    /// Adds the operations of `other`, which has no loops, behind these.
    pub fn append(&mut self, other: &Self) -> &mut Self {
        let moved = self.here() - SCRIPT_ADDR;
        self.origins.extend(other.origins.iter().map(|&(at, origin)| (at + moved, origin)));
        self.bytes.extend(&other.bytes);
        self
    }

    /// Reports `code` as the exit status of the guest's main process.
    #[track_caller]
    pub fn exit(&mut self, code: u8) -> &mut Self {
        self.op(Op::Exit, &[u64::from(code)])
    }

    /// Writes one byte.
    #[track_caller]
    pub fn store8(&mut self, addr: u64, value: u8) -> &mut Self {
        self.op(Op::Store8, &[addr, u64::from(value)])
    }

    /// Writes two bytes at once.
    #[track_caller]
    pub fn store16(&mut self, addr: u64, value: u16) -> &mut Self {
        self.op(Op::Store16, &[addr, u64::from(value)])
    }

    /// Writes four bytes at once.
    #[track_caller]
    pub fn store32(&mut self, addr: u64, value: u32) -> &mut Self {
        self.op(Op::Store32, &[addr, u64::from(value)])
    }

    /// Writes eight bytes at once.
    #[track_caller]
    pub fn store64(&mut self, addr: u64, value: u64) -> &mut Self {
        self.op(Op::Store64, &[addr, value])
    }

    /// Loads one byte.
    #[track_caller]
    pub fn load8(&mut self, addr: u64) -> &mut Self {
        self.op(Op::Load8, &[addr])
    }

    /// Loads two bytes at once.
    #[track_caller]
    pub fn load16(&mut self, addr: u64) -> &mut Self {
        self.op(Op::Load16, &[addr])
    }

    /// Loads four bytes at once.
    #[track_caller]
    pub fn load32(&mut self, addr: u64) -> &mut Self {
        self.op(Op::Load32, &[addr])
    }

    /// Loads eight bytes at once.
    #[track_caller]
    pub fn load64(&mut self, addr: u64) -> &mut Self {
        self.op(Op::Load64, &[addr])
    }

    /// The value loaded last is `value`.
    #[track_caller]
    pub fn expect(&mut self, value: u64) -> &mut Self {
        self.op(Op::Expect, &[u64::MAX, value])
    }

    /// The bits in `mask` of the value loaded last are `value`.
    #[track_caller]
    pub fn expect_bits(&mut self, mask: u64, value: u64) -> &mut Self {
        self.op(Op::Expect, &[mask, value])
    }

    /// The value loaded last is not `value`.
    #[track_caller]
    pub fn expect_not(&mut self, value: u64) -> &mut Self {
        self.op(Op::ExpectNot, &[u64::MAX, value])
    }

    /// Prints the value loaded last: 16 hexadecimal digits and a newline.
    #[track_caller]
    pub fn print(&mut self) -> &mut Self {
        self.op(Op::Print, &[])
    }

    /// Loads one byte from a port.
    #[track_caller]
    pub fn in8(&mut self, port: u16) -> &mut Self {
        self.op(Op::In8, &[u64::from(port)])
    }

    /// Writes one byte to a port.
    #[track_caller]
    pub fn out8(&mut self, port: u16, value: u8) -> &mut Self {
        self.op(Op::Out8, &[u64::from(port), u64::from(value)])
    }

    /// Writes two bytes to a port at once.
    #[track_caller]
    pub fn out16(&mut self, port: u16, value: u16) -> &mut Self {
        self.op(Op::Out16, &[u64::from(port), u64::from(value)])
    }

    /// Writes four bytes to a port at once.
    #[track_caller]
    pub fn out32(&mut self, port: u16, value: u32) -> &mut Self {
        self.op(Op::Out32, &[u64::from(port), u64::from(value)])
    }

    /// Waits until the bits in `mask` of the byte at `addr` are `value`.
    #[track_caller]
    pub fn wait8(&mut self, addr: u64, mask: u8, value: u8) -> &mut Self {
        self.op(Op::Wait8, &[addr, u64::from(mask), u64::from(value), TRIES])
    }

    /// Waits until the two bytes at `addr` are `value`.
    #[track_caller]
    pub fn wait16(&mut self, addr: u64, value: u16) -> &mut Self {
        self.op(Op::Wait16, &[addr, 0xffff, u64::from(value), TRIES])
    }

    /// Waits until the two bytes at `addr` are `value`, or have gone past it by up to 32767.
    #[track_caller]
    pub fn wait_past16(&mut self, addr: u64, value: u16) -> &mut Self {
        self.op(Op::WaitPast16, &[addr, u64::from(value), TRIES])
    }

    /// Waits until the bits in `mask` of the four bytes at `addr` are `value`.
    #[track_caller]
    pub fn wait32(&mut self, addr: u64, mask: u32, value: u32) -> &mut Self {
        self.op(Op::Wait32, &[addr, u64::from(mask), u64::from(value), TRIES])
    }

    /// Puts `bytes` into memory.
    #[track_caller]
    pub fn copy(&mut self, addr: u64, bytes: &[u8]) -> &mut Self {
        self.op(Op::Copy, &[addr, bytes.len() as u64]).data(bytes)
    }

    /// Fills memory with one byte.
    #[track_caller]
    pub fn fill(&mut self, addr: u64, len_bytes: u64, byte: u8) -> &mut Self {
        self.op(Op::Fill, &[addr, len_bytes, u64::from(byte)])
    }

    /// Memory holds nothing but this byte.
    #[track_caller]
    pub fn filled(&mut self, addr: u64, len_bytes: u64, byte: u8) -> &mut Self {
        self.op(Op::Filled, &[addr, len_bytes, u64::from(byte)])
    }

    /// Memory holds `bytes`.
    #[track_caller]
    pub fn same(&mut self, addr: u64, bytes: &[u8]) -> &mut Self {
        self.op(Op::Same, &[addr, bytes.len() as u64]).data(bytes)
    }

    /// Starts a loop of `count` turns, at least one, with a counter of its own.
    #[track_caller]
    pub fn repeat(&mut self, count: u64) -> Mark {
        let counter = COUNTERS_ADDR + 8 * self.counters;
        self.counters += 1;
        self.store64(counter, count);
        Mark { counter, target: self.here() }
    }

    /// Ends a loop.
    #[track_caller]
    pub fn again(&mut self, mark: Mark) -> &mut Self {
        self.op(Op::Again, &[mark.counter, mark.target])
    }

    /// Prints `text`, each byte when the port takes it.
    #[track_caller]
    pub fn say(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        let bytes = text.as_ref();
        self.op(Op::Say, &[bytes.len() as u64]).data(bytes)
    }

    /// Prints what is typed until `end` is.
    #[track_caller]
    pub fn echo_until(&mut self, end: u8) -> &mut Self {
        self.op(Op::Echo, &[u64::from(end)])
    }

    /// Sleeps for ever with interrupts off.
    #[track_caller]
    pub fn halt(&mut self) -> &mut Self {
        self.op(Op::Halt, &[])
    }

    /// Computes for ever.
    #[track_caller]
    pub fn spin(&mut self) -> &mut Self {
        self.op(Op::Spin, &[])
    }

    /// Faults without a handler for faults.
    #[track_caller]
    pub fn triple_fault(&mut self) -> &mut Self {
        self.op(Op::TripleFault, &[])
    }

    /// Sleeps with interrupts on, under the table that the 10 bytes at `descriptor` describe, and goes on with interrupts off when an
    /// interrupt came whose gate leads to [`Self::handler`].
    #[track_caller]
    pub fn await_interrupt(&mut self, descriptor: u64) -> &mut Self {
        self.op(Op::AwaitInterrupt, &[descriptor])
    }

    /// The gate of an interrupt table that [`Self::await_interrupt`] waits for.
    #[must_use]
    pub fn gate() -> [u8; 16] {
        const PRESENT_INTERRUPT_GATE: u128 = 0x8e00 << 32;
        const CODE_SELECTOR: u128 = 0x10 << 16;
        let handler = u128::from(interpreter::handler_addr());
        let gate = handler & 0xffff
            | CODE_SELECTOR
            | PRESENT_INTERRUPT_GATE
            | (handler & 0xffff_0000) << 32;
        gate.to_le_bytes()
    }

    /// Calls code at `addr`, which keeps rsi, rsp, r13 and r15, and returns.
    #[track_caller]
    pub fn call(&mut self, addr: u64) -> &mut Self {
        self.op(Op::Call, &[addr])
    }
}
