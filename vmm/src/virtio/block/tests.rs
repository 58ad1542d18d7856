//! The device as a driver sees it, on both engines.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use crate::config::plan::{DiskLimits, OverlayPlan};
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
/// Workers run under their filter: a system call outside it would kill the test.
const JAIL: Jail = Jail { seccomp: true };

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
        volatile: false,
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

const SECTORS: u64 = 128;
const IN: u32 = 0;
const OUT: u32 = 1;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = request::STATUS_OK;
const IOERR: u8 = request::STATUS_IOERR;
const UNSUPP: u8 = request::STATUS_UNSUPP;

fn rig(engine: EngineKind, contents: &[u8]) -> Rig {
    Rig::new(plan(&image(contents)), engine, FLUSH | F_EVENT_IDX)
}

/// Puts a range list at DATA.
fn ranges(rig: &Rig, list: &[(u64, u32, u32)]) -> Buffer {
    let mut bytes = Vec::new();
    for (sector, count, flags) in list {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    rig.ram.write(GuestAddress(DATA), &bytes).unwrap();
    (DATA, u32::try_from(bytes.len()).unwrap(), false)
}

#[test]
fn every_kind_of_request_has_its_answer() {
    let page = [(DATA, 4096, true)];
    let out = [(DATA, 4096, false)];
    for engine in ENGINES {
        let mut rig = rig(engine, &pattern(64 << 10));
        for (name, kind, sector, data, want) in [
            ("read", IN, 0, &page[..], (OK, 4097)),
            ("read of the last sectors", IN, SECTORS - 8, &page, (OK, 4097)),
            ("read one past the end", IN, SECTORS - 7, &page, (IOERR, 1)),
            ("read far past the end", IN, u64::MAX, &page, (IOERR, 1)),
            ("read that wraps in bytes", IN, u64::MAX / 512 + 1, &page, (IOERR, 1)),
            ("read of nothing", IN, 0, &[], (OK, 1)),
            ("read of nothing past the end", IN, SECTORS + 1, &[], (IOERR, 1)),
            ("read of half a sector", IN, 0, &[(DATA, 256, true)], (IOERR, 1)),
            ("write", OUT, 0, &out, (OK, 1)),
            ("write one past the end", OUT, SECTORS - 7, &out, (IOERR, 1)),
            ("write of half a sector", OUT, 0, &[(DATA, 100, false)], (IOERR, 1)),
            (
                "write with room to read into",
                OUT,
                0,
                &[(DATA, 512, false), (DATA, 8, true)],
                (OK, 1),
            ),
            ("flush", 4, 0, &[], (OK, 1)),
            ("identity", GET_ID, 0, &[(DATA, 20, true)], (OK, 21)),
            ("identity, short buffer", GET_ID, 0, &[(DATA, 4, true)], (OK, 5)),
            ("identity, long buffer", GET_ID, 0, &page, (OK, 21)),
            ("SCSI command", 2, 0, &page, (UNSUPP, 1)),
            ("lifetime", 10, 0, &page, (UNSUPP, 1)),
            ("secure erase", 14, 0, &[], (UNSUPP, 1)),
            ("unknown type", 0xffff_ffff, 0, &[], (UNSUPP, 1)),
            ("discard without ranges", DISCARD, 0, &[], (IOERR, 1)),
            ("zeroing without ranges", WRITE_ZEROES, 0, &[], (IOERR, 1)),
        ] {
            assert_eq!(rig.request(kind, sector, data), want, "{engine:?}: {name}");
        }
    }
}

#[test]
fn ranges_are_checked_one_by_one() {
    let zero_max = request::MAX_ZERO_SECTORS;
    let many = vec![(0, 1, 0); 64];
    let too_many = vec![(0, 1, 0); 65];
    for engine in ENGINES {
        let mut rig = rig(engine, &pattern(64 << 10));
        for (name, kind, list, want) in [
            ("discard", DISCARD, &[(8, 8, 0)][..], OK),
            ("two discards", DISCARD, &[(8, 8, 0), (0, 1, 0)], OK),
            ("the most ranges", DISCARD, &many, OK),
            ("one range too many", DISCARD, &too_many, IOERR),
            ("discard of nothing", DISCARD, &[(8, 0, 0)], OK),
            ("discard past the end", DISCARD, &[(SECTORS - 1, 2, 0)], IOERR),
            ("discard that wraps", DISCARD, &[(u64::MAX, 2, 0)], IOERR),
            ("second discard past the end", DISCARD, &[(0, 1, 0), (SECTORS, 1, 0)], IOERR),
            ("discard with the unmap flag", DISCARD, &[(8, 8, 1)], UNSUPP),
            ("discard with reserved flags", DISCARD, &[(8, 8, 1 << 31)], UNSUPP),
            ("zeroing", WRITE_ZEROES, &[(8, 8, 0)], OK),
            ("zeroing with unmap", WRITE_ZEROES, &[(16, 9, 1), (64, 1, 0)], OK),
            ("zeroing with reserved flags", WRITE_ZEROES, &[(8, 8, 2)], UNSUPP),
            ("zeroing over the limit", WRITE_ZEROES, &[(0, zero_max + 1, 0)], IOERR),
            ("zeroing past the end", WRITE_ZEROES, &[(SECTORS, 1, 1)], IOERR),
        ] {
            let data = ranges(&rig, list);
            assert_eq!(rig.request(kind, 0, &[data]), (want, 1), "{engine:?}: {name}");
        }
        let whole = ranges(&rig, &[(0, 8, 0)]);
        let odd = (whole.0, 20, false);
        assert_eq!(
            rig.request(DISCARD, 0, &[odd]),
            (IOERR, 1),
            "a list of one and a quarter ranges"
        );
    }
}

#[test]
fn a_volatile_disk_has_no_flush_and_needs_none() {
    for (volatile, offered, through) in [(false, FLUSH, true), (true, 0, false)] {
        let plan = DiskPlan { volatile, ..plan(&image(&pattern(64 << 10))) };
        let mut rig = Rig::new(plan, EngineKind::Auto, F_EVENT_IDX);
        assert_eq!(rig.device.features() & FLUSH, offered);
        assert_eq!(rig.device.writes_through(F_EVENT_IDX), through);
        assert!(!rig.device.writes_through(FLUSH | F_EVENT_IDX));
        assert_eq!(rig.request(OUT, 0, &[(DATA, 512, false)]), (OK, 1));
    }
}

#[test]
fn zeroed_and_discarded_ranges_become_holes() {
    use std::os::unix::fs::MetadataExt;
    for engine in ENGINES {
        for features in [FLUSH, 0] {
            let file = image(&vec![0xaa; 1 << 20]);
            file.sync_all().unwrap();
            let before = file.metadata().unwrap().blocks();
            let mut rig = Rig::new(plan(&file), engine, features);
            let data = ranges(&rig, &[(0, 512, 1), (1024, 3, 0)]);
            assert_eq!(rig.request(WRITE_ZEROES, 0, &[data]), (OK, 1));
            let data = ranges(&rig, &[(512, 512, 0)]);
            assert_eq!(rig.request(DISCARD, 0, &[data]), (OK, 1));
            rig.device.shutdown().unwrap();
            let meta = file.metadata().unwrap();
            assert!(meta.blocks() + 1000 <= before, "{} of {before} blocks left", meta.blocks());
            assert_eq!(meta.len(), 1 << 20);
            let mut bytes = vec![1; 1 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            let (zeroes, rest) = bytes.split_at(1027 * 512);
            assert!(zeroes.iter().all(|byte| *byte == 0) && rest.iter().all(|byte| *byte == 0xaa));
        }
    }
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    for engine in ENGINES {
        let contents = pattern(64 << 10);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, &contents).unwrap();
        let mut plan = plan(&File::open(&path).unwrap());
        plan.read_only = true;
        let mut rig = Rig::new(plan, engine, FLUSH);
        assert_ne!(rig.device.features() & 1 << 5, 0);
        assert_eq!(rig.device.features() & (1 << 13 | 1 << 14), 0);
        assert_eq!(rig.request(OUT, 0, &[(DATA, 512, false)]), (IOERR, 1));
        for kind in [DISCARD, WRITE_ZEROES] {
            let data = ranges(&rig, &[(0, 1, 0)]);
            assert_eq!(rig.request(kind, 0, &[data]), (IOERR, 1));
        }
        assert_eq!(rig.request(4, 0, &[]), (OK, 1));
        assert_eq!(rig.request(IN, 0, &[(DATA, 512, true)]), (OK, 513));
        rig.device.shutdown().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), contents);
    }
}

