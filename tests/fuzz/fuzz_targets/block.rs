//! A whole block device, worker and engine included, under a driver that is half honest: what it is told and what it reads are held
//! against a model of the disk.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use openshell_fuzz::{Script, file, ram};
use openshell_vmm::config::plan::{DiskLimits, DiskPlan, OverlayPlan};
use openshell_vmm::jail::Jail;
use openshell_vmm::memory::{GuestAddress, GuestRam};
use openshell_vmm::virtio::block::{Block, EngineKind};
use openshell_vmm::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use openshell_vmm::virtio::test_driver::{Buffer, TestDriver};
use openshell_vmm::virtio::{Activation, Interrupt, Queue, VirtioDevice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM_BYTES: u64 = 2 << 20;
const QUEUE_SIZE: u16 = 64;
const RINGS: u64 = 0x1000;
const HEADER: u64 = 0xf_0000;
const STATUS: u64 = 0xf_1000;
const DATA: u64 = 0x10_0000;
/// Room of each data buffer.
const ROOM: u64 = 0x1_0000;
const DISK_BYTES: usize = 32 << 10;
const SECTOR: usize = 512;

const IN: u32 = 0;
const OUT: u32 = 1;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const KINDS: [u32; 8] = [IN, OUT, 4, 8, DISCARD, WRITE_ZEROES, IN, OUT];
const F_FLUSH: u64 = 1 << 9;
const PATIENCE: Duration = Duration::from_secs(5);

static DISKS: LazyLock<Mutex<[Disk; 3]>> = LazyLock::new(|| {
    Mutex::new([Disk::new(false, false), Disk::new(true, false), Disk::new(false, true)])
});

/// A device that lives through all inputs; each begins with a reset and known contents.
struct Disk {
    device: Block,
    ram: Arc<GuestRam>,
    interrupt: Interrupt,
    image: File,
    read_only: bool,
    /// The file is the disk, so that its contents can be looked at.
    direct: bool,
    /// `None` where nothing is promised.
    contents: Vec<Option<u8>>,
}

/// One driver's life on a disk.
struct Session<'a> {
    disk: &'a mut Disk,
    driver: TestDriver,
    indirect: bool,
}

fuzz_target!(|script: &[u8]| {
    let mut script = Script(script);
    let mut disks = DISKS.lock().expect("one thread");
    let disk = &mut disks[usize::from(script.byte() % 3)];
    disk.start_over();
    while script.goes_on() {
        let features = script.byte();
        let mut session = disk.session(features);
        while script.goes_on() && session.step(&mut script) {}
        disk.device.reset();
        disk.interrupt.clear();
    }
    assert_eq!(disk.image.metadata().expect("a file").len(), DISK_BYTES as u64);
    if disk.direct {
        let mut found = vec![0; DISK_BYTES];
        disk.image.read_exact_at(&mut found, 0).expect("a small file");
        let same = |(found, known): (&u8, &Option<u8>)| known.is_none_or(|known| known == *found);
        assert!(found.iter().zip(&disk.contents).all(same), "the image is not what was written");
    }
});

fn pattern() -> Vec<u8> {
    (0..DISK_BYTES).map(|at| (at / SECTOR * 3 + at) as u8).collect()
}

impl Disk {
    fn new(read_only: bool, overlay: bool) -> Self {
        let image = file();
        image.write_all_at(&pattern(), 0).expect("a small file");
        let copy = || image.try_clone().expect("a descriptor");
        let plan = DiskPlan {
            path: "disk".into(),
            file: copy(),
            read_only,
            len_bytes: DISK_BYTES as u64,
            overlay: overlay.then(|| OverlayPlan { path: "delta".into(), file: file() }),
            limits: DiskLimits::default(),
        };
        let jail = Jail { seccomp: false };
        let device = Block::new(0, plan, 1, EngineKind::Blocking, jail).expect("a disk");
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let contents = pattern().into_iter().map(Some).collect();
        let direct = !overlay;
        Self { device, ram: ram(RAM_BYTES), interrupt, image, read_only, direct, contents }
    }

    /// Brings the contents back, through the device where only it can.
    fn start_over(&mut self) {
        let pattern = pattern();
        self.contents = pattern.iter().copied().map(Some).collect();
        if self.read_only {
            return;
        }
        if self.direct {
            return self.image.write_all_at(&pattern, 0).expect("a small file");
        }
        let mut session = self.session(1);
        session.fill(DATA, &pattern);
        let data = (DATA, DISK_BYTES as u32, false);
        assert_eq!(session.request((OUT, 0), 16, &[data]), Some((0, 1)));
        self.device.reset();
    }

