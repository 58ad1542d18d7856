//! The main process's own streams, from the outside: pipes, a terminal, and who attaches later.

use std::io::{Read as _, Write as _, pipe};
use std::thread;
use std::time::Duration;

use openshell_tests::machine::{Input, Running};
use openshell_tests::pty::Window;

use crate::rig::{DEADLINE, Home};

/// A gibibyte there and back in an emulated machine.
const MUCH_DEADLINE: Duration = Duration::from_mins(20);
const SIGINT: i32 = 2;
const SIGWINCH: i32 = 28;
const CTRL_C: &[u8] = b"\x03";
const DETACH: &[u8] = b"\x10\x11";
const PROMPT: &str = "# ";

#[test]
fn without_a_terminal_three_pipes_carry_every_byte() {
    let home = Home::new();
    let image = home.shell_image();
    let every: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let script = "cat; echo bad >&2; printf 'last\\r\\n'; exit 9";
    let finished = home
        .run(["-i", &image, "--", script])
        .stdin(Input::Bytes(every.clone()))
        .finish()
        .expect_code(9);
    assert_eq!(finished.stderr, "bad\n");
    assert!(finished.stdout == [&every[..], b"last\r\n"].concat(), "{finished}");
    let script = "cat; busybox test -t 0 -o -t 1 || echo no terminal";
    let finished = home
        .run([&image, "--", script])
        .stdin(Input::Bytes(b"unread".to_vec()))
        .finish()
        .expect_code(0);
    assert_eq!(finished.text(), "no terminal\n");
}

