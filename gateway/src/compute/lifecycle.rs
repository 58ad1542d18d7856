//! What users ask for: create, stop, start, delete.
//!
//! Each waits for the gate of its sandbox, reads the row again behind it, and does its work in a task of its own.
//!
//! Invariant: a row says what is under way before the driver is asked for it, so that whoever comes after a crash can finish it.

use openshell_proto::compute::v1::DriverSandbox;
use openshell_proto::v1::{Sandbox, SandboxPhase, SandboxStatus};
use tonic::{Code, Status};

use super::rules::{Event, phase_of};
use super::{Change, Compute, clock, internal};
use crate::store::{Condition, Object as _, StoreError};

impl Compute {
    /// Writes the row of a new sandbox and has the driver make it. `row` has its metadata and its spec, `wanted` is what the driver gets.
    ///
    /// # Errors
    ///
    /// ALREADY_EXISTS and FAILED_PRECONDITION, also those of the driver, with its message; INTERNAL for everything else. No row is left.
    pub async fn create(&self, row: Sandbox, wanted: DriverSandbox) -> Result<Sandbox, Status> {
        let this = self.clone();
        own(async move { this.create_now(row, wanted).await }).await
    }

    async fn create_now(&self, mut row: Sandbox, wanted: DriverSandbox) -> Result<Sandbox, Status> {
        let id = row.meta_mut().id.clone();
        let _gate = self.0.gate(&id).await;
        let status = row.status.get_or_insert_default();
        status.phase = SandboxPhase::Provisioning.into();
        status.sandbox_name = wanted.name.clone();
        if row.meta_mut().created_at_ms == 0 {
            row.meta_mut().created_at_ms = clock::now_ms();
        }
        match self.0.store.put_if(&row, Condition::MustCreate).await {
            Ok(_) => {}
            Err(StoreError::Exists { .. }) => {
                return Err(Status::already_exists("sandbox already exists"));
            }
            Err(error) => return Err(internal(&error)),
        }
        if let Err(refused) = self.0.driver.create(wanted).await {
            self.0.forget(&id).await.map_err(|error| internal(&error))?;
            return Err(match refused.code() {
                Code::AlreadyExists | Code::FailedPrecondition => refused,
                _ => Status::internal(format!("driver: {}", refused.message())),
            });
        }
        // A session that came before the row was there is written now.
        let backfilled = self.0.update(&id, Change::Session).await;
        match backfilled.map_err(|error| internal(&error))? {
            Some(row) => Ok(row),
            None => Err(Status::aborted("sandbox was deleted while it was created")),
        }
    }

    /// Stops a sandbox that is ready, and waits until it has stopped. One that has stopped stays so.
    ///
    /// # Errors
    ///
    /// NOT_FOUND; FAILED_PRECONDITION in other phases; ABORTED where the name means another sandbox by now; and the driver's.
    pub async fn stop(&self, workspace: &str, name: &str) -> Result<Sandbox, Status> {
        let id = self.id_of(workspace, name).await?;
        let (this, workspace, name) = (self.clone(), workspace.to_owned(), name.to_owned());
        own(async move {
            let _gate = this.0.gate(&id).await;
            let row = this.recheck(&id, &workspace, &name).await?;
            match phase_of(&row) {
                SandboxPhase::Stopped => return Ok(row),
                SandboxPhase::Ready | SandboxPhase::Stopping => {}
                other => return Err(not_in("stopped", other)),
            }
            this.enter(&id, Event::StopRequested, SandboxPhase::Stopping).await?;
            this.finish_stop(&id, &name).await
        })
        .await
    }

    /// The second half of a stop, also of one that was cut off. The gate is held.
    pub(super) async fn finish_stop(&self, id: &str, name: &str) -> Result<Sandbox, Status> {
        self.0.driver.stop(id, name).await?;
        self.0.sessions.remove(id);
        self.enter(id, Event::Stopped, SandboxPhase::Stopped).await
    }

    /// Starts a sandbox that has stopped; returns when the driver has accepted. One that is ready stays so.
    ///
    /// # Errors
    ///
    /// As for [`Self::stop`].
    pub async fn start(&self, workspace: &str, name: &str) -> Result<Sandbox, Status> {
        let id = self.id_of(workspace, name).await?;
        let (this, workspace, name) = (self.clone(), workspace.to_owned(), name.to_owned());
        own(async move {
            let _gate = this.0.gate(&id).await;
            let row = this.recheck(&id, &workspace, &name).await?;
            match phase_of(&row) {
                SandboxPhase::Ready => return Ok(row),
                // What is left of the run before has nothing to say about the next one.
                SandboxPhase::Stopped => {
                    this.0.sessions.remove(&id);
                }
                SandboxPhase::Starting => {}
                other => return Err(not_in("started", other)),
            }
            this.enter(&id, Event::StartRequested, SandboxPhase::Starting).await?;
            this.0.driver.start(&id, &name).await?;
            this.require_persisted_sandbox(&id).await
        })
        .await
    }

