//! Resets while requests are under way: nothing is left behind, in the guest's memory or in the process, however many there are.

use std::collections::BTreeSet;
use std::fs::File;
use std::time::{Duration, Instant};

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::register::STATUS;
use openshell_tests::bare::virtio::{Descriptor, Device, chained};
use openshell_tests::machine::{Input, Running};

use crate::guest::Guest;
use crate::places::{BUFFERS, ring};

/// The last operations of a script.
type Ending = fn(&mut Script) -> &mut Script;

/// For a thread to run for the first time, on a busy machine.
const SETTLING: Duration = Duration::from_secs(30);
const TURNS: u64 = 1000;
const REQUESTS: u16 = 16;
const DATA_BYTES: u32 = 4096;

/// Requests for all of a disk's queue: a read and a write by turns, each with its own buffer.
fn flood(script: &mut Script, disk: Device) {
    let ring = ring(0, 64);
    for request in 0..REQUESTS {
        let (header, data) = (header(request), data(request));
        let writes = request % 2 == 1;
        let kind = u128::from(writes) | u128::from(request * 8) << 64;
        let buffer = match writes {
            true => Descriptor::read(data, DATA_BYTES),
            false => Descriptor::write(data, DATA_BYTES),
        };
        let parts = [Descriptor::read(header, 16), buffer, Descriptor::write(header + 16, 1)];
        script.copy(header, &kind.to_le_bytes());
        script.describe(&ring, 3 * request, &chained(3 * request, &parts));
        script.store16(ring.avail + 4 + 2 * u64::from(request), 3 * request);
    }
    script.store16(ring.avail_index(), REQUESTS).notify(disk, 0);
}

fn header(request: u16) -> u64 {
    BUFFERS + 0x40 * u64::from(request)
}

fn data(request: u16) -> u64 {
    BUFFERS + 0x1_0000 + 0x1000 * u64::from(request)
}

/// Threads and descriptors; I/O worker threads of the kernel come and go.
fn holdings(running: &Running) -> (Vec<String>, Vec<String>) {
    let mut threads = running.threads();
    threads.retain(|name| !name.starts_with("iou-"));
    (threads, running.descriptors())
}

/// The same, once every thread has taken its own name: until it first runs, one has the name of whoever started it.
fn settled(running: &Running) -> (Vec<String>, Vec<String>) {
    let deadline = Instant::now() + SETTLING;
    loop {
        let found = holdings(running);
        let names: BTreeSet<_> = found.0.iter().collect();
        if names.len() == found.0.len() {
            return found;
        }
        assert!(Instant::now() < deadline, "threads of one name: {:?}", found.0);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the two pauses of a script and compares what the process holds.
pub(crate) fn compare(guest: &Guest, mut running: Running) {
    running.wait_for("before\n");
    let (before, memory_before) = (settled(&running), running.own_memory_kib());
    running.type_bytes(b".");
    running.wait_for("after\n");
    let after = settled(&running);
    assert_eq!(before, after);
    let grown_kib = running.own_memory_kib().saturating_sub(memory_before);
    assert!(memory_before > 0 && grown_kib < 1024, "{memory_before} KiB, then {grown_kib} more");
    running.type_bytes(b".");
    guest.wait(running).expect_code(0);
}

#[test]
fn a_disk_that_is_reset_during_io_leaves_nothing() {
    let disk = Device::number(0);
    let rings = [ring(0, 64)];
    let mut script = Script::new();
    script.start(disk, 0, &rings);
    flood(&mut script, disk);
    script.wait_used(&rings[0], REQUESTS).say("before\n").echo_until(b'.');
    let turns = script.repeat(TURNS);
    script.start(disk, 0, &rings);
    flood(&mut script, disk);
    script.reset(disk).again(turns).say("after\n").echo_until(b'.');
    // After a reset memory is the driver's alone, though requests were under way.
    for _ in 0..20 {
        script.start(disk, 0, &rings);
        flood(&mut script, disk);
        script.write(disk, STATUS, 0).fill(data(0), 4096, 0x3c).fill(rings[0].used, 64, 0x3c);
        let wait = script.repeat(200);
        script.again(wait).filled(data(0), 4096, 0x3c).filled(rings[0].used, 64, 0x3c);
    }
    script.start(disk, 0, &rings);
    flood(&mut script, disk);
    script.wait_used(&rings[0], REQUESTS).status(disk, 15);
    for request in 0..REQUESTS {
        script.load8(header(request) + 16).expect(0);
    }
    let guest = Guest::new(script.exit(0));
    File::create(guest.path("disk")).unwrap().set_len(1 << 20).unwrap();
    let run = guest.run().arg("--disk").arg(guest.path("disk")).stdin(Input::Typed);
    compare(&guest, run.spawn());
}

#[test]
fn an_entropy_device_and_vsock_that_are_reset_leave_nothing() {
    let (rng, vsock) = (Device::number(0), Device::number(1));
    let rings: Vec<_> = (0..3).map(|index| ring(index, 16)).collect();
    let busy = |script: &mut Script| {
        script.start(rng, 0, &rings[..1]).describe(&rings[0], 0, &[Descriptor::write(BUFFERS, 64)]);
        script.offer(&rings[0], 0, 1).notify(rng, 0).reset(rng).start(vsock, 0, &rings);
        // A connection to a port where nobody listens: the answer is under way when the reset comes.
        script.copy(BUFFERS, &crate::vsock::request(1024, 1));
        script.describe(&rings[0], 0, &[Descriptor::write(BUFFERS + 4096, 4096)]);
        script.offer(&rings[0], 0, 1).notify(vsock, 0);
        script.describe(&rings[1], 0, &[Descriptor::read(BUFFERS, 44)]);
        script.offer(&rings[1], 0, 1).notify(vsock, 1).reset(vsock);
    };
    let mut script = Script::new();
    busy(&mut script);
    script.say("before\n").echo_until(b'.');
    let turns = script.repeat(TURNS);
    busy(&mut script);
    script.again(turns).say("after\n").echo_until(b'.');
    let guest = Guest::new(script.exit(0));
    let run = guest.run().arg("--vsock").arg(guest.path("vsock")).stdin(Input::Typed);
    compare(&guest, run.spawn());
    assert_eq!(guest.files(), ["guest.elf"]);
}

/// The machine ends while requests are under way, by every way to end.
#[test]
fn a_machine_that_ends_during_io_ends_in_order() {
    let disk = Device::number(0);
    let endings: [(Ending, u8); 4] = [
        (|script| script.exit(7), 7),
        (|script| script.out8(0x64, 0xfe), 0),
        (Script::triple_fault, 125),
        (|script| script.write(Device::number(0), STATUS, 0).exit(8), 8),
    ];
    for (ending, code) in endings {
        let mut script = Script::new();
        script.start(disk, 0, &[ring(0, 64)]);
        flood(&mut script, disk);
        let guest = Guest::new(ending(&mut script));
        File::create(guest.path("disk")).unwrap().set_len(1 << 20).unwrap();
        let finished = guest.finish(guest.run().arg("--disk").arg(guest.path("disk")));
        assert_eq!(finished.code, Some(i32::from(code)), "{finished}");
        assert!(File::open(guest.path("disk")).unwrap().try_lock().is_ok());
    }
}
