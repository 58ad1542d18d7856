//! The runtime against a driver of a few lines.

mod lifecycle;
mod model;
mod named;
mod readiness;
mod sweeps;

use std::collections::BTreeMap;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use openshell_proto::compute::v1::{
    DriverCondition, DriverSandbox, DriverSandboxStatus, GetCapabilitiesResponse,
};
use openshell_proto::datamodel::v1::ObjectMeta;
use openshell_proto::v1::{SandboxPhase, SupervisorHello};

use super::driver::Events;
use super::rules::{phase_of, ready_condition};
use super::*;
use crate::session::{Limits, Outbound, Session};
use crate::store::{Condition, Object as _};

/// A driver that keeps what it is told, and refuses what it is told to refuse.
#[derive(Default)]
struct Fake {
    sandboxes: StdMutex<BTreeMap<String, DriverSandbox>>,
    calls: StdMutex<Vec<String>>,
    refuse: StdMutex<BTreeMap<&'static str, Status>>,
    /// Written: every call waits.
    pause: tokio::sync::RwLock<()>,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

impl Fake {
    async fn call(&self, what: &'static str, id: &str) -> Result<(), Status> {
        self.calls.lock().unwrap().push(format!("{what} {id}"));
        let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
        self.busiest.fetch_max(busy, Ordering::SeqCst);
        drop(self.pause.read().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.busy.fetch_sub(1, Ordering::SeqCst);
        match self.refuse.lock().unwrap().get(what) {
            Some(status) => Err(status.clone()),
            None => Ok(()),
        }
    }

    fn refuse(&self, what: &'static str, status: Status) {
        self.refuse.lock().unwrap().insert(what, status);
    }

    fn set(&self, sandbox: DriverSandbox) {
        self.sandboxes.lock().unwrap().insert(sandbox.id.clone(), sandbox);
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn known(&self, id: &str) -> Result<(), Status> {
        let known = self.sandboxes.lock().unwrap().contains_key(id);
        if known { Ok(()) } else { Err(Status::not_found("unknown")) }
    }
}

#[tonic::async_trait]
impl Driver for Fake {
    async fn capabilities(&self) -> Result<GetCapabilitiesResponse, Status> {
        Ok(GetCapabilitiesResponse::default())
    }
    async fn validate(&self, _: DriverSandbox) -> Result<(), Status> {
        Ok(())
    }
    async fn create(&self, sandbox: DriverSandbox) -> Result<(), Status> {
        self.call("create", &sandbox.id).await?;
        self.set(DriverSandbox { spec: None, status: starting(), ..sandbox });
        Ok(())
    }
    async fn find(&self, id: &str, _: &str) -> Result<Option<DriverSandbox>, Status> {
        self.call("find", id).await?;
        Ok(self.sandboxes.lock().unwrap().get(id).cloned())
    }
    async fn list(&self) -> Result<Vec<DriverSandbox>, Status> {
        Ok(self.sandboxes.lock().unwrap().values().cloned().collect())
    }
    async fn stop(&self, id: &str, _: &str) -> Result<(), Status> {
        self.call("stop", id).await?;
        self.known(id)
    }
    async fn start(&self, id: &str, _: &str) -> Result<(), Status> {
        self.call("start", id).await?;
        self.known(id)
    }
    async fn delete(&self, id: &str, _: &str) -> Result<bool, Status> {
        self.call("delete", id).await?;
        Ok(self.sandboxes.lock().unwrap().remove(id).is_some())
    }
    async fn watch(&self) -> Result<Events, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// A gateway's core.
struct Core {
    compute: Compute,
    fake: Arc<Fake>,
    /// Kept open.
    held: Vec<(Session, Outbound)>,
}

impl Core {
    async fn new() -> Self {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let fake = Arc::new(Fake::default());
        let driver: Arc<dyn Driver> = Arc::clone(&fake) as Arc<dyn Driver>;
        let sessions = Registry::new(Limits::default());
        let bus = Arc::new(Bus::default());
        let compute = Compute::new(store, driver, sessions, bus, Settings::default());
        Self { compute, fake, held: Vec::new() }
    }

    /// A core with the row `a` in a phase, known to the driver.
    async fn with(phase: SandboxPhase) -> Self {
        let core = Self::new().await;
        core.add("a", phase).await;
        core
    }

    async fn add(&self, id: &str, phase: SandboxPhase) {
        self.compute.store().put_if(&row(id, phase), Condition::MustCreate).await.unwrap();
        self.fake.set(snapshot(id, starting()));
    }

    async fn connect(&mut self, instance: &str) {
        let hello = SupervisorHello { sandbox_id: "a".into(), instance_id: instance.into() };
        let session = self.compute.sessions().connect(&hello).await.unwrap();
        self.held.push(session);
    }

    /// The newest session ends.
    async fn disconnect(&mut self) {
        let (session, _) = self.held.pop().unwrap();
        self.compute.sessions().remove_if_current("a", &session.session_id).await;
    }

    async fn says(&self, status: Option<DriverSandboxStatus>) {
        self.compute.apply_sandbox_update(&snapshot("a", status)).await.unwrap();
    }

    async fn exit(&self, instance: &str, code: i32) {
        let report = ReportMainProcessExitRequest {
            sandbox_id: "a".into(),
            instance_id: instance.into(),
            exit_code: code,
        };
        self.compute.main_process_exited(&report).await.unwrap();
    }

    async fn row(&self) -> Option<Sandbox> {
        self.compute.store().fetch("a").await.unwrap()
    }

    /// Waits until it is so.
    async fn becomes(&self, phase: SandboxPhase) {
        let wait = async {
            while self.row().await.is_none_or(|row| phase_of(&row) != phase) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
    }

    async fn is(&self, phase: SandboxPhase, reason: &str) {
        let row = self.row().await.unwrap();
        let said = ready_condition(&row).map_or("", |condition| condition.reason.as_str());
        assert_eq!((phase_of(&row), said), (phase, reason));
        assert_eq!(
            ready_condition(&row).is_some_and(|condition| condition.status == "True"),
            phase == SandboxPhase::Ready
        );
    }
}

fn row(id: &str, phase: SandboxPhase) -> Sandbox {
    let mut row = Sandbox {
        metadata: Some(ObjectMeta {
            id: id.into(),
            name: format!("name-{id}"),
            workspace: "default".into(),
            created_at_ms: clock::now_ms(),
            ..Default::default()
        }),
        ..Default::default()
    };
    row.status.get_or_insert_default().phase = phase.into();
    row
}

fn snapshot(id: &str, status: Option<DriverSandboxStatus>) -> DriverSandbox {
    DriverSandbox { id: id.into(), name: format!("name-{id}"), status, ..Default::default() }
}

fn condition(kind: &str, status: &str, reason: &str) -> Option<DriverSandboxStatus> {
    Some(DriverSandboxStatus {
        conditions: vec![DriverCondition {
            r#type: kind.into(),
            status: status.into(),
            reason: reason.into(),
            ..Default::default()
        }],
        ..Default::default()
    })
}

fn starting() -> Option<DriverSandboxStatus> {
    condition("Ready", "False", "Starting")
}

fn backend_ready() -> Option<DriverSandboxStatus> {
    condition("Ready", "True", "Up")
}

fn failed() -> Option<DriverSandboxStatus> {
    condition("Ready", "False", "ProcessExited")
}
