//! The rules of readiness: what an event makes of a row.
//!
//! Invariant: a pure function of row, event and time. A sandbox gets ready through a session alone; Error, Deleting and Stopped are left by
//! what a user asks for alone. An event that changes nothing is `None`, so that nobody is woken for it.

use openshell_proto::compute::v1::{DriverCondition, DriverSandboxStatus};
use openshell_proto::v1::{Sandbox, SandboxCondition, SandboxPhase, SandboxStatus};

use super::phase;

/// Reasons with which a driver says that the machine has ended, before or without a report of how the main process did.
const DRIVER_EXIT: [&str; 3] = ["processexited", "containerexited", "containerstopped"];

/// What can happen to a row.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// The sessions of the sandbox have changed. Carries the instance of the session that is held now, if one is: so it does not matter
    /// in which order the changes are told.
    Session {
        /// The run of the main process that the session belongs to.
        instance: Option<&'a str>,
    },
    /// The driver has said something.
    Snapshot {
        /// What it said.
        status: Option<&'a DriverSandboxStatus>,
        /// The instance of the session that is held now.
        instance: Option<&'a str>,
    },
    /// The supervisor says that the main process has ended.
    MainProcessExited {
        /// Which run of it.
        instance: &'a str,
        /// Its exit status; 128 plus the signal where one ended it.
        code: i32,
    },
    /// A user wants it stopped.
    StopRequested,
    /// The driver has stopped it.
    Stopped,
    /// A user wants it started.
    StartRequested,
    /// A user wants it gone.
    DeleteRequested {
        /// Milliseconds since 1970.
        at_ms: i64,
    },
    /// The driver would not delete it. Carries what the driver says about it now.
    DeleteFailed {
        /// The status before the deletion was asked for.
        before: &'a SandboxStatus,
        /// What the driver says, if it said anything.
        status: Option<&'a DriverSandboxStatus>,
        /// The instance of the session that is held now.
        instance: Option<&'a str>,
    },
    /// The gateway can do no more for it.
    Failed {
        /// Stable.
        reason: &'a str,
        /// For the user.
        message: &'a str,
    },
    /// The gateway has started and holds no session.
    Restarted,
}

/// The row after the event, or `None` where it stays as it is. `now` is RFC 3339.
#[must_use]
pub fn apply(row: &Sandbox, event: &Event<'_>, now: &str) -> Option<Sandbox> {
    let mut next = row.clone();
    let phase = phase_of(row);
    let status = next.status.get_or_insert_default();
    match event {
        Event::Session { instance } => session(status, phase, *instance, now),
        Event::Snapshot { status: driver, instance } => {
            snapshot(status, phase, *driver, *instance, now);
        }
        Event::MainProcessExited { instance, code } => {
            exited(status, phase, instance, *code, now);
        }
        Event::StopRequested if matches!(phase, SandboxPhase::Ready) => {
            status.exit_code = None;
            enter(status, SandboxPhase::Stopping, "Stopping", "Sandbox stop requested", now);
        }
        Event::Stopped if phase == SandboxPhase::Stopping => stopped(status, now),
        Event::StartRequested if phase == SandboxPhase::Stopped => {
            status.exit_code = None;
            enter(status, SandboxPhase::Starting, "Starting", "Sandbox start requested", now);
        }
        Event::DeleteRequested { at_ms } if phase != SandboxPhase::Deleting => {
            enter(status, SandboxPhase::Deleting, "Deleting", "Sandbox delete requested", now);
            next.metadata.get_or_insert_default().deletion_timestamp_ms = *at_ms;
        }
        Event::DeleteFailed { before, status: driver, instance }
            if phase == SandboxPhase::Deleting =>
        {
            undelete(status, before, *driver, *instance, now);
            next.metadata.get_or_insert_default().deletion_timestamp_ms = 0;
        }
        Event::Failed { reason, message } if phase != SandboxPhase::Deleting => {
            enter(status, SandboxPhase::Error, reason, message, now);
        }
        Event::Restarted if phase == SandboxPhase::Ready => disconnected(status, now),
        _ => {}
    }
    (next != *row).then_some(next)
}

/// The phase of a row. A number of a later release reads as unknown.
#[must_use]
pub fn phase_of(row: &Sandbox) -> SandboxPhase {
    row.status.as_ref().map_or(SandboxPhase::Unspecified, |status| {
        SandboxPhase::try_from(status.phase).unwrap_or(SandboxPhase::Unknown)
    })
}

