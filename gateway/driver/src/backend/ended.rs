//! How a machine ended, read from the document that `openshell-vmm run --result` leaves.
//!
//! Invariant: a message is bounded and holds no control character, whatever the guest printed. Pure but for the read.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use serde::Deserialize;

/// The most that is read of a document.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;
/// The longest message, in bytes.
const MAX_MESSAGE_BYTES: usize = 3000;
/// Console lines that a message quotes, and how many bytes of each.
const QUOTED_LINES: usize = 12;
const QUOTED_BYTES: usize = 160;

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The exit code of the machine's process, as a shell counts it; the guest's own when the guest decided.
    pub code: i32,
    /// Whether the guest ever ran. A machine whose guest did not may be started again.
    pub ran: bool,
    /// What happened, for people.
    pub message: String,
}

/// The document. Further keys may come.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    source: String,
    phase: Option<String>,
    reason: String,
    detail: Option<String>,
    fix: Option<String>,
    console_tail: Vec<String>,
}

impl Ended {
    /// What is known about a machine whose process ended with `status`. `console` is what the driver itself has seen.
    pub(super) fn of(status: ExitStatus, result: &Path, console: &[String], stderr: &str) -> Self {
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        let code = code.unwrap_or(-1);
        let mut document = read(result).unwrap_or_default();
        if document.console_tail.is_empty() {
            document.console_tail = console.to_vec();
        }
        let phase = document.phase.as_deref();
        // A process that was killed left no phase: then the guest's word counts.
        let ran = document.source != "vmm"
            || matches!(phase, Some("first_run" | "kernel_entry" | "init" | "exit"))
            || status.signal().is_some()
            || !document.console_tail.is_empty();
        let mut message = match status.signal() {
            Some(signal) => format!("VM process was killed by signal {signal} (status {code})"),
            None => format!("VM process exited with status {code}"),
        };
        document.tell(&mut message, code != 0, stderr);
        Self { code, ran, message: bounded(&message) }
    }
}

impl Document {
    fn tell(&self, message: &mut String, failed: bool, stderr: &str) {
        if !self.reason.is_empty() {
            message.push_str(&format!(": {}", self.reason));
            for detail in self.detail.iter().filter(|detail| !self.reason.contains(*detail)) {
                message.push_str(&format!(": {detail}"));
            }
        } else if let Some(line) = stderr.lines().rev().find(|line| !line.trim().is_empty()) {
            message.push_str(&format!(": {}", line.trim()));
        }
        if !failed {
            return;
        }
        if let Some(fix) = &self.fix {
            message.push_str(&format!("; fix: {fix}"));
        }
        if let Some(phase) = &self.phase {
            message.push_str(&format!("; last phase completed: {phase}"));
        }
        let skip = self.console_tail.len().saturating_sub(QUOTED_LINES);
        let lines: Vec<&str> = self.console_tail.iter().skip(skip).map(|line| cut(line)).collect();
        if !lines.is_empty() {
            message.push_str(&format!("; last console lines: {}", lines.join(" | ")));
        }
    }
}

fn read(path: &Path) -> Option<Document> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn cut(line: &str) -> &str {
    &line[..line.floor_char_boundary(QUOTED_BYTES)]
}

/// A text without control characters, of a length that fits into a condition.
pub(crate) fn bounded(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = clean.floor_char_boundary(MAX_MESSAGE_BYTES);
    clean[..end].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn check(document: &str, raw: i32, console: &[&str], ran: bool, code: i32, expected: &str) {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("result.json");
        fs::write(&path, document).expect("written");
        let console: Vec<String> = console.iter().map(ToString::to_string).collect();
        let ended =
            Ended::of(ExitStatus::from_raw(raw), &path, &console, "error: first\n  why\n\n");
        assert_eq!((ended.ran, ended.code), (ran, code), "{ended:?}");
        assert_eq!(ended.message, expected);
    }

    #[test]
    fn the_end_of_a_machine_is_told_with_its_reason() {
        check(
            r#"{"schema":1,"source":"guest","code":0,"phase":"exit","reason":"the guest ended"}"#,
            0,
            &[],
            true,
            0,
            "VM process exited with status 0: the guest ended",
        );
        check(
            r#"{"source":"panic","phase":"kernel_entry","reason":"the guest kernel panicked","detail":"VFS: no root","fix":"check the disk","console_tail":["a","b"]}"#,
            125 << 8,
            &[],
            true,
            125,
            "VM process exited with status 125: the guest kernel panicked: VFS: no root; fix: check the disk; last phase \
             completed: kernel_entry; last console lines: a | b",
        );
    }

    #[test]
    fn a_host_without_kvm_is_no_end_of_the_main_process() {
        check(
            r#"{"source":"vmm","phase":null,"reason":"cannot open /dev/kvm","detail":"permission denied","fix":"join the group kvm"}"#,
            125 << 8,
            &[],
            false,
            125,
            "VM process exited with status 125: cannot open /dev/kvm: permission denied; fix: join the group kvm",
        );
    }

    #[test]
    fn a_killed_machine_is_told_from_what_the_driver_saw() {
        check(
            r#"{"source":"vmm","phase":null,"reason":"the run was cut off"}"#,
            9,
            &["openshell-init: error: exec"],
            true,
            137,
            "VM process was killed by signal 9 (status 137): the run was cut off; last console lines: openshell-init: error: exec",
        );
    }

    #[test]
    fn a_document_that_is_none_leaves_the_status() {
        for document in ["", "{", "[1]", "{\"reason\":7}"] {
            check(
                document,
                3 << 8,
                &["x"],
                true,
                3,
                "VM process exited with status 3: why; last console lines: x",
            );
        }
    }

    #[test]
    fn a_message_is_bounded_and_plain() {
        let long = format!("a\u{1b}[31m\nb{}", "é".repeat(5000));
        let text = bounded(&long);
        assert!(text.len() <= MAX_MESSAGE_BYTES && text.starts_with("a [31m b"), "{}", text.len());
        assert_eq!(cut(&"é".repeat(100)).len(), 160);
    }
}
