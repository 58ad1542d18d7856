//! Tells the VMM's event device how far user space is and how it ended, through its I/O ports.

#![expect(unsafe_code, reason = "port access has no safe interface")]

use std::arch::asm;
use std::io::{Error, Write as _};

use anyhow::{Context as _, Result, ensure};

/// `layout::EVENT_PORT` of the VMM; guests know it by this number.
const EVENT_PORT: u16 = 0x680;
const IDENTITY: u8 = b'O';
const MARK_INIT: u8 = 1;

/// User space runs.
pub(crate) fn mark_init() -> Result<String> {
    open()?;
    write(0, MARK_INIT);
    Ok("marked init".to_owned())
}

/// Ends the machine with `code`.
pub(crate) fn exit_code(code: u8) -> Result<String> {
    end(1, code)
}

/// Ends the machine as if its main process had been ended by `signal`.
pub(crate) fn exit_signal(signal: u8) -> Result<String> {
    end(2, signal)
}

fn end(register: u16, value: u8) -> Result<String> {
    open()?;
    std::io::stdout().flush()?;
    // SAFETY: tcdrain takes any descriptor. One that is no terminal has nothing to drain.
    unsafe { libc::tcdrain(libc::STDOUT_FILENO) };
    write(register, value);
    Ok("the machine goes on although its end was reported".to_owned())
}

fn open() -> Result<()> {
    // SAFETY: a grant of ports changes no memory.
    let granted = unsafe { libc::ioperm(EVENT_PORT.into(), 8, 1) };
    ensure!(granted == 0, "ioperm: {}", Error::last_os_error());
    let identity: u8;
    // SAFETY: the ports were granted, and reading the identity has no effect.
    unsafe {
        asm!("in al, dx", in("dx") EVENT_PORT, out("al") identity, options(nomem, nostack));
    }
    (identity == IDENTITY).then_some(()).context("no event device at port 0x680")
}

fn write(register: u16, value: u8) {
    // SAFETY: the ports were granted; the device touches no memory of this process.
    unsafe {
        asm!("out dx, al", in("dx") EVENT_PORT + register, in("al") value, options(nomem, nostack));
    }
}
