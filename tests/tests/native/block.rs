//! Disks: each kind of request, done and refused, with an eye on every byte of the image that was not named.

use std::fs;
use std::path::Path;

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::register::{CONFIG, DEVICE_FEATURES, QUEUE_NUM_MAX, QUEUE_SEL};
use openshell_tests::bare::virtio::{Descriptor, Device, Ring, chained};

use crate::guest::Guest;
use crate::places::{BUFFERS, RAM_END, check_guard, guard, ring};

const SECTOR: u64 = 512;
const SECTORS: u64 = 2048;
const HEADER: u64 = BUFFERS - 0x1_0000;
const STATUS_BYTE: u64 = BUFFERS - 0x8000;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const IDENTIFY: u32 = 8;
const DISCARD: u32 = 11;
const ZERO: u32 = 13;

const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

const DISCARD_AND_ZERO: u64 = 1 << 13 | 1 << 14;

/// A driver with one request at a time.
struct Driver {
    script: Script,
    device: Device,
    ring: Ring,
    count: u16,
}

impl Driver {
    fn start(features: u64) -> Self {
        let (device, ring) = (Device::number(0), ring(0, 16));
        let mut script = Script::new();
        script.start(device, features, &[ring]);
        Self { script, device, ring, count: 0 }
    }

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        (u128::from(kind) | u128::from(sector) << 64).to_le_bytes()
    }

    /// A chain of any shape, done when it was returned.
    #[track_caller]
    fn chain(&mut self, parts: &[Descriptor]) -> &mut Script {
        self.count += 1;
        let (device, ring, count) = (self.device, self.ring, self.count);
        self.script.store8(STATUS_BYTE, 0xee).describe(&ring, 0, &chained(0, parts));
        self.script.offer(&ring, 0, count).notify(device, 0).wait_used(&ring, count)
    }

    /// Header, `data` and status: the status and the used length are these.
    #[track_caller]
    fn request(&mut self, (kind, sector): (u32, u64), data: &[Descriptor], status: u8, used: u32) {
        self.script.copy(HEADER, &Self::header(kind, sector));
        let status_byte = Descriptor::write(STATUS_BYTE, 1);
        let parts = [&[Descriptor::read(HEADER, 16)], data, &[status_byte]].concat();
        self.chain(&parts).load8(STATUS_BYTE).expect(u64::from(status));
        let slot = self.count - 1;
        self.script.load32(self.ring.used_len(slot)).expect(u64::from(used));
    }
}

/// Bytes that differ from sector to sector.
fn pattern(sectors: u64) -> Vec<u8> {
    (0..sectors * SECTOR)
        .map(|at| ((at / SECTOR * 31 + at % 251) % 256).try_into().unwrap())
        .collect()
}

/// Runs `driver` with one disk, and gives the image that it left.
#[track_caller]
fn run(driver: &mut Driver, option: &str) -> Vec<u8> {
    driver.script.status(driver.device, 15).exit(0);
    let guest = Guest::new(&driver.script);
    fs::write(guest.path("disk"), pattern(SECTORS)).unwrap();
    let mut disk = guest.path("disk").into_os_string();
    disk.push(option);
    let finished = guest.finish(guest.run().arg("--disk").arg(disk)).expect_code(0);
    assert_eq!((finished.text().as_str(), finished.stderr.as_str()), ("", ""));
    fs::read(guest.path("disk")).unwrap()
}

/// The images are the same but for what `change` does to the first.
#[track_caller]
fn check(mut want: Vec<u8>, found: &[u8], change: impl FnOnce(&mut [u8])) {
    change(&mut want);
    let differs = want.iter().zip(found).position(|(a, b)| a != b);
    assert_eq!((want.len(), differs), (found.len(), None));
}

fn bytes_of(sector: u64, count: u64) -> std::ops::Range<usize> {
    let at = |sector: u64| usize::try_from(sector * SECTOR).unwrap();
    at(sector)..at(sector + count)
}

