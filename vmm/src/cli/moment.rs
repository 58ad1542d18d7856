//! Moments and ages as people write and read them: RFC 3339 in UTC, or how long ago. Pure.

use std::time::Duration;

use openshell_vmm::config::units::parse_duration;

const DAY_MS: u64 = 86_400_000;

/// `unix_ms` as RFC 3339.
pub(super) fn show(unix_ms: u64) -> String {
    let (days, in_day) = (unix_ms / DAY_MS, unix_ms % DAY_MS);
    let (year, month, day) = civil(days);
    let (hour, minute) = (in_day / 3_600_000, in_day / 60_000 % 60);
    let (second, ms) = (in_day / 1000 % 60, in_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// How long ago `unix_ms` was, in one unit.
pub(super) fn age(unix_ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(unix_ms) / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A moment: how long before `now_ms` (`10m`), seconds since 1970, or RFC 3339 in UTC; in milliseconds since 1970.
pub(super) fn parse(text: &str, now_ms: u64) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse::<u64>().ok()?.checked_mul(1000);
    }
    if let Ok(ago) = parse_duration(text) {
        return Some(now_ms.saturating_sub(millis(ago)));
    }
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once(['T', ' '])?;
    let number = |text: &str| -> Option<u64> {
        text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut parts = date.split('-').map(number);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = time.split(':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let sound = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 61;
    if !sound || parts.next().is_some() || clock.next().is_some() {
        return None;
    }
    let ms = number(&format!("{fraction:0<3}").chars().take(3).collect::<String>())?;
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(seconds * 1000 + ms)
}

/// Whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, of 1970 or later.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin with March, so that a leap day is a year's last.
    let shifted = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let whole = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400;
    whole + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// Year, month and day of a day since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, in_era) = (days / 146_097, days % 146_097);
    let year = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year + year / 4 - year / 100);
    let month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_shown() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_234_567_890_123, "2009-02-13T23:31:30.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(show(unix_ms), text);
            assert_eq!(parse(text, 0), Some(unix_ms), "{text}");
        }
        let now = 1_000_000_000;
        for (text, want) in [
            ("10m", Some(now - 600_000)),
            ("2h", Some(now - 7_200_000)),
            ("1234567890", Some(1_234_567_890_000)),
            ("2009-02-13 23:31:30Z", Some(1_234_567_890_000)),
            ("2009-02-13T23:31:30.5Z", Some(1_234_567_890_500)),
            ("yesterday", None),
            ("2009-13-01T00:00:00Z", None),
            ("2009-02-13T23:31:30", None),
            ("2009-02-13T23:31:30:1Z", None),
            ("", None),
            ("Z", None),
        ] {
            assert_eq!(parse(text, now).filter(|_| !text.is_empty()), want, "{text}");
        }
    }

    #[test]
    fn every_day_of_a_cycle_comes_back() {
        for day in (0..200_000).step_by(7) {
            let (year, month, date) = civil(day);
            assert_eq!(days(year, month, date), day);
        }
    }

    #[test]
    fn ages_have_one_unit() {
        for (seconds, want) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (200_000, "2d")]
        {
            assert_eq!(age(1000, 1000 + seconds * 1000), want);
        }
        assert_eq!(age(2000, 1000), "0s");
    }
}
