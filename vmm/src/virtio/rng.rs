//! The entropy device (VIRTIO 1.2 section 5.4): fills what the driver offers with the host's random bytes.
//!
//! Invariant: a chain gets at most 64 KiB, made and copied in small pieces, and its used length is what was written. It has no thread:
//! the vCPU that rings serves the queue.

use std::io;
use std::sync::Arc;

use crate::memory::GuestRam;
use crate::sys::random;

use super::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::{
    ActivateError, Activation, Chain, DeviceKind, Interrupt, Queue, QueueError, VirtioDevice,
};

const QUEUE_SIZES: [u16; 1] = [64];
const MAX_CHAIN_BYTES: u32 = 64 << 10;
const PIECE_BYTES: usize = 1024;

#[derive(Debug)]
struct Active {
    queue: Queue,
    interrupt: Interrupt,
    ram: Arc<GuestRam>,
}

/// A virtio entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    active: Option<Active>,
}

impl Rng {
    /// An entropy device without a driver.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn notify(&mut self, _queue: u16) {
        if let Some(active) = &mut self.active
            && active.serve().is_err()
        {
            active.interrupt.fail_device();
            self.active = None;
        }
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { queues, interrupt, ram, .. } = activation;
        let queue = queues.into_iter().next().flatten().ok_or(ActivateError::MissingQueue(0))?;
        self.active = Some(Active { queue, interrupt, ram });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn shutdown(&mut self) -> io::Result<()> {
        self.reset();
        Ok(())
    }
}

impl Active {
    /// Serves until the queue is empty: a chain that came in while the doorbell was off rings no other. At most a queue's size of
    /// chains wait at a time, so that it ends unless another vCPU keeps adding, and those stop when the machine does.
    fn serve(&mut self) -> Result<(), QueueError> {
        loop {
            self.queue.disable_doorbell();
            while let Some(chain) = self.queue.pop()? {
                let written_bytes = fill(&chain, &self.ram);
                self.queue.complete(chain.complete(written_bytes));
            }
            if self.queue.wants_interrupt() {
                self.interrupt.raise_queue();
            }
            if !self.queue.enable_doorbell()? {
                return Ok(());
            }
        }
    }
}

