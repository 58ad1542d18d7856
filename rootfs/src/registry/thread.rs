//! The thread that all sockets of a registry client live on, and the way there for threads that block.
//!
//! Invariant: the thread has ended when the client is gone, and nothing is waited for longer than it lives.

use std::future::Future;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::error::RegistryError;

/// One thread with a runtime.
#[derive(Debug)]
pub(super) struct Thread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    pub(super) fn start() -> Result<Self, RegistryError> {
        let failed = |error: std::io::Error| RegistryError::Setup(error.to_string());
        let runtime =
            Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("registry".into())
            .spawn(move || {
                // The sender is dropped, never used.
                drop(runtime.block_on(stopped));
                // A credential helper that still runs is not waited for.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Does something there, and waits for it here, which must not be a task of a runtime.
    pub(super) fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, RegistryError>> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let (sender, receiver) = oneshot::channel();
        self.handle.spawn(async move {
            // Whoever asked may be gone.
            drop(sender.send(future.await));
        });
        receiver.blocking_recv().map_err(|_| RegistryError::Ended)?
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            drop(thread.join());
        }
    }
}
