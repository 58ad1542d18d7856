//! A run's end for programs.
//!
//! Invariant: the file holds a whole document or does not change: it is written beside its place and renamed. Keys are only
//! ever added while `schema` stays the same.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{BootTrace, Outcome, Registers, Verdict};

const SCHEMA: u32 = 1;

/// The document of `--result`.
#[derive(Debug, Serialize)]
pub struct Document {
    schema: u32,
    source: &'static str,
    code: u8,
    /// The last phase that was completed.
    phase: Option<&'static str>,
    reason: String,
    detail: Option<String>,
    fix: Option<String>,
    last_exit: Option<String>,
    cpu: Option<u8>,
    registers: Option<Registers>,
    boot_trace: Option<Trace>,
    console_tail: Vec<String>,
}

impl Document {
    /// What is told about `outcome`.
    #[must_use]
    pub fn of(outcome: &Outcome, verdict: &Verdict) -> Self {
        Self {
            phase: outcome.trace.reached().map(super::Phase::key),
            last_exit: outcome.last_exit.clone(),
            cpu: verdict.registers.map(|(cpu, _)| cpu),
            registers: verdict.registers.map(|(_, registers)| registers),
            boot_trace: Some(Trace::of(&outcome.trace)),
            console_tail: outcome.console.lines(),
            ..Self::of_failure(verdict)
        }
    }

    /// What is told about a run that did not get as far as a machine.
    #[must_use]
    pub fn of_failure(verdict: &Verdict) -> Self {
        Self {
            schema: SCHEMA,
            source: verdict.source.key(),
            code: verdict.code,
            phase: None,
            reason: verdict.what.clone(),
            detail: verdict.why.clone(),
            fix: verdict.fix.clone(),
            last_exit: None,
            cpu: None,
            registers: None,
            boot_trace: None,
            console_tail: Vec::new(),
        }
    }
}

/// The phases of a boot, in microseconds.
#[derive(Debug, Serialize)]
pub struct Trace {
    schema: u32,
    phases: Vec<Step>,
    total_us: f64,
}

#[derive(Debug, Serialize)]
struct Step {
    phase: &'static str,
    us: f64,
}

impl Trace {
    /// The phases that were seen.
    #[must_use]
    pub fn of(trace: &BootTrace) -> Self {
        let us = |time: std::time::Duration| time.as_secs_f64() * 1e6;
        Self {
            schema: SCHEMA,
            phases: trace
                .durations()
                .map(|(phase, took)| Step { phase: phase.key(), us: us(took) })
                .collect(),
            total_us: us(trace.total()),
        }
    }
}

/// `value` as one line.
#[must_use]
pub fn line(value: &impl Serialize) -> String {
    // Serializing into memory fails only for maps with keys that are not strings; nothing of ours has one.
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}

/// Replaces the file at `path`. A file that cannot be replaced by renaming (a pipe, a device) is refused when the run
/// starts, not here.
///
/// # Errors
/// What the host said; the old file is then as it was.
pub fn write(path: &Path, document: &Document) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(document)?;
    text.push(b'\n');
    let partial = beside(path);
    let written = File::create_new(&partial)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The first error is the one to report.
        _ = fs::remove_file(&partial);
    }
    written
}

fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.partial", std::process::id()));
    path.with_file_name(name)
}
