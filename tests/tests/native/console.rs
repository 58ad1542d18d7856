//! The console: the guest's bytes and nothing else, both ways, and a bounded buffer in between.

use std::fs;
use std::io::Read as _;
use std::time::{Duration, Instant};

use openshell_tests::bare::Script;
use openshell_tests::machine::Input;

use crate::guest::{Guest, run, wait_until_full};

/// Every byte value, in an order that shows a loss.
fn every_byte() -> Vec<u8> {
    (0..4096_u32)
        .flat_map(|i| [i * 7 % 256, (i >> 4) % 256])
        .map(|value| u8::try_from(value).unwrap())
        .collect()
}

#[test]
fn bytes_go_out_as_they_are() {
    let bytes = every_byte();
    let finished = run(Script::new().say(&bytes).exit(0), 0);
    assert_eq!((finished.stdout, finished.stderr.as_str()), (bytes, ""));
}

#[test]
fn what_is_typed_reaches_the_guest() {
    let script = Script::new().say("> ").echo_until(b'.').say("!").exit(0).clone();
    let guest = Guest::new(&script);
    let mut running = guest.run().stdin(Input::Typed).spawn();
    running.wait_for("> ");
    running.type_bytes(b"one ");
    running.wait_for("> one ");
    running.type_bytes(b"two.");
    let finished = guest.wait(running).expect_code(0);
    assert_eq!(finished.text(), "> one two!");
}

#[test]
fn input_of_any_length_arrives_whole() {
    let mut bytes: Vec<u8> =
        every_byte().into_iter().cycle().take(10_000).filter(|&byte| byte != 0).collect();
    let script = Script::new().echo_until(0).exit(0).clone();
    let guest = Guest::new(&script);
    fs::write(guest.path("input"), [&bytes[..], &[0, 1, 2]].concat()).unwrap();
    let file = fs::File::open(guest.path("input")).unwrap();
    let from_file = guest.finish(guest.run().stdin(Input::From(file.into()))).expect_code(0);
    assert!(from_file.stdout == bytes, "{} bytes of {}", from_file.stdout.len(), bytes.len());
    bytes.push(0);
    let from_pipe = guest.finish(guest.run().stdin(Input::Bytes(bytes.clone()))).expect_code(0);
    bytes.pop();
    assert!(from_pipe.stdout == bytes, "{} bytes of {}", from_pipe.stdout.len(), bytes.len());
}

#[test]
fn a_console_file_takes_the_output_and_standard_output_nothing() {
    let guest = Guest::new(Script::new().say("to the file\n").exit(3));
    let mut console = std::ffi::OsString::from("file=");
    console.push(guest.path("log"));
    let finished = guest.finish(guest.run().arg("--console").arg(console)).expect_code(3);
    assert_eq!((finished.text().as_str(), finished.stderr.as_str()), ("", ""));
    assert_eq!(fs::read(guest.path("log")).unwrap(), b"to the file\n");
}

#[test]
fn without_a_console_the_guest_goes_on() {
    let guest = Guest::new(Script::new().say(vec![b'x'; 70_000]).exit(4));
    let finished = guest.finish(guest.run().args(["--console", "none"])).expect_code(4);
    assert_eq!((finished.text().as_str(), finished.stderr.as_str()), ("", ""));
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_guest() {
    for full in [false, true] {
        let guest = Guest::new(Script::new().say("first").say(vec![b'x'; 75_000]).exit(5));
        let (mut reader, writer) = std::io::pipe().unwrap();
        let running = guest.run().stdout(writer).spawn();
        reader.read_exact(&mut [0; 5]).unwrap();
        if full {
            wait_until_full(running.pid());
        }
        drop(reader);
        guest.wait(running).expect_code(5);
    }
}

#[test]
fn output_that_nobody_reads_costs_bounded_memory_and_holds_no_end_up() {
    let mut script = Script::new();
    let forever = script.repeat(u64::MAX);
    // Straight to the port, busy or not.
    for _ in 0..64 {
        script.out8(openshell_tests::bare::SERIAL_PORT, b'x');
    }
    script.again(forever);
    let guest = Guest::new(&script);
    let (reader, writer) = std::io::pipe().unwrap();
    let running = guest.run().stdout(writer).spawn();
    std::thread::sleep(Duration::from_millis(1000));
    let before = running.own_memory_kib();
    std::thread::sleep(Duration::from_millis(1000));
    let grown_kib = running.own_memory_kib().saturating_sub(before);
    assert!(before > 0 && grown_kib < 512, "{before} KiB, then {grown_kib} more");
    let begin = Instant::now();
    running.signal(libc::SIGTERM);
    guest.wait(running).expect_code(143);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    drop(reader);
}
