//! One `openshell-vmm` process.

use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::{Boxed, Ended, Machine, Stop, console, stop};
use crate::state::SandboxDir;

/// What the guest's main process gets to end, when it is asked.
const GUEST_PATIENCE: Duration = Duration::from_secs(3);
/// What guest and machine together get, after the guest agreed.
const ORDERLY: Duration = Duration::from_secs(5);
/// What a machine gets to stop its devices and flush its disks.
const TERMINATE: Duration = Duration::from_secs(5);
/// How long the last words of a machine may take after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What is read of the machine's own messages.
const MAX_STDERR_BYTES: u64 = 16 << 10;

/// A machine's process.
#[derive(Debug)]
pub(super) struct Vmm {
    child: Child,
    directory: SandboxDir,
    tail: console::Tail,
    console: Option<JoinHandle<()>>,
}

impl Vmm {
    pub(super) fn new(mut child: Child, directory: SandboxDir) -> Self {
        let tail = console::Tail::default();
        let log = directory.file("rootfs-console.log");
        let output = child.stdout.take();
        let console = output.map(|output| tokio::spawn(console::copy(output, log, tail.clone())));
        Self { child, directory, tail, console }
    }

    /// Whether it is gone within `patience`.
    async fn ends_within(&mut self, patience: Duration) -> bool {
        matches!(timeout(patience, self.child.wait()).await, Ok(Ok(_)))
    }

    fn terminate(&self) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        // It is not reaped yet, so the number is still its own. One that has just ended needs no signal.
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).ok();
        }
    }
}

impl Machine for Vmm {
    fn wait(&mut self) -> Boxed<'_, io::Result<Ended>> {
        Box::pin(async move {
            let status = self.child.wait().await?;
            if let Some(console) = self.console.take() {
                drop(timeout(LAST_WORDS, console).await);
            }
            let mut stderr = Vec::new();
            if let Ok(log) = tokio::fs::File::open(self.directory.file("vmm.log")).await {
                drop(log.take(MAX_STDERR_BYTES).read_to_end(&mut stderr).await);
            }
            let result = self.directory.file("result.json");
            let stderr = String::from_utf8_lossy(&stderr);
            Ok(Ended::of(status, &result, &self.tail.lines(), &stderr))
        })
    }

    fn stop(&mut self, how: Stop) -> Boxed<'_, ()> {
        Box::pin(async move {
            if how == Stop::Orderly {
                // Only the guest can write back what it has in memory.
                match stop::ask(self.directory.path(), GUEST_PATIENCE).await {
                    Ok(()) if self.ends_within(ORDERLY).await => return,
                    Ok(()) => tracing::warn!("the guest agreed to stop and did not"),
                    Err(error) => tracing::debug!(%error, "the guest cannot be asked to stop"),
                }
                self.terminate();
                if self.ends_within(TERMINATE).await {
                    return;
                }
            }
            if let Err(error) = self.child.kill().await {
                tracing::warn!(%error, "cannot kill a machine");
            }
        })
    }

    fn booted(&self) -> Boxed<'static, ()> {
        let directory = self.directory.clone();
        Box::pin(async move { stop::attended(directory.path()).await })
    }

    fn abandon(&mut self) -> Boxed<'_, io::Result<Ended>> {
        Box::pin(async move {
            // Asked to end, the machine writes down how far it has come.
            self.terminate();
            if !self.ends_within(TERMINATE).await {
                self.child.kill().await?;
            }
            self.wait().await
        })
    }

    fn said(&self) -> Option<String> {
        self.tail.ours()
    }
}
