//! A run's end for programs.
//!
//! Invariant: the file holds a whole document from before the machine starts, and whatever ends the process leaves one. Keys
//! are only ever added while `schema` stays the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

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
    /// Counts of the network that are not zero.
    network: BTreeMap<String, u64>,
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
            network: outcome.network.iter().cloned().collect(),
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
            network: BTreeMap::new(),
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

/// The file of `--result`, open since before the machine started.
///
/// From its start it holds a document: until [`Self::finish`] it says that the run was cut off.
#[derive(Debug)]
pub struct ResultFile {
    file: File,
    /// What the file holds already.
    len: usize,
}

impl ResultFile {
    /// Writes the document of a run that was cut off to `file`, which is empty and opened for writing.
    ///
    /// # Errors
    /// What the host said.
    pub fn start(file: File) -> io::Result<Self> {
        let text = pretty(&Document::of_failure(&Verdict::cut_off()), 0)?;
        // The file's own offset stays at its start, because a confined thread may write and not seek.
        file.write_all_at(&text, 0)?;
        Ok(Self { file, len: text.len() })
    }

    /// Writes `document` over what is there, durably. Makes only system calls that a confined event loop may make.
    ///
    /// # Errors
    /// What the host said.
    pub fn finish(mut self, document: &Document) -> io::Result<()> {
        let text = pretty(document, self.len)?;
        self.file.write_all(&text)?;
        self.file.sync_all()
    }
}

/// `document` on several lines, with spaces before the last line end where it would be shorter than `min_len` bytes.
fn pretty(document: &Document, min_len: usize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(document)?;
    text.resize(text.len().max(min_len.saturating_sub(1)), b' ');
    text.push(b'\n');
    Ok(text)
}
