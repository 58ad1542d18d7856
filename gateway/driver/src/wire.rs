//! Messages of `openshell.compute.v1` to values, and back.
//!
//! Invariant: what goes out never holds a request: no environment, no token. Unknown fields are ignored. Pure.

use std::collections::BTreeMap;

use openshell_proto::compute::v1 as pb;
use pb::watch_sandboxes_event::Payload;

use crate::sandbox::{Change, Condition, Snapshot, Stamped};

/// Where events come from.
const SOURCE: &str = "vm";

/// A sandbox as the gateway is told of it.
pub(crate) fn sandbox(snapshot: &Snapshot) -> pb::DriverSandbox {
    let identity = &snapshot.identity;
    pb::DriverSandbox {
        id: identity.id.to_string(),
        name: identity.name.clone(),
        namespace: identity.namespace.clone(),
        workspace: identity.workspace.clone(),
        spec: None,
        status: Some(pb::DriverSandboxStatus {
            sandbox_name: identity.name.clone(),
            conditions: snapshot.conditions.iter().map(condition).collect(),
            deleting: snapshot.deleting,
            ..pb::DriverSandboxStatus::default()
        }),
    }
}

fn condition(condition: &Condition) -> pb::DriverCondition {
    pb::DriverCondition {
        r#type: condition.kind.to_owned(),
        status: condition.status.to_owned(),
        reason: condition.reason.to_owned(),
        message: condition.message.clone(),
        last_transition_time: condition.since.clone(),
    }
}

fn event(stamped: &Stamped) -> pb::DriverPlatformEvent {
    let event = &stamped.event;
    pb::DriverPlatformEvent {
        timestamp_ms: i64::try_from(stamped.unix_ms).unwrap_or(i64::MAX),
        source: SOURCE.to_owned(),
        r#type: event.reason.kind().to_owned(),
        reason: event.reason.name().to_owned(),
        message: event.message.clone(),
        metadata: event.metadata.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
    }
}

/// A change as the gateway is told of it.
pub(crate) fn change(change: &Change) -> pb::WatchSandboxesEvent {
    let payload = match change {
        Change::Sandbox(snapshot) => {
            let sandbox = Some(sandbox(snapshot));
            Payload::Sandbox(Box::new(pb::WatchSandboxesSandboxEvent { sandbox }))
        }
        Change::Deleted(id) => {
            Payload::Deleted(pb::WatchSandboxesDeletedEvent { sandbox_id: id.to_string() })
        }
        Change::Event(id, stamped) => Payload::PlatformEvent(pb::WatchSandboxesPlatformEvent {
            sandbox_id: id.to_string(),
            event: Some(event(stamped)),
        }),
    };
    pb::WatchSandboxesEvent { payload: Some(payload) }
}

/// The template's environment with the sandbox's own over it.
pub(crate) fn environment(
    template: &BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    template.iter().chain(own).map(|(name, value)| (name.clone(), value.clone())).collect()
}