#[test]
fn every_request_does_what_it_says() {
    let image = pattern(SECTORS);
    let mut driver = Driver::start(DISCARD_AND_ZERO | 1 << 9);
    let data = |sectors: u32| Descriptor::write(BUFFERS, sectors * 512);
    guard(&mut driver.script, BUFFERS, 2 * SECTOR);
    driver.request((READ, 5), &[data(2)], OK, 1025);
    driver.script.same(BUFFERS, &image[bytes_of(5, 2)]);
    check_guard(&mut driver.script, BUFFERS, 2 * SECTOR);
    // In pieces of all sizes.
    let pieces = [(0, 1), (1, 511), (512, 100), (612, 412)]
        .map(|(at, len)| Descriptor::write(BUFFERS + at, len));
    driver.script.fill(BUFFERS, 2 * SECTOR, 0);
    driver.request((READ, SECTORS - 2), &pieces, OK, 1025);
    driver.script.same(BUFFERS, &image[bytes_of(SECTORS - 2, 2)]);
    check_guard(&mut driver.script, BUFFERS, 2 * SECTOR);
    driver.script.fill(BUFFERS, 3 * SECTOR, 0x5a);
    driver.request((WRITE, 100), &[Descriptor::read(BUFFERS, 3 * 512)], OK, 1);
    driver.request((FLUSH, 0), &[], OK, 1);
    driver.request((WRITE, SECTORS - 1), &[Descriptor::read(BUFFERS, 512)], OK, 1);
    // Discarded at the host's block size, so that the image reads as zeroes there.
    driver.script.copy(BUFFERS, &range(200, 8, 0));
    driver.request((DISCARD, 0), &[Descriptor::read(BUFFERS, 16)], OK, 1);
    driver.script.copy(BUFFERS, &[range(301, 3, 0), range(400, 8, 1)].concat());
    driver.request((ZERO, 0), &[Descriptor::read(BUFFERS, 32)], OK, 1);
    driver.request((IDENTIFY, 0), &[Descriptor::write(BUFFERS, 20)], OK, 21);
    let found = run(&mut driver, "");
    check(image, &found, |image| {
        image[bytes_of(100, 3)].fill(0x5a);
        image[bytes_of(SECTORS - 1, 1)].fill(0x5a);
        for (sector, count) in [(200, 8), (301, 3), (400, 8)] {
            image[bytes_of(sector, count)].fill(0);
        }
    });
}

fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    (u128::from(sector) | u128::from(sectors) << 64 | u128::from(flags) << 96).to_le_bytes()
}

#[test]
fn requests_that_cannot_be_done_are_answered_and_do_nothing() {
    let mut driver = Driver::start(DISCARD_AND_ZERO);
    guard(&mut driver.script, BUFFERS, 4 * SECTOR);
    driver.script.fill(BUFFERS, 4 * SECTOR, 0xa5);
    let (into, from) = (Descriptor::write(BUFFERS, 512), Descriptor::read(BUFFERS, 512));
    let beyond = [SECTORS, SECTORS + 1, 1 << 54, 1 << 55, (1 << 55) - 1, u64::MAX, u64::MAX - 1];
    for sector in beyond {
        driver.request((READ, sector), &[into], FAILED, 1);
        driver.request((WRITE, sector), &[from], FAILED, 1);
    }
    driver.request((READ, SECTORS - 1), &[into, into], FAILED, 1);
    for len in [1, 511, 513, 1023] {
        driver.request((READ, 0), &[Descriptor::write(BUFFERS, len)], FAILED, 1);
        driver.request((WRITE, 0), &[Descriptor::read(BUFFERS, len)], FAILED, 1);
    }
    // Nothing to move is moved, wherever it is.
    driver.request((READ, 0), &[], OK, 1);
    driver.request((WRITE, SECTORS), &[], OK, 1);
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 0x100, 0x8000_0000, u32::MAX] {
        driver.request((kind, 0), &[into], UNSUPPORTED, 1);
    }
    driver.script.filled(BUFFERS, 4 * SECTOR, 0xa5);
    check_guard(&mut driver.script, BUFFERS, 4 * SECTOR);
    let found = run(&mut driver, "");
    check(pattern(SECTORS), &found, |_| {});
}

