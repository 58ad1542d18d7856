//! Amounts of processor and memory as Kubernetes writes them: `500m`, `2`, `1.5Gi`, `128e6`.
//!
//! Invariant: no text panics or wraps; what cannot be held is an error. Pure.

/// Digits that a number may have, so that every product below fits or is noticed.
const MAX_DIGITS: usize = 18;

/// Parts of one that are kept, as Kubernetes keeps them; what is smaller is rounded up.
const NANO: u128 = 1_000_000_000;

/// A positive amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity {
    nano: u128,
}

/// A text that is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuantityError {
    /// Not of the form.
    #[error("{0:?} is no quantity; write a number and a unit, such as 500m, 2 or 1.5Gi")]
    Form(String),
    /// Zero or less.
    #[error("{0:?} must be more than zero")]
    NotPositive(String),
    /// More than can be counted.
    #[error("{0:?} is too large")]
    TooLarge(String),
}

impl Quantity {
    /// Reads an amount.
    pub(crate) fn parse(text: &str) -> Result<Self, QuantityError> {
        let shown = || text.chars().take(40).collect::<String>();
        let form = || QuantityError::Form(shown());
        if let Some(rest) = text.strip_prefix('-')
            && rest.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        {
            return Err(QuantityError::NotPositive(shown()));
        }
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        let end = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, unit) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = whole.len() + fraction.len();
        if digits == 0 || digits > MAX_DIGITS || fraction.contains('.') {
            return Err(form());
        }
        let mantissa: u128 = format!("{whole}{fraction}").parse().map_err(|_| form())?;
        let scale = i32::try_from(fraction.len()).map_err(|_| form())?;
        let (times, exponent) = unit_of(unit).ok_or_else(form)?;
        if mantissa == 0 {
            return Err(QuantityError::NotPositive(shown()));
        }
        let nano = nano(mantissa, times, exponent - scale);
        nano.map(|nano| Self { nano }).ok_or_else(|| QuantityError::TooLarge(shown()))
    }

    /// Whole units, rounded up.
    pub(crate) fn ceil(self) -> u64 {
        self.ceil_of(1)
    }

    /// How many times `unit` it is, rounded up.
    pub(crate) fn ceil_of(self, unit: u64) -> u64 {
        let times = self.nano.div_ceil(NANO * u128::from(unit.max(1)));
        u64::try_from(times).unwrap_or(u64::MAX)
    }
}

/// What a unit multiplies by: a power of two's factor, and a power of ten.
fn unit_of(unit: &str) -> Option<(u128, i32)> {
    Some(match unit {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => {
            let digits = unit.strip_prefix(['e', 'E'])?;
            let exponent: i32 = digits.parse().ok()?;
            (1, (-30..=30).contains(&exponent).then_some(exponent)?)
        }
    })
}

fn nano(mantissa: u128, times: u128, exponent: i32) -> Option<u128> {
    let value = mantissa.checked_mul(times)?;
    let exponent = exponent + 9;
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    if exponent >= 0 {
        value.checked_mul(power?)
    } else {
        // Less than the smallest part is the smallest part.
        Some(power.map_or(1, |power| value.div_ceil(power)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, units: u64, millis: u64) {
        let quantity = Quantity::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(quantity.ceil(), units, "{text}");
        assert_eq!(quantity.nano.div_ceil(NANO / 1000), u128::from(millis), "{text}");
    }

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        check("1", 1, 1000);
        check("+2", 2, 2000);
        check("500m", 1, 500);
        check("1500m", 2, 1500);
        check("0.5", 1, 500);
        check(".5", 1, 500);
        check("2.", 2, 2000);
        check("1e3", 1000, 1_000_000);
        check("1E3", 1000, 1_000_000);
        check("12e-1", 2, 1200);
    }

    #[test]
    fn memory_is_counted_in_whole_mebibytes() {
        let mib = |text| Quantity::parse(text).expect("an amount").ceil_of(1 << 20);
        assert_eq!(mib("512Mi"), 512);
        assert_eq!(mib("1.5Gi"), 1536);
        assert_eq!(mib("1G"), 954);
        assert_eq!(mib("128974848"), 123);
        assert_eq!(mib("129e6"), 124);
        assert_eq!(mib("129M"), 124);
        assert_eq!(mib("128974848000m"), 123);
        assert_eq!(mib("1"), 1);
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["", "m", "Gi", "1x", "1 Gi", "1..2", "1.2.3", "e3", "1e", "1e99", "0x10", "٣"]
        {
            assert!(matches!(Quantity::parse(text), Err(QuantityError::Form(_))), "{text}");
        }
        for text in ["0", "0Gi", "0.0", "-1", "-0.5Gi"] {
            assert!(matches!(Quantity::parse(text), Err(QuantityError::NotPositive(_))), "{text}");
        }
        for text in ["999999999999999999Ei", "999999999999999999e30"] {
            assert!(matches!(Quantity::parse(text), Err(QuantityError::TooLarge(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            drop(Quantity::parse(&text));
        }

        #[test]
        fn a_suffix_means_its_power(number in 1_u64..1_000_000) {
            let of = |unit: &str| Quantity::parse(&format!("{number}{unit}")).expect("an amount");
            prop_assert_eq!(of("Ki").ceil(), number * 1024);
            prop_assert_eq!(of("k"), Quantity::parse(&format!("{number}000")).expect("an amount"));
            prop_assert_eq!(of("m").ceil(), number.div_ceil(1000));
        }
    }
}
