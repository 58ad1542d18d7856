//! Requests and answers: one JSON object a line, each way.
//!
//! Invariant: a line that is too long, is no JSON or asks for something that is not known is answered with an error, whatever it holds.
//! Pure.

use serde::{Deserialize, Serialize};

/// The longest line of a request.
pub const LINE_MAX: usize = 4096;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What the machine does.
    Status,
    /// Hold its processors.
    Pause,
    /// Let them go on.
    Resume,
    /// End it in good order.
    Stop {
        /// The signal for its main process.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// How long it may take, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grace_ms: Option<u64>,
    },
    /// End it now, or send its main process this signal.
    Kill {
        /// The signal; without one, or with SIGKILL, the machine ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
    },
    /// Answer when it has ended.
    Wait,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// `running`, `paused` or `stopping`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Whether the guest's first process runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<bool>,
    /// How the machine ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ending>,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The exit code.
    pub code: u8,
    /// Who decided it.
    pub source: String,
    /// What happened.
    pub reason: String,
}

impl Reply {
    /// Done.
    #[must_use]
    pub fn done() -> Self {
        Self { ok: true, ..Self::default() }
    }

    /// Not done.
    #[must_use]
    pub fn refused(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::default() }
    }

    /// As a line.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        // Plain data always becomes JSON.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// Reads a request, without its line end.
///
/// # Errors
/// What to answer.
pub fn parse(line: &[u8]) -> Result<Request, Reply> {
    let text = std::str::from_utf8(line).map_err(|_| Reply::refused("not UTF-8"))?;
    serde_json::from_str(text).map_err(|error| Reply::refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_exact() {
        for (line, want) in [
            (r#"{"op":"status"}"#, Some(Request::Status)),
            (r#"{"op":"stop"}"#, Some(Request::Stop { signal: None, grace_ms: None })),
            (
                r#"{"op":"stop","signal":2,"grace_ms":500}"#,
                Some(Request::Stop { signal: Some(2), grace_ms: Some(500) }),
            ),
            (r#"{"op":"kill","signal":10}"#, Some(Request::Kill { signal: Some(10) })),
            (r#"{"op":"fly"}"#, None),
            (r#"{"op":"stop","grace":1}"#, None),
            (r#"{"op":"stop","grace_ms":-1}"#, None),
            ("", None),
            ("[]", None),
            ("\"status\"", None),
        ] {
            assert_eq!(parse(line.as_bytes()).ok(), want, "{line}");
        }
        let error = parse(b"{\"op\":\"fly\"}").unwrap_err();
        assert!(!error.ok && error.error.unwrap().contains("unknown variant"));
    }

    proptest! {
        #[test]
        fn any_line_is_judged(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = parse(&line) {
                let text = serde_json::to_vec(&request).unwrap();
                prop_assert_eq!(parse(&text).unwrap(), request);
            }
        }

        #[test]
        fn deep_nesting_is_refused(depth in 1_usize..4000) {
            prop_assert!(parse("[".repeat(depth).as_bytes()).is_err());
        }
    }
}
