//! Who follows a sandbox hears that its row has changed, and of its platform events.
//!
//! A change of a row carries nothing: the follower reads the row again. However many changes there were in between, it hears of the last
//! one, so no state is ever missed. Platform events are kept in a short tail; a follower too slow for them is told how many it lost.
//!
//! Invariant: a topic has bounded memory, and is gone once its sandbox and its followers are.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use openshell_proto::v1::PlatformEvent;
use tokio::sync::{broadcast, watch};

/// Events that a topic keeps for those who come later, and that a follower may be behind.
pub const EVENTS: usize = 128;

/// A topic for each sandbox that has been followed or has had events.
#[derive(Debug, Default)]
pub struct Bus {
    topics: Mutex<HashMap<String, Topic>>,
}

#[derive(Debug)]
struct Topic {
    changes: watch::Sender<u64>,
    events: broadcast::Sender<PlatformEvent>,
    tail: VecDeque<PlatformEvent>,
}

/// Follows one sandbox. Make it before the row is read.
#[derive(Debug)]
pub struct Follower {
    changes: watch::Receiver<u64>,
    events: broadcast::Receiver<PlatformEvent>,
    tail: VecDeque<PlatformEvent>,
}

/// What a follower hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// The row has changed since it was last read.
    Changed,
    /// The driver has said something.
    Event(Box<PlatformEvent>),
    /// So many events were lost to this follower. The row was not.
    Lost(u64),
    /// The sandbox is gone: the end.
    Gone,
}

impl Bus {
    /// Follows a sandbox from now on, with the events before.
    #[must_use]
    pub fn follow(&self, sandbox_id: &str) -> Follower {
        let mut topics = self.lock();
        let topic = topics.entry(sandbox_id.to_owned()).or_insert_with(Topic::new);
        Follower {
            changes: topic.changes.subscribe(),
            events: topic.events.subscribe(),
            tail: topic.tail.clone(),
        }
    }

    /// The row has changed, and has been written.
    pub fn changed(&self, sandbox_id: &str) {
        if let Some(topic) = self.lock().get(sandbox_id) {
            topic.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// The driver has said something about a sandbox that has a row.
    pub fn event(&self, sandbox_id: &str, event: PlatformEvent) {
        let mut topics = self.lock();
        let topic = topics.entry(sandbox_id.to_owned()).or_insert_with(Topic::new);
        if topic.tail.len() == EVENTS {
            topic.tail.pop_front();
        }
        topic.tail.push_back(event.clone());
        // Nobody follows: the tail has it.
        drop(topic.events.send(event));
    }

    /// The row is gone. Its followers hear [`Heard::Gone`].
    pub fn remove(&self, sandbox_id: &str) {
        self.lock().remove(sandbox_id);
    }

    /// Number of topics.
    #[must_use]
    pub fn topics(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Topic>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Topic {
    fn new() -> Self {
        Self {
            changes: watch::Sender::new(0),
            events: broadcast::Sender::new(EVENTS),
            tail: VecDeque::new(),
        }
    }
}

impl Follower {
    /// The last events before the sandbox was followed, oldest first, at most `count` of them.
    pub fn tail(&mut self, count: usize) -> Vec<PlatformEvent> {
        let skip = self.tail.len().saturating_sub(count);
        std::mem::take(&mut self.tail).into_iter().skip(skip).collect()
    }

    /// Waits for what happens next. Can be cancelled without losing anything.
    pub async fn next(&mut self) -> Heard {
        tokio::select! {
            biased;
            event = self.events.recv() => match event {
                Ok(event) => Heard::Event(Box::new(event)),
                Err(broadcast::error::RecvError::Lagged(count)) => Heard::Lost(count),
                Err(broadcast::error::RecvError::Closed) => Heard::Gone,
            },
            changed = self.changes.changed() => match changed {
                Ok(()) => Heard::Changed,
                Err(_) => Heard::Gone,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: i64) -> PlatformEvent {
        PlatformEvent { timestamp_ms: number, ..Default::default() }
    }

    #[tokio::test]
    async fn a_change_is_heard_however_many_there_were() {
        let bus = Bus::default();
        let mut follower = bus.follow("a");
        for _ in 0..10_000 {
            bus.changed("a");
        }
        assert_eq!(follower.next().await, Heard::Changed);
        bus.changed("b");
        bus.changed("a");
        assert_eq!(follower.next().await, Heard::Changed);
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_what_it_lost() {
        let bus = Bus::default();
        let mut follower = bus.follow("a");
        let count = i64::try_from(EVENTS).unwrap() + 7;
        for number in 0..count {
            bus.event("a", event(number));
        }
        assert_eq!(follower.next().await, Heard::Lost(7));
        assert_eq!(follower.next().await, Heard::Event(Box::new(event(7))));
    }

    #[tokio::test]
    async fn who_comes_later_gets_the_tail() {
        let bus = Bus::default();
        for number in 0..5 {
            bus.event("a", event(number));
        }
        let mut follower = bus.follow("a");
        assert_eq!(follower.tail(2), [event(3), event(4)]);
        bus.remove("a");
        assert_eq!(follower.next().await, Heard::Gone);
        assert_eq!(bus.topics(), 0);
    }
}
