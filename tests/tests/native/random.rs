//! Drivers made by chance: whatever they do, the machine ends with the guest's exit code, in time.
//!
//! Invariant: what a driver lets a device write lies in the arena or outside RAM, so that the guest itself lives to report its code.

use std::fs;
use std::time::Duration;

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::register::{QUEUE_SEL, STATUS};
use openshell_tests::bare::virtio::{Descriptor, Device, Ring};

use crate::guest::Guest;
use crate::places::{ARENA, RAM_END};

const SCRIPTS: u64 = 200;
const STEPS: u64 = 60;
const DEADLINE: Duration = Duration::from_secs(20);
const DISK_BYTES: usize = 1 << 20;
const DEVICES: usize = 3;
const QUEUES: usize = 3;
const HEADER: u64 = ARENA + 0x4_0000;
/// More hostile rings than devices, so that some are shared.
const RINGS: u64 = 4;

/// SplitMix64: the same seed, the same driver.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap()
    }

    fn bytes2(&mut self) -> u16 {
        u16::from_le_bytes(array(self.next()))
    }

    fn bytes4(&mut self) -> u32 {
        u32::from_le_bytes(array(self.next()))
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    /// Mostly in the arena, sometimes at its end, sometimes where no RAM is.
    fn addr(&mut self) -> u64 {
        let place = self.below(RAM_END - ARENA);
        match self.below(12) {
            0 => RAM_END - self.below(64),
            1 => RAM_END + place,
            2 => 0xd000_0000 + self.below(0x4000),
            3 => u64::MAX - self.below(4096),
            4 => self.next() | 1 << 40,
            5 => ARENA + place,
            _ => ARENA + place % 0x1_0000,
        }
    }

    fn len(&mut self) -> u32 {
        match self.below(8) {
            0 => 0,
            1 => self.bytes4(),
            2 => 16 * (self.bytes4() % 20),
            3 => 512 * (1 + self.bytes4() % 16),
            4 => 44,
            _ => 1 + self.bytes4() % 1024,
        }
    }

    fn descriptor(&mut self) -> Descriptor {
        let flags = match self.below(10) {
            0 => self.bytes2(),
            1 => 4,
            _ => self.bytes2() & 3,
        };
        let next = if self.one_in(8) { self.bytes2() } else { self.bytes2() % 16 };
        Descriptor { addr: self.addr(), len: self.len(), flags, next }
    }

    fn ring(&mut self) -> Ring {
        let at = ARENA + 0x4000 * self.below(RINGS);
        let mut ring = Ring::at(at, self.of(&[1, 2, 8, 16, 64]));
        match self.below(24) {
            0 => ring.desc = self.addr(),
            1 => ring.avail = self.addr(),
            2 => ring.used = self.addr(),
            3 => ring.size = self.bytes2(),
            _ => {}
        }
        ring
    }
}

/// The low bytes of `value`.
fn array<const N: usize>(value: u64) -> [u8; N] {
    let bytes = value.to_le_bytes();
    std::array::from_fn(|at| bytes[at])
}

