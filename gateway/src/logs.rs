//! Log lines of sandboxes: the last ones of each, and whoever follows them.
//!
//! Supervisors push lines, users read them. In memory: a gateway that starts again begins anew.
//!
//! Invariant: a sandbox has at most [`LINES`] lines here, each of bounded length.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use openshell_proto::v1::SandboxLogLine;
use tokio::sync::broadcast;

/// Lines that are kept of a sandbox.
pub const LINES: usize = 2000;
/// Longest text of a line, in bytes; the rest is cut off.
const TEXT_MAX: usize = 8 * 1024;
/// Fields of a line; those beyond are dropped.
const FIELDS_MAX: usize = 32;
/// Lines that a follower may be behind.
const BEHIND: usize = 512;

/// The lines of all sandboxes.
#[derive(Debug, Default)]
pub struct Logs {
    sandboxes: Mutex<HashMap<String, Lines>>,
}

#[derive(Debug)]
struct Lines {
    kept: VecDeque<SandboxLogLine>,
    live: broadcast::Sender<SandboxLogLine>,
}

/// Which lines are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Not older than this, in milliseconds since 1970.
    pub since_ms: i64,
    /// Of one of these sources; none: of any.
    pub sources: Vec<String>,
    /// At least of this level; empty: of any.
    pub min_level: String,
}

impl Filter {
    /// Whether a line is wanted.
    #[must_use]
    pub fn matches(&self, line: &SandboxLogLine) -> bool {
        line.timestamp_ms >= self.since_ms
            && (self.sources.is_empty() || self.sources.contains(&line.source))
            && (self.min_level.is_empty() || severity(&line.level) >= severity(&self.min_level))
    }
}

/// Higher is worse. A level that nobody knows counts as information.
fn severity(level: &str) -> u8 {
    match level.to_ascii_lowercase().as_str() {
        "trace" => 0,
        "debug" => 1,
        "warn" | "warning" => 3,
        "error" | "fatal" | "critical" => 4,
        _ => 2,
    }
}

impl Logs {
    /// Takes a line of a sandbox. It is cut to what may be kept, and says it is of this sandbox and source, whatever it said before.
    pub fn push(&self, sandbox_id: &str, source: &str, mut line: SandboxLogLine) {
        sandbox_id.clone_into(&mut line.sandbox_id);
        source.clone_into(&mut line.source);
        for text in [&mut line.level, &mut line.target, &mut line.message] {
            cut(text);
        }
        while line.fields.len() > FIELDS_MAX {
            line.fields.pop_last();
        }
        line.fields.values_mut().for_each(cut);
        line.fields.retain(|key, _| key.len() <= 256);
        let mut sandboxes = self.lock();
        let lines = sandboxes.entry(sandbox_id.to_owned()).or_default();
        if lines.kept.len() == LINES {
            lines.kept.pop_front();
        }
        lines.kept.push_back(line.clone());
        // Nobody follows: the line is kept.
        drop(lines.live.send(line));
    }

    /// The last lines that are wanted, at most `count`, oldest first, and how many lines there are in all.
    #[must_use]
    pub fn last(
        &self,
        sandbox_id: &str,
        filter: &Filter,
        count: usize,
    ) -> (Vec<SandboxLogLine>, usize) {
        let sandboxes = self.lock();
        let Some(lines) = sandboxes.get(sandbox_id) else { return (Vec::new(), 0) };
        let wanted = lines.kept.iter().rev().filter(|line| filter.matches(line));
        let mut last: Vec<_> = wanted.take(count).cloned().collect();
        last.reverse();
        (last, lines.kept.len())
    }

    /// The lines from now on.
    #[must_use]
    pub fn follow(&self, sandbox_id: &str) -> broadcast::Receiver<SandboxLogLine> {
        self.lock().entry(sandbox_id.to_owned()).or_default().live.subscribe()
    }

    /// The sandbox is gone.
    pub fn remove(&self, sandbox_id: &str) {
        self.lock().remove(sandbox_id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Lines>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self { kept: VecDeque::new(), live: broadcast::Sender::new(BEHIND) }
    }
}

fn cut(text: &mut String) {
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(time: i64, level: &str) -> SandboxLogLine {
        SandboxLogLine { timestamp_ms: time, level: level.into(), ..Default::default() }
    }

    #[test]
    fn the_last_lines_are_kept() {
        let logs = Logs::default();
        let count = i64::try_from(LINES).unwrap();
        for time in 0..count + 5 {
            logs.push("a", "sandbox", line(time, "INFO"));
        }
        let (last, total) = logs.last("a", &Filter::default(), 2);
        assert_eq!(total, LINES);
        let times: Vec<_> = last.iter().map(|line| line.timestamp_ms).collect();
        assert_eq!(times, [count + 3, count + 4]);
        assert_eq!(logs.last("b", &Filter::default(), 2), (vec![], 0));
    }

    #[test]
    fn lines_are_chosen_by_level_time_and_source() {
        let logs = Logs::default();
        for (time, level) in [(1, "DEBUG"), (2, "warn"), (3, "ERROR"), (4, "odd")] {
            logs.push("a", "sandbox", line(time, level));
        }
        for (filter, expected) in [
            (Filter { min_level: "warn".into(), ..Default::default() }, vec![2, 3]),
            (Filter { since_ms: 3, ..Default::default() }, vec![3, 4]),
            (Filter { sources: vec!["gateway".into()], ..Default::default() }, vec![]),
        ] {
            let (lines, _) = logs.last("a", &filter, 10);
            assert_eq!(lines.iter().map(|l| l.timestamp_ms).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_guest_cannot_speak_for_another_or_fill_the_memory() {
        let logs = Logs::default();
        let mut long = line(1, "INFO");
        long.sandbox_id = "other".into();
        long.message = "ü".repeat(TEXT_MAX);
        long.fields = (0..100).map(|n| (n.to_string(), String::new())).collect();
        logs.push("a", "sandbox", long);
        let (lines, _) = logs.last("a", &Filter::default(), 1);
        assert_eq!(lines[0].sandbox_id, "a");
        assert!(lines[0].message.len() <= TEXT_MAX && lines[0].fields.len() == FIELDS_MAX);
    }
}
