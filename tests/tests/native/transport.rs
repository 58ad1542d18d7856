//! The registers: what a driver may not write changes nothing, and every access has an answer.

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::register::{
    CONFIG, DEVICE_FEATURES, DEVICE_FEATURES_SEL, DEVICE_ID, DRIVER_FEATURES, MAGIC_VALUE,
    QUEUE_DESC_LOW, QUEUE_DEVICE_LOW, QUEUE_DRIVER_LOW, QUEUE_NUM, QUEUE_NUM_MAX, QUEUE_READY,
    QUEUE_SEL, STATUS, VERSION,
};
use openshell_tests::bare::virtio::{Descriptor, Device, NEEDS_RESET};

use crate::guest::run;
use crate::places::{ARENA, BUFFERS, RAM_END, ring};

#[test]
fn a_device_is_found_and_what_is_not_there_is_not() {
    let (rng, none) = (Device::number(0), Device::number(2));
    let mut script = Script::new();
    script.read(rng, MAGIC_VALUE).expect(u64::from(u32::from_le_bytes(*b"virt")));
    script.read(rng, VERSION).expect(2).read(rng, DEVICE_ID).expect(4).status(rng, 0);
    script.write(rng, DEVICE_FEATURES_SEL, 1).read(rng, DEVICE_FEATURES).expect(1);
    script.write(rng, QUEUE_SEL, 0).read(rng, QUEUE_NUM_MAX).expect(64);
    for missing in [1, 7, 0xffff, u32::MAX] {
        script.write(rng, QUEUE_SEL, missing).read(rng, QUEUE_NUM_MAX).expect(0);
        script.write(rng, QUEUE_NUM, 8).write(rng, QUEUE_READY, 1).read(rng, QUEUE_READY).expect(0);
    }
    script.read(none, MAGIC_VALUE).expect(0xffff_ffff).write(none, STATUS, 1);
    run(script.exit(0), 0);
}

#[test]
fn a_set_up_queue_does_not_move_after_driver_ok() {
    let (rng, ring) = (Device::number(0), ring(0, 8));
    let mut script = Script::new();
    script.start(rng, 0, &[ring]).write(rng, QUEUE_SEL, 0);
    for register in [QUEUE_DESC_LOW, QUEUE_DRIVER_LOW, QUEUE_DEVICE_LOW] {
        script.write(rng, register, 0xdead_0000).write(rng, register + 4, 0xffff_ffff);
    }
    script.write(rng, QUEUE_NUM, 1).write(rng, QUEUE_READY, 0).read(rng, QUEUE_READY).expect(1);
    script.write(rng, DRIVER_FEATURES, u32::MAX).write(rng, STATUS, 11).write(rng, STATUS, 1);
    script.write(rng, STATUS, 0x20 | 15).write(rng, STATUS, u32::MAX).status(rng, 15);
    script.fill(BUFFERS, 64, 0).describe(&ring, 0, &[Descriptor::write(BUFFERS, 64)]);
    script.offer(&ring, 0, 1).notify(rng, 0).wait_used(&ring, 1);
    script.load64(BUFFERS).expect_not(0).status(rng, 15);
    run(script.exit(0), 0);
}

#[test]
fn steps_out_of_order_are_not_taken() {
    let (rng, ring) = (Device::number(0), ring(0, 8));
    let mut script = Script::new();
    for wrong in [2, 4, 8, 12, 16, 0x20, 0xff00, 0x0001_0001] {
        script.reset(rng).write(rng, STATUS, wrong).status(rng, 0);
    }
    // Features that were not offered, or without VERSION_1: FEATURES_OK does not stay.
    for (window, bits) in [(0, u32::MAX), (1, 0), (1, 3), (1, u32::MAX)] {
        script.reset(rng).write(rng, STATUS, 3).write(rng, 0x24, window);
        script.write(rng, DRIVER_FEATURES, bits).write(rng, STATUS, 11).status(rng, 3);
        script.write(rng, STATUS, 15).status(rng, 3);
    }
    // A queue before FEATURES_OK is not set up, and a notification before DRIVER_OK is nobody's.
    script.reset(rng).queue(rng, 0, &ring).read(rng, QUEUE_READY).expect(0).notify(rng, 0);
    // FAILED stays until a reset.
    script.negotiate(rng, 0).write(rng, STATUS, 11 | 128).write(rng, STATUS, 15 | 128);
    script.status(rng, 11 | 128).reset(rng);
    // DRIVER_OK without the queue that it needs.
    script.negotiate(rng, 0).write(rng, STATUS, 15).status(rng, 15 | NEEDS_RESET).reset(rng);
    run(script.exit(0), 0);
}

#[test]
fn every_offset_and_width_has_an_answer() {
    let rng = Device::number(0);
    let mut script = Script::new();
    for offset in (0..0x110).chain([0x7fc, 0xffc, 0xfff, 0x1000 - 8]) {
        let addr = rng.base + offset;
        script.load8(addr).store8(addr, 0xff).load16(addr).store16(addr, 0xffff);
        script.load32(addr).store32(addr, u32::MAX).load64(addr).store64(addr, u64::MAX);
    }
    script.reset(rng).read(rng, MAGIC_VALUE).expect(u64::from(u32::from_le_bytes(*b"virt")));
    // Over the end of the block and over the end of RAM.
    script.load64(rng.base + 0xffc).load64(RAM_END - 4).store64(rng.base + 0xffc, 1);
    script.load32(rng.base + CONFIG).expect(0).store64(ARENA, 1);
    run(script.exit(0), 0);
}

#[test]
fn notifications_for_queues_that_are_not_there_are_ignored() {
    let (rng, ring) = (Device::number(0), ring(0, 8));
    let mut script = Script::new();
    script.start(rng, 0, &[ring]);
    for queue in [1, 63, 64, 255, 0xffff, 0x1_0000, u32::MAX] {
        script.notify(rng, queue);
    }
    script.status(rng, 15).load16(ring.used_index()).expect(0);
    run(script.exit(0), 0);
}
