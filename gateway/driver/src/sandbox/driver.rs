//! What the gateway can ask for: create, stop, start, delete, look, watch.
//!
//! Invariant: what must survive the driver is on the disk before anything acts on it: a request before its machine, the mark
//! of a stop before the stop. One of stop, start and delete works on a sandbox at a time. Each runs in a task of its own, so
//! that a caller who goes away leaves nothing half done.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;

use super::condition::{Status, unix_ms};
use super::keeper::Keeper;
use super::registry::{Registry, Snapshot, Task};
use super::watch::Watcher;
use super::{Request, Unusable};
use crate::backend::{Backend, MachineSpec, News, Stop};
use crate::endpoint::Endpoint;
use crate::events::{Event, Reason, progress};
use crate::guest::{Guest, GuestTls};
use crate::id::SandboxId;
use crate::resources::{Host, Size};
use crate::state::{SandboxDir, StateDir, StateError};

/// Sandboxes whose disks are made at one time, and machines that start at one time.
const PREPARING: usize = 16;
const STARTING: usize = 8;
/// How long all machines together may take when the driver ends.
const FAREWELL: Duration = Duration::from_secs(12);
/// The supervisor of the tools disk, in the guest.
pub const SUPERVISOR: &str = "/opt/openshell/bin/openshell-supervisor";
/// How long a guest may boot: well below the 300 s that `openshell sandbox create` waits.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// Files with the certificates of guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPaths {
    /// The authority, the guest's own, its key.
    pub files: [PathBuf; 3],
}

/// What the operator set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The gateway.
    pub endpoint: Endpoint,
    /// The image of sandboxes that name none.
    pub default_image: Option<String>,
    /// An image that is fetched when the driver starts.
    pub bootstrap_image: Option<String>,
    /// The guests' certificates; read at every start of a machine.
    pub tls: Option<TlsPaths>,
    /// The size of machines that ask for none.
    pub size: Size,
    /// What the host has.
    pub host: Host,
    /// The size of read-write disks.
    pub overlay_bytes: u64,
    /// Whether the operator asked for GPUs.
    pub gpu: bool,
    /// How much supervisors say.
    pub log_level: String,
    /// Whether supervisors may send telemetry.
    pub telemetry: bool,
    /// The supervisor's path in the guest.
    pub supervisor: String,
    /// Further rules of every machine's network.
    pub rules: Vec<String>,
    /// Where archives must lie that users name; anywhere if not set.
    pub rootfs_tar_dir: Option<PathBuf>,
    /// How long a guest may take from the start of its machine to that of its main process.
    pub boot_limit: Duration,
}

impl Settings {
    /// What an operator gets who says where the gateway is, and nothing else.
    pub fn new(endpoint: Endpoint, host: Host) -> Self {
        Self {
            endpoint,
            default_image: None,
            bootstrap_image: None,
            tls: None,
            size: Size { vcpus: 2, memory_mib: 2048 },
            host,
            overlay_bytes: 4096 << 20,
            gpu: false,
            log_level: "info".to_owned(),
            telemetry: false,
            supervisor: SUPERVISOR.to_owned(),
            rules: vec!["host".to_owned()],
            rootfs_tar_dir: None,
            boot_limit: BOOT_LIMIT,
        }
    }
}

/// Why something that was asked for did not happen.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is a sandbox of this id.
    #[error("sandbox {0} exists already")]
    Exists(SandboxId),
    /// There is no such sandbox.
    #[error("there is no sandbox {0}")]
    Unknown(String),
    /// The sandbox cannot do that now.
    #[error("{0}")]
    Precondition(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The host failed.
    #[error("{0}")]
    Internal(String),
}

impl From<StateError> for DriverError {
    fn from(error: StateError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// Reads a request as it was kept.
type Decode = dyn Fn(&[u8]) -> Result<Request, Unusable> + Send + Sync;

/// The driver.
pub struct Driver {
    pub(super) state: StateDir,
    pub(super) settings: Settings,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) registry: Arc<Registry>,
    pub(super) preparing: Semaphore,
    pub(super) starting: Semaphore,
    /// The rules by which machines reach the gateway, once somebody looked.
    rules: OnceLock<Vec<String>>,
    decode: Box<Decode>,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Driver {
    /// A driver without sandboxes; [`Self::restore`] brings back those of the state directory.
    pub fn new(
        state: StateDir,
        settings: Settings,
        backend: Arc<dyn Backend>,
        decode: impl Fn(&[u8]) -> Result<Request, Unusable> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            settings,
            backend,
            registry: Arc::new(Registry::new()),
            preparing: Semaphore::new(PREPARING),
            starting: Semaphore::new(STARTING),
            rules: OnceLock::new(),
            decode: Box::new(decode),
        })
    }

