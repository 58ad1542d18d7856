//! A command at a terminal: size and its change, keys that are signals, jobs.

use std::time::{Duration, Instant};

use openshell_agent_proto::{FromGuest, FromHost, Stream};

use super::super::connection::Connection;
use super::*;

/// A command at a terminal, and what was shown.
struct Screen {
    connection: Connection,
    shown: Vec<u8>,
    exit: Option<Exit>,
    ends: Instant,
}

impl Screen {
    fn open(machine: &Machine, script: &str, columns: u16, rows: u16) -> Self {
        let exec = shell(script, Stdio::Terminal(Size { columns, rows }));
        let connection = Connection::open(&machine.path(), &FromHost::Exec(exec)).unwrap();
        let ends = Instant::now() + Duration::from_secs(30);
        Self { connection, shown: Vec::new(), exit: None, ends }
    }

    fn step(&mut self) {
        self.connection.flush().unwrap();
        match self.connection.decoder.next().unwrap() {
            Some(FromGuest::Data(Stream::Output, bytes)) => self.shown.extend(bytes),
            Some(FromGuest::Exited(exit)) => self.exit = Some(exit),
            Some(FromGuest::Started(_) | FromGuest::Credit(..) | FromGuest::End(_)) => {}
            Some(other) => panic!("{other:?}"),
            None => {
                let text = String::from_utf8_lossy(&self.shown).into_owned();
                self.connection
                    .wait(Some(self.ends))
                    .unwrap_or_else(|error| panic!("{error}: {text}"));
                self.connection.receive().unwrap();
            }
        }
    }

    fn wait_for(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.shown).contains(text) {
            assert_eq!(self.exit, None, "no {text:?}: {}", String::from_utf8_lossy(&self.shown));
            self.step();
        }
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.connection.send(&FromHost::Data(Stream::Input, keys));
    }

    fn end(mut self) -> (Exit, String) {
        while self.exit.is_none() {
            self.step();
        }
        (self.exit.unwrap(), String::from_utf8(self.shown).unwrap())
    }
}

#[test]
fn a_terminal_has_the_size_it_is_given_and_is_the_controlling_one() {
    let machine = Machine::new();
    let mut screen = Screen::open(
        &machine,
        "trap 'stty size; exit 6' WINCH; test -t 0 && test -t 1 && test -t 2 && echo three
         stty size; echo $TERM >/dev/tty; while :; do sleep 0.1; done",
        101,
        31,
    );
    screen.wait_for("three\r\n31 101\r\nxterm\r\n");
    screen.connection.send(&FromHost::Resize(Size { columns: 77, rows: 22 }));
    let (exit, text) = screen.end();
    assert!(exit == Exit::Code(6) && text.ends_with("22 77\r\n"), "{exit:?} {text:?}");
}

#[test]
fn keys_are_echoed_and_ctrl_c_is_a_signal() {
    let machine = Machine::new();
    let mut screen =
        Screen::open(&machine, "echo ready; read line; echo got $line; exec cat", 80, 24);
    screen.wait_for("ready");
    screen.type_keys(b"words\r");
    screen.wait_for("words\r\ngot words\r\n");
    // A shell that is about to become the program may take the key for itself.
    screen.type_keys(b"more\r");
    screen.wait_for("more\r\nmore\r\n");
    screen.type_keys(b"\x03");
    let (exit, text) = screen.end();
    assert!(exit.code() == 130 && text.contains("^C"), "{exit:?} {text:?}");
}

#[test]
fn a_shell_stops_and_continues_jobs() {
    let machine = Machine::new();
    let mut screen = Screen::open(&machine, "exec /bin/sh -i", 80, 24);
    screen.type_keys(b"sleep 1000\r");
    screen.wait_for("sleep 1000\r\n");
    // Until the shell has given the terminal to the job.
    std::thread::sleep(Duration::from_millis(300));
    screen.type_keys(b"\x1a");
    screen.wait_for("Stopped");
    screen.type_keys(b"fg\r");
    screen.wait_for("fg\r\nsleep 1000\r\n");
    std::thread::sleep(Duration::from_millis(300));
    screen.type_keys(b"\x03");
    screen.wait_for("^C");
    screen.type_keys(b"exit 7\r");
    let (exit, text) = screen.end();
    assert_eq!(exit, Exit::Code(7), "{text}");
}

#[test]
fn the_last_words_at_a_terminal_are_shown() {
    let machine = Machine::new();
    for _ in 0..30 {
        let screen = Screen::open(&machine, "seq 1 2000; exit 9", 80, 24);
        let (exit, text) = screen.end();
        assert!(exit == Exit::Code(9) && text.ends_with("1999\r\n2000\r\n"), "{exit:?} {text:?}");
    }
}

#[test]
fn who_hangs_up_ends_what_ran() {
    let machine = Machine::new();
    let mut screen =
        Screen::open(&machine, "set -m; sleep 1000 & echo pids $$ $! end; wait", 80, 24);
    screen.wait_for(" end");
    let text = String::from_utf8_lossy(&screen.shown).into_owned();
    let pids = text.split("pids ").nth(1).unwrap().split(" end").next().unwrap().to_owned();
    let ends = screen.ends;
    drop(screen);
    let lives = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    while pids.split_whitespace().any(lives) {
        assert!(Instant::now() < ends, "{pids} live on");
        std::thread::sleep(Duration::from_millis(20));
    }
}
