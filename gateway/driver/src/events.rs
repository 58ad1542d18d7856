//! What happens to a sandbox, told as platform events.
//!
//! Invariant: reasons and metadata keys are those that OpenShell's command understands; it extends its time limit only for
//! events that carry a key of [`progress`]. Pure but for the clock.

use std::collections::BTreeMap;

/// Keys and steps of the progress protocol.
pub(crate) mod progress {
    /// A step that is complete.
    pub(crate) const COMPLETE_STEP: &str = "openshell.progress.complete_step";
    /// What to show for it.
    pub(crate) const COMPLETE_LABEL: &str = "openshell.progress.complete_label";
    /// The step that goes on.
    pub(crate) const ACTIVE_STEP: &str = "openshell.progress.active_step";
    /// What goes on in it.
    pub(crate) const ACTIVE_DETAIL: &str = "openshell.progress.active_detail";
    /// The sandbox is accepted.
    pub(crate) const REQUESTING: &str = "requesting_sandbox";
    /// The image becomes a disk.
    pub(crate) const PULLING: &str = "pulling_image";
    /// The machine boots.
    pub(crate) const STARTING: &str = "starting_sandbox";
}

/// Why an event is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the name that goes over the wire")]
pub enum Reason {
    Scheduled,
    ResolvingImage,
    Pulling,
    PullingLayer,
    Pulled,
    CacheHit,
    CacheMiss,
    WaitingForImageCacheLock,
    ExportingRootfs,
    CreatingRootDisk,
    PreparingOverlay,
    Started,
    Restoring,
    Stopped,
    ProvisioningFailed,
    ProcessExited,
    ProcessPollFailed,
}

impl Reason {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "Scheduled",
            Self::ResolvingImage => "ResolvingImage",
            Self::Pulling => "Pulling",
            Self::PullingLayer => "PullingLayer",
            Self::Pulled => "Pulled",
            Self::CacheHit => "CacheHit",
            Self::CacheMiss => "CacheMiss",
            Self::WaitingForImageCacheLock => "WaitingForImageCacheLock",
            Self::ExportingRootfs => "ExportingRootfs",
            Self::CreatingRootDisk => "CreatingRootDisk",
            Self::PreparingOverlay => "PreparingOverlay",
            Self::Started => "Started",
            Self::Restoring => "Restoring",
            Self::Stopped => "Stopped",
            Self::ProvisioningFailed => "ProvisioningFailed",
            Self::ProcessExited => "ProcessExited",
            Self::ProcessPollFailed => "ProcessPollFailed",
        }
    }

    /// `Normal` or `Warning`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::ProvisioningFailed | Self::ProcessExited | Self::ProcessPollFailed => "Warning",
            _ => "Normal",
        }
    }
}

/// Something that happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Why it is told.
    pub reason: Reason,
    /// What happened, for people.
    pub message: String,
    /// What happened, for programs.
    pub metadata: BTreeMap<&'static str, String>,
}

impl Event {
    /// An event.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: BTreeMap::new() }
    }

    /// The event with a further fact.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.metadata.insert(key, value.into());
        self
    }

    /// The event as part of a step that goes on; its message is the detail.
    #[must_use]
    pub(crate) fn active(self, step: &'static str) -> Self {
        let detail = self.message.clone();
        self.with(progress::ACTIVE_STEP, step).with(progress::ACTIVE_DETAIL, detail)
    }

    /// The event as the end of a step.
    #[must_use]
    pub(crate) fn complete(self, step: &'static str, label: &'static str) -> Self {
        self.with(progress::COMPLETE_STEP, step).with(progress::COMPLETE_LABEL, label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_step_carries_the_keys_that_extend_a_wait() {
        let event = Event::new(Reason::Pulled, "in the cache")
            .complete(progress::PULLING, "Image ready")
            .active(progress::STARTING)
            .with("cache_hit", "true");
        let expected = [
            ("cache_hit", "true"),
            ("openshell.progress.active_detail", "in the cache"),
            ("openshell.progress.active_step", "starting_sandbox"),
            ("openshell.progress.complete_label", "Image ready"),
            ("openshell.progress.complete_step", "pulling_image"),
        ];
        let found: Vec<_> = event.metadata.iter().map(|(k, v)| (*k, v.as_str())).collect();
        assert_eq!(found, expected);
        assert_eq!(event.reason.kind(), "Normal");
        assert_eq!(Reason::ProcessExited.kind(), "Warning");
    }
}
