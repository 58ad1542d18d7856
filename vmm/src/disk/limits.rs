//! Token buckets that hold a disk to operations and bytes per second.
//!
//! Invariant: over any span the work admitted is at most the rate times the span, plus one second's burst, plus one request: a request
//! is admitted while the bucket is not empty and may leave a debt, so that none is too large to ever pass. Pure: time is an argument.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::config::plan::DiskLimits;

const NANOS_PER_S: i128 = 1_000_000_000;

/// One rate. The level is kept in billionths of a token, so that nothing is lost to rounding.
#[derive(Debug, Clone)]
struct Bucket {
    rate_per_s: i128,
    level: i128,
    filled_at: Duration,
}

impl Bucket {
    fn new(rate_per_s: NonZeroU64, now: Duration) -> Self {
        let rate_per_s = i128::from(rate_per_s.get());
        Self { rate_per_s, level: rate_per_s * NANOS_PER_S, filled_at: now }
    }

    fn delay(&mut self, now: Duration) -> Option<Duration> {
        let elapsed = now.saturating_sub(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        let gained =
            i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX).saturating_mul(self.rate_per_s);
        self.level = self.level.saturating_add(gained).min(self.rate_per_s * NANOS_PER_S);
        let missing = NANOS_PER_S - self.level;
        if missing <= 0 {
            return None;
        }
        let nanos = missing.unsigned_abs().div_ceil(self.rate_per_s.unsigned_abs());
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens).saturating_mul(NANOS_PER_S));
    }
}

/// The limits of one disk, shared by its queues.
#[derive(Debug, Clone)]
pub struct Limiter {
    ops: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    /// Full buckets at `now`, a time since any fixed origin; `None` when nothing is limited.
    #[must_use]
    pub fn new(limits: &DiskLimits, now: Duration) -> Option<Self> {
        let ops = limits.ops_per_s.map(|rate| Bucket::new(rate, now));
        let bytes = limits.bytes_per_s.map(|rate| Bucket::new(rate, now));
        (ops.is_some() || bytes.is_some()).then_some(Self { ops, bytes })
    }

    /// How long the next request must wait; `None` when it may go at once.
    pub fn delay(&mut self, now: Duration) -> Option<Duration> {
        let ops = self.ops.as_mut().and_then(|bucket| bucket.delay(now));
        let bytes = self.bytes.as_mut().and_then(|bucket| bucket.delay(now));
        ops.max(bytes)
    }

    /// Accounts for one request that moves `len_bytes`.
    pub fn charge(&mut self, len_bytes: u64) {
        if let Some(bucket) = &mut self.ops {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(len_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limiter(ops: u64, bytes: u64) -> Limiter {
        let limits =
            DiskLimits { ops_per_s: NonZeroU64::new(ops), bytes_per_s: NonZeroU64::new(bytes) };
        Limiter::new(&limits, Duration::ZERO).unwrap()
    }

    #[test]
    fn no_limits_need_no_limiter() {
        assert!(Limiter::new(&DiskLimits::default(), Duration::ZERO).is_none());
    }

    #[test]
    fn a_burst_of_one_second_passes_and_then_the_rate_holds() {
        let mut limiter = limiter(10, 0);
        for _ in 0..10 {
            assert_eq!(limiter.delay(Duration::ZERO), None);
            limiter.charge(4096);
        }
        assert_eq!(limiter.delay(Duration::ZERO), Some(Duration::from_millis(100)));
        assert_eq!(limiter.delay(Duration::from_millis(99)), Some(Duration::from_millis(1)));
        assert_eq!(limiter.delay(Duration::from_millis(100)), None);
    }

    #[test]
    fn a_request_larger_than_the_burst_passes_and_is_paid_for() {
        let mut limiter = limiter(0, 1000);
        assert_eq!(limiter.delay(Duration::ZERO), None);
        limiter.charge(10_000);
        assert_eq!(limiter.delay(Duration::ZERO), Some(Duration::from_millis(9001)));
        assert_eq!(limiter.delay(Duration::from_secs(10)), None);
    }

    #[test]
    fn the_slower_of_two_limits_decides() {
        let mut limiter = limiter(1, 1_000_000);
        limiter.charge(1);
        assert_eq!(limiter.delay(Duration::ZERO), Some(Duration::from_secs(1)));
    }

    #[test]
    fn extreme_rates_and_times_do_not_overflow() {
        let mut limiter = limiter(u64::MAX, u64::MAX);
        limiter.charge(u64::MAX);
        limiter.charge(u64::MAX);
        assert!(limiter.delay(Duration::ZERO).is_some());
        assert_eq!(limiter.delay(Duration::MAX), None);
        assert_eq!(limiter.delay(Duration::ZERO), None);
    }

    proptest! {
        #[test]
        fn admitted_work_never_exceeds_rate_and_burst(
            rate in 1_u64..1_000_000,
            requests in prop::collection::vec((0_u64..2_000_000, 0_u64..2_000_000_000), 1..200),
        ) {
            let mut limiter = limiter(0, rate);
            let mut now = Duration::ZERO;
            let mut admitted = 0_u128;
            let mut largest = 0_u128;
            for (len_bytes, pause_ns) in requests {
                now += Duration::from_nanos(pause_ns);
                if let Some(delay) = limiter.delay(now) {
                    prop_assert!(delay > Duration::ZERO);
                    prop_assert_eq!(limiter.clone().delay(now + delay), None);
                    continue;
                }
                limiter.charge(len_bytes);
                admitted += u128::from(len_bytes);
                largest = largest.max(u128::from(len_bytes));
                let earned = u128::from(rate) * (now.as_nanos() + 1_000_000_000) / 1_000_000_000;
                prop_assert!(admitted <= earned + largest);
            }
        }
    }
}
