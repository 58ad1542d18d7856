//! A backend without programs, for tests of everything above it: machines that do what the test says.
//!
//! Invariant: a machine is counted from its start until it is dropped.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::{Backend, BackendError, Boxed, Ended, Machine, MachineSpec, News, Prepared, Stop};
use crate::events::{Event, Reason, progress};
use crate::state::KeptImage;

/// A backend that makes nothing.
#[derive(Debug, Clone, Default)]
pub struct Stub {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    running: AtomicUsize,
    started: AtomicUsize,
    script: Mutex<Script>,
}

/// What happens next.
#[derive(Debug, Clone, Default)]
struct Script {
    /// How long disks take.
    prepare: Duration,
    /// Why there are none.
    refuse: Option<String>,
    /// Whether read-write disks are files.
    disks: bool,
    /// Ends of machines by the name of their sandbox's directory.
    ends: HashMap<String, watch::Sender<Option<Result<Ended, String>>>>,
    /// What was asked for last.
    specs: HashMap<String, MachineSpec>,
    /// How machines were stopped.
    stops: Vec<Stop>,
    said: Option<String>,
    /// Whether guests hang while they boot.
    hang: bool,
}

impl Stub {
    /// Machines that run now.
    pub fn running(&self) -> usize {
        self.inner.running.load(Ordering::SeqCst)
    }

    /// Machines that ever started.
    pub fn started(&self) -> usize {
        self.inner.started.load(Ordering::SeqCst)
    }

    /// From now on disks take so long.
    pub fn set_prepare_time(&self, time: Duration) {
        self.script().prepare = time;
    }

    /// From now on there are no disks, and why.
    pub fn set_refusal(&self, why: Option<&str>) {
        self.script().refuse = why.map(str::to_owned);
    }

    /// From now on read-write disks are files of the size asked for.
    pub fn set_disks(&self, disks: bool) {
        self.script().disks = disks;
    }

    /// What guests say.
    pub fn set_said(&self, said: &str) {
        self.script().said = Some(said.to_owned());
    }

    /// From now on guests hang while they boot.
    pub fn set_hang(&self, hang: bool) {
        self.script().hang = hang;
    }

    /// Ends the machine of a sandbox; `Err` is an end that nobody can tell.
    pub fn end(&self, id: &str, how: Result<Ended, String>) -> bool {
        self.script().ends.get(id).is_some_and(|end| end.send(Some(how)).is_ok())
    }

    /// What the machine of a sandbox was last made of.
    pub fn spec(&self, id: &str) -> Option<MachineSpec> {
        self.script().specs.get(id).cloned()
    }

    /// How machines were stopped, in order.
    pub fn stops(&self) -> Vec<Stop> {
        self.script().stops.clone()
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.inner.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name_of(spec: &MachineSpec) -> String {
    spec.directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Backend for Stub {
    fn fetch<'a>(&'a self, image: &'a str, _: News) -> Boxed<'a, Result<Prepared, BackendError>> {
        Box::pin(async move {
            let image = KeptImage { key: "0123".to_owned(), reference: image.to_owned() };
            Ok(Prepared { base: "/base".into(), image, cached: true })
        })
    }

    fn prepare<'a>(
        &'a self,
        spec: &'a MachineSpec,
        news: News,
    ) -> Boxed<'a, Result<Prepared, BackendError>> {
        Box::pin(async move {
            let forget = Forget { stub: self, name: name_of(spec) };
            let (time, refuse, disks) = {
                let mut script = self.script();
                script.specs.insert(name_of(spec), spec.clone());
                (script.prepare, script.refuse.clone(), script.disks)
            };
            news.tell(Event::new(Reason::Pulled, "Image ready").active(progress::PULLING));
            if !time.is_zero() {
                tokio::time::sleep(time).await;
            }
            if let Some(why) = refuse {
                return Err(BackendError::Refused(why));
            }
            if disks && spec.directory.overlay_bytes()?.is_none() {
                let disk = std::fs::File::create(spec.directory.overlay());
                let made = disk.and_then(|disk| disk.set_len(spec.overlay_bytes));
                made.map_err(|source| BackendError::Run { program: "stub".to_owned(), source })?;
            }
            let prepared = self.fetch(&spec.image, news).await?;
            forget.not();
            Ok(prepared)
        })
    }

    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
        _: &'a Prepared,
    ) -> Boxed<'a, Result<Box<dyn Machine>, BackendError>> {
        Box::pin(async move {
            let (end, ends) = watch::channel(None);
            let hang = self.script().hang;
            self.script().ends.insert(name_of(spec), end);
            self.inner.running.fetch_add(1, Ordering::SeqCst);
            self.inner.started.fetch_add(1, Ordering::SeqCst);
            let name = name_of(spec);
            Ok(Box::new(StubMachine { stub: self.clone(), name, ends, hang }) as Box<dyn Machine>)
        })
    }
}

/// Forgets what was asked for when nothing comes of it.
struct Forget<'a> {
    stub: &'a Stub,
    name: String,
}

impl Forget<'_> {
    fn not(mut self) {
        self.name.clear();
    }
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            self.stub.script().specs.remove(&self.name);
        }
    }
}

#[derive(Debug)]
struct StubMachine {
    stub: Stub,
    name: String,
    ends: watch::Receiver<Option<Result<Ended, String>>>,
    hang: bool,
}

impl Machine for StubMachine {
    fn wait(&mut self) -> Boxed<'_, io::Result<Ended>> {
        Box::pin(async move {
            let end = self.ends.wait_for(Option::is_some).await;
            match end.ok().and_then(|end| end.clone()) {
                Some(Ok(ended)) => Ok(ended),
                Some(Err(why)) => Err(io::Error::other(why)),
                None => Err(io::ErrorKind::BrokenPipe.into()),
            }
        })
    }

    fn stop(&mut self, how: Stop) -> Boxed<'_, ()> {
        self.stub.script().stops.push(how);
        Box::pin(async {})
    }

    fn booted(&self) -> Boxed<'static, ()> {
        let hang = self.hang;
        Box::pin(async move {
            if hang {
                std::future::pending::<()>().await;
            }
        })
    }

    fn abandon(&mut self) -> Boxed<'_, io::Result<Ended>> {
        let message = "VM process exited with status 143; last phase completed: kernel_entry";
        Box::pin(async { Ok(Ended { code: 143, ran: true, message: message.to_owned() }) })
    }

    fn said(&self) -> Option<String> {
        self.stub.script().said.clone()
    }
}

impl Drop for StubMachine {
    fn drop(&mut self) {
        self.stub.inner.running.fetch_sub(1, Ordering::SeqCst);
        let mut script = self.stub.script();
        script.ends.remove(&self.name);
        script.specs.remove(&self.name);
    }
}