#[test]
fn range_lists_are_judged_whole() {
    let mut driver = Driver::start(DISCARD_AND_ZERO);
    let lists: [(u32, Vec<u8>, u8); 12] = [
        (DISCARD, range(SECTORS, 1, 0).to_vec(), FAILED),
        (DISCARD, range(0, u32::MAX, 0).to_vec(), FAILED),
        (DISCARD, range(u64::MAX, 2, 0).to_vec(), FAILED),
        (DISCARD, range(0, 8, 1).to_vec(), UNSUPPORTED),
        (DISCARD, range(0, 8, u32::MAX).to_vec(), UNSUPPORTED),
        (ZERO, range(SECTORS - 1, 2, 0).to_vec(), FAILED),
        (ZERO, range(0, 8, 2).to_vec(), UNSUPPORTED),
        (ZERO, vec![0; 15], FAILED),
        (ZERO, vec![0; 17], FAILED),
        (ZERO, vec![0; 16 * 65], FAILED),
        // One bad range among good ones: none is done.
        (ZERO, [range(8, 8, 0), range(16, 8, 0), range(SECTORS, 1, 0)].concat(), FAILED),
        (ZERO, range(SECTORS, 0, 1).to_vec(), OK),
    ];
    for (kind, list, status) in lists {
        driver.script.copy(BUFFERS, &list);
        let data = Descriptor::read(BUFFERS, u32::try_from(list.len()).unwrap());
        driver.request((kind, 0), &[data], status, 1);
    }
    driver.request((DISCARD, 0), &[], FAILED, 1);
    let found = run(&mut driver, "");
    check(pattern(SECTORS), &found, |_| {});
}

#[test]
fn chains_of_any_shape_come_back() {
    let mut driver = Driver::start(0);
    driver.script.copy(HEADER, &Driver::header(READ, 7)).fill(BUFFERS, 0x1000, 0xa5);
    let status = Descriptor::write(STATUS_BYTE, 1);
    // No room for a status; no header; half a header; nothing but the status.
    for parts in [
        &[Descriptor::read(HEADER, 16)][..],
        &[Descriptor::read(HEADER, 16), Descriptor::read(BUFFERS, 512)],
        &[Descriptor::write(BUFFERS, 512)],
        &[Descriptor::read(HEADER, 15), Descriptor::write(BUFFERS, 512), status],
        &[status],
    ] {
        driver.chain(parts);
    }
    driver.script.load8(STATUS_BYTE).expect(u64::from(FAILED));
    // A header in single bytes; the status behind the data in one descriptor.
    let bytes: Vec<_> = (0..14).map(|at| Descriptor::read(HEADER + at, 1)).collect();
    let data = Descriptor::write(BUFFERS, 513);
    driver.script.fill(BUFFERS, 0x1000, 0xa5);
    driver.chain(&[&bytes[..], &[Descriptor::read(HEADER + 14, 2), data]].concat());
    driver.script.same(BUFFERS, &pattern(SECTORS)[bytes_of(7, 1)]).load8(BUFFERS + 512).expect(0);
    driver.script.filled(BUFFERS + 513, 512, 0xa5);
    // The header where the answer goes: it was copied before the answer is written.
    driver.script.copy(BUFFERS, &Driver::header(READ, 9));
    let onto_itself = [
        Descriptor::read(BUFFERS, 16),
        Descriptor::write(BUFFERS, 512),
        Descriptor::write(STATUS_BYTE, 1),
    ];
    driver.chain(&onto_itself).load8(STATUS_BYTE).expect(0);
    driver.script.same(BUFFERS, &pattern(SECTORS)[bytes_of(9, 1)]);
    let found = run(&mut driver, "");
    check(pattern(SECTORS), &found, |_| {});
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut driver = Driver::start(1 << 5);
    driver.script.read(driver.device, DEVICE_FEATURES).expect_bits(1 << 5 | 1 << 13, 1 << 5);
    driver.script.fill(BUFFERS, SECTOR, 0x77);
    driver.request((WRITE, 0), &[Descriptor::read(BUFFERS, 512)], FAILED, 1);
    driver.script.copy(BUFFERS, &range(0, 8, 0));
    driver.request((DISCARD, 0), &[Descriptor::read(BUFFERS, 16)], FAILED, 1);
    driver.request((ZERO, 0), &[Descriptor::read(BUFFERS, 16)], FAILED, 1);
    driver.request((FLUSH, 0), &[], OK, 1);
    driver.request((READ, 3), &[Descriptor::write(BUFFERS, 512)], OK, 513);
    driver.script.same(BUFFERS, &pattern(SECTORS)[bytes_of(3, 1)]);
    let found = run(&mut driver, ",ro");
    check(pattern(SECTORS), &found, |_| {});
}