    /// What the operator set.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether a sandbox could be taken in.
    ///
    /// # Errors
    ///
    /// When its files cannot be made ready.
    pub async fn check(self: &Arc<Self>, request: Request) -> Result<(), DriverError> {
        let driver = Arc::clone(self);
        blocking(move || {
            let directory = driver.state.sandbox(&request.identity.id);
            driver.spec(&request, directory, Vec::new()).map(drop)
        })
        .await
    }

    /// Takes a sandbox in. `encoded` is the request as it is to be kept. Its machine starts later.
    ///
    /// # Errors
    ///
    /// When there is one of this id, its files cannot be made ready, or the host fails.
    pub async fn create(
        self: &Arc<Self>,
        request: Request,
        encoded: Vec<u8>,
    ) -> Result<(), DriverError> {
        let driver = Arc::clone(self);
        owned(async move {
            let id = request.identity.id.clone();
            if !driver.registry.reserve(&request.identity, Status::starting()) {
                return Err(DriverError::Exists(id));
            }
            let made = driver.make(&request, encoded).await;
            let (spec, directory) = match made {
                Ok(made) => made,
                Err(error) => {
                    driver.registry.forget(&id);
                    return Err(error);
                }
            };
            let mut message = "Sandbox accepted".to_owned();
            for note in &request.notes {
                message.push_str(&format!("; {note}"));
            }
            driver.registry.tell(
                &id,
                Event::new(Reason::Scheduled, message)
                    .complete(progress::REQUESTING, "Sandbox accepted")
                    .with(progress::ACTIVE_STEP, progress::PULLING),
            );
            driver.registry.publish(&id);
            driver.keep(&id, spec, directory, true);
            Ok(())
        })
        .await
    }

    async fn make(
        self: &Arc<Self>,
        request: &Request,
        encoded: Vec<u8>,
    ) -> Result<(MachineSpec, SandboxDir), DriverError> {
        let (driver, request) = (Arc::clone(self), request.clone());
        let rules = self.rules().await;
        blocking(move || {
            let id = &request.identity.id;
            let directory = driver.state.sandbox(id);
            let spec = driver.spec(&request, directory.clone(), rules)?;
            driver.state.create(id, &encoded).map_err(|error| match &error {
                StateError::Io { action: "make", source, .. }
                    if source.kind() == std::io::ErrorKind::AlreadyExists =>
                {
                    DriverError::Exists(id.clone())
                }
                _ => error.into(),
            })?;
            Ok((spec, directory))
        })
        .await
    }

    /// The sandboxes by their names.
    pub fn list(&self) -> Vec<Arc<Snapshot>> {
        self.registry.list()
    }

    /// Follows all sandboxes.
    pub fn watch(&self) -> Watcher {
        Watcher::new(Arc::clone(&self.registry))
    }

    /// A sandbox by its id, or by its name where there is no id.
    ///
    /// # Errors
    ///
    /// When there is none, or the one with the id has another name.
    pub fn find(&self, id: &str, name: &str) -> Result<Arc<Snapshot>, DriverError> {
        if id.is_empty() && name.is_empty() {
            return Err(DriverError::Invalid("sandbox_id or sandbox_name is required".into()));
        }
        let unknown = || DriverError::Unknown(if id.is_empty() { name } else { id }.to_owned());
        let found =
            if id.is_empty() { self.registry.named(name) } else { SandboxId::parse(id).ok() };
        let found = found.ok_or_else(unknown)?;
        let snapshot = self.registry.lock().all.get(&found).map(|r| Arc::clone(&r.snapshot));
        let snapshot = snapshot.ok_or_else(unknown)?;
        if !name.is_empty() && snapshot.identity.name != name {
            return Err(DriverError::Precondition(format!(
                "sandbox {id} has the name {:?}, not {name:?}",
                snapshot.identity.name
            )));
        }
        Ok(snapshot)
    }

