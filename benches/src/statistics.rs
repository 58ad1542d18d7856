//! Order statistics of samples.
//!
//! Invariant: a summary is of samples as they were taken; nothing is thrown out here.

use serde::{Deserialize, Serialize};

/// What samples come to, in their own unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many samples.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// What 99 of 100 do not exceed.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// Median distance from the median.
    pub deviation: f64,
}

impl Summary {
    /// Of `samples`; `None` when there are none.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples);
        let median = quantile(&sorted, 0.5)?;
        let distances: Vec<f64> = samples.iter().map(|sample| (sample - median).abs()).collect();
        Some(Self {
            count: samples.len(),
            min: *sorted.first()?,
            median,
            p99: quantile(&sorted, 0.99)?,
            max: *sorted.last()?,
            deviation: quantile(&self::sorted(&distances), 0.5)?,
        })
    }
}

/// The median; `None` without samples.
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    quantile(&sorted(samples), 0.5)
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The value that the share `q` of `sorted` does not exceed, interpolated between neighbours.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(clippy::cast_precision_loss, reason = "there are few samples")]
    let place = last as f64 * q;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 <= place <= last"
    )]
    let below = place.floor() as usize;
    let (low, high) = (sorted.get(below)?, sorted.get(below.saturating_add(1).min(last))?);
    Some(low + (high - low) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_few_and_of_many() {
        assert_eq!(Summary::of(&[]), None);
        let one = Summary::of(&[3.0]).unwrap();
        assert_eq!((one.count, one.min, one.median, one.p99, one.max), (1, 3.0, 3.0, 3.0, 3.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        let hundred: Vec<f64> = (1..=101).map(f64::from).collect();
        let many = Summary::of(&hundred).unwrap();
        assert_eq!((many.median, many.p99, many.deviation), (51.0, 100.0, 25.0));
    }
}
