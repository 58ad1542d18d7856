//! Sizes and durations as people write them.
//!
//! Invariant: one notation has one meaning wherever the command takes it; a value that does not fit is refused, never
//! wrapped or rounded. Pure.

use std::time::Duration;

/// Bytes in `text`: a whole number with K, M, G or T, which are powers of 1024 whether or not `i` or `iB` follows. A bare
/// number counts `bare_unit` bytes, or is refused when that is `None`.
///
/// # Errors
/// What is wrong with `text`, to follow a colon.
pub fn parse_size(text: &str, bare_unit: Option<u64>) -> Result<u64, &'static str> {
    const NOT_A_SIZE: &str = "a size is a whole number and K, M, G or T, such as 512M or 4Gi";
    let (number, unit) = split_number(text).ok_or(NOT_A_SIZE)?;
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" => bare_unit.ok_or("a unit is needed: K, M, G or T")?,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        _ => return Err(NOT_A_SIZE),
    };
    number.checked_mul(unit).ok_or("the size does not fit in 64 bits")
}

/// The time in `text`: a whole number with `ms`, `s`, `m` or `h`; a bare number counts seconds.
///
/// # Errors
/// What is wrong with `text`, to follow a colon.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const NOT_A_TIME: &str = "a time is a whole number and ms, s, m or h, such as 30s or 5m";
    let (number, unit) = split_number(text).ok_or(NOT_A_TIME)?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(NOT_A_TIME),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or("the time does not fit in 64 bits")
}

/// `bytes` with the largest unit that divides it, as [`parse_size`] takes it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    [(40, "T"), (30, "G"), (20, "M"), (10, "K")]
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(
            || format!("{bytes} bytes"),
            |(shift, unit)| format!("{}{unit}", bytes >> shift),
        )
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        const MIB: u64 = 1 << 20;
        for (text, want) in [
            ("512", Some(512 * MIB)),
            ("512M", Some(512 * MIB)),
            ("512Mi", Some(512 * MIB)),
            ("512MiB", Some(512 * MIB)),
            ("512m", Some(512 * MIB)),
            ("4Gi", Some(4096 * MIB)),
            ("2G", Some(2048 * MIB)),
            ("1T", Some(MIB * MIB)),
            ("64K", Some(65536)),
            ("0", Some(0)),
            ("", None),
            ("M", None),
            ("-1", None),
            ("+1", None),
            ("1.5G", None),
            ("1 G", None),
            ("1GB", None),
            ("1Gib/s", None),
            ("0x10", None),
            ("\u{661}M", None),
            ("18446744073709551615", None),
            ("18446744073709551616K", None),
            ("16777216T", None),
        ] {
            assert_eq!(parse_size(text, Some(MIB)).ok(), want, "{text}");
        }
        assert_eq!(parse_size("7", None), Err("a unit is needed: K, M, G or T"));
    }

    #[test]
    fn durations() {
        for (text, want_ms) in [
            ("30s", Some(30_000)),
            ("5m", Some(300_000)),
            ("2h", Some(7_200_000)),
            ("250ms", Some(250)),
            ("7", Some(7000)),
            ("", None),
            ("s", None),
            ("1d", None),
            ("1M", None),
            ("1.5s", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(parse_duration(text).ok(), want_ms.map(Duration::from_millis), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_size_reads_back_as_written(mib in 1u64..1 << 40) {
            prop_assert_eq!(parse_size(&format_size(mib << 20), None), Ok(mib << 20));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,24}") {
            let (size, time) = (parse_size(&text, Some(1)), parse_duration(&text));
            prop_assert!(size.is_err() || text.as_bytes()[0].is_ascii_digit());
            prop_assert!(time.is_err() || text.as_bytes()[0].is_ascii_digit());
        }
    }
}