#[test]
fn chains_of_any_shape_are_answered() {
    for engine in ENGINES {
        let contents = pattern(64 << 10);
        let mut rig = rig(engine, &contents);
        rig.header(HEADER, IN, 2);
        // The header in pieces, and the status as the last byte of the data buffer.
        let pieces = [(HEADER, 1, false), (HEADER + 1, 15, false), (DATA, 513, true)];
        let head = rig.driver.add(&pieces);
        rig.kick();
        assert_eq!(rig.wait(1), [(u32::from(head), 513)]);
        assert_eq!(rig.ram_bytes(DATA, 512), contents[1024..1536]);
        assert_eq!(rig.ram_bytes(DATA + 512, 1), [OK]);

        assert_eq!(rig.chain(&[(HEADER, 15, false), (STATUS, 1, true)]), (IOERR, 1));
        assert_eq!(rig.chain(&[(STATUS, 1, true)]), (IOERR, 1));
        assert_eq!(rig.chain(&[(HEADER, 16, false)]), (0xee, 0), "no room for the status");
        assert_eq!(rig.chain(&[(HEADER, 16, false), (DATA, 512, false)]), (0xee, 0));
        assert_eq!(rig.request(IN, 0, &[(DATA, 512, true)]), (OK, 513), "the queue goes on");
    }
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_works_after_it() {
    for engine in ENGINES {
        let mut rig = rig(engine, &pattern(64 << 10));
        for damage in 0..3 {
            match damage {
                0 => rig.driver.raw_avail_index(40_000),
                1 => rig.driver.raw_available(9999),
                _ => {
                    rig.driver.raw_descriptor(0, (RAM_BYTES - 8, 4096, 2, 0));
                    rig.driver.raw_available(0);
                }
            }
            rig.device.doorbells()[0].write(1).unwrap();
            while !rig.interrupt.device_failed() {
                rig.interrupt.line().read().unwrap();
            }
            rig.device.reset();
            rig.interrupt.clear();
            rig.activate();
            assert_eq!(rig.request(IN, 0, &[(DATA, 512, true)]), (OK, 513), "{engine:?} {damage}");
        }
    }
}

/// Fills the queue with reads of `len` bytes each, not waiting for any.
fn flood(rig: &mut Rig, count: u64, len: u32) {
    for request in 0..count {
        let header = HEADER + 16 * request;
        rig.header(header, IN, request % 8);
        let data = DATA + request * u64::from(len);
        let chain = [(header, 16, false), (data, len, true), (STATUS + request, 1, true)];
        rig.driver.add(&chain);
    }
    rig.kick();
}

#[test]
fn a_reset_during_io_returns_with_nothing_under_way() {
    for engine in ENGINES {
        let mut rig = rig(engine, &pattern(1 << 20));
        for round in 0..50_u8 {
            flood(&mut rig, 64, 16 << 10);
            rig.device.reset();
            // The driver owns its memory again: nothing may be written to it from here on.
            let all = vec![round; 1 << 20];
            rig.ram.write(GuestAddress(DATA), &all).unwrap();
            rig.ram.write(GuestAddress(STATUS), &[round; 64]).unwrap();
            rig.activate();
            assert_eq!(rig.request(GET_ID, 0, &[(HEADER + 0x8000, 20, true)]).0, OK);
            assert!(rig.ram_bytes(DATA, 1 << 20) == all, "{engine:?} {round}");
            assert_eq!(rig.ram_bytes(STATUS + 1, 63), [round; 63]);
        }
    }
}

#[test]
fn deep_queues_are_served_whole() {
    for engine in ENGINES {
        let contents = pattern(1 << 20);
        let mut rig = rig(engine, &contents);
        for _ in 0..20 {
            flood(&mut rig, 85, 4096);
            let used = rig.wait(85);
            assert!(used.iter().all(|(_, len)| *len == 4097));
            for request in 0..85 {
                let at = usize::try_from(request % 8 * 512).unwrap();
                let data = rig.ram_bytes(DATA + request * 4096, 4096);
                assert!(data == contents[at..at + 4096], "{engine:?} {request}");
            }
        }
    }
}

#[test]
fn shutdown_gives_the_lock_on_the_image_back() {
    for engine in ENGINES {
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().set_len(1 << 20).unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let (first, second) = (open(), open());
        first.lock().unwrap();
        let mut rig = Rig::new(plan(&first), engine, FLUSH);
        drop(first);
        second.try_lock().expect_err("the device keeps it");
        assert_eq!(rig.request(0, 0, &[(DATA, 512, true)]), (0, 513));
        rig.device.shutdown().unwrap();
        second.try_lock().unwrap();
    }
}

#[test]
fn shutdown_ends_what_is_under_way_and_stops_the_threads() {
    for engine in ENGINES {
        let file = image(&pattern(1 << 20));
        let mut rig = Rig::new(plan(&file), engine, FLUSH);
        flood(&mut rig, 64, 4096);
        rig.device.shutdown().unwrap();
        rig.device.shutdown().unwrap();
        assert!(rig.device.workers.is_empty());
        let queue = Queue::new(&rig.ram, rig.driver.queue_config(), 0).unwrap();
        let activation = Activation {
            features: 0,
            queues: vec![Some(queue)],
            interrupt: rig.interrupt.clone(),
            ram: Arc::clone(&rig.ram),
        };
        assert!(matches!(rig.device.activate(activation), Err(ActivateError::WorkerGone)));
        rig.device.reset();
    }
}

#[test]
fn shutdown_makes_an_overlay_durable_without_a_flush_of_the_driver() {
    let base = image(&pattern(64 << 10));
    let delta = tempfile::tempfile().unwrap();
    let overlaid = || {
        let mut plan = plan(&base);
        let file = delta.try_clone().unwrap();
        plan.overlay = Some(OverlayPlan { path: "delta".into(), file });
        Rig::new(plan, EngineKind::Auto, FLUSH)
    };
    let mut rig = overlaid();
    rig.ram.write(GuestAddress(DATA), &[0x5a; 512]).unwrap();
    assert_eq!(rig.request(OUT, 7, &[(DATA, 512, false)]), (OK, 1));
    rig.device.shutdown().unwrap();
    let mut rig = overlaid();
    assert_eq!(rig.request(IN, 7, &[(DATA + 4096, 512, true)]), (OK, 513));
    assert_eq!(rig.ram_bytes(DATA + 4096, 512), [0x5a; 512]);
}

#[test]
fn limits_delay_requests_and_drop_none() {
    for engine in ENGINES {
        let file = image(&pattern(1 << 20));
        let mut plan = plan(&file);
        plan.limits.ops_per_s = NonZeroU64::new(200);
        let mut rig = Rig::new(plan, engine, FLUSH | F_EVENT_IDX);
        let start = Instant::now();
        for _ in 0..4 {
            flood(&mut rig, 60, 512);
            rig.wait(60);
        }
        // The first 200 are the burst.
        assert!(start.elapsed() >= Duration::from_millis(195), "{:?}", start.elapsed());
        flood(&mut rig, 60, 512);
        rig.device.reset();
        rig.device.shutdown().unwrap();
    }
}

#[test]
fn several_queues_serve_one_disk() {
    for engine in ENGINES {
        let contents = pattern(64 << 10);
        let file = image(&contents);
        let mut device = Block::new(3, plan(&file), 4, engine, JAIL).unwrap();
        assert_ne!(device.features() & 1 << 12, 0);
        let mut count = [0; 2];
        device.read_config(34, &mut count);
        assert_eq!(u16::from_le_bytes(count), 4);
        let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), RAM_BYTES)]).unwrap());
        let interrupt = Interrupt::new(EventFd::new(0).unwrap());
        let mut drivers: Vec<_> =
            (0..3).map(|queue| TestDriver::new(&ram, 0x10_0000 * (queue + 1), 64, FLUSH)).collect();
        let mut queues: Vec<_> = drivers
            .iter()
            .map(|driver| Some(Queue::new(&ram, driver.queue_config(), FLUSH).unwrap()))
            .collect();
        // The last one is not enabled by the driver.
        queues.push(None);
        let activation =
            Activation { features: FLUSH, queues, interrupt: interrupt.clone(), ram: ram.clone() };
        device.activate(activation).unwrap();
        for (queue, driver) in drivers.iter_mut().enumerate() {
            let base = 0x60_0000 + 0x1_0000 * queue as u64;
            let mut header = [0; 16];
            header[8] = u8::try_from(queue).unwrap() * 8;
            ram.write(GuestAddress(base), &header).unwrap();
            driver.add(&[(base, 16, false), (base + 4096, 4096, true), (base + 16, 1, true)]);
            device.doorbells()[queue].write(1).unwrap();
        }
        for (queue, driver) in drivers.iter_mut().enumerate() {
            while driver.used().is_empty() {
                interrupt.line().read().unwrap();
                // One line for all queues: keep it up for the others.
                interrupt.line().write(1).unwrap();
            }
            let mut data = vec![0; 4096];
            ram.read(GuestAddress(0x60_1000 + 0x1_0000 * queue as u64), &mut data).unwrap();
            assert_eq!(data, contents[queue * 4096..][..4096]);
        }
        device.shutdown().unwrap();
    }
}

