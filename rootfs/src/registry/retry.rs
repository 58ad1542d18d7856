//! When to ask again: how often, how long to wait, and what a host asks for.
//!
//! Invariant: a request that gets no further is tried a bounded number of times, and no wait is longer than its cap,
//! whatever a host says. Pure, apart from the jitter.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::RegistryError;

/// Longest wait between two tries unless the host asks for more.
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// How patient a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How often something is tried that gets no further.
    pub tries: u32,
    /// The wait before the second try; it doubles from there on.
    pub backoff: Duration,
    /// The longest wait that a host may ask for.
    pub retry_after_cap: Duration,
    /// How long connecting may take.
    pub connect: Duration,
    /// How long an answer may take to begin.
    pub response: Duration,
    /// In each such time [`Patience::pace_bytes`] must come, or the end.
    pub pace: Duration,
    /// The least that must come in [`Patience::pace`].
    pub pace_bytes: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 5,
            backoff: Duration::from_millis(250),
            retry_after_cap: Duration::from_secs(60),
            connect: Duration::from_secs(10),
            response: Duration::from_secs(30),
            pace: Duration::from_secs(30),
            pace_bytes: 32 << 10,
        }
    }
}

/// The tries of one thing.
#[derive(Debug)]
pub(super) struct Tries {
    patience: Patience,
    failed: u32,
}

impl Tries {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, failed: 0 }
    }

    /// It got further, so that failures before do not count.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// How long to wait before the next try, or the error that ends them.
    pub(super) fn after(&mut self, error: RegistryError) -> Result<Duration, RegistryError> {
        self.failed += 1;
        if !error.is_transient() || self.failed >= self.patience.tries {
            return Err(error);
        }
        if let Some(wait) = error.retry_after() {
            return match error {
                RegistryError::Status { host, .. } if wait > self.patience.retry_after_cap => {
                    Err(RegistryError::Limited { host, wait })
                }
                // Never sooner than asked, and not all at the same moment.
                _ => Ok(wait + self.patience.backoff.mul_f64(chance())),
            };
        }
        let doubled = 2u32.saturating_pow(self.failed - 1);
        let wait = self.patience.backoff.saturating_mul(doubled).min(MAX_BACKOFF);
        Ok(wait.mul_f64(0.5 + chance() / 2.0))
    }
}

/// A number from 0 up to 1, good enough to keep clients apart.
fn chance() -> f64 {
    let random = RandomState::new().hash_one(0u8);
    f64::from(u32::try_from(random >> 32).unwrap_or_default()) / (f64::from(u32::MAX) + 1.0)
}

/// What `Retry-After` asks for: seconds, or a date.
pub(super) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = UNIX_EPOCH + Duration::from_secs(http_date(text)?);
    Some(at.duration_since(now).unwrap_or_default())
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the form of dates that servers must write.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let mut word = || words.next();
    let day: u64 = word()?.parse().ok()?;
    let month = word()?;
    let month = u64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let year: u64 = word()?.parse().ok()?;
    let mut clock = word()?.split(':').map(|part| part.parse::<u64>().ok());
    let mut part = || clock.next().flatten();
    let (hour, minute, second) = (part()?, part()?, part()?);
    let fits = (1970..=9999).contains(&year) && (1..=31).contains(&day);
    if !fits || hour > 23 || minute > 59 || second > 60 || word()? != "GMT" {
        return None;
    }
    // Days of the Gregorian calendar, counted in years that begin with March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    // 1 January 1970 is day 719,469 in that count.
    let days = days.checked_sub(719_469)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<u64>) -> RegistryError {
        RegistryError::Status {
            host: "a.example".into(),
            status,
            message: String::new(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn waits_double_up_to_a_cap_and_end() {
        let patience = Patience { tries: 9, ..Patience::default() };
        let mut tries = Tries::new(patience);
        for expected in [250, 500, 1000, 2000, 4000, 8000, 8000, 8000] {
            let wait = tries.after(status(503, None)).unwrap();
            let expected = Duration::from_millis(expected);
            assert!(wait <= expected && wait >= expected / 2, "{wait:?} of {expected:?}");
        }
        assert!(tries.after(status(503, None)).is_err());
        tries.progressed();
        assert!(tries.after(status(503, None)).is_ok());
    }

    #[test]
    fn a_refusal_is_final_and_a_hiccup_is_not() {
        for (code, again) in [
            (400, false),
            (401, false),
            (403, false),
            (404, false),
            (429, true),
            (500, true),
            (501, false),
        ] {
            assert_eq!(
                Tries::new(Patience::default()).after(status(code, None)).is_ok(),
                again,
                "{code}"
            );
        }
    }

    #[test]
    fn the_host_says_how_long_to_wait_up_to_a_cap() {
        let mut tries = Tries::new(Patience::default());
        let wait = tries.after(status(429, Some(7))).unwrap();
        assert!(wait >= Duration::from_secs(7) && wait < Duration::from_secs(8), "{wait:?}");
        let refused = tries.after(status(429, Some(3600))).unwrap_err();
        assert!(matches!(refused, RegistryError::Limited { wait, .. } if wait.as_secs() == 3600));
    }

    #[test]
    fn retry_after_is_a_number_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (text, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1993 08:49:37 GMT", Some(0)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 00:00:00 GMT", Some(951_782_400 - 784_111_770)),
            ("soon", None),
            ("-1", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("Sun, 06 Nov 99999999999999999999 08:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text:?}");
        }
    }
}
