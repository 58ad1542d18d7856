//! Rings that break the rules, the same ones on every device: it asks for a reset, touches no other memory, and works again after the reset.

use std::fs::File;

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::register::{QUEUE_READY, QUEUE_SEL, STATUS};
use openshell_tests::bare::virtio::{
    Descriptor, Device, INDIRECT, INDIRECT_DESC, NEEDS_RESET, NEXT, Ring, WRITE, chained,
};

use crate::guest::Guest;
use crate::places::{ARENA, BUFFERS, RAM_END, check_guard, guard, ring};

const SIZE: u16 = 8;
const TABLE: u64 = BUFFERS + 0x10_0000;
const BUFFER_BYTES: u64 = 4096;

/// A device, and the queue that the driver feeds.
#[derive(Clone, Copy)]
struct Target {
    device: Device,
    queue: u32,
    queues: u64,
}

impl Target {
    /// Disk, entropy device, and what a guest sends over vsock and through its network card.
    const ALL: [fn() -> Self; 4] = [
        || Self { device: Device::number(0), queue: 0, queues: 1 },
        || Self { device: Device::number(1), queue: 0, queues: 1 },
        || Self { device: Device::number(2), queue: 1, queues: 3 },
        || Self { device: Device::number(3), queue: 1, queues: 2 },
    ];

    fn rings(self) -> Vec<Ring> {
        (0..self.queues).map(|index| ring(index, SIZE)).collect()
    }

    fn ring(self) -> Ring {
        ring(u64::from(self.queue), SIZE)
    }

    /// A request that every device answers: 16 zeroes, which are the header of a read of sector 0, and room for one sector and a status.
    fn works(self, script: &mut Script, features: u64) {
        let ring = self.ring();
        script.start(self.device, features, &self.rings()).fill(BUFFERS, 16, 0);
        let parts = if self.queue == 1 {
            vec![Descriptor::read(BUFFERS, 16)]
        } else {
            vec![Descriptor::read(BUFFERS, 16), Descriptor::write(BUFFERS + 512, 513)]
        };
        script.describe(&ring, 0, &chained(0, &parts)).offer(&ring, 0, 1);
        script.notify(self.device, self.queue).wait_used(&ring, 1).status(self.device, 15);
    }
}

fn machine(script: &Script) -> Guest {
    let guest = Guest::new(script);
    File::create(guest.path("disk")).unwrap().set_len(1 << 20).unwrap();
    guest
}

#[track_caller]
fn run(script: &Script) {
    let guest = machine(script);
    let run = guest.run().arg("--disk").arg(guest.path("disk"));
    let finished = guest.finish(run.arg("--vsock").arg(guest.path("vsock"))).expect_code(0);
    assert_eq!((finished.text().as_str(), finished.stderr.as_str()), ("", ""));
}

/// What the hostile driver makes available: descriptors from index 0 on, an indirect table, the head, the index.
struct Hostile {
    name: &'static str,
    descriptors: Vec<Descriptor>,
    table: Vec<Descriptor>,
    head: u16,
    index: u16,
}

fn hostile(name: &'static str, descriptors: &[Descriptor]) -> Hostile {
    Hostile { name, descriptors: descriptors.to_vec(), table: Vec::new(), head: 0, index: 1 }
}

fn descriptors() -> Vec<Hostile> {
    let (read, write) = (Descriptor::read, Descriptor::write);
    let ok = write(BUFFERS, 64);
    let outside = |name, addr, len| hostile(name, &[read(BUFFERS, 16).then(1), write(addr, len)]);
    vec![
        hostile("a loop of one", &[ok.then(0)]),
        hostile("a loop of two", &[ok.then(1), ok.then(0)]),
        hostile("a loop after the head", &[ok.then(1), ok.then(2), ok.then(1)]),
        hostile("a next outside the table", &[ok.then(SIZE)]),
        hostile("a next far outside the table", &[ok.then(u16::MAX)]),
        hostile("an empty buffer", &[write(BUFFERS, 0)]),
        hostile("an empty buffer behind another", &[read(BUFFERS, 16).then(1), write(BUFFERS, 0)]),
        hostile("readable after writable", &[ok.then(1), read(BUFFERS, 16)]),
        outside("a buffer past RAM", RAM_END, 512),
        outside("a buffer over RAM's end", RAM_END - 256, 513),
        outside("a buffer in the device registers", 0xd000_0000, 4096),
        outside("a buffer at the end of addresses", u64::MAX - 511, 512),
        outside("a buffer that wraps around", u64::MAX - 10, 512),
        outside("a buffer longer than RAM", BUFFERS, u32::MAX),
        Hostile { head: SIZE, ..hostile("a head outside the table", &[ok]) },
        Hostile { head: u16::MAX, ..hostile("a head far outside the table", &[ok]) },
        Hostile { index: SIZE + 1, ..hostile("one chain too many", &[ok]) },
        Hostile { index: 0x8000, ..hostile("an index far ahead", &[ok]) },
        Hostile { index: u16::MAX, ..hostile("an index behind", &[ok]) },
    ]
}