    /// Stops a sandbox, and remembers that it is to stay so. Does nothing to one that is stopped.
    ///
    /// # Errors
    ///
    /// When there is none, or the mark cannot be written.
    pub async fn stop(self: &Arc<Self>, id: &str, name: &str) -> Result<(), DriverError> {
        let identity = self.find(id, name)?.identity.clone();
        let driver = Arc::clone(self);
        owned(async move {
            let id = &identity.id;
            let _gate = driver.gate(id).await?;
            let directory = driver.state.sandbox(id);
            blocking(move || {
                // One whose machine never came to be has no directory, and nothing to remember.
                if directory.path().exists() {
                    directory.set_stopped(true)?;
                }
                Ok(())
            })
            .await?;
            driver.end(id, Stop::Orderly).await;
            let stopped = driver.status(id) == Some(Status::Stopped);
            if !stopped {
                driver.registry.set(id, Status::Stopped);
                driver.registry.tell(id, Event::new(Reason::Stopped, "Sandbox compute stopped"));
            }
            Ok(())
        })
        .await
    }

    /// Starts a sandbox that was stopped. Does nothing to one that runs, starts, or has ended by itself.
    ///
    /// # Errors
    ///
    /// When there is none, or what is kept of it cannot make a machine; it then stays stopped.
    pub async fn start(self: &Arc<Self>, id: &str, name: &str) -> Result<(), DriverError> {
        let identity = self.find(id, name)?.identity.clone();
        let driver = Arc::clone(self);
        owned(async move {
            let id = identity.id;
            let _gate = driver.gate(&id).await?;
            let exited = driver.status(&id).is_some_and(|status| status.is_exit());
            if driver.is_active(&id) || exited {
                return Ok(());
            }
            let rules = driver.rules().await;
            let (spec, directory) = {
                let (driver, id) = (Arc::clone(&driver), id.clone());
                blocking(move || {
                    let directory = driver.state.sandbox(&id);
                    let spec = driver.preflight(&id, rules)?;
                    directory.clear_exited()?;
                    directory.set_stopped(false)?;
                    Ok((spec, directory))
                })
                .await?
            };
            driver.registry.set(&id, Status::starting());
            driver.keep(&id, spec, directory, false);
            Ok(())
        })
        .await
    }

    /// Removes a sandbox with all that it wrote. False when there is none.
    ///
    /// # Errors
    ///
    /// When its directory cannot be removed; it can be tried again.
    pub async fn delete(self: &Arc<Self>, id: &str, name: &str) -> Result<bool, DriverError> {
        let identity = match self.find(id, name) {
            Err(DriverError::Unknown(_)) => return Ok(false),
            found => found?.identity.clone(),
        };
        let driver = Arc::clone(self);
        owned(async move {
            let id = identity.id;
            let gate = driver.registry.lock().all.get(&id).map(|record| Arc::clone(&record.gate));
            let Some(gate) = gate else { return Ok(false) };
            // Whoever waits for the gate meanwhile finds a sandbox that is being removed.
            driver.registry.set(&id, Status::Deleting);
            let _gate = gate.lock_owned().await;
            if driver.status(&id).is_none() {
                return Ok(false);
            }
            driver.end(&id, Stop::Now).await;
            let (state, removed) = (Arc::clone(&driver), id.clone());
            blocking(move || Ok(state.state.remove(&removed)?)).await?;
            driver.registry.remove(&id);
            Ok(true)
        })
        .await
    }

    /// Brings back the sandboxes of the state directory: those that ran run again.
    ///
    /// # Errors
    ///
    /// When the state directory cannot be read.
    pub async fn restore(self: &Arc<Self>) -> Result<(), DriverError> {
        let rules = self.rules().await;
        let driver = Arc::clone(self);
        let found = blocking(move || {
            let mut found = Vec::new();
            for (id, directory) in driver.state.sandboxes()? {
                let request = match directory.request() {
                    Ok(encoded) => (driver.decode)(&encoded),
                    Err(error) => {
                        tracing::error!(%id, %error, "a sandbox cannot be brought back");
                        continue;
                    }
                };
                let identity = match &request {
                    Ok(request) => Some(&request.identity),
                    Err(unusable) => unusable.identity.as_ref(),
                };
                match identity {
                    Some(identity) if identity.id == id => found.push((request, directory)),
                    _ => tracing::warn!(%id, "the request is no request, or another sandbox's"),
                }
            }
            Ok(found)
        })
        .await?;
        for (request, directory) in found {
            self.restore_one(request, directory, rules.clone());
        }
        Ok(())
    }

