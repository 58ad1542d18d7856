//! The last lines of the guest's console, kept so that a boot that failed can be explained.
//!
//! Invariant: at most [`MAX_LINES`] lines of [`MAX_LINE_BYTES`] bytes are held, whatever the guest prints, and what is
//! handed out holds no control character. The serial device owns one and pushes to it from whichever thread serves it.

use std::collections::VecDeque;

/// Number of lines kept.
pub const MAX_LINES: usize = 40;
/// Bytes kept of one line; the rest of a longer line is dropped.
pub const MAX_LINE_BYTES: usize = 512;

const PANIC: &[u8] = b"Kernel panic - not syncing: ";
/// What the kernel prints at its highest level when user space asked for the end, and never after a panic.
const ORDERLY: [&[u8]; 3] =
    [b"reboot: Restarting system", b"reboot: Power down", b"reboot: System halted"];
const INIT: (&[u8], &[u8]) = (b"Run ", b" as init process");

/// The last lines of a console, escape sequences taken out.
#[derive(Debug, Default, Clone)]
pub struct ConsoleTail {
    lines: VecDeque<Vec<u8>>,
    /// The line being printed.
    line: Vec<u8>,
    state: State,
    /// A carriage return was seen: the next byte starts the line again, unless it ends it.
    returned: bool,
    panic: Option<String>,
    started_init: bool,
    ended_in_order: bool,
}

/// Where in an escape sequence (ECMA-48) the stream is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate byte: one more byte ends it.
    Intermediate,
    /// After ESC `[`, until a byte of `@` to `~`.
    Csi,
    /// After ESC and one of `]PX^_`, until BEL or ESC `\`.
    String,
    /// After ESC inside such a string.
    StringEscape,
}

impl ConsoleTail {
    /// Takes bytes as the guest printed them.
    pub fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.push_byte(byte);
        }
    }

    /// The lines, oldest first; the last one may be incomplete. Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let unfinished = Some(&self.line).filter(|line| !line.is_empty());
        let lines: Vec<_> = self.lines.iter().chain(unfinished).map(|line| text(line)).collect();
        lines[lines.len().saturating_sub(MAX_LINES)..].to_vec()
    }

    /// What the guest kernel gave as its reason to panic, the first time it did. It is kept after its line is gone.
    ///
    /// User space can print such a line too: this explains an end that is known to be bad, it does not prove one.
    #[must_use]
    pub fn panic(&self) -> Option<String> {
        self.panic.clone().or_else(|| panic_reason(&self.line))
    }

    /// The kernel said that user space asked it to restart, power off or halt. What looked like a panic before was none.
    #[must_use]
    pub fn ended_in_order(&self) -> bool {
        self.ended_in_order || orderly(&self.line)
    }

    /// The kernel said that it starts init. A quiet kernel does not say so.
    #[must_use]
    pub fn started_init(&self) -> bool {
        self.started_init
    }

    fn push_byte(&mut self, byte: u8) {
        if byte == b'\n' {
            // A line end also ends a sequence: a broken one must not swallow the rest of the log.
            self.state = State::Text;
            self.returned = false;
            self.end_line();
            return;
        }
        self.state = match (self.state, byte) {
            (State::StringEscape, b'\\') | (State::String, 0x07) => State::Text,
            (State::String | State::StringEscape, 0x1b) => State::StringEscape,
            (State::String | State::StringEscape, _) => State::String,
            (_, 0x1b) => State::Escape,
            (State::Escape, b'[') => State::Csi,
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::String,
            (State::Escape | State::Intermediate, 0x20..=0x2f) => State::Intermediate,
            (State::Escape | State::Intermediate, _) | (State::Csi, 0x40..=0x7e) => State::Text,
            (State::Csi, _) => State::Csi,
            (State::Text, _) => {
                self.push_text(byte);
                State::Text
            }
        };
    }

    fn push_text(&mut self, byte: u8) {
        match byte {
            b'\r' => self.returned = true,
            0x08 => {
                self.line.pop();
            }
            b'\t' | 0x20..=0x7e | 0x80..=0xff => {
                if std::mem::take(&mut self.returned) {
                    self.line.clear();
                }
                if self.line.len() < MAX_LINE_BYTES {
                    self.line.push(if byte == b'\t' { b' ' } else { byte });
                }
            }
            _ => {}
        }
    }

    fn end_line(&mut self) {
        if self.panic.is_none() {
            self.panic = panic_reason(&self.line);
        }
        if orderly(&self.line) {
            self.ended_in_order = true;
            self.panic = None;
        }
        let (run, init) = INIT;
        self.started_init |=
            find(&self.line, run).is_some_and(|at| find(&self.line[at..], init).is_some());
        let spare = if self.lines.len() == MAX_LINES { self.lines.pop_front() } else { None };
        let mut next = spare.unwrap_or_default();
        next.clear();
        self.lines.push_back(std::mem::replace(&mut self.line, next));
    }
}

