//! Conditions of a sandbox, in the words that the gateway understands.
//!
//! Invariant: `Ready` is never true: that is the gateway's to say. While a machine boots the reason is `Starting` and nothing
//! else, because every reason that the gateway does not know ends the sandbox. Pure but for the clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What it is about.
    pub kind: &'static str,
    /// `True` or `False`.
    pub status: &'static str,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
    /// Since when, in RFC 3339.
    pub since: String,
}

/// What a sandbox is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Its machine boots, or runs.
    Starting(String),
    /// Somebody asked for the stop.
    Stopped,
    /// It is being removed.
    Deleting,
    /// There is no machine, and there never was one.
    ProvisioningFailed(String),
    /// The machine ended.
    ProcessExited(String),
    /// Nobody can tell what the machine does.
    ProcessPollFailed(String),
}

impl Status {
    /// The machine boots.
    pub(crate) fn starting() -> Self {
        Self::Starting("VM is starting".to_owned())
    }

    /// The conditions that say it.
    pub(crate) fn conditions(&self, now: SystemTime) -> Vec<Condition> {
        let since = rfc3339(now);
        let condition = |kind, status, reason, message: &str| Condition {
            kind,
            status,
            reason,
            message: message.to_owned(),
            since: since.clone(),
        };
        let not_ready = |reason, message: &str| vec![condition("Ready", "False", reason, message)];
        match self {
            Self::Starting(message) => not_ready("Starting", message),
            Self::Deleting => not_ready("Deleting", "Sandbox is being deleted"),
            Self::ProvisioningFailed(message) => not_ready("ProvisioningFailed", message),
            Self::ProcessExited(message) => not_ready("ProcessExited", message),
            Self::ProcessPollFailed(message) => not_ready("ProcessPollFailed", message),
            // One name is OpenShell's driver's, the other the one that its gateway understands.
            Self::Stopped => ["Stopped", "Suspended"]
                .map(|kind| condition(kind, "True", "ComputeStopped", "VM is stopped"))
                .to_vec(),
        }
    }

    /// Whether the machine ended by itself, for good.
    pub(crate) fn is_exit(&self) -> bool {
        matches!(self, Self::ProcessExited(_) | Self::ProcessPollFailed(_))
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A moment as text.
fn rfc3339(time: SystemTime) -> String {
    let seconds = unix_ms(time) / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from the first of March of year 0, so that a leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_are_written_as_everybody_writes_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_790_000_000, "2026-09-21T14:13:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn the_driver_never_says_that_a_sandbox_is_ready() {
        let message = String::new;
        for status in [
            Status::starting(),
            Status::Stopped,
            Status::Deleting,
            Status::ProvisioningFailed(message()),
            Status::ProcessExited(message()),
            Status::ProcessPollFailed(message()),
        ] {
            let conditions = status.conditions(UNIX_EPOCH);
            assert!(conditions.iter().all(|c| c.kind != "Ready" || c.status == "False"));
            assert_eq!(conditions.len(), if status == Status::Stopped { 2 } else { 1 });
        }
        let starting = &Status::starting().conditions(UNIX_EPOCH)[0];
        assert_eq!((starting.reason, &*starting.message), ("Starting", "VM is starting"));
        let stopped = Status::Stopped.conditions(UNIX_EPOCH);
        let words: Vec<_> = stopped.iter().map(|c| (c.kind, c.status, c.reason)).collect();
        let expected =
            [("Stopped", "True", "ComputeStopped"), ("Suspended", "True", "ComputeStopped")];
        assert_eq!(words, expected);
    }
}