    fn restore_one(
        self: &Arc<Self>,
        request: Result<Request, Unusable>,
        directory: SandboxDir,
        rules: Vec<String>,
    ) {
        let identity = match &request {
            Ok(request) => request.identity.clone(),
            Err(Unusable { identity: Some(identity), .. }) => identity.clone(),
            Err(_) => return,
        };
        let (status, start) = if directory.is_stopped() {
            (Status::Stopped, None)
        } else if let Some(why) = directory.exited() {
            (Status::ProcessExited(why), None)
        } else {
            let spec = request.map_err(|unusable| DriverError::Internal(unusable.why));
            match spec.and_then(|request| self.preflight_of(&request, &directory, rules)) {
                Ok(spec) => (Status::starting(), Some(spec)),
                Err(error) => (Status::ProvisioningFailed(error.to_string()), None),
            }
        };
        if !self.registry.reserve(&identity, status) {
            return;
        }
        let id = identity.id;
        self.registry.publish(&id);
        if let Some(spec) = start {
            let event = Event::new(Reason::Restoring, "Starting the sandbox again");
            self.registry.tell(&id, event.active(progress::STARTING));
            self.keep(&id, spec, directory, false);
        }
    }

    /// Fetches the images that the operator named, so that the first sandbox need not.
    pub async fn warm(self: &Arc<Self>) {
        let images = [&self.settings.bootstrap_image, &self.settings.default_image];
        let mut images: Vec<&String> = images.into_iter().flatten().collect();
        images.dedup();
        for image in images {
            let Ok(_permit) = self.preparing.acquire().await else { return };
            match self.backend.fetch(image, News::silent()).await {
                Ok(found) => tracing::info!(image, cached = found.cached, "image ready"),
                Err(error) => tracing::warn!(image, %error, "image not fetched"),
            }
        }
    }

    /// Ends all machines. What is kept says that they are to run again.
    pub async fn close(self: &Arc<Self>) {
        let ids: Vec<SandboxId> = self.registry.lock().all.keys().cloned().collect();
        let mut ends = tokio::task::JoinSet::new();
        for id in ids {
            let driver = Arc::clone(self);
            ends.spawn(async move { driver.end(&id, Stop::Orderly).await });
        }
        if tokio::time::timeout(FAREWELL, ends.join_all()).await.is_err() {
            tracing::warn!("some machines did not stop; they are killed");
        }
    }

    /// Whether a machine runs, or is about to.
    pub(super) fn is_active(&self, id: &SandboxId) -> bool {
        self.registry.lock().all.get(id).is_some_and(|record| record.active)
    }

    pub(super) fn status(&self, id: &SandboxId) -> Option<Status> {
        self.registry.lock().all.get(id).map(|record| record.status.clone())
    }

    /// Waits until nobody else stops, starts or removes the sandbox.
    async fn gate(&self, id: &SandboxId) -> Result<tokio::sync::OwnedMutexGuard<()>, DriverError> {
        let unknown = || DriverError::Unknown(id.to_string());
        let gate = self.registry.lock().all.get(id).map(|record| Arc::clone(&record.gate));
        let gate = gate.ok_or_else(unknown)?.lock_owned().await;
        match self.status(id) {
            None => Err(unknown()),
            Some(Status::Deleting) => {
                Err(DriverError::Precondition(format!("sandbox {id} is being deleted")))
            }
            Some(_) => Ok(gate),
        }
    }

    /// Starts the task that keeps a machine.
    fn keep(
        self: &Arc<Self>,
        id: &SandboxId,
        spec: MachineSpec,
        directory: SandboxDir,
        fresh: bool,
    ) {
        let (cancel, cancelled) = watch::channel(None);
        let keeper =
            Keeper { driver: Arc::clone(self), id: id.clone(), spec, directory, fresh, cancelled };
        let mut records = self.registry.lock();
        let Some(record) = records.all.get_mut(id) else { return };
        record.active = true;
        record.task = Some(Task { cancel, handle: tokio::spawn(keeper.run()) });
    }

