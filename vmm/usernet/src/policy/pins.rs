//! Which names an address was the answer to.
//!
//! Invariant: at most [`Pins::MAX`] pairs of a name and an address are kept, and at most [`Pins::MAX_NAMES`] names of one address;
//! the least recently used go first. Pure; time is an argument.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::Instant;

/// Answers that the guest was given.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    by_address: BTreeMap<IpAddr, Vec<Pin>>,
    /// When each pair was used last, in the order of use.
    by_use: BTreeMap<u64, IpAddr>,
    uses: u64,
}

#[derive(Debug, Clone)]
struct Pin {
    name: Box<str>,
    until: Instant,
    used: u64,
}

impl Pins {
    /// The most pairs of a name and an address.
    pub const MAX: usize = 4096;
    /// The most names of one address.
    pub const MAX_NAMES: usize = 64;
    /// An answer counts at least so long, whatever its time to live: programs connect later than they look up.
    pub const MIN_TTL: Duration = Duration::from_secs(60);
    /// An answer counts at most so long.
    pub const MAX_TTL: Duration = Duration::from_secs(3600);

    /// The guest was told that `name` has `address` for `ttl`. Names are lower-case, without a trailing dot.
    pub fn pin(&mut self, now: Instant, name: &str, address: IpAddr, ttl: Duration) {
        let address = address.to_canonical();
        let until = now + ttl.clamp(Self::MIN_TTL, Self::MAX_TTL);
        let used = self.uses;
        self.uses += 1;
        let pins = self.by_address.entry(address).or_default();
        if let Some(pin) = pins.iter_mut().find(|pin| &*pin.name == name) {
            self.by_use.remove(&pin.used);
            (pin.used, pin.until) = (used, pin.until.max(until));
        } else {
            if pins.len() == Self::MAX_NAMES
                && let Some(oldest) = (0..pins.len()).min_by_key(|&place| pins[place].used)
            {
                self.by_use.remove(&pins.swap_remove(oldest).used);
            }
            pins.push(Pin { name: name.into(), until, used });
        }
        self.by_use.insert(used, address);
        if self.by_use.len() > Self::MAX {
            self.forget_oldest();
        }
    }

    /// Whether `address` was the answer to a name that `matches`; with `live`, also one whose time has run out.
    pub fn is_pinned(
        &self,
        now: Instant,
        address: IpAddr,
        live: bool,
        mut matches: impl FnMut(&str) -> bool,
    ) -> bool {
        let pins = self.by_address.get(&address.to_canonical());
        pins.is_some_and(|pins| {
            pins.iter().any(|pin| (live || now < pin.until) && matches(&pin.name))
        })
    }

    /// A flow goes to `address`: its names are not forgotten before those that nobody uses.
    pub fn touch(&mut self, address: IpAddr) {
        let address = address.to_canonical();
        for pin in self.by_address.get_mut(&address).into_iter().flatten() {
            self.by_use.remove(&pin.used);
            pin.used = self.uses;
            self.uses += 1;
            self.by_use.insert(pin.used, address);
        }
    }

    /// The names that `address` was the answer to, for a log.
    pub fn names(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.by_address.get(&address.to_canonical()).into_iter().flatten().map(|pin| &*pin.name)
    }

    /// How many pairs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_use.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_use.is_empty()
    }

    fn forget_oldest(&mut self) {
        let Some((used, address)) = self.by_use.pop_first() else { return };
        if let Some(pins) = self.by_address.get_mut(&address) {
            pins.retain(|pin| pin.used != used);
            if pins.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    fn ip(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0100_0000 + n).into()
    }

    fn pinned(pins: &Pins, now: u64, n: u32, name: &str) -> bool {
        pins.is_pinned(at(now), ip(n), false, |of| of == name)
    }

    #[test]
    fn a_pin_lives_between_a_minute_and_an_hour() {
        for (ttl, lives) in [(0, 60), (59, 60), (61, 61), (3600, 3600), (86400, 3600)] {
            let mut pins = Pins::default();
            pins.pin(at(100), "a.example", ip(1), ttl * SECOND);
            assert!(pinned(&pins, 100 + lives - 1, 1, "a.example"), "{ttl}");
            assert!(!pinned(&pins, 100 + lives, 1, "a.example"), "{ttl}");
            assert!(!pinned(&pins, 100, 1, "b.example"));
            assert!(!pinned(&pins, 100, 2, "a.example"));
            assert!(pins.is_pinned(at(9999), ip(1), true, |_| true), "a live flow keeps its names");
        }
    }

    #[test]
    fn the_least_recently_used_pair_goes_first() {
        let mut pins = Pins::default();
        for n in 0..4096 {
            pins.pin(at(0), "a.example", ip(n), SECOND);
        }
        assert_eq!(pins.len(), Pins::MAX);
        pins.touch(ip(0));
        pins.pin(at(0), "a.example", ip(2), SECOND);
        pins.pin(at(0), "a.example", ip(9999), SECOND);
        assert_eq!(pins.len(), Pins::MAX);
        assert!(pinned(&pins, 0, 0, "a.example"), "touched");
        assert!(!pinned(&pins, 0, 1, "a.example"), "the oldest");
        assert!(pinned(&pins, 0, 2, "a.example"), "pinned again");
        assert!(pinned(&pins, 0, 9999, "a.example"), "the newest");
        assert_eq!(pins.by_address.len(), Pins::MAX, "no address without a name is kept");
    }

    #[test]
    fn one_address_has_a_bounded_number_of_names() {
        let mut pins = Pins::default();
        for n in 0..1000 {
            pins.pin(at(0), &format!("{n}.example"), ip(0), SECOND);
        }
        assert_eq!(pins.len(), Pins::MAX_NAMES);
        assert!(pinned(&pins, 0, 0, "999.example"));
        assert!(!pinned(&pins, 0, 0, "0.example"));
        assert_eq!(pins.names(ip(0)).count(), Pins::MAX_NAMES);
    }
}
