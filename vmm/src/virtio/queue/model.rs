//! One queue against the virtio-queue crate: the same driver's operations on two copies of its memory must give the same chains, the
//! same used ring and the same interrupt decisions.
//!
//! Invariant: while the driver keeps the rules both agree exactly; once it breaks one, whatever our queue still accepts the other sees in
//! the same way. Property tests and the fuzz target feed it bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use virtio_queue::{Queue as Reference, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{Chain, F_EVENT_IDX, F_INDIRECT_DESC, Queue};
use crate::memory::{GuestAddress, GuestRam};
use crate::virtio::test_driver::{Buffer, TestDriver, descriptor_bytes};

const RAM_BYTES: u64 = 1 << 20;
const QUEUE_BASE: u64 = 0x1000;
const DATA: u64 = 0x8_0000;

/// What a run got to, so that a test can tell that it tried something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Chains popped by both.
    pub popped: u32,
    /// Chains completed by both.
    pub completed: u32,
    /// Interrupts that both wanted.
    pub interrupts: u32,
    /// Whether the run ended early because the driver had broken a rule.
    pub refused: bool,
}

/// Runs the operations that `script` encodes.
///
/// # Panics
/// When the two queues differ, or ours refuses a driver that kept the rules.
#[must_use]
pub fn run(script: &[u8]) -> Outcome {
    let mut script = Script(script);
    let features = u64::from(script.byte() & 3) * F_INDIRECT_DESC;
    let size = 1 << (script.byte() % 7);
    let mut model = Model::new(size, features);
    while !script.0.is_empty() && !model.outcome.refused {
        model.step(&mut script);
    }
    model.outcome
}

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let (&first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }
}

struct Model {
    ram: Arc<GuestRam>,
    copy: GuestMemoryMmap<()>,
    driver: TestDriver,
    queue: Queue,
    reference: Reference,
    size: u16,
    event_idx: bool,
    indirect: bool,
    added: VecDeque<(u16, Vec<Buffer>)>,
    popped: Vec<Chain>,
    unsignalled: bool,
    interrupts_wanted: bool,
    rules_broken: bool,
    outcome: Outcome,
}

impl Model {
    fn new(size: u16, features: u64) -> Self {
        let ram = GuestRam::anonymous(&[(GuestAddress(0), RAM_BYTES)]).expect("a small mapping");
        let ram = Arc::new(ram);
        let len = usize::try_from(RAM_BYTES).expect("a small mapping");
        let copy = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).expect("as above");
        let driver = TestDriver::new(&ram, QUEUE_BASE, size, features);
        let config = driver.queue_config();
        let queue = Queue::new(&ram, config, features).expect("the driver's layout is valid");
        let mut reference = Reference::new(size).expect("a power of two");
        let half = |addr: u64| Some(u32::try_from(addr).expect("the queue lies low"));
        reference.set_desc_table_address(half(config.desc), Some(0));
        reference.set_avail_ring_address(half(config.avail), Some(0));
        reference.set_used_ring_address(half(config.used), Some(0));
        reference.set_event_idx(features & F_EVENT_IDX != 0);
        reference.set_ready(true);
        assert!(reference.is_valid(&copy), "both accept the same layout");
        Self {
            ram,
            copy,
            driver,
            queue,
            reference,
            size,
            event_idx: features & F_EVENT_IDX != 0,
            indirect: features & F_INDIRECT_DESC != 0,
            added: VecDeque::new(),
            popped: Vec::new(),
            unsignalled: false,
            interrupts_wanted: true,
            rules_broken: false,
            outcome: Outcome::default(),
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 16 {
            0..=2 => self.add(script, false),
            3 | 4 => self.add(script, self.indirect),
            5..=7 => self.pop(),
            8 | 9 => self.complete(script),
            10 => self.interrupt(),
            11 => {
                self.queue.disable_doorbell();
                self.reference.disable_notification(&self.copy).expect("the ring lies in RAM");
            }
            12 => self.enable_doorbell(),
            13 => drop(self.driver.used()),
            14 if self.event_idx => self.driver.set_used_event(script.u16()),
            14 => {
                self.interrupts_wanted = script.byte() & 1 == 0;
                self.driver.set_interrupts(self.interrupts_wanted);
            }
            // Rarely, so that most scripts get far with a driver that keeps the rules.
            _ if script.byte() < 64 => self.break_a_rule(script),
            _ => {}
        }
        if !self.outcome.refused {
            self.compare_used_rings();
        }
    }

    fn add(&mut self, script: &mut Script<'_>, indirect: bool) {
        let shape = script.byte();
        let (readable, writable) = (usize::from(shape & 3), usize::from(shape >> 2 & 3));
        let count = (readable + writable).max(1);
        let needed = if indirect { 1 } else { count };
        if self.driver.free_descriptors() < needed {
            return;
        }
        let buffers: Vec<Buffer> = (0..count)
            .map(|at| {
                let addr = DATA + 16 * u64::from(script.u16());
                (addr.min(RAM_BYTES - 256), u32::from(script.byte()) + 1, at >= readable)
            })
            .collect();
        let head =
            if indirect { self.driver.add_indirect(&buffers) } else { self.driver.add(&buffers) };
        self.added.push_back((head, buffers));
    }

