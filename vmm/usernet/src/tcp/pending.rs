//! Connections whose host side does not stand yet, in the order in which they were asked for.
//!
//! Invariant: there are never more than the bounds say, of all and to one address. Who is too many is the oldest.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;
use std::num::NonZeroU64;

use crate::FlowId;

/// The order of the pending.
#[derive(Debug)]
pub(super) struct Pending {
    most: usize,
    most_per_destination: usize,
    next_age: NonZeroU64,
    by_age: BTreeMap<NonZeroU64, (Ipv6Addr, FlowId)>,
    by_destination: BTreeMap<Ipv6Addr, VecDeque<NonZeroU64>>,
}

impl Pending {
    pub(super) const fn new(most: usize, most_per_destination: usize) -> Self {
        Self {
            most,
            most_per_destination,
            next_age: NonZeroU64::MIN,
            by_age: BTreeMap::new(),
            by_destination: BTreeMap::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_age.len()
    }

    /// Who has to go before another to `destination` may come.
    pub(super) fn in_the_way(&self, destination: Ipv6Addr) -> Option<FlowId> {
        let of_it = self.by_destination.get(&destination);
        if let Some(ages) = of_it.filter(|ages| ages.len() >= self.most_per_destination) {
            return ages.front().and_then(|age| self.by_age.get(age)).map(|(_, id)| *id);
        }
        let full = self.by_age.len() >= self.most;
        self.by_age.first_key_value().filter(|_| full).map(|(_, (_, id))| *id)
    }

    /// Adds one; its age is what it is removed by.
    pub(super) fn add(&mut self, destination: Ipv6Addr, id: FlowId) -> NonZeroU64 {
        let age = self.next_age;
        self.next_age = age.saturating_add(1);
        self.by_age.insert(age, (destination, id));
        self.by_destination.entry(destination).or_default().push_back(age);
        age
    }

    /// Removes one, if it is there.
    pub(super) fn remove(&mut self, age: NonZeroU64) {
        let Some((destination, _)) = self.by_age.remove(&age) else { return };
        if let Some(ages) = self.by_destination.get_mut(&destination) {
            ages.retain(|of| *of != age);
            if ages.is_empty() {
                self.by_destination.remove(&destination);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_has_to_go() {
        let mut pending = Pending::new(4, 2);
        let (here, there) = (Ipv6Addr::from_bits(1), Ipv6Addr::from_bits(2));
        let id = |index| FlowId::new(index, 0);
        let first = pending.add(here, id(0));
        assert_eq!(pending.in_the_way(here), None);
        pending.add(here, id(1));
        assert_eq!(pending.in_the_way(here), Some(id(0)), "two to one address");
        assert_eq!(pending.in_the_way(there), None);
        pending.remove(first);
        assert_eq!(pending.in_the_way(here), None);
        pending.add(there, id(2));
        pending.add(there, id(3));
        pending.add(Ipv6Addr::from_bits(3), id(4));
        assert_eq!(pending.in_the_way(here), Some(id(1)), "four in all");
        assert_eq!(pending.in_the_way(there), Some(id(2)));
        pending.remove(first);
        assert_eq!(pending.len(), 4);
    }
}
