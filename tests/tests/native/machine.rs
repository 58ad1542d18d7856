//! The machine's size: processors that wait to be started, memory below and past the hole.

use std::time::{Duration, Instant};

use openshell_tests::bare::Script;

use crate::guest::Guest;

const LAPIC: u64 = 0xfee0_0000;
const ICR_LOW: u64 = LAPIC + 0x300;
const ICR_HIGH: u64 = LAPIC + 0x310;
const PAGE_POINTERS: u64 = 0xa000;
const HIGH_RAM: u64 = 1 << 32;
const MIB: u64 = 1 << 20;

#[test]
fn thirty_two_processors_start_and_stop() {
    let guest = Guest::new(Script::new().say("up").spin());
    let running = guest.run().args(["--cpus", "32"]).spawn();
    running.wait_for("up");
    // The first one runs while the others are still being started.
    let begin = Instant::now();
    while running.threads().iter().filter(|name| name.starts_with("vcpu")).count() < 32 {
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", running.threads());
        std::thread::sleep(Duration::from_millis(5));
    }
    running.signal(libc::SIGTERM);
    guest.wait(running).expect_code(143);
    let guest = Guest::new(Script::new().exit(9));
    guest.finish(guest.run().args(["--cpus", "32"])).expect_code(9);
}

#[test]
fn a_machine_of_many_sleeping_processors_is_found_halted() {
    let guest = Guest::new(Script::new().halt());
    let finished = guest.finish(guest.run().args(["--cpus", "8"])).expect_code(125);
    assert!(finished.stderr.contains("halted every CPU for good"), "{finished}");
}

/// The second processor is started as an operating system does it, and leaves a mark from real mode.
#[test]
fn a_second_processor_starts_on_init_and_startup() {
    const TRAMPOLINE: u64 = 0x3_0000;
    // mov byte ptr cs:[0x100], 0x5a; hlt; jmp back
    let startup = u32::try_from(TRAMPOLINE >> 12).unwrap();
    let code = [0x2e, 0xc6, 0x06, 0x00, 0x01, 0x5a, 0xf4, 0xeb, 0xfd];
    let mut script = Script::new();
    script.copy(TRAMPOLINE, &code).store8(TRAMPOLINE + 0x100, 0);
    script.store32(ICR_HIGH, 1 << 24).store32(ICR_LOW, 0x4500).wait32(ICR_LOW, 1 << 12, 0);
    script.store32(ICR_HIGH, 1 << 24).store32(ICR_LOW, 0x4600 | startup);
    script.wait8(TRAMPOLINE + 0x100, 0xff, 0x5a).exit(0);
    let guest = Guest::new(&script);
    guest.finish(guest.run().args(["--cpus", "2"])).expect_code(0);
}

#[test]
fn the_smallest_memory_ends_where_it_should() {
    let mut script = Script::new();
    let last = 32 * MIB - 8;
    script.store64(last, 0x0123_4567_89ab_cdef).load64(last).expect(0x0123_4567_89ab_cdef);
    // Past the end there is nothing: reads give ones, writes go nowhere.
    script.load64(32 * MIB).expect(u64::MAX).store64(32 * MIB, 1).load64(32 * MIB).expect(u64::MAX);
    script.load32(0xd00f_f000).expect(0xffff_ffff).exit(0);
    let guest = Guest::new(&script);
    guest.finish(guest.run()).expect_code(0);
}

#[test]
fn six_gibibytes_go_around_the_hole() {
    const DIRECTORIES: u64 = 0x40_0000;
    let top = 3 * (1 << 30);
    let mut script = Script::new();
    script.fill(DIRECTORIES, 2 * 4096, 0);
    // The last page of 2 MiB below the hole, the first and the last one of RAM above it.
    for (gib, page) in [(2, top - 2 * MIB), (4, HIGH_RAM), (4, HIGH_RAM + (1 << 30) - 2 * MIB)] {
        let directory = DIRECTORIES + if gib == 2 { 0 } else { 4096 };
        script.store64(directory + 8 * (page >> 21 & 511), page | 0x83);
        script.store64(PAGE_POINTERS + 8 * gib, directory | 3);
    }
    let places = [HIGH_RAM, HIGH_RAM + 4096, HIGH_RAM + (1 << 30) - 8];
    for (value, addr) in (1..).zip(places) {
        script.load64(addr).expect(0).store64(addr, value);
    }
    script.load64(top - 8).expect(0).store64(top - 8, 99);
    for (value, addr) in (1..).zip(places) {
        script.load64(addr).expect(value);
    }
    script.load64(top - 8).expect(99).load64(top).expect(u64::MAX).exit(0);
    let guest = Guest::new(&script);
    guest.finish(guest.run_with_memory("6G")).expect_code(0);
}
