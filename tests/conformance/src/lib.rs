//! Drives any gateway and any compute driver over the wire: call by call, with codes, order and idempotence.
//!
//! [`driver`] plays a gateway; [`gateway`] plays users and supervisors, with [`played`] as the gateway's driver. What is asked for is what
//! the protocol says at the pinned commit, and no more: where builds may differ, every answer that a peer can live with passes.
//!
//! Invariant: a check that cannot be made is one that has failed.

#![forbid(unsafe_code)]

pub mod driver;
pub mod gateway;
pub mod played;

use std::time::Duration;

use anyhow::{Result, bail};
use tonic::{Code, Status};

/// How long one check may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What has been checked, in order.
#[derive(Debug, Default)]
pub struct Report {
    checks: Vec<(String, Option<String>)>,
}

impl Report {
    /// Makes one check; whether it has passed.
    pub async fn check(&mut self, name: &str, check: impl Future<Output = Result<()>>) -> bool {
        let outcome = match tokio::time::timeout(PATIENCE, check).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("nothing came of it within {} s", PATIENCE.as_secs())),
        };
        let passed = outcome.is_none();
        self.checks.push((name.to_owned(), outcome));
        passed
    }

    /// How many checks there were.
    #[must_use]
    pub fn len(&self) -> usize {
        self.checks.len()
    }

    /// Whether there were none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }

    /// Those that have failed, with why.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.checks.iter().filter_map(|(name, outcome)| Some((name.as_str(), outcome.as_deref()?)))
    }

    /// A line per check.
    #[must_use]
    pub fn text(&self) -> String {
        let line = |(name, outcome): &(String, Option<String>)| match outcome {
            None => format!("ok      {name}\n"),
            Some(why) => format!("FAILED  {name}: {why}\n"),
        };
        self.checks.iter().map(line).collect()
    }
}

/// The answer to a call must be one of these codes.
fn refused<T>(answer: Result<T, Status>, codes: &[Code]) -> Result<()> {
    match answer {
        Ok(_) => bail!("succeeded, where {codes:?} was due"),
        Err(status) if codes.contains(&status.code()) => Ok(()),
        Err(status) => {
            bail!("{:?} ({}), where {codes:?} was due", status.code(), status.message())
        }
    }
}

/// The answer may be that the call is not served.
fn tolerated<T>(answer: Result<T, Status>) -> Result<()> {
    match answer {
        Err(status) if status.code() != Code::Unimplemented => Err(status.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_fails_is_in_the_report() {
        let mut report = Report::default();
        assert!(report.check("good", async { Ok(()) }).await);
        let wrong = refused::<()>(Err(Status::internal("x")), &[Code::NotFound]);
        assert!(!report.check("bad", async { wrong }).await);
        assert!(refused(Ok(1), &[Code::NotFound]).is_err());
        assert!(tolerated::<()>(Err(Status::unimplemented(""))).is_ok());
        assert_eq!((report.len(), report.failures().count()), (2, 1));
        assert_eq!(
            report.text(),
            "ok      good\nFAILED  bad: Internal (x), where [NotFound] was due\n"
        );
    }
}