#[test]
fn a_gibibyte_goes_through_unchanged_and_who_reads_no_more_is_told_to_the_process() {
    const PIECES: u64 = 1024;
    let words = (0..1 << 17_u64).map(|word: u64| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut want: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let mut piece = vec![0; want.len()];
    let home = Home::new();
    let image = home.shell_image();
    let (mut output, stdout) = pipe().unwrap();
    let (stdin, mut input) = pipe().unwrap();
    let run = home.run(["-i", &image, "--", "exec cat"]).stdout(stdout).deadline(MUCH_DEADLINE);
    let running = run.stdin(Input::From(stdin.into())).spawn();
    let mut give = want.clone();
    let giver = thread::Builder::new().name("giver".to_owned()).spawn(move || {
        for number in 0..PIECES {
            give[..8].copy_from_slice(&number.to_le_bytes());
            input.write_all(&give).unwrap();
        }
    });
    let giver = giver.unwrap();
    for number in 0..PIECES {
        want[..8].copy_from_slice(&number.to_le_bytes());
        output.read_exact(&mut piece).unwrap();
        assert!(piece == want, "piece {number} is not as it was");
    }
    giver.join().unwrap();
    assert_eq!(output.read(&mut piece).unwrap(), 0);
    running.wait().expect_code(0);
    let (mut output, stdout) = pipe().unwrap();
    let running = home.run([&image, "--", "exec busybox yes"]).stdout(stdout).spawn();
    output.read_exact(&mut piece).unwrap();
    drop(output);
    running.wait().expect_code(128 + 13);
}

/// `words` at a window of 100 columns and 30 rows.
fn at_window(home: &Home, words: &[&str]) -> (Window, Running) {
    let window = Window::open().unwrap();
    window.resize(100, 30).unwrap();
    let run = if words[0] == "attach" { home.command(words) } else { home.run(words) };
    let run = run.stdin(Input::From(window.program_side().unwrap().into()));
    let running = run.stdout(window.program_side().unwrap()).spawn();
    (window, running)
}

#[test]
fn a_terminal_has_the_windows_size_its_keys_and_its_jobs() {
    let home = Home::new();
    let image = home.shell_image();
    let before = Window::open().unwrap().modes().unwrap();
    let words = ["-i", "-t", &image, "--", "stty size; exec sh"];
    let (mut window, running) = at_window(&home, &words);
    let at = window.wait_for("30 100\r\n", 0, DEADLINE).unwrap();
    let at = window.wait_for(PROMPT, at, DEADLINE).unwrap();
    assert!(!window.modes().unwrap().is_cooked());

    window.resize(90, 20).unwrap();
    running.signal(SIGWINCH);
    window
        .type_keys(b"while [ \"$(stty size)\" != '20 90' ]; do :; done; echo re''sized\r")
        .unwrap();
    let at = window.wait_for("resized\r\n", at, DEADLINE).unwrap();
    let at = window.wait_for(PROMPT, at, DEADLINE).unwrap();

    window.type_keys(b"sh -c 'echo st''art; exec sleep 1000'\r").unwrap();
    let at = window.wait_for("start\r\n", at, DEADLINE).unwrap();
    window.type_keys(CTRL_C).unwrap();
    let at = window.wait_for(PROMPT, at, DEADLINE).unwrap();
    window.type_keys(b"echo status=$?; sleep 1000 & jobs; kill %1\r").unwrap();
    let at = window.wait_for("status=130\r\n", at, DEADLINE).unwrap();
    let at = window.wait_for("Running", at, DEADLINE).unwrap();
    let at = window.wait_for(PROMPT, at, DEADLINE).unwrap();
    window.type_keys(b"exit 5\r").unwrap();
    assert_eq!(running.wait().expect_code(5).stderr, "");
    assert!(!window.text()[at..].contains(PROMPT));
    assert_eq!(window.modes().unwrap(), before, "the window is as it was");
}

#[test]
fn who_attaches_reads_and_one_of_them_writes() {
    let home = Home::new();
    let image = home.shell_image();
    let script = "echo note >&2; while read line; do echo got $line; done; echo over; exit 6";
    home.run(["-d", "-i", "-n", "work", &image, "--", script]).finish().expect_code(0);
    let attach = |words: &[&str]| {
        home.command(["attach"]).args(words).arg("work").stdin(Input::Typed).spawn()
    };
    let mut first = attach(&["--sig-proxy=false"]);
    first.type_bytes(b"one\n");
    first.wait_for("got one\n");
    let reader = attach(&["--no-stdin"]);
    let refused = attach(&[]).wait().expect_code(125);
    assert!(refused.stderr.contains("another has the input"), "{refused}");
    first.signal(SIGINT);
    assert_eq!(first.wait().signal, Some(SIGINT));
    let mut second = attach(&[]);
    second.type_bytes(b"two\n");
    second.wait_for("got two\n");
    reader.wait_for("got two\n");
    second.end_input();
    for attached in [second, reader] {
        let finished = attached.wait().expect_code(6);
        assert!(finished.text().ends_with("got two\nover\n"), "{finished}");
    }
    let logs = home.command(["logs", "work"]).finish().expect_code(0);
    assert!(logs.text().ends_with("got one\ngot two\nover\n"), "{logs}");
    assert!(logs.stderr.starts_with("note\n"), "{logs}");
    assert_eq!(home.says(&["logs", "--source", "guest", "--tail", "1", "work"]), "over\n");
    home.says(&["rm", "work"]);
}

#[test]
fn keys_leave_a_terminal_and_its_machine_goes_on() {
    let home = Home::new();
    let image = home.shell_image();
    home.run(["-d", "-i", "-t", "-n", "work", &image, "--", "exec sh"]).finish().expect_code(0);
    let before = Window::open().unwrap().modes().unwrap();
    for (number, code) in [(1, 0), (2, 4)] {
        let (mut window, running) = at_window(&home, &["attach", "work"]);
        window.wait_until_raw(DEADLINE).unwrap();
        window.type_keys(format!("echo num''ber {number}; stty size\r").as_bytes()).unwrap();
        let at = window.wait_for(&format!("number {number}\r\n"), 0, DEADLINE).unwrap();
        let at = window.wait_for("30 100\r\n", at, DEADLINE).unwrap();
        window.wait_for(PROMPT, at, DEADLINE).unwrap();
        let keys = if code == 0 { DETACH } else { b"exit 4\r" };
        window.type_keys(keys).unwrap();
        assert_eq!(running.wait().expect_code(code).stderr, "");
        assert_eq!(window.modes().unwrap(), before, "the window is as it was");
        if code == 0 {
            thread::sleep(Duration::from_millis(200));
            assert_eq!(home.status("work"), "running");
        }
    }
    home.says(&["rm", "work"]);
}
