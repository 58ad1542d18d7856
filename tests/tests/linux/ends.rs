//! Every way a machine ends, and what is said about it.

use std::fs;

use serde_json::Value;

use crate::guest::Guest;

#[test]
fn power_off_and_reboot_end_in_good_order() {
    for (kernel, command) in [
        ("vmlinux-sandbox", "poweroff -f"),
        ("vmlinux-sandbox", "reboot -f"),
        ("vmlinux-tiny", "reboot -f"),
    ] {
        let script = format!("echo going; {command}; sleep 1000");
        let finished = Guest::running(&script).kernel(kernel).finish();
        assert!(finished.text().contains("going\r"), "{kernel} {command}: {finished}");
        assert_eq!(finished.stderr, "", "{kernel} {command}");
    }
}

#[test]
fn the_guests_status_is_the_exit_code() {
    for (command, code) in [
        ("exit-code 42", 42),
        ("exit-code 255", 255),
        ("exit-signal 9", 137),
        ("exit-signal 15", 143),
    ] {
        let guest = Guest::running(&format!("guest-probe {command}"));
        let result = guest.path("result");
        let (running, _directory) = guest.option("--result", &result).start();
        let finished = running.wait().expect_code(code);
        assert_eq!(finished.stderr, "", "{command}");
        let told: Value = serde_json::from_slice(&fs::read(&result).unwrap()).unwrap();
        assert_eq!(
            (told["source"].as_str(), told["code"].as_u64()),
            (Some("guest"), Some(code.into()))
        );
    }
}

/// Checks a machine that ended in a panic: exit code, the reason in words, the same for programs, and the console.
#[track_caller]
fn assert_panics(guest: Guest, reason: &str, meaning: &str) {
    let result = guest.path("result");
    let (running, _directory) = guest.option("--result", &result).start();
    let finished = running.wait().expect_code(125);
    let text = &finished.stderr;
    for part in [
        "error: the guest kernel panicked: ",
        reason,
        meaning,
        "last phase completed: ",
        "console lines:",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{finished}");
    }
    assert!(text.contains("| ") && text.contains("Kernel panic - not syncing: "), "{finished}");
    let told: Value = serde_json::from_slice(&fs::read(&result).unwrap()).unwrap();
    assert_eq!(
        (told["source"].as_str(), told["code"].as_u64()),
        (Some("panic"), Some(125)),
        "{told}"
    );
    assert!(told["reason"].as_str().is_some_and(|text| text.contains(reason)), "{told}");
    let tail = told["console_tail"].as_array().expect("the last lines");
    let has_panic = |line: &Value| line.as_str().is_some_and(|line| line.contains("Kernel panic"));
    assert!(tail.len() <= 40 && tail.iter().any(has_panic), "{told}");
}

#[test]
fn a_panic_is_told_with_its_reason() {
    for kernel in ["vmlinux-sandbox", "vmlinux-tiny"] {
        let exits = Guest::new().kernel(kernel).append("init=/bin/false");
        assert_panics(
            exits,
            "Attempted to kill init! exitcode=0x00000100",
            "init exited with status 1",
        );
    }
    let killed = Guest::new().append("init=/bin/guest-probe -- abort");
    assert_panics(
        killed,
        "Attempted to kill init! exitcode=0x0000000b",
        "init was ended by signal 11",
    );
}

#[test]
fn a_lost_root_disk_is_told() {
    for kernel in ["vmlinux-tiny", "vmlinux-sandbox"] {
        let guest = Guest::new().kernel(kernel).append("root=/dev/vdb");
        assert_panics(
            guest,
            "VFS: Unable to mount root fs",
            "no file system that it can mount as root",
        );
    }
}

#[test]
fn a_root_disk_without_init_is_told() {
    let guest = Guest::new().append("init=/bin/nothing");
    assert_panics(guest, "Requested init /bin/nothing failed", "no program that can run as init");
}

#[test]
fn the_time_limit_ends_a_machine_that_goes_on() {
    let guest = Guest::running("guest-probe mark-init; sleep 1000");
    let finished = guest.option("--timeout", "20s").end().expect_code(124);
    assert!(
        finished.stderr.contains("error: the time limit was reached\n  the guest was running\n"),
        "{finished}"
    );
}

#[test]
fn signals_end_a_machine_in_good_order() {
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let (running, _directory) = Guest::running("echo running; sleep 1000").start();
        running.wait_for("running\r");
        running.signal(signal);
        let finished = running.wait().expect_code(code);
        assert_eq!(finished.stderr, "");
    }
}
