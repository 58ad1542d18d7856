//! What a driver says about a sandbox, as a phase.
//!
//! Invariant: a pure function of the driver's status. A reason for not being ready that is not known to pass is final.

use openshell_proto::compute::v1::{DriverCondition, DriverSandboxStatus};
use openshell_proto::v1::SandboxPhase;

/// Reasons of `Ready=False` that pass by themselves, in lower case.
const TRANSIENT: [&str; 8] = [
    "reconcilererror",
    "dependenciesnotready",
    "supervisornotconnected",
    "starting",
    "containerstarting",
    "containercreated",
    "healthcheckstarting",
    "inspectfailed",
];

/// Reasons with which a condition that is false says that the compute of a sandbox has stopped, in lower case.
const STOPPED: [&str; 2] = ["containerexited", "containerstopped"];

/// The phase that a driver's status amounts to, without a supervisor.
#[must_use]
pub fn derive(status: Option<&DriverSandboxStatus>) -> SandboxPhase {
    let Some(status) = status else { return SandboxPhase::Unknown };
    if status.deleting {
        return SandboxPhase::Deleting;
    }
    if status.conditions.iter().any(|c| c.r#type == "Suspended" && is_true(c)) {
        return SandboxPhase::Stopped;
    }
    match status.conditions.iter().find(|c| c.r#type == "Ready") {
        Some(ready) if is_true(ready) => SandboxPhase::Ready,
        Some(ready) if is_false(ready) && !is_transient(&ready.reason) => SandboxPhase::Error,
        _ => SandboxPhase::Provisioning,
    }
}

/// Whether a snapshot says that a sandbox that is being stopped has stopped.
#[must_use]
pub fn confirms_stop(status: &DriverSandboxStatus) -> bool {
    status.conditions.iter().any(|c| {
        (is_false(c) && STOPPED.iter().any(|reason| c.reason.eq_ignore_ascii_case(reason)))
            || (matches!(c.r#type.as_str(), "Stopped" | "Suspended") && is_true(c))
    })
}

/// Whether a sandbox that is not ready for this reason may yet become so.
#[must_use]
pub fn is_transient(reason: &str) -> bool {
    TRANSIENT.iter().any(|known| reason.eq_ignore_ascii_case(known))
}

fn is_true(condition: &DriverCondition) -> bool {
    condition.status.eq_ignore_ascii_case("true")
}

fn is_false(condition: &DriverCondition) -> bool {
    condition.status.eq_ignore_ascii_case("false")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(conditions: &[(&str, &str, &str)]) -> DriverSandboxStatus {
        DriverSandboxStatus {
            conditions: conditions
                .iter()
                .map(|(kind, status, reason)| DriverCondition {
                    r#type: (*kind).into(),
                    status: (*status).into(),
                    reason: (*reason).into(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn derive_phase_of_conditions() {
        for (conditions, expected) in [
            (&[("Ready", "True", "")][..], SandboxPhase::Ready),
            (&[("Ready", "False", "Starting")], SandboxPhase::Provisioning),
            (&[("Ready", "False", "ProcessExited")], SandboxPhase::Error),
            (&[("Ready", "Unknown", "ProcessExited")], SandboxPhase::Provisioning),
            (&[("Stopped", "True", "ComputeStopped")], SandboxPhase::Provisioning),
            (&[("Ready", "True", ""), ("Suspended", "True", "")], SandboxPhase::Stopped),
            (&[("Ready", "True", ""), ("Suspended", "False", "")], SandboxPhase::Ready),
            (&[], SandboxPhase::Provisioning),
        ] {
            assert_eq!(derive(Some(&status(conditions))), expected, "{conditions:?}");
        }
    }

    #[test]
    fn derive_phase_without_status_is_unknown() {
        assert_eq!(derive(None), SandboxPhase::Unknown);
    }

    #[test]
    fn derive_phase_of_a_sandbox_that_is_being_deleted() {
        let mut ready = status(&[("Ready", "True", "")]);
        ready.deleting = true;
        assert_eq!(derive(Some(&ready)), SandboxPhase::Deleting);
    }

    #[test]
    fn terminal_failure_treats_unknown_reasons_as_terminal() {
        for reason in ["ProvisioningFailed", "ProcessExited", "", "SomethingNew"] {
            let phase = derive(Some(&status(&[("Ready", "False", reason)])));
            assert_eq!(phase, SandboxPhase::Error, "{reason}");
        }
    }

    #[test]
    fn terminal_failure_ignores_transient_reasons() {
        for reason in TRANSIENT.iter().copied().chain(["STARTING", "SupervisorNotConnected"]) {
            let phase = derive(Some(&status(&[("Ready", "False", reason)])));
            assert_eq!(phase, SandboxPhase::Provisioning, "{reason}");
        }
    }
}