fn tables() -> Vec<Hostile> {
    let entries = |count: u16| 16 * u32::from(count);
    let table = |len| Descriptor { addr: TABLE, len, flags: INDIRECT, next: 0 };
    let ok = Descriptor::write(BUFFERS, 64);
    let inside = |name, inner: &[Descriptor]| {
        let len = entries(u16::try_from(inner.len()).unwrap());
        Hostile { table: inner.to_vec(), ..hostile(name, &[table(len)]) }
    };
    let elsewhere = |name, addr| hostile(name, &[Descriptor { addr, ..table(entries(1)) }]);
    let large = Descriptor::write(ARENA, u32::try_from(RAM_END - ARENA).unwrap());
    vec![
        hostile("an empty table", &[table(0)]),
        hostile("a table of a part", &[table(15)]),
        hostile("a table and a part", &[table(17)]),
        hostile("a table of 4 GiB", &[table(u32::MAX - 15)]),
        elsewhere("a table past RAM", RAM_END),
        elsewhere("a table over RAM's end", RAM_END - 8),
        elsewhere("a table that wraps around", u64::MAX - 7),
        hostile("a table that goes on", &[Descriptor { flags: INDIRECT | NEXT, ..table(16) }]),
        inside("a loop in a table", &[ok.then(1), ok.then(0)]),
        inside("a next outside a table", &[ok.then(2), ok]),
        inside("a table in a table", &[ok.then(1), table(16)]),
        inside("an empty buffer in a table", &[Descriptor::write(BUFFERS, 0)]),
        inside("readable after writable in a table", &[ok.then(1), Descriptor::read(BUFFERS, 8)]),
        inside("a buffer past RAM in a table", &[Descriptor::write(RAM_END, 8)]),
        inside("more than 4 GiB together", &chained(0, &[large; 200])),
        Hostile {
            table: chained(0, &[ok; 1025]),
            ..hostile("a chain without end", &[table(16400)])
        },
    ]
}

/// A guest that does `cases` to `target`, with the device reset and in use in between.
fn script(target: Target, features: u64, cases: &[Hostile]) -> Script {
    let (device, ring) = (target.device, target.ring());
    let mut script = Script::new();
    guard(&mut script, BUFFERS, BUFFER_BYTES);
    for case in cases {
        target.works(&mut script, features);
        script.start(device, features, &target.rings());
        guard(&mut script, ring.desc, 16 * u64::from(SIZE));
        guard(&mut script, ring.used, 6 + 8 * u64::from(SIZE));
        let table: Vec<u8> = case.table.iter().flat_map(Descriptor::bytes).collect();
        script.copy(TABLE, &table).describe(&ring, 0, &case.descriptors);
        for slot in 0..u64::from(SIZE) {
            script.store16(ring.avail + 4 + 2 * slot, case.head);
        }
        script.store16(ring.avail_index(), case.index).notify(device, target.queue);
        script.wait_needs_reset(device).load16(ring.used_index()).expect(0);
        // A device that asked for a reset is deaf until it gets it.
        script.offer(&ring, 0, 1).notify(device, target.queue).status(device, 15 | NEEDS_RESET);
        check_guard(&mut script, ring.desc, 16 * u64::from(SIZE));
        check_guard(&mut script, ring.used, 6 + 8 * u64::from(SIZE));
        check_guard(&mut script, BUFFERS, BUFFER_BYTES);
    }
    target.works(&mut script, features);
    script.exit(0);
    script
}