#[test]
fn the_identity_is_the_image_and_tells_nothing_of_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret-name");
    std::fs::write(&path, pattern(4096)).unwrap();
    let id = |path: &std::path::Path| {
        let mut rig = Rig::new(plan(&File::open(path).unwrap()), EngineKind::Auto, 0);
        assert_eq!(rig.request(GET_ID, 0, &[(DATA, 20, true)]), (OK, 21));
        rig.ram_bytes(DATA, 20)
    };
    let first = id(&path);
    assert!(first.starts_with(b"osh-") && first[4..].iter().all(u8::is_ascii_hexdigit));
    let moved = dir.path().join("moved");
    std::fs::rename(&path, &moved).unwrap();
    assert_eq!(id(&moved), first);
    std::fs::write(&path, pattern(4096)).unwrap();
    assert_ne!(id(&path), first);
}

#[test]
fn configuration_space_says_what_is_enforced() {
    let file = image(&pattern(64 << 10));
    let device = Block::new(0, plan(&file), 2, EngineKind::Auto, JAIL).unwrap();
    let word = |offset| {
        let mut bytes = [0; 4];
        device.read_config(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    for (offset, want) in [
        (0, 128),
        (4, 0),
        (12, 254),
        (20, 512),
        (36, request::MAX_DISCARD_SECTORS),
        (40, request::MAX_RANGES),
        (48, request::MAX_ZERO_SECTORS),
        (52, request::MAX_RANGES),
        (56, 1),
        (60, 0),
        (u64::MAX, 0),
    ] {
        assert_eq!(word(offset), want, "offset {offset}");
    }
    assert_eq!(device.kind(), DeviceKind::Block);
    assert_eq!(
        device.state(),
        BlockState { version: 1, sectors: 128, features: device.features(), queues: 2 }
    );
}

#[test]
fn an_overlay_that_does_not_fit_is_named() {
    let base = image(&pattern(64 << 10));
    let mut plan = plan(&base);
    let delta = image(b"something else");
    plan.overlay = Some(OverlayPlan { path: "over.delta".into(), file: delta });
    let error = Block::new(0, plan, 4, EngineKind::Auto, JAIL).unwrap_err();
    assert_eq!(error.to_string(), "cannot use the overlay over.delta");
}

#[derive(Debug, Clone)]
enum Act {
    Read { sector: u64, sectors: u32, split: u32 },
    Write { sector: u64, sectors: u32, split: u32, fill: u8 },
    Zero { sector: u64, sectors: u32, unmap: bool },
    Flush,
    Reset,
}

fn act() -> impl Strategy<Value = Act> {
    // Some ranges run past the end: those are refused and must change nothing.
    let range = || (0..SECTORS + 4, 1_u32..24);
    prop_oneof![
        (range(), 0_u32..2048).prop_map(|((sector, sectors), split)| Act::Read {
            sector,
            sectors,
            split
        }),
        (range(), 0_u32..2048, 1_u8..255).prop_map(|((sector, sectors), split, fill)| {
            Act::Write { sector, sectors, split, fill }
        }),
        (range(), any::<bool>()).prop_map(|((sector, sectors), unmap)| Act::Zero {
            sector,
            sectors,
            unmap
        }),
        Just(Act::Flush),
        Just(Act::Reset),
    ]
}

/// Data buffers of a request, cut in two at `split`.
fn cut(len: u32, split: u32, writable: bool) -> Vec<Buffer> {
    let split = split % len;
    [(DATA, split, writable), (DATA + u64::from(split), len - split, writable)]
        .into_iter()
        .filter(|(_, len, _)| *len > 0)
        .collect()
}

fn check_against_model(rig: &mut Rig, model: &mut [u8], act: &Act) {
    let span = |sector: u64, sectors: u32| {
        let end = sector + u64::from(sectors);
        let range = usize::try_from(sector * 512).unwrap()..usize::try_from(end * 512).unwrap();
        (end <= SECTORS).then_some(range)
    };
    match *act {
        Act::Read { sector, sectors, split } => {
            let (status, used) = rig.request(IN, sector, &cut(sectors * 512, split, true));
            let Some(range) = span(sector, sectors) else {
                assert_eq!((status, used), (IOERR, 1));
                return;
            };
            assert_eq!((status, used), (OK, sectors * 512 + 1));
            assert!(rig.ram_bytes(DATA, range.len()) == model[range], "{act:?}");
        }
        Act::Write { sector, sectors, split, fill } => {
            let bytes = vec![fill; sectors as usize * 512];
            rig.ram.write(GuestAddress(DATA), &bytes).unwrap();
            let (status, _) = rig.request(OUT, sector, &cut(sectors * 512, split, false));
            let range = span(sector, sectors);
            assert_eq!(status == OK, range.is_some());
            if let Some(range) = range {
                model[range].fill(fill);
            }
        }
        Act::Zero { sector, sectors, unmap } => {
            let data = ranges(rig, &[(sector, sectors, u32::from(unmap))]);
            let (status, _) = rig.request(WRITE_ZEROES, 0, &[data]);
            let range = span(sector, sectors);
            assert_eq!(status == OK, range.is_some());
            if let Some(range) = range {
                model[range].fill(0);
            }
        }
        Act::Flush => assert_eq!(rig.request(4, 0, &[]), (OK, 1)),
        Act::Reset => {
            rig.device.reset();
            rig.activate();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_disk_behaves_as_an_array_of_bytes(
        acts in prop::collection::vec(act(), 1..40),
        overlay in any::<bool>(),
        features in prop::sample::select(vec![0, FLUSH, FLUSH | F_EVENT_IDX | F_INDIRECT_DESC]),
    ) {
        for engine in ENGINES {
            let mut model = pattern(64 << 10);
            let file = image(&model);
            let mut plan = plan(&file);
            if overlay {
                let file = tempfile::tempfile().unwrap();
                plan.overlay = Some(OverlayPlan { path: "delta".into(), file });
            }
            let mut rig = Rig::new(plan, engine, features);
            for act in &acts {
                check_against_model(&mut rig, &mut model, act);
            }
            rig.device.shutdown().unwrap();
            let mut now = vec![0; 64 << 10];
            file.read_exact_at(&mut now, 0).unwrap();
            let want = if overlay { pattern(64 << 10) } else { model };
            prop_assert!(now == want);
        }
    }

    #[test]
    fn no_bytes_of_a_driver_can_harm_the_device(
        header in any::<[u8; 16]>(),
        kind in prop::sample::select(vec![0_u32, 1, 4, 8, 11, 13, 99]),
        keep_kind in any::<bool>(),
        lens in prop::collection::vec((1_u32..70_000, any::<bool>()), 0..12),
        data in prop::collection::vec(any::<u8>(), 0..256),
    ) {
        let mut header = header;
        if keep_kind {
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[12..].fill(0);
        }
        for engine in ENGINES {
            let mut rig = rig(engine, &pattern(64 << 10));
            rig.ram.write(GuestAddress(HEADER), &header).unwrap();
            rig.ram.write(GuestAddress(DATA), &data).unwrap();
            // Readable buffers come first, or the queue refuses the chain.
            let mut lens = lens.clone();
            lens.sort_by_key(|(_, writable)| *writable);
            let mut chain = vec![(HEADER, 16, false)];
            chain.extend(lens.iter().map(|(len, writable)| (DATA, *len, *writable)));
            let head = rig.driver.add(&chain);
            rig.kick();
            let room: u32 = lens.iter().filter(|(_, writable)| *writable).map(|(len, _)| len).sum();
            let used = rig.wait(1);
            prop_assert_eq!(used[0].0, u32::from(head));
            prop_assert!(used[0].1 <= room);
            prop_assert!((used[0].1 == 0) == (room == 0));
            prop_assert_eq!(rig.request(IN, 0, &[(DATA, 512, true)]), (OK, 513));
        }
    }
}