/// Writes random bytes into `chain` and returns how many: fewer than fit when the host has none to give.
fn fill(chain: &Chain, ram: &GuestRam) -> u32 {
    let wanted = u32::try_from(chain.writable_len()).unwrap_or(u32::MAX).min(MAX_CHAIN_BYTES);
    let mut piece = [0; PIECE_BYTES];
    let mut written = 0;
    while written < wanted {
        let left = usize::try_from(wanted - written).unwrap_or(PIECE_BYTES);
        let bytes = piece.get_mut(..left.min(PIECE_BYTES)).unwrap_or_default();
        let Ok(got) = random::fill(bytes) else { break };
        let bytes = bytes.get(..got).unwrap_or_default();
        if bytes.is_empty() || chain.write(ram, u64::from(written), bytes).is_err() {
            break;
        }
        written = written.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    }
    written.min(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{BusDevice, Effect};
    use crate::memory::GuestAddress;
    use crate::virtio::Transport;
    use crate::virtio::queue::Queue;
    use crate::virtio::test_driver::TestDriver;
    use vmm_sys_util::eventfd::EventFd;

    const DATA: u64 = 0x20_0000;

    fn rig() -> (Rng, TestDriver, Interrupt, Arc<GuestRam>) {
        let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), 8 << 20)]).unwrap());
        let mut device = Rng::new();
        let features = device.features();
        let driver = TestDriver::new(&ram, 0x1000, QUEUE_SIZES[0], features);
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let queue = Queue::new(&ram, driver.queue_config(), features).unwrap();
        let activation = Activation {
            features,
            queues: vec![Some(queue)],
            interrupt: interrupt.clone(),
            ram: Arc::clone(&ram),
        };
        device.activate(activation).unwrap();
        (device, driver, interrupt, ram)
    }

    #[test]
    fn chains_are_filled_to_their_length_or_to_the_cap() {
        let (mut device, mut driver, interrupt, ram) = rig();
        for (buffers, want) in [
            (vec![(DATA, 16, true)], 16),
            (vec![(DATA, 1000, true), (DATA + 0x1000, 3000, true)], 4000),
            (vec![(DATA, 1 << 20, true)], 64 << 10),
            (vec![(DATA, 8, false), (DATA + 64, 8, true)], 8),
            (vec![(DATA, 8, false)], 0),
        ] {
            ram.write(GuestAddress(DATA), &vec![0; 1 << 20]).unwrap();
            let head = driver.add_indirect(&buffers);
            device.notify(0);
            assert_eq!(driver.used(), [(u32::from(head), want)]);
            assert_eq!(interrupt.status(), 1);
            interrupt.acknowledge(1);
            let mut after = [0; 64];
            ram.read(GuestAddress(DATA + (64 << 10)), &mut after).unwrap();
            assert_eq!(after, [0; 64], "nothing is written past the cap");
        }
        let mut bytes = [0; 4096];
        driver.add(&[(DATA, 4096, true)]);
        device.notify(0);
        ram.read(GuestAddress(DATA), &mut bytes).unwrap();
        let distinct: std::collections::HashSet<_> = bytes.iter().collect();
        assert!(distinct.len() > 200, "4096 random bytes have {} values", distinct.len());
    }

    #[test]
    fn all_waiting_chains_are_served_and_the_doorbell_is_on_again() {
        let (mut device, mut driver, _, _) = rig();
        for _ in 0..3 {
            let heads: Vec<u16> = (0..64).map(|_| driver.add(&[(DATA, 32, true)])).collect();
            assert!(driver.needs_kick());
            device.notify(0);
            let served: Vec<_> = driver.used().into_iter().map(|(id, _)| id).collect();
            assert_eq!(served, heads.into_iter().map(u32::from).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_driver_that_breaks_the_rules_gets_a_failed_device_until_reset() {
        let (mut device, mut driver, interrupt, _) = rig();
        driver.raw_available(64);
        device.notify(0);
        assert!(interrupt.device_failed());
        interrupt.clear();
        device.notify(0);
        assert!(!interrupt.device_failed(), "a stopped device serves nothing");
        device.reset();
        device.shutdown().unwrap();
    }

    #[test]
    fn it_needs_its_queue() {
        let (mut device, _, interrupt, ram) = rig();
        device.reset();
        let activation = Activation { features: 0, queues: vec![None], interrupt, ram };
        assert!(matches!(device.activate(activation), Err(ActivateError::MissingQueue(0))));
    }

    #[test]
    fn a_driver_reaches_it_through_registers_alone() {
        let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), 8 << 20)]).unwrap());
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let transport = Transport::new(Box::new(Rng::new()), Arc::clone(&ram), interrupt);
        let write = |offset: u64, value: u64| {
            let value = u32::try_from(value & 0xffff_ffff).unwrap();
            assert_eq!(transport.write(offset, &value.to_le_bytes()), Effect::None);
        };
        let mut word = [0; 4];
        for round in 0..3 {
            let mut driver = TestDriver::new(&ram, 0x1000, 32, F_EVENT_IDX | F_INDIRECT_DESC);
            let config = driver.queue_config();
            for (offset, value) in [
                (0x70, 0),
                (0x70, 1),
                (0x70, 3),
                (0x24, 0),
                (0x20, F_EVENT_IDX | F_INDIRECT_DESC),
                (0x24, 1),
                (0x20, 1),
                (0x70, 11),
                (0x30, 0),
                (0x38, 32),
                (0x80, config.desc),
                (0x90, config.avail),
                (0xa0, config.used),
                (0x44, 1),
                (0x70, 15),
            ] {
                write(offset, value);
            }
            let head = driver.add_indirect(&[(DATA, 100, true)]);
            write(0x50, 0);
            assert_eq!(driver.used(), [(u32::from(head), 100)]);
            transport.read(0x60, &mut word);
            assert_eq!(word, [1, 0, 0, 0]);
            // A chain that loops: the device asks for a reset, and the next round gives it one.
            driver.raw_descriptor(5, (DATA, 1, 1, 5));
            driver.raw_available(5);
            write(0x50, 0);
            transport.read(0x70, &mut word);
            assert_eq!(word, [15 | 64, 0, 0, 0], "round {round}");
            assert!(driver.used().is_empty());
        }
    }
}