/// Whether the end of the sandbox has been asked for.
#[must_use]
pub fn is_terminating(row: &Sandbox) -> bool {
    phase_of(row) == SandboxPhase::Deleting
        || row.metadata.as_ref().is_some_and(|meta| meta.deletion_timestamp_ms != 0)
}

/// Whether the sandbox is meant to run: the gateway starts it again when it is back.
#[must_use]
pub fn is_meant_to_run(row: &Sandbox) -> bool {
    !is_terminating(row)
        && matches!(
            phase_of(row),
            SandboxPhase::Unspecified
                | SandboxPhase::Provisioning
                | SandboxPhase::Ready
                | SandboxPhase::Starting
                | SandboxPhase::Unknown
        )
}

/// The condition `Ready` of a row.
#[must_use]
pub fn ready_condition(row: &Sandbox) -> Option<&SandboxCondition> {
    row.status.as_ref()?.conditions.iter().find(|condition| condition.r#type == "Ready")
}

fn session(status: &mut SandboxStatus, phase: SandboxPhase, instance: Option<&str>, now: &str) {
    match (phase, instance) {
        (
            SandboxPhase::Deleting
            | SandboxPhase::Error
            | SandboxPhase::Stopping
            | SandboxPhase::Stopped,
            _,
        ) => {}
        (_, Some(instance)) => connected(status, instance, now),
        (SandboxPhase::Ready, None) => disconnected(status, now),
        (_, None) => {}
    }
}

fn connected(status: &mut SandboxStatus, instance: &str, now: &str) {
    instance.clone_into(&mut status.main_process_instance_id);
    status.exit_code = None;
    status.phase = SandboxPhase::Ready.into();
    tell(status, CONNECTED, now);
}

fn disconnected(status: &mut SandboxStatus, now: &str) {
    let message = "Supervisor session disconnected";
    enter(status, SandboxPhase::Provisioning, "DependenciesNotReady", message, now);
}

fn stopped(status: &mut SandboxStatus, now: &str) {
    status.phase = SandboxPhase::Stopped.into();
    tell(status, STOPPED, now);
}

fn snapshot(
    status: &mut SandboxStatus,
    phase: SandboxPhase,
    driver: Option<&DriverSandboxStatus>,
    instance: Option<&str>,
    now: &str,
) {
    let Some(driver) = driver else {
        if let (SandboxPhase::Provisioning | SandboxPhase::Unknown, Some(instance)) =
            (phase, instance)
        {
            connected(status, instance, now);
        }
        return;
    };
    let backend = phase::derive(Some(driver));
    let composed = match backend {
        SandboxPhase::Error | SandboxPhase::Deleting | SandboxPhase::Stopped => backend,
        _ if instance.is_some() => SandboxPhase::Ready,
        _ => SandboxPhase::Provisioning,
    };
    match phase {
        SandboxPhase::Error | SandboxPhase::Deleting | SandboxPhase::Stopped => return,
        SandboxPhase::Stopping if phase::confirms_stop(driver) => {
            status.phase = SandboxPhase::Stopped.into();
            return observe(status, driver, Some(STOPPED), now);
        }
        SandboxPhase::Stopping if composed != SandboxPhase::Error => return,
        SandboxPhase::Starting
            if !matches!(composed, SandboxPhase::Ready | SandboxPhase::Error) =>
        {
            return;
        }
        _ => {}
    }
    status.phase = composed.into();
    let told = match (composed, instance) {
        (SandboxPhase::Ready, Some(instance)) => {
            instance.clone_into(&mut status.main_process_instance_id);
            status.exit_code = None;
            Some(CONNECTED)
        }
        (SandboxPhase::Provisioning, _) if backend == SandboxPhase::Ready => Some(Told {
            ready: false,
            reason: "SupervisorNotConnected",
            message: "Backend ready; waiting for supervisor session",
        }),
        (SandboxPhase::Stopped, _) => Some(STOPPED),
        _ => None,
    };
    observe(status, driver, told, now);
}

fn exited(status: &mut SandboxStatus, phase: SandboxPhase, instance: &str, code: i32, now: &str) {
    let known = status.main_process_instance_id == instance;
    let never_connected = status.main_process_instance_id.is_empty();
    let counts = match phase {
        SandboxPhase::Stopping | SandboxPhase::Stopped | SandboxPhase::Deleting => false,
        // The instance of a row that starts is the one before: what it has to say is old.
        SandboxPhase::Starting => !known,
        // The driver has seen the machine end, the supervisor knows how.
        SandboxPhase::Error => {
            status.exit_code.is_none() && (known || never_connected) && ended_by_driver(status)
        }
        _ => known || never_connected,
    };
    if counts {
        instance.clone_into(&mut status.main_process_instance_id);
        status.exit_code = Some(code);
        let message = "Canonical main process exited";
        enter(status, SandboxPhase::Error, "MainProcessExited", message, now);
    }
}

fn ended_by_driver(status: &SandboxStatus) -> bool {
    status.conditions.iter().any(|condition| {
        condition.r#type == "Ready"
            && DRIVER_EXIT.iter().any(|reason| condition.reason.eq_ignore_ascii_case(reason))
    })
}

fn undelete(
    status: &mut SandboxStatus,
    before: &SandboxStatus,
    driver: Option<&DriverSandboxStatus>,
    instance: Option<&str>,
    now: &str,
) {
    before.clone_into(status);
    let phase = |status: &SandboxStatus| {
        SandboxPhase::try_from(status.phase).unwrap_or(SandboxPhase::Unknown)
    };
    session(status, phase(status), instance, now);
    if driver.is_some_and(|driver| !driver.deleting) {
        snapshot(status, phase(status), driver, instance, now);
    }
}

/// Takes the driver's conditions over, the gateway's own word in the place of its `Ready`. A condition whose status is that of before keeps
/// its time.
fn observe(
    status: &mut SandboxStatus,
    driver: &DriverSandboxStatus,
    told: Option<Told<'_>>,
    now: &str,
) {
    let mut conditions: Vec<_> = driver.conditions.iter().map(as_condition).collect();
    if let Some(told) = told {
        conditions.retain(|condition| condition.r#type != "Ready");
        conditions.insert(0, told.condition());
    }
    for next in &mut conditions {
        let old = status.conditions.iter().find(|old| {
            old.r#type == next.r#type
                && old.status == next.status
                && !old.last_transition_time.is_empty()
        });
        if let Some(old) = old {
            next.last_transition_time.clone_from(&old.last_transition_time);
        } else if next.last_transition_time.is_empty() {
            now.clone_into(&mut next.last_transition_time);
        }
    }
    status.conditions = conditions;
    for (own, theirs) in [
        (&mut status.sandbox_name, &driver.sandbox_name),
        (&mut status.agent_pod, &driver.instance_id),
        (&mut status.agent_fd, &driver.agent_fd),
        (&mut status.sandbox_fd, &driver.sandbox_fd),
    ] {
        if !theirs.is_empty() {
            own.clone_from(theirs);
        }
    }
}

fn as_condition(condition: &DriverCondition) -> SandboxCondition {
    SandboxCondition {
        r#type: condition.r#type.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        last_transition_time: condition.last_transition_time.clone(),
    }
}

/// What the gateway itself says about `Ready`.
#[derive(Clone, Copy)]
struct Told<'a> {
    ready: bool,
    reason: &'a str,
    message: &'a str,
}

const CONNECTED: Told<'_> =
    Told { ready: true, reason: "DependenciesReady", message: "Supervisor session connected" };
const STOPPED: Told<'_> =
    Told { ready: false, reason: "Stopped", message: "Sandbox compute is stopped" };

impl Told<'_> {
    /// Without a time.
    fn condition(self) -> SandboxCondition {
        SandboxCondition {
            r#type: "Ready".to_owned(),
            status: if self.ready { "True" } else { "False" }.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.to_owned(),
            last_transition_time: String::new(),
        }
    }
}

/// A phase in which the sandbox is not ready, and why.
fn enter(status: &mut SandboxStatus, phase: SandboxPhase, reason: &str, message: &str, now: &str) {
    status.phase = phase.into();
    tell(status, Told { ready: false, reason, message }, now);
}

/// Sets the condition `Ready`. Its time is that of the last change of its status.
fn tell(status: &mut SandboxStatus, told: Told<'_>, now: &str) {
    let mut next = told.condition();
    now.clone_into(&mut next.last_transition_time);
    match status.conditions.iter_mut().find(|condition| condition.r#type == "Ready") {
        Some(old) => {
            if old.status == next.status && !old.last_transition_time.is_empty() {
                next.last_transition_time.clone_from(&old.last_transition_time);
            }
            *old = next;
        }
        None => status.conditions.insert(0, next),
    }
}
