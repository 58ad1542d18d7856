//! What the driver runs machines with: the two programs `openshell-rootfs` and `openshell-vmm`, or a stub in tests.
//!
//! Invariant: a future that is dropped leaves nothing that runs; what it was making is not there, or whole.

mod console;
mod ended;
pub(crate) mod news;
pub mod process;
mod programs;
mod stop;
pub mod stub;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

pub use ended::Ended;
pub(crate) use ended::bounded;
pub use news::News;
pub use programs::{ProgramPaths, Programs};

use crate::guest::GuestFiles;
use crate::resources::Size;
use crate::state::{KeptImage, SandboxDir};

/// A future in a box, so that the driver need not know which backend it has.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Where its files lie.
    pub directory: SandboxDir,
    /// The image, as `openshell-rootfs` takes it.
    pub image: String,
    /// The size of its read-write disk in bytes.
    pub overlay_bytes: u64,
    /// Its size.
    pub size: Size,
    /// What its config disk holds.
    pub guest: GuestFiles,
    /// Rules of its network, by which it reaches the gateway.
    pub rules: Vec<String>,
}

/// Disks that are ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The image's file.
    pub base: PathBuf,
    /// Which image it is.
    pub image: KeptImage,
    /// Whether it was in the cache.
    pub cached: bool,
}

/// Why a machine does not run.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A program could not be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program said no.
    #[error("{0}")]
    Refused(String),
    /// A program took too long.
    #[error("{program} did not end within {} s", .after.as_secs())]
    TooLong {
        /// Which.
        program: String,
        /// How long it had.
        after: Duration,
    },
    /// The state directory failed.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
}

/// Makes disks and machines.
pub trait Backend: Send + Sync + 'static {
    /// Gets an image into the cache.
    fn fetch<'a>(&'a self, image: &'a str, news: News)
    -> Boxed<'a, Result<Prepared, BackendError>>;

    /// Makes the disks of a machine. A read-write disk that is there is kept.
    fn prepare<'a>(
        &'a self,
        spec: &'a MachineSpec,
        news: News,
    ) -> Boxed<'a, Result<Prepared, BackendError>>;

    /// Starts a machine.
    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
        prepared: &'a Prepared,
    ) -> Boxed<'a, Result<Box<dyn Machine>, BackendError>>;
}

/// How a machine is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Ask the guest, then the machine, then kill it: what the guest wrote is kept.
    Orderly,
    /// Kill it: what the guest wrote is of no use any more.
    Now,
}

/// A machine that was started. Dropping it kills it.
pub trait Machine: Send {
    /// Waits until it has ended.
    ///
    /// # Errors
    ///
    /// When that cannot be told.
    fn wait(&mut self) -> Boxed<'_, io::Result<Ended>>;

    /// Ends it, and returns when it is gone.
    fn stop(&mut self, how: Stop) -> Boxed<'_, ()>;

    /// Waits until the guest has come as far as its main process; for ever if it does not.
    fn booted(&self) -> Boxed<'static, ()>;

    /// Ends it because it is of no use, and says how far it had come.
    ///
    /// # Errors
    ///
    /// As for [`Self::wait`].
    fn abandon(&mut self) -> Boxed<'_, io::Result<Ended>>;

    /// What the guest's own programs said last, if anything.
    fn said(&self) -> Option<String>;
}