    /// Deletes a sandbox in whatever phase, and waits until it is gone. Says whether there was one.
    ///
    /// # Errors
    ///
    /// INTERNAL where the driver would not: the row is then as the driver says it is.
    pub async fn delete(&self, workspace: &str, name: &str) -> Result<bool, Status> {
        let found = self.0.store.fetch_by_name::<Sandbox>(workspace, name).await;
        let Some(mut row) = found.map_err(|error| internal(&error))? else { return Ok(false) };
        let (this, id) = (self.clone(), row.meta_mut().id.clone());
        let name = name.to_owned();
        own(async move {
            let _gate = this.0.gate(&id).await;
            let row = this.0.store.fetch::<Sandbox>(&id).await.map_err(|error| internal(&error))?;
            let Some(row) = row else { return Ok(false) };
            this.delete_now(&id, &name, row.status.unwrap_or_default()).await
        })
        .await
    }

    async fn delete_now(
        &self,
        id: &str,
        name: &str,
        before: SandboxStatus,
    ) -> Result<bool, Status> {
        let asked = Event::DeleteRequested { at_ms: clock::now_ms() };
        let written = self.0.update(id, |_| Change::Plain(asked.clone())).await;
        written.map_err(|error| internal(&error))?;
        let Err(refused) = self.0.driver.delete(id, name).await else {
            // Whether the driver knew it or not: it does not now.
            self.0.forget(id).await.map_err(|error| internal(&error))?;
            return Ok(true);
        };
        let told = Status::internal(format!("driver: {}", refused.message()));
        let status = match self.0.driver.find(id, name).await {
            Ok(None) => {
                self.0.forget(id).await.map_err(|error| internal(&error))?;
                return Err(told);
            }
            Ok(Some(sandbox)) => sandbox.status,
            Err(_) => None,
        };
        let back = |instance| Change::DeleteFailed {
            before: before.clone(),
            status: status.clone(),
            instance,
        };
        self.0.update(id, back).await.map_err(|error| internal(&error))?;
        Err(told)
    }

    async fn id_of(&self, workspace: &str, name: &str) -> Result<String, Status> {
        let found = self.0.store.fetch_by_name::<Sandbox>(workspace, name).await;
        let row = found.map_err(|error| internal(&error))?;
        row.and_then(|row| row.metadata)
            .map(|meta| meta.id)
            .ok_or_else(|| Status::not_found("sandbox not found"))
    }

    /// The row behind the gate, if it still is the one that the name meant before it.
    async fn recheck(&self, id: &str, workspace: &str, name: &str) -> Result<Sandbox, Status> {
        let row = self.0.store.fetch_by_name::<Sandbox>(workspace, name).await;
        let row = row.map_err(|error| internal(&error))?;
        row.filter(|row| row.meta().is_some_and(|meta| meta.id == id))
            .ok_or_else(|| Status::aborted("sandbox changed while waiting; try again"))
    }

    /// Applies an event that must lead into a phase, or find it there.
    async fn enter(
        &self,
        id: &str,
        event: Event<'static>,
        into: SandboxPhase,
    ) -> Result<Sandbox, Status> {
        let written = self.0.update(id, |_| Change::Plain(event.clone())).await;
        match written.map_err(|error| internal(&error))? {
            Some(row) if phase_of(&row) == into => Ok(row),
            Some(row) => Err(Status::aborted(format!(
                "sandbox became {} meanwhile",
                phase_of(&row).as_str_name()
            ))),
            None => Err(Status::aborted("sandbox was deleted meanwhile")),
        }
    }
}

/// Runs in a task of its own, to its end, whether the caller waits or not.
async fn own<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Status::internal("task failed")))
}

fn not_in(what: &str, phase: SandboxPhase) -> Status {
    let phase = phase.as_str_name().trim_start_matches("SANDBOX_PHASE_").to_lowercase();
    Status::failed_precondition(format!("sandbox cannot be {what} while it is {phase}"))
}
