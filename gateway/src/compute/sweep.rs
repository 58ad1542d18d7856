//! Sweeps over all rows: at start, now and then, and at shutdown.
//!
//! Invariant: a sweep reads a row again behind the sandbox's gate before it does anything about it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use openshell_proto::compute::v1::DriverSandbox;
use openshell_proto::v1::{Sandbox, SandboxPhase};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;

use super::rules::{Event, is_meant_to_run, is_terminating, phase_of};
use super::{Change, Compute, chain, clock};
use crate::store::{Object as _, Selector, StoreError};

/// Id and name of a row.
type Key = (String, String);

impl Compute {
    /// To be called before anything else touches a row: no session is held, so no row is ready. Returns the number of rows.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn distrust_persisted(&self) -> Result<usize, StoreError> {
        let rows = self.rows().await?;
        for (id, _) in &rows {
            self.0.update(id, |_| Change::Plain(Event::Restarted)).await?;
        }
        Ok(rows.len())
    }

    /// Finishes what was cut off when the gateway ended, and has the driver start what is meant to run, where the driver leaves that to
    /// the gateway.
    ///
    /// # Errors
    ///
    /// Those of the store. What the driver will not start is in its row.
    pub async fn start_persisted_sandboxes(
        &self,
        driver_leaves_it: bool,
    ) -> Result<(), StoreError> {
        if !driver_leaves_it {
            return Ok(());
        }
        self.sweep(|this, key| async move { this.resume(&key).await }).await
    }

    async fn resume(&self, (id, name): &Key) -> Result<(), StoreError> {
        let _gate = self.0.gate(id).await;
        let Some(row) = self.0.store.fetch::<Sandbox>(id).await? else { return Ok(()) };
        if phase_of(&row) == SandboxPhase::Stopping {
            match self.finish_stop(id, name).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Code::NotFound => return self.missing(id).await,
                Err(error) => {
                    tracing::warn!(sandbox_id = id, %error, "stop not finished");
                    return Ok(());
                }
            }
        }
        if !is_meant_to_run(&row) {
            return Ok(());
        }
        match self.0.driver.start(id, name).await {
            Ok(()) => Ok(()),
            Err(error) if error.code() == Code::NotFound => self.missing(id).await,
            Err(error) => {
                self.fail(id, "StartFailed", format!("driver: {}", error.message())).await
            }
        }
    }

    async fn missing(&self, id: &str) -> Result<(), StoreError> {
        let message = "the driver does not know this sandbox any more";
        self.fail(id, "BackendResourceMissing", message.to_owned()).await
    }

    async fn fail(
        &self,
        id: &str,
        reason: &'static str,
        message: String,
    ) -> Result<(), StoreError> {
        let change = |_| Change::Failed { reason, message: message.clone() };
        self.0.update(id, change).await.map(drop)
    }

    /// Compares all rows with the driver again and again until the runtime is closed.
    pub async fn reconcile_driver(&self) {
        let mut closing = self.0.closing.subscribe();
        loop {
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => return,
                () = tokio::time::sleep(self.0.settings.reconcile) => {}
            }
            if let Err(error) = self.reconcile_store_with_backend().await {
                tracing::error!(error = %chain(&error), "rows not reconciled");
            }
        }
    }

    /// Compares all rows with the driver once. A driver that does not answer changes nothing.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn reconcile_store_with_backend(&self) -> Result<(), StoreError> {
        let listed = match self.0.driver.list().await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "driver does not list its sandboxes");
                return Ok(());
            }
        };
        let known: HashMap<String, DriverSandbox> =
            listed.into_iter().map(|sandbox| (sandbox.id.clone(), sandbox)).collect();
        let known = Arc::new(known);
        self.sweep(move |this, key| {
            let known = Arc::clone(&known);
            async move {
                match known.get(&key.0) {
                    Some(sandbox) => this.apply_sandbox_update(sandbox).await.map(drop),
                    None => this.absent(&key).await,
                }
            }
        })
        .await
    }

    /// A row that the driver has not listed. It may have been made since: the driver is asked again behind the gate.
    pub(super) async fn absent(&self, (id, name): &Key) -> Result<(), StoreError> {
        let _gate = self.0.gate(id).await;
        match self.0.driver.find(id, name).await {
            Ok(None) => {}
            Ok(Some(sandbox)) => return self.apply_sandbox_update(&sandbox).await.map(drop),
            Err(error) => {
                tracing::warn!(sandbox_id = id, %error, "driver does not say whether it is there");
                return Ok(());
            }
        }
        let Some(mut row) = self.0.store.fetch::<Sandbox>(id).await? else { return Ok(()) };
        if is_terminating(&row) {
            return self.0.forget(id).await.map(drop);
        }
        if let SandboxPhase::Stopping | SandboxPhase::Stopped | SandboxPhase::Starting =
            phase_of(&row)
        {
            let message = "the driver does not know this sandbox any more";
            return self.fail(id, "ComputeResourceMissing", message.to_owned()).await;
        }
        let age = clock::now_ms().saturating_sub(row.meta_mut().created_at_ms).max(0);
        if Duration::from_millis(age.unsigned_abs()) > self.0.settings.prune_after {
            tracing::warn!(
                sandbox_id = id,
                "row of a sandbox that the driver does not know dropped"
            );
            self.0.forget(id).await?;
        }
        Ok(())
    }

    /// Ends the loops, and has the driver stop what runs, where it leaves that to the gateway. The rows stay as they are: they say what is
    /// to run when the gateway is back.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn shutdown(&self, driver_leaves_it: bool) -> Result<(), StoreError> {
        self.0.closing.send_replace(true);
        if !driver_leaves_it {
            return Ok(());
        }
        self.sweep(|this, key| async move {
            let (id, name) = &key;
            let _gate = this.0.gate(id).await;
            let row = this.0.store.fetch::<Sandbox>(id).await?;
            if row.is_some_and(|row| is_meant_to_run(&row))
                && let Err(error) = this.0.driver.stop(id, name).await
            {
                tracing::warn!(sandbox_id = id, %error, "driver does not stop it");
            }
            Ok(())
        })
        .await
    }

    /// Does something about every row, for several at once. One that fails does not keep the others from their turn.
    async fn sweep<W>(&self, work: impl Fn(Self, Key) -> W + Send + Sync) -> Result<(), StoreError>
    where
        W: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(self.0.settings.sweep_width.max(1)));
        let mut tasks = JoinSet::new();
        for key in self.rows().await? {
            let permit = Arc::clone(&permits).acquire_owned().await;
            let one = work(self.clone(), key);
            tasks.spawn(async move {
                let _permit = permit;
                one.await
            });
        }
        let mut first = Ok(());
        while let Some(done) = tasks.join_next().await {
            if let Ok(Err(error)) = done {
                tracing::error!(error = %chain(&error), "row not swept");
                first = first.and(Err(error));
            }
        }
        first
    }

    async fn rows(&self) -> Result<Vec<Key>, StoreError> {
        let rows = self.0.store.list::<Sandbox>(None, &Selector::default()).await?;
        Ok(rows.into_iter().filter_map(|row| row.metadata).map(|m| (m.id, m.name)).collect())
    }
}
