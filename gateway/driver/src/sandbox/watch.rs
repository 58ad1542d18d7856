//! Follows all sandboxes without missing a change.
//!
//! Invariant: a watcher has seen the state of every sandbox, or will; one that is too slow for the news looks at everything
//! again, gets the events that are still kept, and is told what went in between. What it holds is bounded by the number of
//! sandboxes.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::registry::{News, Registry, Snapshot, Stamped};
use crate::id::SandboxId;

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A sandbox is as it says.
    Sandbox(Arc<Snapshot>),
    /// A sandbox is gone.
    Deleted(SandboxId),
    /// Something happened to a sandbox.
    Event(SandboxId, Arc<Stamped>),
}

/// Follows all sandboxes.
#[derive(Debug)]
pub struct Watcher {
    registry: Arc<Registry>,
    news: Receiver<(u64, News)>,
    waiting: VecDeque<Change>,
    /// What it was told of and must be told the end of.
    told: HashSet<SandboxId>,
    last: u64,
}

impl Watcher {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        let news = registry.subscribe();
        let (waiting, told) = (VecDeque::new(), HashSet::new());
        let mut watcher = Self { registry, news, waiting, told, last: u64::MAX };
        watcher.look_at_everything();
        watcher
    }

    /// The next change. Never ends while the driver lives.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Some(change);
            }
            match self.news.recv().await {
                Ok((number, news)) => {
                    self.last = number;
                    return Some(self.take(news));
                }
                Err(RecvError::Lagged(missed)) => {
                    tracing::info!(missed, "a watcher looks at everything again");
                    self.look_at_everything();
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn take(&mut self, news: News) -> Change {
        match news {
            News::Sandbox(snapshot) => {
                self.told.insert(snapshot.identity.id.clone());
                Change::Sandbox(snapshot)
            }
            News::Deleted(id) => {
                self.told.remove(&id);
                Change::Deleted(id)
            }
            News::Event(id, event) => Change::Event(id, event),
        }
    }

    fn look_at_everything(&mut self) {
        let records = self.registry.lock();
        // Under the lock nothing changes: what comes next comes after what is seen here.
        self.news = self.registry.subscribe();
        let mut events: Vec<_> = Vec::new();
        let mut there = HashSet::with_capacity(records.all.len());
        for (id, record) in &records.all {
            there.insert(id.clone());
            self.waiting.push_back(Change::Sandbox(Arc::clone(&record.snapshot)));
            let missed = record.events.iter().filter(|(number, _)| *number > self.last);
            events.extend(missed.map(|(number, event)| (*number, id.clone(), Arc::clone(event))));
        }
        self.last = records.last;
        drop(records);
        self.waiting.extend(self.told.difference(&there).cloned().map(Change::Deleted));
        events.sort_by_key(|(number, ..)| *number);
        self.waiting.extend(events.into_iter().map(|(_, id, event)| Change::Event(id, event)));
        self.told = there;
    }
}
