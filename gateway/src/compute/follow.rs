//! The watch loop: what the driver says, into rows.
//!
//! Invariant: a stream that ends is opened again, and begins with a snapshot of every sandbox, so that nothing stays unseen.

use openshell_proto::compute::v1::watch_sandboxes_event::Payload;
use openshell_proto::compute::v1::{DriverPlatformEvent, DriverSandbox, WatchSandboxesEvent};
use openshell_proto::v1::{PlatformEvent, Sandbox};
use tokio_stream::StreamExt as _;

use super::{Change, Compute, chain};
use crate::store::StoreError;

impl Compute {
    /// Follows the driver until the runtime is closed.
    pub async fn follow_driver(&self) {
        let mut closing = self.0.closing.subscribe();
        loop {
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => return,
                () = self.follow_once() => {}
            }
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => return,
                () = tokio::time::sleep(self.0.settings.watch_retry) => {}
            }
        }
    }

    async fn follow_once(&self) {
        let mut events = match self.0.driver.watch().await {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(%error, "driver cannot be watched");
                return;
            }
        };
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if let Err(error) = self.heard(event).await {
                        tracing::error!(error = %chain(&error), "driver's event not written");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "driver's watch stream broke");
                    return;
                }
            }
        }
        tracing::warn!("driver's watch stream ended");
    }

    /// Takes one event of the driver.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn heard(&self, event: WatchSandboxesEvent) -> Result<(), StoreError> {
        match event.payload {
            Some(Payload::Sandbox(event)) => {
                if let Some(sandbox) = event.sandbox {
                    self.apply_sandbox_update(&sandbox).await?;
                }
            }
            Some(Payload::Deleted(event)) => {
                self.0.forget(&event.sandbox_id).await?;
            }
            Some(Payload::PlatformEvent(event)) => {
                let (id, Some(event)) = (event.sandbox_id, event.event) else { return Ok(()) };
                if self.0.store.fetch::<Sandbox>(&id).await?.is_some() {
                    self.0.bus.event(&id, platform_event(event));
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Takes a snapshot of the driver. One of a sandbox without a row makes none.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn apply_sandbox_update(
        &self,
        sandbox: &DriverSandbox,
    ) -> Result<Option<Sandbox>, StoreError> {
        let status = &sandbox.status;
        let change = |instance| Change::Snapshot(status.clone(), instance);
        self.0.update(&sandbox.id, change).await
    }
}

fn platform_event(event: DriverPlatformEvent) -> PlatformEvent {
    PlatformEvent {
        timestamp_ms: event.timestamp_ms,
        source: event.source,
        r#type: event.r#type,
        reason: event.reason,
        message: event.message,
        metadata: event.metadata,
    }
}