#[test]
fn an_overlay_takes_the_writes_and_the_base_none() {
    let mut driver = Driver::start(1 << 9);
    driver.script.fill(BUFFERS, SECTOR, 0x77);
    driver.request((WRITE, 10), &[Descriptor::read(BUFFERS, 512)], OK, 1);
    driver.request((FLUSH, 0), &[], OK, 1);
    driver.request((READ, 9), &[Descriptor::write(BUFFERS, 3 * 512)], OK, 1537);
    let mut want = pattern(SECTORS)[bytes_of(9, 3)].to_vec();
    want[512..1024].fill(0x77);
    driver.script.same(BUFFERS, &want).status(driver.device, 15).exit(0);
    let mut again = Driver::start(1 << 9);
    again.request((READ, 9), &[Descriptor::write(BUFFERS, 3 * 512)], OK, 1537);
    again.script.same(BUFFERS, &want).exit(0);
    let guest = Guest::new(&driver.script);
    let option = |directory: &Path| {
        let mut option = directory.join("disk").into_os_string();
        option.push(",overlay=");
        option.push(directory.join("delta"));
        option
    };
    fs::write(guest.path("disk"), pattern(SECTORS)).unwrap();
    guest.finish(guest.run().arg("--disk").arg(option(guest.directory()))).expect_code(0);
    let later = Guest::new(&again.script);
    later.finish(later.run().arg("--disk").arg(option(guest.directory()))).expect_code(0);
    check(pattern(SECTORS), &fs::read(guest.path("disk")).unwrap(), |_| {});
}

#[test]
fn configuration_tells_size_and_queues_and_takes_no_writes() {
    let mut driver = Driver::start(0);
    let (script, device) = (&mut driver.script, driver.device);
    script.store64(device.base + CONFIG, 1).store32(device.base + CONFIG + 32, u32::MAX);
    script
        .load64(device.base + CONFIG)
        .expect(SECTORS)
        .load32(device.base + CONFIG + 12)
        .expect(254);
    script.load16(device.base + CONFIG + 34).expect(1).load64(device.base + 0xff0).expect(0);
    script.write(device, QUEUE_SEL, 0).read(device, QUEUE_NUM_MAX).expect(256);
    script.write(device, QUEUE_SEL, 1).read(device, QUEUE_NUM_MAX).expect(0);
    let found = run(&mut driver, "");
    check(pattern(SECTORS), &found, |_| {});
}

#[test]
fn a_buffer_at_the_very_end_of_memory_is_served() {
    let mut driver = Driver::start(0);
    driver.request((READ, 1), &[Descriptor::write(RAM_END - SECTOR, 512)], OK, 513);
    driver.script.same(RAM_END - SECTOR, &pattern(SECTORS)[bytes_of(1, 1)]);
    run(&mut driver, "");
}

#[test]
fn each_processor_has_a_queue() {
    const MQ: u64 = 1 << 12;
    let device = Device::number(0);
    let rings: Vec<_> = (0..4).map(|index| ring(index, 16)).collect();
    let mut script = Script::new();
    script.start(device, MQ, &rings).load16(device.base + CONFIG + 34).expect(4);
    for (queue, ring) in (0_u32..).zip(&rings) {
        let at = BUFFERS + 0x1000 * u64::from(queue);
        script.copy(at, &Driver::header(READ, u64::from(queue)));
        let parts = [Descriptor::read(at, 16), Descriptor::write(at + 512, 513)];
        script.describe(ring, 0, &chained(0, &parts)).offer(ring, 0, 1).notify(device, queue);
    }
    for (queue, ring) in (0_u64..).zip(&rings) {
        let want = &pattern(SECTORS)[bytes_of(queue, 1)];
        script.wait_used(ring, 1).same(BUFFERS + 0x1000 * queue + 512, want);
    }
    let guest = Guest::new(script.exit(0));
    fs::write(guest.path("disk"), pattern(SECTORS)).unwrap();
    let run = guest.run().args(["--cpus", "4", "--disk"]).arg(guest.path("disk"));
    guest.finish(run).expect_code(0);
}