    fn pop(&mut self) {
        self.copy_driver_memory();
        let Ok(chain) = self.queue.pop() else {
            return self.refused();
        };
        let other = self.reference.pop_descriptor_chain(&self.copy);
        if self.rules_broken && chain.is_some() && other.is_none() {
            // The driver took back an index that our queue had read already.
            return self.refused();
        }
        assert_eq!(chain.is_some(), other.is_some());
        let (Some(chain), Some(other)) = (chain, other) else {
            return assert!(self.rules_broken || self.added.is_empty());
        };
        let ours: Vec<Buffer> = [(chain.readable(), false), (chain.writable(), true)]
            .into_iter()
            .flat_map(|(segments, writable)| {
                segments.iter().map(move |s| (s.addr.0, s.len_bytes, writable))
            })
            .collect();
        assert_eq!(chain.head(), other.head_index());
        let theirs: Vec<Buffer> = other.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect();
        assert_eq!(ours, theirs);
        if !self.rules_broken {
            assert_eq!(self.added.pop_front(), Some((chain.head(), ours)));
        }
        self.popped.push(chain);
        self.outcome.popped += 1;
    }

    fn complete(&mut self, script: &mut Script<'_>) {
        if self.popped.is_empty() {
            return;
        }
        let chain = self.popped.swap_remove(usize::from(script.byte()) % self.popped.len());
        let written = u32::from(script.u16());
        let reported = written.min(u32::try_from(chain.writable_len()).unwrap_or(u32::MAX));
        self.reference
            .add_used(&self.copy, chain.head(), reported)
            .expect("a popped head lies in the table");
        self.queue.complete(chain.complete(written));
        self.unsignalled = true;
        self.outcome.completed += 1;
    }

    fn interrupt(&mut self) {
        self.copy_driver_memory();
        let ours = self.queue.wants_interrupt();
        let theirs = self.reference.needs_notification(&self.copy).expect("the ring lies in RAM");
        let expected = if self.event_idx {
            theirs
        } else {
            // The reference knows neither the flag nor whether there is anything to tell.
            self.unsignalled && (self.interrupts_wanted || self.rules_broken)
        };
        if self.event_idx || !self.rules_broken {
            assert_eq!(ours, expected);
        }
        self.unsignalled = false;
        self.outcome.interrupts += u32::from(ours);
    }

    fn enable_doorbell(&mut self) {
        self.copy_driver_memory();
        let Ok(ours) = self.queue.enable_doorbell() else {
            return self.refused();
        };
        let theirs = self.reference.enable_notification(&self.copy).expect("the ring lies in RAM");
        // Ours may remember chains that a driver without rules took back.
        assert!(ours == theirs || self.rules_broken && ours);
    }

    /// Writes where the driver may write, and what it may not.
    fn break_a_rule(&mut self, script: &mut Script<'_>) {
        self.rules_broken = true;
        let addr = match script.byte() % 4 {
            0 => RAM_BYTES - u64::from(script.byte()),
            1 => u64::from(script.u32()) << 32,
            _ => DATA + u64::from(script.byte()),
        };
        let len = match script.byte() % 4 {
            0 => 0,
            1 => script.u32(),
            _ => 16 * u32::from(script.byte()),
        };
        let descriptor = (addr, len, script.u16() % 8, script.u16() % (self.size + 1));
        match script.byte() % 4 {
            0 => self.driver.raw_avail_index(script.u16()),
            1 => self.driver.raw_available(script.u16() % (self.size + 1)),
            2 => self.driver.raw_descriptor(script.u16() % self.size, descriptor),
            _ => {
                let table = self.driver.indirect_table(script.u16() % self.size);
                let addr = table + 16 * u64::from(script.byte() % 64);
                let bytes = descriptor_bytes(descriptor);
                self.driver.raw_memory(addr, &bytes);
            }
        }
    }

    fn refused(&mut self) {
        assert!(self.rules_broken, "a driver that keeps the rules is served");
        self.outcome.refused = true;
    }

    /// The reference works on its own copy of everything that the driver writes.
    fn copy_driver_memory(&self) {
        let config = self.driver.queue_config();
        let mut rings = vec![0; usize::try_from(config.used - config.desc).expect("small")];
        self.ram.read(GuestAddress(config.desc), &mut rings).expect("the rings lie in RAM");
        self.copy.write_slice(&rings, GuestAddress(config.desc)).expect("as above");
        let (tables, end) = (self.driver.indirect_table(0), self.driver.end());
        let mut bytes = vec![0; usize::try_from(end - tables).expect("small")];
        self.ram.read(GuestAddress(tables), &mut bytes).expect("tables lie in RAM");
        self.copy.write_slice(&bytes, GuestAddress(tables)).expect("as above");
    }

    fn compare_used_rings(&self) {
        let used = GuestAddress(self.driver.queue_config().used);
        let mut ours = vec![0; 6 + 8 * usize::from(self.size)];
        let mut theirs = ours.clone();
        self.ram.read(used, &mut ours).expect("the ring lies in RAM");
        self.copy.read_slice(&mut theirs, used).expect("as above");
        assert_eq!(ours, theirs);
    }
}