#[test]
fn chains_that_break_the_rules_end_in_a_reset() {
    for target in Target::ALL.map(|target| target()) {
        for features in [0, INDIRECT_DESC] {
            run(&script(target, features, &descriptors()));
        }
    }
}

#[test]
fn indirect_tables_that_break_the_rules_end_in_a_reset() {
    for target in Target::ALL.map(|target| target()) {
        run(&script(target, INDIRECT_DESC, &tables()));
    }
}

#[test]
fn indirect_tables_that_were_not_agreed_on_end_in_a_reset() {
    let table = Descriptor { addr: TABLE, len: 16, flags: INDIRECT, next: 0 };
    let case = Hostile {
        table: vec![Descriptor::write(BUFFERS, 64)],
        ..hostile("not negotiated", &[table])
    };
    for target in Target::ALL.map(|target| target()) {
        run(&script(target, 0, std::slice::from_ref(&case)));
    }
}

#[test]
fn each_case_is_told_from_the_others_by_name() {
    let mut names: Vec<_> = descriptors().iter().chain(&tables()).map(|case| case.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// Rings that lie outside RAM, or that are not aligned, are found when the driver says that it is ready.
#[test]
fn rings_outside_memory_end_in_a_reset() {
    let honest = ring(0, SIZE);
    let wrong = [
        Ring { desc: RAM_END, ..honest },
        Ring { desc: RAM_END - 64, ..honest },
        Ring { desc: u64::MAX - 15, ..honest },
        Ring { desc: honest.desc + 8, ..honest },
        Ring { avail: RAM_END - 2, ..honest },
        Ring { avail: u64::MAX - 1, ..honest },
        Ring { avail: honest.avail + 1, ..honest },
        Ring { used: RAM_END - 4, ..honest },
        Ring { used: 0xd000_0000, ..honest },
        Ring { used: 0xfee0_0000, ..honest },
        Ring { used: honest.used + 2, ..honest },
    ];
    for target in Target::ALL.map(|target| target()) {
        let mut script = Script::new();
        for bad in wrong {
            script.negotiate(target.device, 0);
            for (index, ring) in (0..).zip(target.rings()) {
                let ring = if index == target.queue { bad } else { ring };
                script.queue(target.device, index, &ring);
            }
            script.write(target.device, STATUS, 15).wait_needs_reset(target.device);
            script.notify(target.device, target.queue);
            target.works(&mut script, 0);
        }
        run(script.exit(0));
    }
}

/// Sizes that are no sizes are not taken, and a queue without a size is not enabled.
#[test]
fn sizes_that_are_none_are_refused() {
    for target in Target::ALL.map(|target| target()) {
        let mut script = Script::new();
        for size in [0_u32, 3, 24, 512, 32768, 65536, u32::MAX] {
            script.negotiate(target.device, 0).write(target.device, QUEUE_SEL, target.queue);
            script.write(target.device, 0x38, size).write(target.device, QUEUE_READY, 1);
            script.read(target.device, QUEUE_READY).expect(0);
            script.write(target.device, STATUS, 15);
            // Without its queue the device can't work: it asks for a reset, or waits for a driver that does better.
            script.notify(target.device, target.queue);
            target.works(&mut script, 0);
        }
        run(script.exit(0));
    }
}

/// All rings in one place: what the device writes is what it reads next.
#[test]
fn rings_on_top_of_each_other_are_survived() {
    let at = BUFFERS + 0x2000;
    let overlap = Ring { size: SIZE, desc: at, avail: at, used: at };
    for target in Target::ALL.map(|target| target()) {
        let mut script = Script::new();
        for first in 0..4_u16 {
            script.negotiate(target.device, 0);
            for (index, ring) in (0..).zip(target.rings()) {
                let ring = if index == target.queue { overlap } else { ring };
                script.clear_ring(&ring).queue(target.device, index, &ring);
            }
            script.write(target.device, STATUS, 15);
            let descriptor = Descriptor { addr: at, len: 128, flags: WRITE, next: first };
            script.describe(&overlap, first, &[descriptor; 4]).store16(at + 2, first);
            for _ in 0..16 {
                script.notify(target.device, target.queue);
            }
            target.works(&mut script, 0);
        }
        run(script.exit(0));
    }
}