fn panic_reason(line: &[u8]) -> Option<String> {
    let at = find(line, PANIC)?;
    Some(text(line[at + PANIC.len()..].trim_ascii()))
}

fn orderly(line: &[u8]) -> bool {
    ORDERLY.iter().any(|&words| find(line, words).is_some())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// C1 controls are legal UTF-8 and act on terminals, so they go as well.
fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(input: &[u8], expected: &[&str]) {
        let mut tail = ConsoleTail::default();
        tail.push(input);
        assert_eq!(tail.lines(), expected, "{:?}", String::from_utf8_lossy(input));
        let mut one_by_one = ConsoleTail::default();
        input.iter().for_each(|byte| one_by_one.push(&[*byte]));
        assert_eq!(one_by_one.lines(), expected, "one byte at a time");
    }

    #[test]
    fn lines_come_out_without_control_sequences() {
        check(b"", &[]);
        check(b"one\r\ntwo\nthree", &["one", "two", "three"]);
        check(b"\n\na\n", &["", "", "a"]);
        check(b"10%\r20%\r100%\n", &["100%"]);
        check(b"a\tb\x07\x00c\x08d", &["a bd"]);
        check(
            b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07t\x1b]0;title\x1b\\u \x1b(B\x1b7v",
            &["red tu v"],
        );
        check(b"\x1b[12;3\nnext", &["", "next"]);
        check(b"\x1b]never ended\nnext", &["", "next"]);
        check(b"\xff\xc2\x9bm \xc3\xa9", &["\u{fffd}m \u{e9}"]);
    }

    #[test]
    fn the_first_panic_is_kept_after_its_line_is_gone() {
        let mut tail = ConsoleTail::default();
        tail.push(b"[    0.5] Run /sbin/init as init process\r\n");
        assert!(tail.started_init());
        assert_eq!(tail.panic(), None);
        tail.push(
            b"[    1.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
        );
        let reason = Some("Attempted to kill init! exitcode=0x00000100".to_owned());
        assert_eq!(tail.panic(), reason, "also while the line is being printed");
        tail.push(b"\r\nKernel panic - not syncing: second\n");
        (0..100).for_each(|_| tail.push(b"call trace\n"));
        assert_eq!(tail.panic(), reason);
        assert_eq!(tail.lines(), vec!["call trace"; MAX_LINES]);
    }

    #[test]
    fn an_orderly_end_takes_back_what_only_looked_like_a_panic() {
        for words in ["Restarting system", "Power down", "System halted"] {
            let mut tail = ConsoleTail::default();
            tail.push(b"# cat old.log\r\nKernel panic - not syncing: long ago\r\n");
            assert!(!tail.ended_in_order());
            tail.push(format!("[    9.1] reboot: {words}").as_bytes());
            assert!(tail.ended_in_order(), "also while the line is being printed");
            tail.push(b"\r\n");
            assert!(tail.ended_in_order());
            assert_eq!(tail.panic(), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_stay_within_the_bounds(input in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let mut tail = ConsoleTail::default();
            tail.push(&input);
            let lines = tail.lines();
            prop_assert!(lines.len() <= MAX_LINES);
            for line in lines {
                // A byte that is not UTF-8 becomes a replacement character of three.
                prop_assert!(line.len() <= 3 * MAX_LINE_BYTES);
                prop_assert!(!line.chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn a_long_line_is_cut() {
        check(&[b'x'; 3000], &[&"x".repeat(MAX_LINE_BYTES)]);
    }
}
