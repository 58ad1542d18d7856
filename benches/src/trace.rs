//! Boot traces of our command, as `--boot-trace=json` prints them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The phases of one boot and how long each took, in milliseconds.
#[derive(Debug)]
pub struct Trace(Vec<(String, f64)>);

impl Trace {
    /// Reads a line of the trace; `None` when it is something else.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let document: Value = serde_json::from_str(line).ok()?;
        let phases = document["phases"]
            .as_array()?
            .iter()
            .map(|step| Some((step["phase"].as_str()?.to_owned(), step["us"].as_f64()? / 1000.0)));
        phases.collect::<Option<_>>().map(Self)
    }

    /// The phases in order, each with its time.
    #[must_use]
    pub fn phases(&self) -> &[(String, f64)] {
        &self.0
    }

    /// The time from the beginning of one phase to the end of another.
    ///
    /// # Errors
    /// When the boot had no such phase.
    pub fn between(&self, first: &str, last: &str) -> Result<f64> {
        let place = |name: &str| {
            let found = self.0.iter().position(|(phase, _)| phase == name);
            found.with_context(|| format!("the boot has no phase {name}: {:?}", self.0))
        };
        let (first, last) = (place(first)?, place(last)?);
        Ok(self.0[first..=last].iter().map(|(_, took)| took).sum())
    }
}

/// A duration in milliseconds.
#[must_use]
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_cut_where_asked() {
        let line = r#"{"schema":1,"phases":[{"phase":"a","us":1000.0},{"phase":"b","us":500.0},{"phase":"c","us":1.0}],"total_us":1501.0}"#;
        let trace = Trace::parse(line).unwrap();
        assert_eq!(trace.between("a", "b").unwrap(), 1.5);
        assert_eq!(trace.between("b", "b").unwrap(), 0.5);
        trace.between("a", "z").unwrap_err();
        assert!(Trace::parse("guest ended").is_none());
    }
}
