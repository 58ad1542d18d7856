//! The entropy device: bytes where they were asked for and nowhere else, over the wrap of the indices.

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::{
    Descriptor, Device, EVENT_IDX, INDIRECT, INDIRECT_DESC, chained,
};

use crate::guest::run;
use crate::places::{BUFFERS, check_guard, guard, ring};

#[test]
fn buffers_are_filled_and_their_neighbours_are_not() {
    let (rng, ring) = (Device::number(0), ring(0, 64));
    let mut script = Script::new();
    script.start(rng, 0, &[ring]);
    guard(&mut script, BUFFERS, 1024);
    guard(&mut script, BUFFERS + 0x4000, 64);
    script.fill(BUFFERS, 1024, 0).fill(BUFFERS + 0x4000, 64, 0);
    let parts = [Descriptor::write(BUFFERS, 1024), Descriptor::write(BUFFERS + 0x4000, 64)];
    script.describe(&ring, 0, &chained(0, &parts)).offer(&ring, 0, 1).notify(rng, 0);
    script.wait_used(&ring, 1).load32(ring.used_len(0)).expect(1088);
    for addr in [BUFFERS, BUFFERS + 512, BUFFERS + 1016, BUFFERS + 0x4000, BUFFERS + 0x4038] {
        script.load64(addr).expect_not(0);
    }
    check_guard(&mut script, BUFFERS, 1024);
    check_guard(&mut script, BUFFERS + 0x4000, 64);
    // A huge buffer gets a bounded part; one that is for reading gets nothing.
    script.describe(&ring, 0, &[Descriptor::write(BUFFERS, 8 << 20), Descriptor::read(BUFFERS, 8)]);
    script.offer(&ring, 0, 2).offer(&ring, 1, 3).notify(rng, 0).wait_used(&ring, 3);
    script.load32(ring.used_len(1)).expect(64 << 10).load32(ring.used_len(2)).expect(0);
    script.status(rng, 15);
    run(script.exit(0), 0);
}

#[test]
fn indirect_tables_and_event_indices_serve_the_same() {
    let (rng, ring) = (Device::number(0), ring(0, 4));
    let table = BUFFERS + 0x8000;
    let parts: Vec<_> = (0..32).map(|i| Descriptor::write(BUFFERS + 64 * i, 32)).collect();
    let bytes: Vec<u8> = chained(0, &parts).iter().flat_map(Descriptor::bytes).collect();
    let mut script = Script::new();
    script
        .start(rng, INDIRECT_DESC | EVENT_IDX, &[ring])
        .fill(BUFFERS, 2048, 0)
        .copy(table, &bytes);
    let indirect = Descriptor { addr: table, len: 512, flags: INDIRECT, next: 0 };
    script.describe(&ring, 0, &[indirect]).offer(&ring, 0, 1).notify(rng, 0).wait_used(&ring, 1);
    script.load32(ring.used_len(0)).expect(1024);
    for i in 0..32 {
        script.load64(BUFFERS + 64 * i).expect_not(0).filled(BUFFERS + 64 * i + 32, 32, 0);
    }
    run(script.exit(0), 0);
}

/// More chains than an index can count.
#[test]
fn indices_wrap() {
    const BATCH: u16 = 64;
    let (rng, ring) = (Device::number(0), ring(0, BATCH));
    let mut script = Script::new();
    script.start(rng, 0, &[ring]);
    for slot in 0..BATCH {
        script.describe(&ring, slot, &[Descriptor::write(BUFFERS + u64::from(slot), 1)]);
        script.store16(ring.avail + 4 + 2 * u64::from(slot), slot);
    }
    let mut count = 0_u16;
    for _ in 0..1030 {
        count = count.wrapping_add(BATCH);
        script.store16(ring.avail_index(), count).notify(rng, 0).wait_used(&ring, count);
    }
    script.status(rng, 15);
    run(script.exit(0), 0);
}
