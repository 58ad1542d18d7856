//! Signals: one stops the machine in order, a second one ends the process at once, and nothing is left by either, or by SIGKILL.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use openshell_tests::bare::Script;

use crate::guest::{Guest, wait_until_full};

const PROMPT: Duration = Duration::from_secs(5);

/// A guest that says that it runs and then does `last`, with a disk, a vsock device and a result file.
fn guest(last: impl Fn(&mut Script) -> &mut Script) -> Guest {
    let mut script = Script::new();
    script.say("up\n");
    last(&mut script);
    let guest = Guest::new(&script);
    File::create(guest.path("disk")).unwrap().set_len(1 << 20).unwrap();
    guest
}

fn run(guest: &Guest) -> openshell_tests::machine::Run {
    // A temporary file would be found among the guest's files.
    let run = guest.run().env("TMPDIR", guest.directory()).arg("--disk").arg(guest.path("disk"));
    run.arg("--vsock").arg(guest.path("vsock")).arg("--result").arg(guest.path("result"))
}

/// Whether another process could take the disk.
fn disk_is_free(guest: &Guest) -> bool {
    File::options().write(true).open(guest.path("disk")).unwrap().try_lock().is_ok()
}

#[test]
fn an_ending_signal_stops_the_machine_in_order() {
    let ways: [fn(&mut Script) -> &mut Script; 2] = [Script::spin, Script::halt];
    for way in ways {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            let guest = guest(way);
            let running = run(&guest).spawn();
            running.wait_for("up\n");
            assert!(!disk_is_free(&guest));
            assert!(UnixStream::connect(guest.path("vsock")).is_ok());
            let begin = Instant::now();
            running.signal(signal);
            let code = u8::try_from(128 + signal).unwrap();
            let finished = guest.wait(running).expect_code(code);
            assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
            assert_eq!((finished.text().as_str(), finished.stderr.as_str()), ("up\n", ""));
            assert!(disk_is_free(&guest));
            assert_eq!(guest.files(), ["disk", "guest.elf", "result"]);
            let result: serde_json::Value =
                serde_json::from_slice(&fs::read(guest.path("result")).unwrap()).unwrap();
            assert_eq!(result["source"], "signal");
            assert_eq!(result["code"], u64::from(code));
        }
    }
}

#[test]
fn a_signal_before_the_guest_runs_is_not_lost() {
    let guest = guest(Script::spin);
    for delay in [0, 1, 2, 3, 5, 8, 13, 21].map(Duration::from_millis) {
        let running = run(&guest).spawn();
        std::thread::sleep(delay);
        running.signal(libc::SIGTERM);
        let finished = guest.wait(running);
        // Very early it is still the default action that ends the process.
        let by_default = finished.signal == Some(libc::SIGTERM);
        assert!(finished.code == Some(128 + libc::SIGTERM) || by_default, "{finished}");
        assert!(disk_is_free(&guest));
    }
}

#[test]
fn sigkill_leaves_no_process_and_no_lock() {
    let guest = guest(Script::spin);
    for _ in 0..3 {
        let running = run(&guest).spawn();
        running.wait_for("up\n");
        running.signal(libc::SIGKILL);
        assert_eq!(guest.wait(running).signal, Some(libc::SIGKILL));
        // A socket's name outlives its owner; the next run takes it over, and the disk at once.
        let mut files = guest.files();
        files.retain(|name| name != "result");
        assert_eq!(files, ["disk", "guest.elf", "vsock"]);
    }
    let begin = Instant::now();
    while !disk_is_free(&guest) {
        assert!(begin.elapsed() < PROMPT, "the disk is still locked");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A reader of the console that takes nothing holds up the end for a second: long enough for a second signal.
#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut script = Script::new();
    let forever = script.repeat(u64::MAX);
    script.say([b'x'; 512]).again(forever);
    let guest = Guest::new(&script);
    let (reader, writer) = std::io::pipe().unwrap();
    let running = guest.run().stdout(writer).spawn();
    wait_until_full(running.pid());
    let begin = Instant::now();
    running.signal(libc::SIGTERM);
    // The first one is taken when its handler's table is in place: the stop has begun.
    while !handles(running.pid(), libc::SIGINT) && !running.has_ended() {
        std::thread::yield_now();
    }
    running.signal(libc::SIGINT);
    let finished = guest.wait(running);
    let took = begin.elapsed();
    drop(reader);
    assert_eq!(finished.code, Some(128 + libc::SIGINT), "{finished}");
    assert!(took < Duration::from_millis(900), "{took:?}");
}

/// Whether the process has a handler for `signal`.
fn handles(pid: u32, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    caught & 1 << (signal - 1) != 0
}
