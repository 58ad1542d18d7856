//! From a KVM exit to what the processor's thread does next. Pure: no KVM call is made here.

use std::io;

use kvm_ioctls::VcpuExit;

use crate::bus::{Bus, Effect, StopCause};

/// What a vCPU thread does after an exit.
#[derive(Debug)]
pub enum Action {
    /// Enter the guest again.
    Resume,
    /// A signal came: look at what the machine wants.
    Kicked,
    /// The guest ends the machine.
    Stop(StopCause),
    /// The processor can't go on.
    Fail(Fault),
    /// KVM_EXIT_INTERNAL_ERROR: the processor cannot go on, and its run structure holds the suberror.
    GaveUp,
}

/// Why a processor can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A triple fault.
    #[error("the processor shut down (triple fault)")]
    TripleFault,
    /// KVM could not enter the guest.
    #[error("KVM could not enter the guest (hardware reason {reason:#x})")]
    Entry {
        /// `hardware_entry_failure_reason`.
        reason: u64,
    },
    /// KVM_EXIT_INTERNAL_ERROR: most often an instruction that it had to emulate and can't.
    #[error("KVM gave up on the guest (internal error {suberror})")]
    Internal {
        /// The suberror; 1 is an emulation failure.
        suberror: u32,
    },
    /// An exit that this machine never asks for.
    #[error("unexpected exit from the guest: {0}")]
    Unexpected(String),
    /// KVM_RUN itself failed.
    #[error("KVM_RUN failed")]
    Run(#[source] io::Error),
}

/// The two address spaces of the guest.
#[derive(Debug, Default)]
pub struct Buses {
    /// I/O ports.
    pub ports: Bus,
    /// Memory-mapped registers.
    pub mmio: Bus,
}

/// Serves the exit on the buses and says what comes next.
pub fn decide(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>, buses: &Buses) -> Action {
    let effect = match exit {
        Ok(VcpuExit::IoIn(port, data)) => {
            buses.ports.read(u64::from(port), data);
            Effect::None
        }
        Ok(VcpuExit::IoOut(port, data)) => buses.ports.write(u64::from(port), data),
        Ok(VcpuExit::MmioRead(addr, data)) => {
            buses.mmio.read(addr, data);
            Effect::None
        }
        Ok(VcpuExit::MmioWrite(addr, data)) => buses.mmio.write(addr, data),
        Ok(VcpuExit::Intr) => return Action::Kicked,
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Action::Kicked,
        Ok(VcpuExit::Shutdown) => return Action::Fail(Fault::TripleFault),
        Ok(VcpuExit::FailEntry(reason, _)) => return Action::Fail(Fault::Entry { reason }),
        Ok(VcpuExit::InternalError) => return Action::GaveUp,
        Ok(other) => return Action::Fail(Fault::Unexpected(format!("{other:?}"))),
        Err(error) => {
            return Action::Fail(Fault::Run(io::Error::from_raw_os_error(error.errno())));
        }
    };
    match effect {
        Effect::None => Action::Resume,
        Effect::Stop(cause) => Action::Stop(cause),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bus::{BusDevice, GuestExit};

    struct Probe;

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&self, _: u64, data: &[u8]) -> Effect {
            Effect::Stop(StopCause::Exit(GuestExit::Code(data[0])))
        }
    }

    fn buses() -> Buses {
        let mut buses = Buses::default();
        buses.ports.attach(0x10, 4, Arc::new(Probe)).unwrap();
        buses.mmio.attach(0xd000_0000, 0x1000, Arc::new(Probe)).unwrap();
        buses
    }

    #[test]
    fn reads_are_answered_and_the_guest_goes_on() {
        let mut data = [0; 4];
        let action = decide(Ok(VcpuExit::IoIn(0x13, &mut data[..1])), &buses());
        assert!(matches!(action, Action::Resume));
        let action = decide(Ok(VcpuExit::MmioRead(0xd000_0007, &mut data[1..3])), &buses());
        assert!(matches!(action, Action::Resume));
        assert!(matches!(
            decide(Ok(VcpuExit::IoIn(0x99, &mut data[3..])), &buses()),
            Action::Resume
        ));
        assert_eq!(data, [3, 7, 7, 0xff]);
    }

    #[test]
    fn every_other_exit_has_its_action() {
        let errno = kvm_ioctls::Error::new;
        let buses = buses();
        let shown = |exit| format!("{:?}", decide(exit, &buses));
        for (exit, want) in [
            (Ok(VcpuExit::IoOut(0x10, &[7])), "Stop(Exit(Code(7)))"),
            (Ok(VcpuExit::IoOut(0x14, &[7])), "Resume"),
            (Ok(VcpuExit::MmioWrite(0xd000_0ffc, &[9; 4])), "Stop(Exit(Code(9)))"),
            (Ok(VcpuExit::MmioWrite(0xd000_0ffe, &[9; 4])), "Resume"),
            (Ok(VcpuExit::Intr), "Kicked"),
            (Err(errno(libc::EINTR)), "Kicked"),
            (Err(errno(libc::EAGAIN)), "Kicked"),
            (Ok(VcpuExit::Shutdown), "Fail(TripleFault)"),
            (Ok(VcpuExit::FailEntry(7, 0)), "Fail(Entry { reason: 7 })"),
            (Ok(VcpuExit::InternalError), "GaveUp"),
            (Ok(VcpuExit::Hlt), "Fail(Unexpected(\"Hlt\"))"),
        ] {
            assert_eq!(shown(exit), want);
        }
        assert!(shown(Err(errno(libc::EFAULT))).starts_with("Fail(Run("));
    }
}
