//! Flows by name and by key: a slab whose places count their generations, an index keyed by a secret, and the order of last use.
//!
//! Invariant: a key that is in the table is found by it, and a [`FlowId`] finds its own flow or nothing, never one that came later to
//! its place. The table never holds more than its capacity. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::FlowId;
use crate::siphash::SipKey;

/// What a flow is found by.
pub trait Key: Copy + Eq {
    /// All of it.
    fn words(&self) -> [u64; 5];
}

/// An address and a port (or what stands for a port), IPv4 as a mapped address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address.
    pub address: Ipv6Addr,
    /// The port; the identifier of an echo.
    pub port: u16,
}

impl Endpoint {
    /// The endpoint of an address of either family.
    #[must_use]
    pub const fn new(address: IpAddr, port: u16) -> Self {
        let address = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self { address, port }
    }

    /// Its address in its own family.
    #[must_use]
    pub const fn ip(self) -> IpAddr {
        self.address.to_canonical()
    }

    /// As the socket interface has it.
    #[must_use]
    pub const fn socket_addr(self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.port)
    }
}

/// The two ends of a flow, as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The guest's end.
    pub guest: Endpoint,
    /// The other end, before any translation.
    pub remote: Endpoint,
}

impl Key for FlowKey {
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
    fn words(&self) -> [u64; 5] {
        let (guest, remote) = (self.guest.address.to_bits(), self.remote.address.to_bits());
        let ports = u64::from(self.guest.port) << 16 | u64::from(self.remote.port);
        [guest as u64, (guest >> 64) as u64, remote as u64, (remote >> 64) as u64, ports]
    }
}

/// No place.
const NONE: u32 = u32::MAX;

/// Places of an index at first.
const FIRST_PLACES: usize = 64;

/// A bounded table of flows.
#[derive(Debug)]
pub struct Table<K, V> {
    hash: SipKey,
    base: u32,
    capacity: u32,
    slots: Vec<Slot<K, V>>,
    /// The last place that became free; each knows the one before it.
    free: u32,
    /// Places, by the hash of their keys; a power of two of them, never more than half taken. It grows with the table and stays so.
    index: Vec<u32>,
    oldest: u32,
    newest: u32,
    len: u32,
}

#[derive(Debug)]
struct Slot<K, V> {
    generation: u32,
    hash: u32,
    older: u32,
    /// Of a free place, the next free one.
    newer: u32,
    entry: Option<(K, V)>,
}

impl<K: Key, V> Table<K, V> {
    /// A table of at most `capacity` flows whose names have the indices from `base` on.
    ///
    /// # Panics
    /// When the indices do not fit 31 bits: the configuration is wrong.
    #[must_use]
    pub fn new(hash: SipKey, base: u32, capacity: u32) -> Self {
        assert!(
            base.checked_add(capacity).is_some_and(|end| end < 1 << 31),
            "{base} and {capacity} flows need more than 31 bits"
        );
        Self {
            hash,
            base,
            capacity,
            slots: Vec::new(),
            free: NONE,
            index: vec![NONE; FIRST_PLACES],
            oldest: NONE,
            newest: NONE,
            len: 0,
        }
    }

