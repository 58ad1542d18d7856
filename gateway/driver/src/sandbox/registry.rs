//! What is known of every sandbox, and the one place where it changes.
//!
//! Invariant: a change and the news of it are made under one lock, so that news have the order of the changes and whoever
//! subscribes under that lock misses nothing. No lock is held across an await.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use super::Identity;
use super::condition::{Condition, Status, unix_ms};
use crate::backend::Stop;
use crate::events::Event;
use crate::id::SandboxId;

/// News that a watcher may be behind before it looks at everything again.
pub(super) const NEWS: usize = 1024;
/// Events of a sandbox that such a watcher still gets.
pub(super) const EVENTS: usize = 64;

/// What is told of a sandbox. Its request, which holds secrets, is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What it is known by.
    pub identity: Identity,
    /// What it is doing.
    pub conditions: Vec<Condition>,
    /// Whether it is being removed.
    pub deleting: bool,
}

/// An event with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamped {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    pub event: Event,
}

/// What changed.
#[derive(Debug, Clone)]
pub(super) enum News {
    Sandbox(Arc<Snapshot>),
    Deleted(SandboxId),
    Event(SandboxId, Arc<Stamped>),
}

/// The task that keeps a machine.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) cancel: watch::Sender<Option<Stop>>,
    pub(super) handle: JoinHandle<()>,
}

#[derive(Debug)]
pub(super) struct Record {
    pub(super) status: Status,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) events: VecDeque<(u64, Arc<Stamped>)>,
    /// Held by whoever stops, starts or removes the sandbox.
    pub(super) gate: Arc<tokio::sync::Mutex<()>>,
    pub(super) task: Option<Task>,
    /// Whether the task still works.
    pub(super) active: bool,
}

#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) all: HashMap<SandboxId, Record>,
    /// Numbers the news.
    pub(super) last: u64,
}

/// All sandboxes.
#[derive(Debug)]
pub(super) struct Registry {
    records: Mutex<Records>,
    news: broadcast::Sender<(u64, News)>,
}

impl Registry {
    pub(super) fn new() -> Self {
        Self { records: Mutex::default(), news: broadcast::Sender::new(NEWS) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Records> {
        // A panic elsewhere leaves every record as the last complete change had it.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<(u64, News)> {
        self.news.subscribe()
    }

    /// Takes a new sandbox in, and tells nobody yet. False when there is one of this id.
    pub(super) fn reserve(&self, identity: &Identity, status: Status) -> bool {
        let mut records = self.lock();
        if records.all.contains_key(&identity.id) {
            return false;
        }
        let record = Record {
            snapshot: Arc::new(Snapshot {
                identity: identity.clone(),
                conditions: status.conditions(SystemTime::now()),
                deleting: false,
            }),
            status,
            events: VecDeque::new(),
            gate: Arc::default(),
            task: None,
            active: false,
        };
        records.all.insert(identity.id.clone(), record);
        true
    }

    /// Forgets a sandbox that nobody was told of.
    pub(super) fn forget(&self, id: &SandboxId) {
        self.lock().all.remove(id);
    }

    /// Tells of a sandbox as it is.
    pub(super) fn publish(&self, id: &SandboxId) {
        let mut records = self.lock();
        if let Some(record) = records.all.get(id) {
            let news = News::Sandbox(Arc::clone(&record.snapshot));
            self.send(&mut records, news);
        }
    }

    /// Changes what a sandbox is doing, and tells it. One that is being removed stays so.
    pub(super) fn set(&self, id: &SandboxId, status: Status) {
        self.change(id, status, |_| true);
    }

    /// Changes the message of a sandbox that starts; any other is left alone.
    pub(super) fn set_starting(&self, id: &SandboxId, message: String) {
        let status = Status::Starting(message);
        self.change(id, status.clone(), |old| matches!(old, Status::Starting(_)) && *old != status);
    }

    fn change(&self, id: &SandboxId, status: Status, applies: impl Fn(&Status) -> bool) {
        let mut records = self.lock();
        let Some(record) = records.all.get_mut(id) else { return };
        if record.snapshot.deleting || !applies(&record.status) {
            return;
        }
        let mut snapshot = Snapshot::clone(&record.snapshot);
        let mut conditions = status.conditions(SystemTime::now());
        // A message that changes is no transition.
        for (new, old) in conditions.iter_mut().zip(&snapshot.conditions) {
            if (new.kind, new.status, new.reason) == (old.kind, old.status, old.reason) {
                new.since.clone_from(&old.since);
            }
        }
        snapshot.conditions = conditions;
        snapshot.deleting = status == Status::Deleting;
        record.status = status;
        record.snapshot = Arc::new(snapshot);
        let news = News::Sandbox(Arc::clone(&record.snapshot));
        self.send(&mut records, news);
    }

    /// Tells an event.
    pub(super) fn tell(&self, id: &SandboxId, event: Event) {
        let mut records = self.lock();
        let number = records.last + 1;
        let Some(record) = records.all.get_mut(id) else { return };
        let stamped = Arc::new(Stamped { unix_ms: unix_ms(SystemTime::now()), event });
        if record.events.len() == EVENTS {
            record.events.pop_front();
        }
        record.events.push_back((number, Arc::clone(&stamped)));
        self.send(&mut records, News::Event(id.clone(), stamped));
    }

    /// Drops a sandbox, and tells it.
    pub(super) fn remove(&self, id: &SandboxId) {
        let mut records = self.lock();
        if records.all.remove(id).is_some() {
            self.send(&mut records, News::Deleted(id.clone()));
        }
    }

    /// The id that a name leads to.
    pub(super) fn named(&self, name: &str) -> Option<SandboxId> {
        let records = self.lock();
        let mut found = records.all.values().filter(|r| r.snapshot.identity.name == name);
        found.next().map(|record| record.snapshot.identity.id.clone())
    }

    /// All sandboxes by their names.
    pub(super) fn list(&self) -> Vec<Arc<Snapshot>> {
        let mut all: Vec<_> = self.lock().all.values().map(|r| Arc::clone(&r.snapshot)).collect();
        all.sort_by(|a, b| {
            (&a.identity.name, &a.identity.id).cmp(&(&b.identity.name, &b.identity.id))
        });
        all
    }

    fn send(&self, records: &mut Records, news: News) {
        records.last += 1;
        // Nobody watches: nobody misses anything.
        drop(self.news.send((records.last, news)));
    }
}
