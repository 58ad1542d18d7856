//! How machines end: every way has its exit code and its words.

use std::time::{Duration, Instant};

use openshell_tests::bare::Script;

use crate::guest::{Guest, run};

const ACPI_SLEEP: u16 = 0x600;
const ACPI_RESET: u16 = 0x602;
const EVENT_SIGNAL: u16 = 0x682;
const I8042_COMMAND: u16 = 0x64;

#[test]
fn the_guests_exit_code_is_the_commands() {
    for code in 0..=255 {
        let finished = run(Script::new().exit(code), code);
        assert_eq!((finished.text().as_str(), finished.stderr.as_str()), ("", ""), "{code}");
    }
}

#[test]
fn a_guest_that_ends_itself_in_order_needs_no_words() {
    let endings: [(u16, u8, u8); 5] = [
        // The guest's main process was ended by signal 9.
        (EVENT_SIGNAL, 9, 137),
        (EVENT_SIGNAL, 0, 128),
        // S5 and "sleep now".
        (ACPI_SLEEP, 5 << 2 | 1 << 5, 0),
        (ACPI_RESET, 1, 0),
        (I8042_COMMAND, 0xfe, 0),
    ];
    for (port, value, code) in endings {
        let finished = run(Script::new().say("bye").out8(port, value).spin(), code);
        assert_eq!((finished.text().as_str(), finished.stderr.as_str()), ("bye", ""), "{port:#x}");
    }
}

#[test]
fn writes_that_end_nothing_end_nothing() {
    let mut script = Script::new();
    // Another sleep type, sleep without "now", another reset value, another keyboard command, wide and empty ports.
    script.out8(ACPI_SLEEP, 3 << 2 | 1 << 5).out8(ACPI_SLEEP, 5 << 2).out8(ACPI_RESET, 2);
    script.out8(I8042_COMMAND, 0xaa).out8(0x60, 0xfe).in8(I8042_COMMAND).expect(0);
    script.out16(0x681, 1).out32(0x681, 1).out32(0x602, 1).out8(0x683, 1).out8(0x680, 77);
    script.in8(0x680).expect(u64::from(b'O')).in8(0x681).expect(1).in8(0x682).expect(0);
    script.in8(0x777).expect(0xff).out8(0x777, 1).out32(0xffff, 1).in8(0xffff).expect(0xff);
    run(script.exit(7), 7);
}

#[test]
fn a_triple_fault_is_told_with_registers() {
    let finished = run(Script::new().say("last words\n").triple_fault(), 125);
    assert_eq!(finished.text(), "last words\n");
    for part in ["CPU 0", "triple fault", "rip", "cr3", "| last words"] {
        assert!(finished.stderr.contains(part), "{part}: {finished}");
    }
}

#[test]
fn a_guest_that_sleeps_for_good_is_found() {
    let begin = Instant::now();
    let finished = run(Script::new().say("good night").halt(), 125);
    assert!(finished.stderr.contains("halted every CPU for good"), "{finished}");
    assert!(finished.stderr.contains("| good night"), "{finished}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn the_time_limit_ends_a_guest_that_computes() {
    let guest = Guest::new(Script::new().say("busy").spin());
    let begin = Instant::now();
    let finished = guest.finish(guest.run().args(["--timeout", "1"])).expect_code(124);
    assert!((1..10).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    assert_eq!(finished.text(), "busy");
    for part in ["the time limit was reached", "| busy"] {
        assert!(finished.stderr.contains(part), "{part}: {finished}");
    }
}

#[test]
fn a_failed_expectation_names_its_line() {
    let mut script = Script::new();
    script.store32(0x20_0000, 7).load32(0x20_0000).expect(7).load16(0x20_0000).expect(8);
    let guest = Guest::new(&script);
    let finished = guest.run().finish().expect_code(99);
    let said = script.explain(&finished.text()).unwrap();
    assert!(said.contains("ends.rs:") && said.ends_with("0x0000000000000007"), "{said}");
}
