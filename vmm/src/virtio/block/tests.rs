//! The device as a driver sees it, on both engines.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::config::plan::DiskLimits;
use crate::memory::GuestAddress;
use crate::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use crate::virtio::test_driver::{Buffer, TestDriver};

use super::*;

const RAM_BYTES: u64 = 8 << 20;
const RINGS: u64 = 0x1_0000;
const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x11_0000;
const DATA: u64 = 0x20_0000;
const FLUSH: u64 = 1 << config::FLUSH;
const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Blocking];
const JAIL: Jail = Jail { seccomp: false };

/// A device with its driver.
struct Rig {
    device: Block,
    ram: Arc<GuestRam>,
    driver: TestDriver,
    interrupt: Interrupt,
    features: u64,
}

impl Rig {
    fn new(plan: DiskPlan, engine: EngineKind, features: u64) -> Self {
        let device = Block::new(0, plan, 1, engine, JAIL).unwrap();
        let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), RAM_BYTES)]).unwrap());
        let driver = TestDriver::new(&ram, RINGS, 256, features);
        let interrupt = Interrupt::new(EventFd::new(0).unwrap());
        let mut rig = Self { device, ram, driver, interrupt, features };
        rig.activate();
        rig
    }

    fn activate(&mut self) {
        self.driver = TestDriver::new(&self.ram, RINGS, 256, self.features);
        let queue = Queue::new(&self.ram, self.driver.queue_config(), self.features).unwrap();
        let activation = Activation {
            features: self.features,
            queues: vec![Some(queue)],
            interrupt: self.interrupt.clone(),
            ram: Arc::clone(&self.ram),
        };
        self.device.activate(activation).unwrap();
    }

    fn kick(&mut self) {
        if self.driver.needs_kick() {
            self.device.doorbells()[0].write(1).unwrap();
        }
    }

    /// Waits for `count` completions, sleeping on the interrupt as a driver does.
    fn wait(&mut self, count: usize) -> Vec<(u32, u32)> {
        let mut used = self.driver.used();
        while used.len() < count {
            assert!(!self.interrupt.device_failed(), "the device asks for a reset");
            self.interrupt.line().read().unwrap();
            used.extend(self.driver.used());
        }
        used
    }

    fn header(&self, at: u64, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.ram.write(GuestAddress(at), &header).unwrap();
    }

    /// One request with its data in `data`: (status, used length).
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(HEADER, kind, sector);
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend(data);
        chain.push((STATUS, 1, true));
        self.chain(&chain)
    }

    fn chain(&mut self, chain: &[Buffer]) -> (u8, u32) {
        self.ram.write(GuestAddress(STATUS), &[0xee]).unwrap();
        let head = if self.features & F_INDIRECT_DESC == 0 {
            self.driver.add(chain)
        } else {
            self.driver.add_indirect(chain)
        };
        self.kick();
        let used = self.wait(1);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, u32::from(head));
        let mut status = [0];
        self.ram.read(GuestAddress(STATUS), &mut status).unwrap();
        (status[0], used[0].1)
    }

    fn ram_bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(GuestAddress(at), &mut bytes).unwrap();
        bytes
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i / 512 * 7 + i) % 251).unwrap()).collect()
}

fn image(contents: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(contents, 0).unwrap();
    file
}

fn plan(file: &File) -> DiskPlan {
    DiskPlan {
        path: "disk".into(),
        file: file.try_clone().unwrap(),
        read_only: false,
        len_bytes: file.metadata().unwrap().len(),
        overlay: None,
        limits: DiskLimits::default(),
    }
}

#[test]
fn reads_and_writes_reach_the_image() {
    for engine in ENGINES {
        for features in [0, FLUSH, FLUSH | F_EVENT_IDX, FLUSH | F_EVENT_IDX | F_INDIRECT_DESC] {
            let contents = pattern(64 << 10);
            let file = image(&contents);
            let mut rig = Rig::new(plan(&file), engine, features);
            let data = [(DATA, 512, true), (DATA + 0x1000, 1024, true), (DATA + 0x3000, 512, true)];
            assert_eq!(rig.request(0, 3, &data), (0, 2049));
            assert_eq!(rig.ram_bytes(DATA, 512), contents[1536..2048]);
            assert_eq!(rig.ram_bytes(DATA + 0x1000, 1024), contents[2048..3072]);
            assert_eq!(rig.ram_bytes(DATA + 0x3000, 512), contents[3072..3584]);

            rig.ram.write(GuestAddress(DATA), &[0xa5; 1024]).unwrap();
            let data = [(DATA, 100, false), (DATA + 100, 924, false)];
            assert_eq!(rig.request(1, 126, &data), (0, 1));
            assert_eq!(rig.request(4, 0, &[]), (0, 1));
            rig.device.shutdown().unwrap();
            let mut end = [0; 1536];
            file.read_exact_at(&mut end, 125 * 512).unwrap();
            assert_eq!(end[..512], contents[125 * 512..126 * 512]);
            assert_eq!(end[512..], [0xa5; 1024]);
        }
    }
}
