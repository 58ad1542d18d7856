//! Sequence numbers: a circle of 2^32 (RFC 9293 section 3.4).

use std::ops::{Add, Sub};

/// A place on the circle. Two of them are compared by the shorter way between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seq(pub(super) u32);

impl Seq {
    /// Whether it comes before `other`.
    pub(super) const fn before(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) >> 31 == 1
    }

    /// Whether it comes after `other`.
    pub(super) const fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// Whether it lies between the two, both included.
    pub(super) const fn within(self, first: Self, last: Self) -> bool {
        !self.before(first) && !self.after(last)
    }

    /// The later of the two.
    pub(super) const fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    /// How far it lies after `other`; zero when it comes before it.
    pub(super) const fn ahead_of(self, other: Self) -> u32 {
        if self.before(other) { 0 } else { self.0.wrapping_sub(other.0) }
    }
}

impl Add<u32> for Seq {
    type Output = Self;

    fn add(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }
}

impl Sub<u32> for Seq {
    type Output = Self;

    fn sub(self, count: u32) -> Self {
        Self(self.0.wrapping_sub(count))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn order_survives_the_wrap(start: u32, step in 1_u32..1 << 31) {
            let (first, second) = (Seq(start), Seq(start) + step);
            prop_assert!(first.before(second) && second.after(first));
            prop_assert!(!second.before(first) && !first.after(second));
            prop_assert_eq!(second.ahead_of(first), step);
            prop_assert_eq!(first.ahead_of(second), 0);
            prop_assert_eq!(first.max(second), second);
            prop_assert_eq!(second - step, first);
            prop_assert!(first.within(first, second) && second.within(first, second));
            prop_assert!(!(second + 1).within(first, second) && !(first - 1).within(first, second));
        }
    }
}
