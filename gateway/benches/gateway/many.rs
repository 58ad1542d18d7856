//! A thousand sandboxes: creating, listing, reconciling and deleting them.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use openshell_gateway::compute::{Compute, Settings};
use openshell_gateway::managed::reach;
use openshell_gateway::session::{Limits, Registry};
use openshell_gateway::store::Store;
use openshell_proto::v1::open_shell_client::OpenShellClient;
use openshell_proto::v1::{CreateSandboxRequest, DeleteSandboxRequest, ListSandboxesRequest};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::results::Document;
use crate::rig::{Door, PATIENCE, Rig};
use crate::{SYSTEM, ms};

type Client = OpenShellClient<Channel>;

const SANDBOXES: usize = 1000;
const IN_FLIGHT: usize = 50;
const CYCLES: usize = 10_000;

pub(crate) async fn run(document: &mut Document) -> Result<()> {
    let mut rig = Rig::new(Door::Open);
    let client = rig.client().await;
    let began = Instant::now();
    many(SANDBOXES, &client, create).await?;
    let rate = SANDBOXES as f64 / began.elapsed().as_secs_f64();
    document.sample("50 creates in flight", SYSTEM, "creates", "1/s", rate);
    let request = ListSandboxesRequest { limit: 1000, ..Default::default() };
    let mut lister = client.clone().max_decoding_message_size(64 << 20);
    for _ in 0..50 {
        let began = Instant::now();
        let rows = lister.list_sandboxes(request.clone()).await?.into_inner().sandboxes;
        ensure!(rows.len() == SANDBOXES, "{} rows", rows.len());
        document.sample("list of 1,000", SYSTEM, "round trip", "ms", ms(began));
    }
    rig.kill();
    reconcile(document, &rig).await?;
    rig.start();
    let client = rig.client().await;
    let began = Instant::now();
    many(SANDBOXES, &client, delete).await?;
    let rate = SANDBOXES as f64 / began.elapsed().as_secs_f64();
    document.sample("50 deletes in flight", SYSTEM, "deletes", "1/s", rate);
    many(1000, &client, cycle).await?;
    let before = resident(rig.pid())?;
    many(CYCLES, &client, cycle).await?;
    let grown = resident(rig.pid())? - before;
    let case = "10,000 creates and deletes";
    document.sample(case, SYSTEM, "memory before", "KiB", before);
    document.sample(case, SYSTEM, "memory more after", "KiB", grown);
    Ok(())
}

/// The rows of a gateway that is away, compared with the driver as it would.
async fn reconcile(document: &mut Document, rig: &Rig) -> Result<()> {
    let place = rig.place.path();
    let store = Store::open(&format!("sqlite:{}", place.join("gateway.db").display())).await?;
    let socket = place.join("run/driver.sock");
    let (driver, _) = reach(&socket, PATIENCE, std::time::Duration::from_millis(10)).await?;
    let sessions = Registry::new(Limits::default());
    let compute = Compute::new(
        store.clone(),
        Arc::new(driver),
        sessions,
        Arc::default(),
        Settings::default(),
    );
    for _ in 0..10 {
        let began = Instant::now();
        compute.reconcile_store_with_backend().await?;
        document.sample("reconcile 1,000 rows", SYSTEM, "time", "ms", ms(began));
    }
    store.close().await;
    Ok(())
}

async fn many<F>(count: usize, client: &Client, work: impl Fn(Client, String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut all = JoinSet::new();
    for number in 0..count {
        let place = Arc::clone(&places).acquire_owned().await?;
        let work = work(client.clone(), format!("s{number}"));
        all.spawn(async move {
            let done = work.await;
            drop(place);
            done
        });
        while let Some(done) = all.try_join_next() {
            done??;
        }
    }
    while let Some(done) = all.join_next().await {
        done??;
    }
    Ok(())
}

async fn create(mut client: Client, name: String) -> Result<()> {
    client.create_sandbox(CreateSandboxRequest { name, ..Default::default() }).await?;
    Ok(())
}

async fn delete(mut client: Client, name: String) -> Result<()> {
    let deleted =
        client.delete_sandbox(DeleteSandboxRequest { name, ..Default::default() }).await?;
    ensure!(deleted.into_inner().deleted, "there was none");
    Ok(())
}

async fn cycle(client: Client, name: String) -> Result<()> {
    create(client.clone(), name.clone()).await?;
    delete(client, name).await
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
