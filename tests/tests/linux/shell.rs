//! The interactive shell, from a window.

use std::time::{Duration, Instant};

use openshell_tests::machine::{Input, Running};
use openshell_tests::pty::Window;

use crate::guest::Guest;

const PATIENCE: Duration = Duration::from_mins(3);
const PROMPT: &str = "# ";
const CTRL_C: &[u8] = b"\x03";
const DETACH: &[u8] = b"\x1d";

/// A guest with a shell in a window, and how much of the window its first prompt ends.
#[track_caller]
fn shell(guest: Guest) -> (Window, Running, tempfile::TempDir, usize) {
    let window = Window::open().unwrap();
    assert!(window.modes().unwrap().is_cooked());
    let (run, directory) = guest.prepare();
    let run = run
        .stdin(Input::From(window.program_side().unwrap().into()))
        .stdout(window.program_side().unwrap());
    let running = run.spawn();
    let up = window.wait_for("guest is up: Linux", 0, PATIENCE).unwrap();
    let at = window.wait_for(PROMPT, up, PATIENCE).unwrap();
    (window, running, directory, at)
}

#[test]
fn a_session_from_prompt_to_exit() {
    let window = Window::open().unwrap();
    let before = window.modes().unwrap();
    drop(window);
    let (mut window, running, _directory, at) = shell(Guest::new());
    assert!(!window.modes().unwrap().is_cooked());

    window.type_keys(b"echo answer=$((6 * 7))\r").unwrap();
    let at = window.wait_for("\r\nanswer=42\r\n", at, PATIENCE).unwrap();
    let at = window.wait_for(PROMPT, at, PATIENCE).unwrap();

    // A shell that has not given the terminal to a command yet may take Ctrl-C itself, and then waits for the command.
    window.type_keys(b"sh -c 'echo start; exec sleep 1000'\r").unwrap();
    let at = window.wait_for("\r\nstart\r\n", at, PATIENCE).unwrap();
    window.type_keys(CTRL_C).unwrap();
    let at = window.wait_for(PROMPT, at, PATIENCE).unwrap();
    assert!(!running.has_ended(), "Ctrl-C ended the machine");
    window.type_keys(b"echo status=$?\r").unwrap();
    let at = window.wait_for("\r\nstatus=130\r\n", at, PATIENCE).unwrap();
    window.wait_for(PROMPT, at, PATIENCE).unwrap();

    window.type_keys(b"exit\r").unwrap();
    let finished = running.wait().expect_code(0);
    assert_eq!(finished.stderr, "");
    assert_eq!(window.modes().unwrap(), before, "the window is as it was");
}

#[test]
fn the_detach_key_gives_the_keyboard_back() {
    let window = Window::open().unwrap();
    let before = window.modes().unwrap();
    drop(window);
    let (mut window, running, _directory, at) = shell(Guest::new());
    window.type_keys(b"while :; do echo tick; usleep 200000; done\r").unwrap();
    window.wait_for("\r\ntick\r\n", at, PATIENCE).unwrap();
    window.type_keys(DETACH).unwrap();
    let ends = Instant::now() + PATIENCE;
    while window.modes().unwrap() != before {
        assert!(Instant::now() < ends, "the window stays raw");
        std::thread::yield_now();
    }
    let at = window.text().len();
    window.wait_for("tick", at, PATIENCE).expect("the guest goes on");
    assert!(!running.has_ended());
    running.signal(libc::SIGINT);
    let finished = running.wait().expect_code(130);
    assert_eq!(finished.stderr, "");
    assert_eq!(window.modes().unwrap(), before);
}

#[test]
fn a_signal_leaves_the_window_as_it_was() {
    let (window, running, _directory, _at) = shell(Guest::new());
    running.signal(libc::SIGTERM);
    drop(running.wait().expect_code(143));
    assert!(window.modes().unwrap().is_cooked());
}
