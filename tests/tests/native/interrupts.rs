//! Interrupts: from a device to the guest's interrupt controllers, seen as a request there and as a wake-up from sleep.

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::register::{INTERRUPT_ACK, INTERRUPT_STATUS, STATUS};
use openshell_tests::bare::virtio::{Descriptor, Device};

use crate::guest::run;
use crate::places::{BUFFERS, ring};

const IOAPIC_SELECT: u64 = 0xfec0_0000;
const IOAPIC_WINDOW: u64 = 0xfec0_0010;
const LAPIC: u64 = 0xfee0_0000;
const LAPIC_EOI: u64 = LAPIC + 0xb0;
const LAPIC_SPURIOUS: u64 = LAPIC + 0xf0;
const LAPIC_REQUESTS: u64 = LAPIC + 0x200;
const VECTOR: u32 = 0x41;
const TABLE: u64 = BUFFERS + 0x10_0000;
const DESCRIPTOR: u64 = TABLE - 16;

/// Leads line `gsi` to [`VECTOR`] of the first processor; the old controllers stay out of it.
fn route(script: &mut Script, gsi: u32) {
    script.out8(0x21, 0xff).out8(0xa1, 0xff).store32(LAPIC_SPURIOUS, 0x1ff);
    script.store32(IOAPIC_SELECT, 0x11 + 2 * gsi).store32(IOAPIC_WINDOW, 0);
    script.store32(IOAPIC_SELECT, 0x10 + 2 * gsi).store32(IOAPIC_WINDOW, VECTOR);
}

fn request_of(vector: u32) -> (u64, u32) {
    (LAPIC_REQUESTS + 0x10 * u64::from(vector / 32), 1 << (vector % 32))
}

/// Offers the chain at `head`, and waits for nothing.
fn ask(script: &mut Script, rng: Device, count: u16) {
    let ring = ring(0, 8);
    script.describe(&ring, 0, &[Descriptor::write(BUFFERS, 8)]).offer(&ring, 0, count);
    script.notify(rng, 0);
}

#[test]
fn used_buffers_and_a_failed_device_raise_the_line() {
    let (rng, ring) = (Device::number(0), ring(0, 8));
    let (requests, bit) = request_of(VECTOR);
    let mut script = Script::new();
    route(&mut script, rng.gsi);
    script.load32(requests).expect_bits(u64::from(bit), 0).start(rng, 0, &[ring]);
    ask(&mut script, rng, 1);
    script.wait_used(&ring, 1).wait32(requests, bit, bit).read(rng, INTERRUPT_STATUS).expect(1);
    script.write(rng, INTERRUPT_ACK, 2).read(rng, INTERRUPT_STATUS).expect(1);
    script.write(rng, INTERRUPT_ACK, 1).read(rng, INTERRUPT_STATUS).expect(0);
    // A driver that asks for none gets none in the status register either.
    script.store16(ring.avail, 1);
    ask(&mut script, rng, 2);
    script.wait_used(&ring, 2).read(rng, INTERRUPT_STATUS).expect(0);
    // DEVICE_NEEDS_RESET comes with a configuration change.
    script.offer(&ring, 99, 3).notify(rng, 0).wait_needs_reset(rng);
    script.read(rng, INTERRUPT_STATUS).expect(2).reset(rng).read(rng, INTERRUPT_STATUS).expect(0);
    run(script.exit(0), 0);
}

/// The guest sleeps with interrupts on and is woken: nothing is lost between the device and the processor.
#[test]
fn an_interrupt_wakes_a_sleeping_processor() {
    let (rng, ring) = (Device::number(0), ring(0, 8));
    let mut script = Script::new();
    route(&mut script, rng.gsi);
    script.copy(TABLE + 16 * u64::from(VECTOR), &Script::gate());
    script.store16(DESCRIPTOR, 0xfff).store64(DESCRIPTOR + 2, TABLE).start(rng, 0, &[ring]);
    for count in 1..=50 {
        ask(&mut script, rng, count);
        script.await_interrupt(DESCRIPTOR).load16(ring.used_index()).expect(u64::from(count));
        script.read(rng, INTERRUPT_STATUS).expect(1).write(rng, INTERRUPT_ACK, 1);
        script.store32(LAPIC_EOI, 0);
    }
    script.read(rng, STATUS).expect(15);
    run(script.exit(0), 0);
}

/// Input on the console wakes the guest through the serial port's line.
#[test]
fn typed_bytes_wake_a_sleeping_processor() {
    use crate::guest::Guest;
    use openshell_tests::machine::Input;

    let mut script = Script::new();
    route(&mut script, 4);
    script.copy(TABLE + 16 * u64::from(VECTOR), &Script::gate());
    script.store16(DESCRIPTOR, 0xfff).store64(DESCRIPTOR + 2, TABLE);
    script.out8(0x3f9, 1).say("ready");
    for _ in 0..3 {
        script.await_interrupt(DESCRIPTOR).in8(0x3f8).print().store32(LAPIC_EOI, 0);
    }
    let guest = Guest::new(script.exit(0));
    let mut running = guest.run().stdin(Input::Typed).spawn();
    running.wait_for("ready");
    for byte in *b"abc" {
        running.type_bytes(&[byte]);
        running.wait_for(&format!("{byte:016x}\n"));
    }
    guest.wait(running).expect_code(0);
}
