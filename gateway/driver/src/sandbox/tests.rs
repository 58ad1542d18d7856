//! Tests of registry and watcher, without a driver around them.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use tokio::task::unconstrained;
use tokio::time::{Duration, timeout};

use super::Identity;
use super::condition::Status;
use super::registry::{EVENTS, NEWS, Registry};
use super::watch::{Change, Watcher};
use crate::events::{Event, Reason};
use crate::id::SandboxId;

fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).expect("an id")
}

fn add(registry: &Registry, text: &str) {
    let text = text.to_owned();
    let identity =
        Identity { id: id(&text), name: text.clone(), namespace: text.clone(), workspace: text };
    assert!(registry.reserve(&identity, Status::starting()));
    registry.publish(&identity.id);
}

/// The next change, if it is there already.
async fn now(watcher: &mut Watcher) -> Option<Change> {
    timeout(Duration::ZERO, unconstrained(watcher.next())).await.ok().flatten()
}

/// All changes that are there to be seen.
async fn seen(watcher: &mut Watcher) -> Vec<Change> {
    let mut seen = Vec::new();
    while let Some(change) = now(watcher).await {
        seen.push(change);
    }
    seen
}

fn word(change: &Change) -> String {
    match change {
        Change::Sandbox(snapshot) => {
            format!("{}={}", snapshot.identity.id, snapshot.conditions[0].reason)
        }
        Change::Deleted(id) => format!("{id} gone"),
        Change::Event(id, event) => format!("{id}: {}", event.event.message),
    }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_lags_gets_states_ends_and_the_events_that_are_kept() {
    let registry = Arc::new(Registry::new());
    add(&registry, "stays");
    add(&registry, "goes");
    registry.tell(&id("stays"), Event::new(Reason::Started, "before"));
    let mut watcher = Watcher::new(Arc::clone(&registry));
    let first: Vec<String> = seen(&mut watcher).await.iter().map(word).collect();
    assert_eq!(first.len(), 2, "no event from before the watch: {first:?}");
    registry.tell(&id("stays"), Event::new(Reason::Started, "seen"));
    assert_eq!(seen(&mut watcher).await.iter().map(word).collect::<Vec<_>>(), ["stays: seen"]);
    for number in 0..NEWS {
        registry.tell(&id("goes"), Event::new(Reason::Pulling, number.to_string()));
    }
    registry.tell(&id("stays"), Event::new(Reason::Stopped, "missed"));
    registry.set(&id("stays"), Status::Stopped);
    registry.remove(&id("goes"));
    add(&registry, "new");
    let mut all: Vec<String> = seen(&mut watcher).await.iter().map(word).collect();
    all.sort();
    assert_eq!(all, ["goes gone", "new=Starting", "stays: missed", "stays=ComputeStopped"]);
    assert!(seen(&mut watcher).await.is_empty(), "nothing is told twice");
}

#[tokio::test(start_paused = true)]
async fn events_that_are_kept_are_bounded() {
    let registry = Arc::new(Registry::new());
    add(&registry, "a");
    let mut watcher = Watcher::new(Arc::clone(&registry));
    for number in 0..3 * NEWS {
        registry.tell(&id("a"), Event::new(Reason::Pulling, number.to_string()));
    }
    let events = seen(&mut watcher).await;
    let events = events.iter().filter(|change| matches!(change, Change::Event(..)));
    let expected: Vec<String> =
        (3 * NEWS - EVENTS..3 * NEWS).map(|number| format!("a: {number}")).collect();
    assert_eq!(events.map(word).collect::<Vec<_>>(), expected);
}

#[test]
fn a_sandbox_that_is_being_removed_stays_so() {
    let registry = Registry::new();
    add(&registry, "a");
    registry.set(&id("a"), Status::Deleting);
    registry.set(&id("a"), Status::Stopped);
    registry.set_starting(&id("a"), "hello".to_owned());
    let found = &registry.list()[0];
    assert!(found.deleting);
    assert_eq!(found.conditions[0].reason, "Deleting");
}

#[test]
fn a_message_that_changes_is_no_transition() {
    let registry = Registry::new();
    add(&registry, "a");
    let before = registry.list()[0].conditions[0].clone();
    registry.set_starting(&id("a"), "hello".to_owned());
    let after = registry.list()[0].conditions[0].clone();
    assert_eq!((after.since, &*after.message), (before.since, "hello"));
    registry.set(&id("a"), Status::Stopped);
    registry.set_starting(&id("a"), "too late".to_owned());
    assert_eq!(registry.list()[0].conditions[0].kind, "Stopped");
}

/// Something that happens to one of four sandboxes, or a look at what was told.
#[derive(Debug, Clone)]
enum Step {
    Add(u8),
    Stop(u8),
    Start(u8),
    Remove(u8),
    Noise(u8, u16),
    Read(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_u8).prop_map(Step::Add),
        (0..4_u8).prop_map(Step::Stop),
        (0..4_u8).prop_map(Step::Start),
        (0..4_u8).prop_map(Step::Remove),
        (0..4_u8, 1..1500_u16).prop_map(|(sandbox, count)| Step::Noise(sandbox, count)),
        (0..50_u16).prop_map(Step::Read),
    ]
}

fn apply(registry: &Registry, step: &Step) {
    let name = |number: u8| format!("s{number}");
    match step {
        Step::Add(number) => {
            if !registry.lock().all.contains_key(&id(&name(*number))) {
                add(registry, &name(*number));
            }
        }
        Step::Stop(number) => registry.set(&id(&name(*number)), Status::Stopped),
        Step::Start(number) => registry.set(&id(&name(*number)), Status::starting()),
        Step::Remove(number) => registry.remove(&id(&name(*number))),
        Step::Noise(number, count) => {
            for _ in 0..*count {
                registry.tell(&id(&name(*number)), Event::new(Reason::Pulling, "noise"));
            }
        }
        Step::Read(_) => {}
    }
}

fn learn(known: &mut BTreeMap<String, &'static str>, change: &Change) {
    match change {
        Change::Sandbox(snapshot) => {
            known.insert(snapshot.identity.id.to_string(), snapshot.conditions[0].reason);
        }
        Change::Deleted(id) => drop(known.remove(id.as_str())),
        Change::Event(..) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_watcher_knows_in_the_end_what_the_registry_knows(
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let registry = Arc::new(Registry::new());
            add(&registry, "s0");
            let mut watcher = Watcher::new(Arc::clone(&registry));
            let mut known = BTreeMap::new();
            for step in &steps {
                apply(&registry, step);
                if let Step::Read(count) = step {
                    for _ in 0..*count {
                        let Some(change) = now(&mut watcher).await else { break };
                        learn(&mut known, &change);
                    }
                }
            }
            for change in seen(&mut watcher).await {
                learn(&mut known, &change);
            }
            let expected: BTreeMap<String, &'static str> = registry
                .list()
                .iter()
                .map(|snapshot| (snapshot.identity.id.to_string(), snapshot.conditions[0].reason))
                .collect();
            prop_assert_eq!(known, expected);
            Ok(())
        })?;
    }
}