    /// Ends the task that keeps a machine, and returns when both are gone.
    async fn end(&self, id: &SandboxId, how: Stop) {
        let task = self.registry.lock().all.get_mut(id).and_then(|record| record.task.take());
        let Some(Task { cancel, handle }) = task else { return };
        cancel.send_replace(Some(how));
        if let Err(error) = handle.await {
            tracing::error!(%id, %error, "the task of a sandbox failed");
        }
        if let Some(record) = self.registry.lock().all.get_mut(id) {
            record.active = false;
        }
    }

    async fn rules(&self) -> Vec<String> {
        if let Some(rules) = self.rules.get() {
            return rules.clone();
        }
        let mut rules = self.settings.endpoint.rules().await;
        let found = !rules.is_empty();
        // A rule that is there twice is an error of the machine's network.
        for rule in &self.settings.rules {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        // A name that could not be looked up may be there the next time.
        if found {
            return self.rules.get_or_init(|| rules).clone();
        }
        rules
    }

    /// What a sandbox's machine is made of, checked against what is kept of it.
    fn preflight(&self, id: &SandboxId, rules: Vec<String>) -> Result<MachineSpec, DriverError> {
        let directory = self.state.sandbox(id);
        let request = (self.decode)(&directory.request()?).map_err(|error| {
            DriverError::Internal(format!("the request is unusable: {}", error.why))
        })?;
        self.preflight_of(&request, &directory, rules)
            .map_err(|error| DriverError::Internal(error.to_string()))
    }

    fn preflight_of(
        &self,
        request: &Request,
        directory: &SandboxDir,
        rules: Vec<String>,
    ) -> Result<MachineSpec, DriverError> {
        let wanted = self.settings.overlay_bytes;
        if let Some(bytes) = directory.overlay_bytes()?
            && bytes != wanted
        {
            return Err(DriverError::Internal(format!(
                "{} has {bytes} bytes and the driver is set to {wanted}; set --overlay-disk-mib to {}",
                directory.overlay().display(),
                bytes >> 20
            )));
        }
        self.spec(request, directory.clone(), rules)
    }

    fn spec(
        &self,
        request: &Request,
        directory: SandboxDir,
        rules: Vec<String>,
    ) -> Result<MachineSpec, DriverError> {
        let settings = &self.settings;
        let tls = settings.tls.as_ref().map(read_tls).transpose()?;
        let level = &request.log_level;
        let guest = Guest {
            sandbox_id: request.identity.id.as_str(),
            sandbox_name: &request.identity.name,
            endpoint: &settings.endpoint.for_guest(),
            log_level: if level.is_empty() { &settings.log_level } else { level },
            telemetry: settings.telemetry,
            token: &request.token,
            tls: tls.as_ref(),
            environment: &request.environment,
            command: &request.command,
            tty: request.tty,
            supervisor: &settings.supervisor,
        };
        let guest = guest.files(unix_ms(SystemTime::now()));
        let guest = guest.map_err(|error| DriverError::Invalid(error.to_string()))?;
        Ok(MachineSpec {
            directory,
            image: request.image.clone(),
            overlay_bytes: settings.overlay_bytes,
            size: request.size,
            guest,
            rules,
        })
    }
}

fn read_tls(paths: &TlsPaths) -> Result<GuestTls, DriverError> {
    let mut files = [Vec::new(), Vec::new(), Vec::new()];
    for (path, bytes) in paths.files.iter().zip(&mut files) {
        *bytes = fs::read(path).map_err(|error| {
            DriverError::Precondition(format!("guest TLS file {}: {error}", path.display()))
        })?;
        if bytes.is_empty() {
            let text = format!("guest TLS file {} is empty", path.display());
            return Err(DriverError::Precondition(text));
        }
    }
    Ok(GuestTls { files })
}

/// Runs work that must not stop when its caller goes away.
async fn owned<T: Send + 'static>(
    work: impl Future<Output = Result<T, DriverError>> + Send + 'static,
) -> Result<T, DriverError> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(failed(&error)))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(failed(&error)))
}

fn failed(error: &tokio::task::JoinError) -> DriverError {
    DriverError::Internal(format!("a task of the driver failed: {error}"))
}