/// A header that the device may understand: of a disk request, or of a vsock packet.
fn plausible(device: usize, chance: &mut Chance) -> Vec<u8> {
    let mut bytes = Vec::new();
    if device == 0 {
        bytes.extend(chance.of(&[0_u32, 1, 1, 1, 4, 8, 11, 13]).to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend((chance.next() % 2100).to_le_bytes());
    } else {
        bytes.extend(3_u64.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend((chance.bytes4() % 4).to_le_bytes());
        bytes.extend((chance.bytes4() % 4).to_le_bytes());
        bytes.extend((chance.bytes4() % 512).to_le_bytes());
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend((chance.bytes2() % 9).to_le_bytes());
        for _ in 0..3 {
            bytes.extend((chance.bytes4() >> (chance.below(32))).to_le_bytes());
        }
    }
    bytes
}

/// Whether all of the rings are the driver's to write.
fn is_in_arena(ring: &Ring) -> bool {
    let arena = ARENA..RAM_END - 0x4000;
    [ring.desc, ring.avail, ring.used].iter().all(|addr| arena.contains(addr))
}

/// What a driver last set up, so that much of what it does has a chance to be served.
struct Driver {
    script: Script,
    chance: Chance,
    rings: [[Ring; QUEUES]; DEVICES],
    counts: [[u16; QUEUES]; DEVICES],
}

impl Driver {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let rings = std::array::from_fn(|_| std::array::from_fn(|_| chance.ring()));
        Self { script: Script::new(), chance, rings, counts: Default::default() }
    }

    fn step(&mut self) {
        let at = self.chance.index(DEVICES);
        let device = Device::number(at);
        match self.chance.below(16) {
            0 | 1 => self.set_up(at),
            2 => self.touch_registers(device),
            3 => {
                let value = self.chance.of(&[0, 1, 3, 11, 15, 64, 128, 143, 255]);
                self.script.write(device, STATUS, value);
            }
            4 => {
                let (queue, ready) = (self.chance.bytes4() % 4, self.chance.bytes4() % 3);
                self.script.write(device, QUEUE_SEL, queue).write(device, 0x44, ready);
            }
            5 => self.corrupt(at),
            _ => self.send(at),
        }
    }

    /// A reset and a set-up that may be honest.
    fn set_up(&mut self, at: usize) {
        let device = Device::number(at);
        let low = if self.chance.one_in(2) { 1 << 28 | 1 << 29 } else { 0 };
        self.script.write(device, STATUS, 0).write(device, STATUS, 1).write(device, STATUS, 3);
        for (window, bits) in [(0, low), (1, 1)] {
            self.script.write(device, 0x24, window).write(device, 0x20, bits);
        }
        self.script.write(device, STATUS, 11);
        for queue in 0..QUEUES {
            let ring = self.chance.ring();
            if is_in_arena(&ring) && !self.chance.one_in(8) {
                self.script.clear_ring(&Ring { size: ring.size.min(64), ..ring });
            }
            self.script.queue(device, queue.try_into().unwrap(), &ring);
            self.rings[at][queue] = ring;
            self.counts[at][queue] = 0;
        }
        self.script.write(device, STATUS, 15);
    }

    fn touch_registers(&mut self, device: Device) {
        let (chance, script) = (&mut self.chance, &mut self.script);
        let value = if chance.one_in(2) { chance.bytes4() % 20 } else { chance.bytes4() };
        script.write(device, 4 * chance.below(0x48), value);
        script.load8(device.base + chance.below(0x1000));
        script.load64(device.base + chance.below(0xff8));
    }

    fn ring(&mut self, at: usize) -> (usize, Ring) {
        let queues = if self.chance.one_in(8) { QUEUES } else { [1, 1, 2][at] };
        let queue = self.chance.index(queues);
        let ring = self.rings[at][queue];
        (queue, if is_in_arena(&ring) { ring } else { Ring::at(ARENA, 16) })
    }

    fn corrupt(&mut self, at: usize) {
        let (_, ring) = self.ring(at);
        let count = self.chance.below(16);
        let descriptors: Vec<_> = (0..count).map(|_| self.chance.descriptor()).collect();
        let (index, flags) = (self.chance.bytes2(), self.chance.bytes2() % 3);
        self.script.describe(&ring, 0, &descriptors);
        self.script.store16(ring.avail_index(), index).store16(ring.avail, flags);
    }

    /// A chain that may be served: a header that means something, data, a status; and doorbells.
    fn send(&mut self, at: usize) {
        let (queue, ring) = self.ring(at);
        let chance = &mut self.chance;
        let data = match chance.below(4) {
            0 => chance.descriptor(),
            _ => {
                let len = 512 * (1 + chance.bytes4() % 4);
                let flags = chance.bytes2() & 2;
                Descriptor { addr: ARENA + 0x8_0000, len, flags, next: 0 }
            }
        };
        let header =
            Descriptor::read(HEADER, if chance.one_in(8) { 1024 } else { [16, 16, 60][at] });
        let status = if chance.one_in(8) { chance.addr() } else { HEADER + 0x1000 };
        let header_bytes = plausible(at, chance);
        let parts = [header.then(1), data.then(2), Descriptor::write(status, 1)];
        let first = if chance.one_in(4) { chance.bytes2() % 3 } else { 0 };
        let ahead = chance.of(&[1, 1, 1, 1, 1, 2, 7]);
        let count = self.counts[at][queue].wrapping_add(ahead);
        self.counts[at][queue] = count;
        self.script.copy(HEADER, &header_bytes).describe(&ring, 0, &parts);
        for slot in 0..4 {
            self.script.store16(ring.avail + 4 + 2 * slot, first);
        }
        self.script.store16(ring.avail_index(), count);
        let device = Device::number(at);
        self.script.notify(device, queue.try_into().unwrap());
        if self.chance.one_in(4) {
            let other = self.chance.bytes4() % 4;
            self.script.notify(device, other);
        }
    }
}

/// The exit code that the driver of a seed reports.
fn code_of(seed: u64) -> u8 {
    let [code] = array(seed);
    code
}

fn driver(seed: u64) -> Script {
    let mut driver = Driver::new(seed);
    for _ in 0..STEPS {
        driver.step();
    }
    driver.script.exit(code_of(seed));
    driver.script
}

#[test]
fn drivers_made_by_chance_end_with_their_own_code() {
    // A seed of the user's is the only one that is run.
    let chosen = std::env::var("OPENSHELL_VMM_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds = chosen.map_or(0..SCRIPTS, |seed: u64| seed..seed + 1);
    println!("seeds {seeds:?}; OPENSHELL_VMM_SEED=N runs one");
    let (mut runs, mut written) = (0, 0);
    for seed in seeds {
        runs += 1;
        let guest = Guest::new(&driver(seed));
        fs::write(guest.path("disk"), vec![0x11; DISK_BYTES]).unwrap();
        let option = if seed % 4 == 3 { ",ro" } else { "" };
        let mut disk = guest.path("disk").into_os_string();
        disk.push(option);
        let run = guest.run().deadline(DEADLINE).arg("--disk").arg(disk);
        let finished = run.arg("--vsock").arg(guest.path("vsock")).finish();
        let code = Some(i32::from(code_of(seed)));
        assert_eq!(
            (finished.code, finished.stderr.as_str()),
            (code, ""),
            "seed {seed}: {finished}"
        );
        let image = fs::read(guest.path("disk")).unwrap();
        written += u64::from(image.iter().any(|&byte| byte != 0x11));
        assert_eq!(image.len(), DISK_BYTES, "seed {seed}");
        assert!(seed % 4 != 3 || image.iter().all(|&byte| byte == 0x11), "seed {seed}");
        assert_eq!(guest.files(), ["disk", "guest.elf"], "seed {seed}");
    } // Drivers that no device serves would prove little.
    assert!(runs < SCRIPTS || written > SCRIPTS / 20, "{written} of {runs} wrote to their disk");
    println!("{written} of {runs} wrote to their disk");
}
