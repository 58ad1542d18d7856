//! The log of what a guest was refused: one JSON object a line, for audit.
//!
//! Invariant: the file grows by at most [`RefusalLog::MAX_BYTES`]; the stack has paced and bounded what is told before. Net thread.

use std::fs::File;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use openshell_usernet::Instant;
use openshell_usernet::policy::{Denied, Refusal};
use serde::Serialize;

/// A file to write refusals to.
#[derive(Debug)]
pub struct RefusalLog {
    file: File,
    left: usize,
    /// The wall clock at zero of [`Instant`].
    epoch_ms: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    time_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    why: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<u32>,
    #[serde(skip_serializing_if = "is_zero")]
    untold: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl RefusalLog {
    /// The most bytes of one run; the last line says that there are no more.
    pub const MAX_BYTES: usize = 16 << 20;
    /// Kept for that last line.
    const LAST: usize = 256;

    /// A log in `file`, which is appended to. The clock of the stack begins now.
    #[must_use]
    pub fn new(file: File) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Self { file, left: Self::MAX_BYTES, epoch_ms }
    }

    /// Writes one refusal.
    pub(super) fn refusal(&mut self, refusal: &Refusal) {
        let rule = match refusal.why {
            Denied::Rule(index) => Some(u32::from(index) + 1),
            _ => None,
        };
        let to = refusal.to.map(|to| match to.port() {
            0 => to.ip().to_string(),
            _ => to.to_string(),
        });
        let line = Line {
            time_ms: self.wall_ms(refusal.at),
            protocol: Some(refusal.protocol.name()),
            to,
            name: refusal.name.as_deref(),
            why: refusal.why.name(),
            rule,
            untold: refusal.untold,
        };
        self.write(&line);
    }

    /// Writes something else that the reader should know.
    pub(super) fn note(&mut self, at: Instant, why: &str) {
        let time_ms = self.wall_ms(at);
        self.write(&Line { why, ..Line::at(time_ms) });
    }

    fn wall_ms(&self, at: Instant) -> u64 {
        self.epoch_ms.saturating_add(at.as_nanos() / 1_000_000)
    }

    fn write(&mut self, line: &Line<'_>) {
        let Ok(mut bytes) = serde_json::to_vec(line) else { return };
        bytes.push(b'\n');
        if self.left < bytes.len() + Self::LAST {
            if self.left == 0 {
                return;
            }
            self.left = 0;
            let last = Line { why: "the log is full", ..Line::at(line.time_ms) };
            let Ok(text) = serde_json::to_vec(&last) else { return };
            bytes = [text, b"\n".to_vec()].concat();
        } else {
            self.left -= bytes.len();
        }
        // A disk that is full loses lines, not the network.
        self.file.write_all(&bytes).ok();
    }
}

impl Line<'_> {
    const fn at(time_ms: u64) -> Self {
        Self { time_ms, protocol: None, to: None, name: None, why: "", rule: None, untold: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use openshell_usernet::policy::{Group, Protocol};

    use super::*;

    fn text(log: &mut RefusalLog) -> String {
        let mut text = String::new();
        log.file.rewind().unwrap();
        log.file.read_to_string(&mut text).unwrap();
        text
    }

    fn refusal(why: Denied) -> Refusal {
        Refusal {
            at: Instant::from_nanos(7_000_000),
            protocol: Protocol::Tcp,
            to: Some("10.0.0.1:22".parse().unwrap()),
            name: None,
            why,
            untold: 0,
        }
    }

    #[test]
    fn a_refusal_is_one_line_of_json() {
        let mut log = RefusalLog::new(tempfile::tempfile().unwrap());
        log.epoch_ms = 1000;
        log.refusal(&refusal(Denied::Group(Group::Private)));
        log.refusal(&Refusal {
            protocol: Protocol::Dns,
            to: None,
            name: Some("evil.example".into()),
            untold: 3,
            ..refusal(Denied::Rule(1))
        });
        log.note(Instant::from_nanos(0), "p.toml:1:1: wrong");
        assert_eq!(
            text(&mut log),
            "{\"time_ms\":1007,\"protocol\":\"tcp\",\"to\":\"10.0.0.1:22\",\"why\":\"private\"}\n\
             {\"time_ms\":1007,\"protocol\":\"dns\",\"name\":\"evil.example\",\"why\":\"rule\",\"rule\":2,\"untold\":3}\n\
             {\"time_ms\":1000,\"why\":\"p.toml:1:1: wrong\"}\n"
        );
    }

    #[test]
    fn a_full_log_says_so_and_stops() {
        let mut log = RefusalLog::new(tempfile::tempfile().unwrap());
        log.left = 600;
        for _ in 0..1000 {
            log.refusal(&refusal(Denied::Gateway));
        }
        let text = text(&mut log);
        assert!(
            text.len() <= 600 && text.trim_end().ends_with("\"why\":\"the log is full\"}"),
            "{text}"
        );
        assert!(text.lines().count() > 2);
    }
}