    fn session(&mut self, bits: u8) -> Session<'_> {
        let mut features = u64::from(bits & 3) * F_INDIRECT_DESC & (F_INDIRECT_DESC | F_EVENT_IDX);
        if bits & 4 == 0 {
            features |= F_FLUSH;
        }
        let driver = TestDriver::new(&self.ram, RINGS, QUEUE_SIZE, features);
        let queue = Queue::new(&self.ram, driver.queue_config(), features).expect("a good layout");
        let activation = Activation {
            features,
            queues: vec![Some(queue)],
            interrupt: self.interrupt.clone(),
            ram: Arc::clone(&self.ram),
        };
        self.device.activate(activation).expect("a worker that lives");
        Session { disk: self, driver, indirect: features & F_INDIRECT_DESC != 0 }
    }
}

impl Session<'_> {
    /// False when the driver has to start again.
    fn step(&mut self, script: &mut Script<'_>) -> bool {
        match script.byte() % 8 {
            0..=4 => self.honest(script),
            5 => self.ranges(script),
            6 => self.careless(script),
            _ => {
                self.hostile(script);
                false
            }
        }
    }

    /// A read, a write or another request whose parts lie apart, with any numbers in it.
    fn honest(&mut self, script: &mut Script<'_>) -> bool {
        let kind = match script.byte() {
            255 => script.u32(),
            other => KINDS[usize::from(other) % KINDS.len()],
        };
        let sector = match script.byte() {
            255 => script.u64(),
            other => u64::from(other) % 80,
        };
        let writable = kind == IN || kind == 8;
        let split = usize::from(script.byte() % 17);
        let mut data: Vec<Buffer> = Vec::new();
        for at in 0..u64::from(script.byte() % 4) {
            let len = match script.byte() {
                255 => u32::from(script.u16()).max(1),
                other => 128 * (u32::from(other % 32) + 1),
            };
            data.push((DATA + at * ROOM, len, writable));
        }
        let value = script.byte();
        for &(addr, len, _) in &data {
            let bytes: Vec<u8> = (0..len as usize).map(|at| value.wrapping_add(at as u8)).collect();
            self.fill(addr, &bytes);
        }
        let Some((status, used)) = self.request((kind, sector), split, &data) else {
            return false;
        };
        self.compare(kind, sector, &data, status, used);
        true
    }

    /// Holds an answer against the model, and follows what was written.
    fn compare(&mut self, kind: u32, sector: u64, data: &[Buffer], status: u8, used: u32) {
        let len: usize = data.iter().map(|&(_, len, _)| len as usize).sum();
        let start = usize::try_from(sector).ok().and_then(|sector| sector.checked_mul(SECTOR));
        let end = start.and_then(|start| start.checked_add(len));
        let range = start.zip(end).filter(|&(_, end)| end <= DISK_BYTES && len % SECTOR == 0);
        match (kind, range) {
            (IN, Some((start, end))) => {
                assert_eq!((status, used as usize), (0, len + 1));
                let found = self.gather(data);
                for (found, known) in found.iter().zip(&self.disk.contents[start..end]) {
                    assert!(known.is_none_or(|known| known == *found), "a read from {sector}");
                }
            }
            (OUT, Some((start, end))) if !self.disk.read_only => {
                assert_eq!((status, used), (0, 1));
                let written = self.gather(data);
                for (known, written) in self.disk.contents[start..end].iter_mut().zip(written) {
                    *known = Some(written);
                }
            }
            (IN | OUT, _) => assert_eq!((status, used), (1, 1)),
            (4, _) => assert_eq!((status, used), (0, 1)),
            (8, _) => assert_eq!((status, used as usize), (0, len.min(20) + 1)),
            (DISCARD | WRITE_ZEROES, _) => self.forget(),
            _ => assert_eq!((status, used), (2, 1)),
        }
    }

    /// DISCARD and WRITE_ZEROES with a list of ranges.
    fn ranges(&mut self, script: &mut Script<'_>) -> bool {
        let kind = if script.byte() & 1 == 0 { DISCARD } else { WRITE_ZEROES };
        let mut list = Vec::new();
        let mut extents = Vec::new();
        for _ in 0..script.byte() % 4 {
            let sector = match script.byte() {
                255 => script.u64(),
                other => u64::from(other) % 70,
            };
            let count = match script.byte() {
                255 => script.u32(),
                other => u32::from(other % 16),
            };
            let flags = u32::from(script.byte() % 8 == 7);
            list.extend(sector.to_le_bytes());
            list.extend(count.to_le_bytes());
            list.extend(flags.to_le_bytes());
            extents.push((sector, count));
        }
        list.truncate(list.len().saturating_sub(usize::from(script.byte() / 250)));
        self.fill(DATA, &list);
        let data = [(DATA, list.len() as u32, false)];
        let data = if list.is_empty() { &[][..] } else { &data };
        let Some((status, used)) = self.request((kind, 0), 16, data) else { return false };
        assert!(status <= 2 && used == 1);
        if status == 0 {
            for (sector, count) in extents {
                let start = sector as usize * SECTOR;
                let end = start + count as usize * SECTOR;
                let value = (kind == WRITE_ZEROES).then_some(0);
                self.disk.contents[start..end].fill(value);
            }
        }
        true
    }

    /// A chain of any buffers in RAM or out of it: it is answered, or the device asks for a reset.
    fn careless(&mut self, script: &mut Script<'_>) -> bool {
        self.forget();
        self.fill(HEADER, script.bytes(16));
        let mut chain: Vec<Buffer> = Vec::new();
        for _ in 0..script.byte() % 6 + 1 {
            let addr = match script.byte() {
                0 => script.u64(),
                1 => RAM_BYTES - u64::from(script.u16()),
                2 => HEADER,
                _ => DATA + u64::from(script.u16()),
            };
            let len = match script.byte() {
                0 => script.u32(),
                1 => 16,
                other => u32::from(other),
            };
            chain.push((addr, len, script.byte() & 1 != 0));
        }
        let room: u64 = chain.iter().filter(|buffer| buffer.2).map(|it| u64::from(it.1)).sum();
        match self.run(&chain) {
            Some(used) => assert!(u64::from(used) <= room, "{used} bytes in {room}"),
            None => return false,
        }
        true
    }

    /// Rings and descriptors without rules, then a reset while the worker looks at them.
    fn hostile(&mut self, script: &mut Script<'_>) {
        self.forget();
        for _ in 0..script.byte() % 16 {
            match script.byte() % 4 {
                0 => {
                    let words = (script.u64(), script.u32(), script.u16(), script.u16());
                    let addr = if script.byte() & 1 == 0 { words.0 } else { DATA };
                    let descriptor = (addr, words.1, words.2 % 8, words.3 % QUEUE_SIZE);
                    self.driver.raw_descriptor(script.u16() % QUEUE_SIZE, descriptor);
                }
                1 => self.driver.raw_available(script.u16() % (QUEUE_SIZE + 1)),
                2 => self.driver.raw_avail_index(script.u16()),
                _ => {
                    let table = self.driver.indirect_table(script.u16() % QUEUE_SIZE);
                    self.fill(table, script.bytes(16));
                }
            }
        }
        self.kick();
        for _ in 0..script.byte() {
            std::thread::yield_now();
        }
    }

    fn request(&mut self, header: (u32, u64), split: usize, data: &[Buffer]) -> Option<(u8, u32)> {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&header.0.to_le_bytes());
        bytes[8..].copy_from_slice(&header.1.to_le_bytes());
        self.fill(HEADER, &bytes);
        self.fill(STATUS, &[0xee]);
        let split = split as u64;
        let mut chain: Vec<Buffer> = [(HEADER, split), (HEADER + split, 16 - split)]
            .into_iter()
            .filter(|&(_, len)| len > 0)
            .map(|(addr, len)| (addr, len as u32, false))
            .collect();
        chain.extend(data);
        chain.push((STATUS, 1, true));
        let used = self.run(&chain).expect("a driver that keeps the rules is served");
        let mut status = [0];
        self.disk.ram.read(GuestAddress(STATUS), &mut status).expect("in RAM");
        Some((status[0], used))
    }

    /// The used length of `chain`, or `None` when the device asks for a reset.
    fn run(&mut self, chain: &[Buffer]) -> Option<u32> {
        let head =
            if self.indirect { self.driver.add_indirect(chain) } else { self.driver.add(chain) };
        self.kick();
        let start = Instant::now();
        loop {
            if let [(id, len)] = self.driver.used()[..] {
                assert_eq!(id, u32::from(head));
                return Some(len);
            }
            if self.disk.interrupt.device_failed() {
                return None;
            }
            assert!(start.elapsed() < PATIENCE, "a request was never answered");
            std::thread::yield_now();
        }
    }

    fn kick(&mut self) {
        if self.driver.needs_kick() {
            self.disk.device.doorbells()[0].write(1).expect("a doorbell");
        }
    }

    fn fill(&self, addr: u64, bytes: &[u8]) {
        self.disk.ram.write(GuestAddress(addr), bytes).expect("in RAM");
    }

    fn gather(&self, data: &[Buffer]) -> Vec<u8> {
        let mut all = Vec::new();
        for &(addr, len, _) in data {
            let mut bytes = vec![0; len as usize];
            self.disk.ram.read(GuestAddress(addr), &mut bytes).expect("in RAM");
            all.extend(bytes);
        }
        all
    }

    fn forget(&mut self) {
        if !self.disk.read_only {
            self.disk.contents.fill(None);
        }
    }
}
