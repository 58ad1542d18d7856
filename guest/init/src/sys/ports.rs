//! The event device: byte-wide I/O ports by which the host learns how the boot goes and how it ends.
//!
//! Invariant: [`EventDevice`] exists only after the kernel gave this process the ports and the device answered with its
//! identity, so that no write reaches other hardware. See `docs/events.md`.

#![expect(unsafe_code, reason = "port input and output are instructions")]

use std::arch::asm;

const BASE: u16 = 0x680;
const PORTS: libc::c_ulong = 8;
const IDENTITY: u8 = b'O';
const MARK_USER_SPACE: u8 = 1;

/// The device, found.
#[derive(Debug)]
pub struct EventDevice(());

impl EventDevice {
    /// Looks for it; needs root.
    #[must_use]
    pub fn find() -> Option<Self> {
        // SAFETY: changes which ports this process may use; no memory is involved.
        let given = unsafe { libc::ioperm(libc::c_ulong::from(BASE), PORTS, 1) } == 0;
        // SAFETY: the kernel just allowed this port, and reading it has no effect on any machine that has the device;
        // on one without it nothing else is defined at this port.
        (given && unsafe { input(BASE) } == IDENTITY).then_some(Self(()))
    }

    /// Marks that user space runs.
    pub fn mark(&self) {
        self.write(0, MARK_USER_SPACE);
    }

    /// Reports an exit code; the machine stops.
    pub fn exit(&self, code: u8) {
        self.write(1, code);
    }

    /// Reports the signal that ended the main process; the machine stops.
    pub fn exit_by_signal(&self, signal: u8) {
        self.write(2, signal);
    }

    fn write(&self, offset: u16, value: u8) {
        // SAFETY: the value exists, so the kernel allowed the eight ports and the device is behind them.
        unsafe { output(BASE + offset, value) }
    }
}

/// # Safety
/// The kernel must have allowed the port, else the processor faults.
unsafe fn input(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the caller may use the port; the instruction touches no memory and no flags.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// # Safety
/// The kernel must have allowed the port, and what the write does must be meant.
unsafe fn output(port: u16, value: u8) {
    // SAFETY: the caller may use the port; the instruction touches no memory and no flags.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}