    /// How many flows there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is no room for another.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.len == self.capacity
    }

    /// Whether names like this are those of this table.
    #[must_use]
    pub const fn names(&self, id: FlowId) -> bool {
        id.index() >= self.base && id.index() - self.base < self.capacity
    }

    /// The name that the next flow will get; `None` when the table is full.
    #[must_use]
    pub fn next_id(&self) -> Option<FlowId> {
        if self.is_full() {
            return None;
        }
        let (place, generation) = match self.slots.get(self.free as usize) {
            Some(slot) => (self.free, slot.generation),
            None => (u32::try_from(self.slots.len()).ok()?, 0),
        };
        Some(FlowId::new(self.base + place, generation))
    }

    /// Adds a flow as the one used last. `None`: the table is full, or the key is in it.
    pub fn insert(&mut self, key: K, value: V) -> Option<FlowId> {
        let id = self.next_id()?;
        let hash = self.hash_of(&key);
        if self.position(&key, hash).is_some() {
            return None;
        }
        let place = id.index() - self.base;
        if let Some(slot) = self.slots.get_mut(place as usize) {
            self.free = slot.newer;
            (slot.hash, slot.entry) = (hash, Some((key, value)));
        } else {
            let entry = Some((key, value));
            self.slots.push(Slot { generation: 0, hash, older: NONE, newer: NONE, entry });
        }
        self.len += 1;
        if self.len() * 2 > self.index.len() {
            self.grow();
        } else {
            self.enter(place, hash);
        }
        self.link(place);
        Some(id)
    }

    /// The flow with this key.
    #[must_use]
    pub fn find(&self, key: &K) -> Option<FlowId> {
        let place = self.index[self.position(key, self.hash_of(key))?];
        let slot = self.slots.get(place as usize)?;
        Some(FlowId::new(self.base + place, slot.generation))
    }

    /// The flow of this name.
    #[must_use]
    pub fn get(&self, id: FlowId) -> Option<&V> {
        let place = self.place(id)?;
        self.slots.get(place as usize)?.entry.as_ref().map(|(_, value)| value)
    }

    /// As [`Self::get`], to be changed.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut V> {
        let place = self.place(id)?;
        self.slots.get_mut(place as usize)?.entry.as_mut().map(|(_, value)| value)
    }

    /// The key of the flow of this name.
    #[must_use]
    pub fn key(&self, id: FlowId) -> Option<K> {
        let place = self.place(id)?;
        self.slots.get(place as usize)?.entry.as_ref().map(|(key, _)| *key)
    }

    /// Makes it the one used last.
    pub fn touch(&mut self, id: FlowId) {
        if let Some(place) = self.place(id)
            && place != self.newest
        {
            self.unlink(place);
            self.link(place);
        }
    }

    /// The one not used for longest.
    #[must_use]
    pub fn oldest(&self) -> Option<FlowId> {
        self.id_at(self.oldest)
    }

    /// The names of all, the one not used for longest first.
    pub fn ids(&self) -> impl Iterator<Item = FlowId> {
        let newer = |place: &u32| self.slots.get(*place as usize).map(|slot| slot.newer);
        std::iter::successors(Some(self.oldest), newer).map_while(|place| self.id_at(place))
    }

    /// Takes a flow out.
    pub fn remove(&mut self, id: FlowId) -> Option<(K, V)> {
        let place = self.place(id)?;
        let hash = self.slots.get(place as usize)?.hash;
        self.unlink(place);
        self.forget(place, hash);
        let free = std::mem::replace(&mut self.free, place);
        let slot = self.slots.get_mut(place as usize)?;
        slot.generation = (slot.generation + 1) & 0xff_ffff;
        slot.newer = free;
        self.len -= 1;
        slot.entry.take()
    }

    fn id_at(&self, place: u32) -> Option<FlowId> {
        let slot = self.slots.get(place as usize)?;
        Some(FlowId::new(self.base + place, slot.generation))
    }

    /// Its place, if its flow is still there.
    fn place(&self, id: FlowId) -> Option<u32> {
        let place = id.index().checked_sub(self.base)?;
        let slot = self.slots.get(place as usize)?;
        (slot.entry.is_some() && FlowId::new(id.index(), slot.generation) == id).then_some(place)
    }

    #[expect(clippy::cast_possible_truncation, reason = "32 bits index 2^31 places")]
    fn hash_of(&self, key: &K) -> u32 {
        self.hash.hash(&key.words()) as u32
    }

    /// Puts `place` into the index.
    fn enter(&mut self, place: u32, hash: u32) {
        let mut at = self.first_position(hash);
        while self.index[at] != NONE {
            at = self.next_position(at);
        }
        self.index[at] = place;
    }

    /// Makes the index twice as long, and enters every flow that is there.
    fn grow(&mut self) {
        self.index = vec![NONE; self.index.len() * 2];
        for place in 0..self.slots.len() {
            if let (Some(Slot { hash, entry: Some(_), .. }), Ok(place)) =
                (self.slots.get(place), u32::try_from(place))
            {
                self.enter(place, *hash);
            }
        }
    }

    const fn first_position(&self, hash: u32) -> usize {
        hash as usize & (self.index.len() - 1)
    }

    const fn next_position(&self, at: usize) -> usize {
        (at + 1) & (self.index.len() - 1)
    }

    fn position(&self, key: &K, hash: u32) -> Option<usize> {
        let mut at = self.first_position(hash);
        loop {
            let slot = self.slots.get(self.index[at] as usize)?;
            if slot.hash == hash && slot.entry.as_ref().is_some_and(|(of, _)| of == key) {
                return Some(at);
            }
            at = self.next_position(at);
        }
    }

    /// Takes `place` out of the index and closes the gap, so that no search ends too early.
    fn forget(&mut self, place: u32, hash: u32) {
        let mut gap = self.first_position(hash);
        while self.index[gap] != place {
            gap = self.next_position(gap);
        }
        let mut at = self.next_position(gap);
        while let Some(slot) = self.slots.get(self.index[at] as usize) {
            // One that would be looked for beyond the gap stays.
            let mask = self.index.len() - 1;
            let first = self.first_position(slot.hash);
            if at.wrapping_sub(first) & mask >= at.wrapping_sub(gap) & mask {
                self.index[gap] = self.index[at];
                gap = at;
            }
            at = self.next_position(at);
        }
        self.index[gap] = NONE;
    }

    fn link(&mut self, place: u32) {
        let older = std::mem::replace(&mut self.newest, place);
        if let Some(slot) = self.slots.get_mut(place as usize) {
            (slot.older, slot.newer) = (older, NONE);
        }
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = place,
            None => self.oldest = place,
        }
    }

    fn unlink(&mut self, place: u32) {
        let Some(slot) = self.slots.get(place as usize) else { return };
        let (older, newer) = (slot.older, slot.newer);
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn key(port: u16) -> FlowKey {
        let guest = Endpoint::new(Ipv4Addr::new(192, 168, 127, 2).into(), port);
        let remote = Endpoint::new(Ipv4Addr::new(192, 0, 2, 1).into(), 443);
        FlowKey { guest, remote }
    }

    fn table(capacity: u32) -> Table<FlowKey, u16> {
        Table::new(SipKey::new([3; 16]), 100, capacity)
    }

    #[test]
    fn a_late_name_finds_nobody() {
        let mut table = table(1);
        assert_eq!(table.next_id(), Some(FlowId::new(100, 0)));
        let first = table.insert(key(1), 1).unwrap();
        assert_eq!(table.insert(key(2), 2), None, "it is full");
        assert_eq!(table.remove(first), Some((key(1), 1)));
        let second = table.insert(key(2), 2).unwrap();
        assert_eq!(second, FlowId::new(100, 1));
        assert_eq!((table.get(first), table.get(second)), (None, Some(&2)));
        assert_eq!((table.find(&key(1)), table.find(&key(2))), (None, Some(second)));
        assert_eq!(table.remove(first), None);
    }

    #[test]
    fn names_of_other_tables_are_not_its_own() {
        let mut table = table(4);
        let id = table.insert(key(1), 1).unwrap();
        assert!(table.names(id));
        for other in [FlowId::new(99, 0), FlowId::new(104, 0), FlowId::new(0, 0)] {
            assert!(!table.names(other));
            assert_eq!(table.get(other), None);
        }
    }

    #[test]
    fn a_key_is_in_it_once() {
        let mut table = table(4);
        table.insert(key(1), 1).unwrap();
        assert_eq!(table.insert(key(1), 2), None);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn endpoints_keep_their_family() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:443"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Endpoint::new(address.ip(), address.port()).socket_addr(), address);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u16),
        Remove(u16),
        Touch(u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0..3, 0_u16..40).prop_map(|(kind, port)| match kind {
            0 => Step::Insert(port),
            1 => Step::Remove(port),
            _ => Step::Touch(port),
        });
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn it_is_a_bounded_map_in_order_of_use(steps in steps()) {
            let mut table = table(24);
            let mut model: VecDeque<(FlowId, u16)> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Insert(port) => {
                        let room = model.len() < 24 && !model.iter().any(|(_, of)| *of == port);
                        let id = table.insert(key(port), port);
                        prop_assert_eq!(id.is_some(), room);
                        model.extend(id.map(|id| (id, port)));
                    }
                    Step::Remove(port) => {
                        let id = table.find(&key(port));
                        prop_assert_eq!(id.and_then(|id| table.remove(id)).is_some(), id.is_some());
                        model.retain(|(_, of)| *of != port);
                    }
                    Step::Touch(port) => {
                        if let Some(id) = table.find(&key(port)) {
                            table.touch(id);
                            model.retain(|(_, of)| *of != port);
                            model.push_back((id, port));
                        }
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.oldest(), model.front().map(|(id, _)| *id));
                prop_assert!(table.ids().eq(model.iter().map(|(id, _)| *id)));
                for (id, port) in &model {
                    prop_assert_eq!(table.find(&key(*port)), Some(*id));
                    prop_assert_eq!(table.get(*id), Some(port));
                    prop_assert_eq!(table.key(*id), Some(key(*port)));
                }
            }
        }
    }
}
