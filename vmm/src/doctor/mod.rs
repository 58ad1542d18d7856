//! Whether this host can run a guest, found out by running one.
//!
//! Invariant: every check that is not passed says what to do about it. Main thread; nothing on the host is changed.

mod access;
mod host;
mod kvm;
mod net;
mod probe;

use std::fmt;

use serde::Serialize;

pub use kvm::KvmReport;

const SCHEMA: u32 = 1;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: u32,
    /// Nothing failed.
    ok: bool,
    /// What this host's KVM can do.
    pub kvm: KvmReport,
    /// Each check, in the order they were made.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found, one line.
    pub detail: String,
    /// What to do, when it is not passed.
    pub fix: Option<String>,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// A guest runs, slower or with less.
    Warn,
    /// No guest runs.
    Fail,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), fix: None }
    }

    fn warn(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn fail(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// Makes every check.
#[must_use]
pub fn examine() -> Report {
    let (kvm, mut checks) = kvm::examine();
    checks.push(host::io_uring());
    checks.push(host::huge_pages());
    checks.extend(host::limits());
    checks.extend(net::examine());
    checks.push(host::kernel());
    Report {
        schema: SCHEMA,
        ok: checks.iter().all(|check| check.status != Status::Fail),
        kvm,
        checks,
    }
}

impl Report {
    /// A check failed.
    #[must_use]
    pub fn failed(&self) -> bool {
        !self.ok
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let status = match check.status {
                Status::Ok => "OK",
                Status::Warn => "WARN",
                Status::Fail => "FAIL",
            };
            writeln!(f, "{status:<4}  {:<14}  {}", check.name, check.detail)?;
            if let Some(fix) = &check.fix {
                writeln!(f, "{:22}fix: {fix}", "")?;
            }
        }
        Ok(())
    }
}
