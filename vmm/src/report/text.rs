//! A run's end for people, as lines for standard error.
//!
//! Invariant: guest bytes appear only as [`ConsoleTail`](crate::console_tail::ConsoleTail) hands them out, without control
//! characters. Pure.

use std::fmt::Write;
use std::time::Duration;

use super::{BootTrace, Outcome, Registers, Verdict};

/// An error as every part of the command prints it: what, why, fix.
#[must_use]
pub fn error(what: &str, why: Option<&str>, fix: Option<&str>) -> String {
    let mut text = format!("error: {what}\n");
    for line in why.iter().flat_map(|why| why.lines()) {
        text.push_str(&format!("  {line}\n"));
    }
    if let Some(fix) = fix {
        text.push_str(&format!("  fix: {fix}\n"));
    }
    text
}

/// What to print about a run, or nothing when the guest ended it in good order: its own output says what there is to say.
#[must_use]
pub fn ending(outcome: &Outcome, verdict: &Verdict) -> String {
    if !verdict.failed {
        return String::new();
    }
    let mut text = error(&verdict.what, verdict.why.as_deref(), None);
    let mut line = |label: &str, value: &str| {
        // Writing to a string cannot fail.
        _ = writeln!(text, "  {label}: {value}");
    };
    if let Some(phase) = outcome.trace.reached() {
        let after = outcome.trace.until(phase).unwrap_or_default();
        line(
            "last phase completed",
            &format!("{}, {} after the start", phase.name(), millis(after)),
        );
    }
    if let Some(exit) = &outcome.last_exit {
        line("last exit", exit);
    }
    if let Some((cpu, registers)) = &verdict.registers {
        text.push_str(&format!("  registers of CPU {cpu}:\n"));
        text.push_str(&registers_text(registers));
    }
    let lines = outcome.console.lines();
    if lines.is_empty() {
        text.push_str("  the guest printed nothing\n");
    } else {
        text.push_str(&format!("  last {} console lines:\n", lines.len()));
        for line in lines {
            text.push_str(&format!("  | {line}\n"));
        }
    }
    if let Some(fix) = &verdict.fix {
        text.push_str(&format!("  fix: {fix}\n"));
    }
    text
}

/// What happened on the network, one count a line; empty when nothing did.
#[must_use]
pub fn network(counts: &[(String, u64)]) -> String {
    let lines = counts.iter().map(|(name, count)| format!("  {name:<32}{count:>14}\n"));
    let lines: String = lines.collect();
    if lines.is_empty() { lines } else { format!("network:\n{lines}") }
}

/// The phases as a table.
#[must_use]
pub fn boot_trace(trace: &BootTrace) -> String {
    let mut text = String::from("boot trace:\n");
    for (phase, took) in trace.durations() {
        text.push_str(&format!("  {:<14}{:>12}\n", phase.name(), millis(took)));
    }
    text.push_str(&format!("  {:<14}{:>12}\n", "total", millis(trace.total())));
    text
}

fn millis(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1000.0)
}

fn registers_text(r: &Registers) -> String {
    let rows = [
        [("rip", r.rip), ("rsp", r.rsp), ("rflags", r.rflags)],
        [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx)],
        [("rdx", r.rdx), ("rsi", r.rsi), ("rdi", r.rdi)],
        [("rbp", r.rbp), ("cr0", r.cr0), ("cr2", r.cr2)],
        [("cr3", r.cr3), ("cr4", r.cr4), ("efer", r.efer)],
        [("cs", u64::from(r.cs)), ("ss", u64::from(r.ss)), ("", 0)],
    ];
    let mut text = String::new();
    for row in rows {
        for (name, value) in row.iter().filter(|(name, _)| !name.is_empty()) {
            text.push_str(&format!("    {name:<6} {value:016x}"));
        }
        text.push('\n');
    }
    text
}
