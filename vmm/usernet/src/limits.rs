//! Token buckets, and the limits of `--net-bw` and `--net-pps` made of them.
//!
//! Invariant: in any span of time no more tokens are taken than the rate gives in it, the burst, and what one last taking may
//! borrow. Pure; time is an argument, and it may stand still or jump.

use std::time::Duration;

use crate::Instant;

/// Tokens that come at a rate and are kept up to a burst.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    per_second: u64,
    burst: u64,
    /// In billionths of a token, so that a slow rate loses nothing to rounding; below zero is borrowed.
    level: i128,
    filled: Option<Instant>,
}

const NANO: i128 = 1_000_000_000;

impl TokenBucket {
    /// A full bucket of `burst` tokens that gains `per_second` a second; both are at least one.
    #[must_use]
    pub fn new(per_second: u64, burst: u64) -> Self {
        let (per_second, burst) = (per_second.max(1), burst.max(1));
        Self { per_second, burst, level: i128::from(burst) * NANO, filled: None }
    }

    /// Takes `tokens`, if so many are there; more than the burst are lent to a full bucket.
    pub fn take(&mut self, now: Instant, tokens: u64) -> bool {
        let ready = self.wait(now, tokens).is_zero();
        if ready {
            self.level -= i128::from(tokens) * NANO;
        }
        ready
    }

    /// How long until [`Self::take`] of `tokens` succeeds; zero: it does now.
    pub fn wait(&mut self, now: Instant, tokens: u64) -> Duration {
        self.fill(now);
        let missing = i128::from(tokens.min(self.burst)) * NANO - self.level;
        if missing <= 0 {
            return Duration::ZERO;
        }
        let rate = i128::from(self.per_second);
        Duration::from_nanos(u64::try_from((missing + rate - 1) / rate).unwrap_or(u64::MAX))
    }

    fn fill(&mut self, now: Instant) {
        let since = self.filled.map_or(Duration::ZERO, |filled| now.since(filled));
        let gained = i128::try_from(since.as_nanos()).unwrap_or(i128::MAX);
        let gained = gained.saturating_mul(i128::from(self.per_second));
        self.level = self.level.saturating_add(gained).min(i128::from(self.burst) * NANO);
        self.filled = self.filled.max(Some(now));
    }
}

/// What one direction of a network card may carry.
#[derive(Debug, Clone, Default)]
pub struct RateLimit {
    bytes: Option<TokenBucket>,
    packets: Option<TokenBucket>,
}

impl RateLimit {
    /// The smallest burst in bytes: one frame of the largest size always passes a full bucket.
    const MIN_BURST_BYTES: u64 = 64 << 10;
    const MIN_BURST_PACKETS: u64 = 64;

    /// Bytes and packets a second; what is `None` is not limited. A tenth of a second may come at once.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>, packets_per_second: Option<u64>) -> Self {
        let bucket = |rate: u64, least: u64| TokenBucket::new(rate, (rate / 10).max(least));
        Self {
            bytes: bytes_per_second.map(|rate| bucket(rate, Self::MIN_BURST_BYTES)),
            packets: packets_per_second.map(|rate| bucket(rate, Self::MIN_BURST_PACKETS)),
        }
    }

    /// Whether anything is limited.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.packets.is_some()
    }

    /// Lets a frame pass that has `bytes` bytes and stands for `packets` packets.
    ///
    /// # Errors
    /// When to try again; nothing was counted.
    pub fn admit(&mut self, now: Instant, bytes: u64, packets: u64) -> Result<(), Instant> {
        let wait = |bucket: &mut Option<TokenBucket>, tokens| {
            bucket.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(now, tokens))
        };
        let longest = wait(&mut self.bytes, bytes).max(wait(&mut self.packets, packets));
        if !longest.is_zero() {
            return Err(now + longest);
        }
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.packets, packets)] {
            if let Some(bucket) = bucket {
                bucket.take(now, tokens);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let mut bucket = TokenBucket::new(10, 5);
        assert!((0..5).all(|_| bucket.take(ms(0), 1)));
        assert!(!bucket.take(ms(99), 1));
        assert_eq!(bucket.wait(ms(99), 1), Duration::from_millis(1));
        assert!(bucket.take(ms(100), 1));
        assert!(!bucket.take(ms(100), 1));
        assert!((0..5).all(|_| bucket.take(ms(100_000), 1)), "full again, and no fuller");
        assert!(!bucket.take(ms(100_000), 1));
    }

    #[test]
    fn a_frame_larger_than_the_burst_passes_and_is_paid_for() {
        let mut bucket = TokenBucket::new(1000, 10);
        assert!(bucket.take(ms(0), 100));
        assert_eq!(bucket.wait(ms(0), 1), Duration::from_millis(91));
        assert_eq!(bucket.wait(ms(50), 1), Duration::from_millis(41), "time does not fill twice");
        assert!(bucket.take(ms(91), 1));
    }

    #[test]
    fn a_limit_counts_bytes_and_packets_together_or_not_at_all() {
        let mut limit = RateLimit::new(Some(10_000_000), Some(1000));
        assert!(limit.is_limited() && !RateLimit::default().is_limited());
        assert_eq!(RateLimit::default().admit(ms(0), u64::MAX, u64::MAX), Ok(()));
        assert_eq!(limit.admit(ms(0), 500_000, 100), Ok(()));
        let again = limit.admit(ms(0), 1000, 1).unwrap_err();
        assert_eq!(again, ms(1), "a hundred packets were the burst");
        assert_eq!(limit.admit(again, 520_000, 1), Err(ms(2)), "the bytes are missing");
        assert_eq!(limit.admit(ms(2), 1000, 2), Ok(()), "and no packet was counted");
    }

    proptest! {
        #[test]
        fn no_span_gives_more_than_its_due(
            rate in 1_u64..1000, burst in 1_u64..100,
            steps in prop::collection::vec((0_u64..2_000_000_000, 0_u64..50), 1..60),
        ) {
            let mut bucket = TokenBucket::new(rate, burst);
            let (mut nanos, mut taken) = (0_u64, 0_u128);
            for (step, tokens) in steps {
                nanos += step;
                let now = Instant::from_nanos(nanos);
                let wait = bucket.wait(now, tokens);
                if bucket.take(now, tokens) {
                    prop_assert_eq!(wait, Duration::ZERO);
                    taken += u128::from(tokens);
                } else {
                    prop_assert!(bucket.clone().take(now + wait, tokens), "the wait is long enough");
                }
                let due = u128::from(nanos) * u128::from(rate) / 1_000_000_000;
                prop_assert!(taken <= due + u128::from(burst) + 50);
            }
        }
    }
}
