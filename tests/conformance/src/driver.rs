//! A compute driver, as a gateway uses it.
//!
//! Invariant: what is made here is deleted at the end, whatever has failed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use openshell_proto::compute::v1::compute_driver_client::ComputeDriverClient;
use openshell_proto::compute::v1::watch_sandboxes_event::Payload;
use openshell_proto::compute::v1::{
    CreateSandboxRequest, DeleteSandboxRequest, DeleteWorkspaceRequest, DriverCondition,
    DriverSandbox, DriverSandboxSpec, DriverSandboxTemplate, EnsureWorkspaceRequest,
    GetCapabilitiesRequest, GetGatewayListenerRequirementsRequest, GetSandboxRequest,
    ListSandboxesRequest, StartSandboxRequest, StopSandboxRequest, ValidateSandboxCreateRequest,
    WatchSandboxesEvent, WatchSandboxesRequest,
};
use prost_types::value::Kind;
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::{Report, refused, tolerated};

type Client = ComputeDriverClient<Channel>;

/// The sandboxes that are made, in the order of their names.
const NAMES: [&str; 2] = ["conformance-a", "conformance-b"];

/// Checks the driver at a socket, with sandboxes of an image.
///
/// # Errors
///
/// When nobody listens there.
pub async fn check(socket: &Path, image: &str) -> Result<Report> {
    let path = socket.to_str().context("the socket's path is not UTF-8")?;
    let channel = Endpoint::from_shared(format!("unix:{path}"))?.connect().await?;
    let client = ComputeDriverClient::new(channel);
    let mut report = Report::default();
    questions(&mut report, &client).await;
    requests(&mut report, &client, image).await;
    life(&mut report, &client, image).await;
    for name in NAMES {
        drop(delete(&client, name).await);
    }
    Ok(report)
}

fn sandbox(name: &str, image: &str) -> DriverSandbox {
    DriverSandbox {
        id: name.into(),
        name: name.into(),
        namespace: "default".into(),
        workspace: "default".into(),
        spec: Some(DriverSandboxSpec {
            template: Some(DriverSandboxTemplate { image: image.into(), ..Default::default() }),
            sandbox_token: "conformance".into(),
            command: vec!["sleep".into(), "600".into()],
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn questions(report: &mut Report, client: &Client) {
    let mut c = client.clone();
    report
        .check("GetCapabilities names driver and version", async {
            let said = c.get_capabilities(GetCapabilitiesRequest {}).await?.into_inner();
            ensure!(!said.driver_name.is_empty() && !said.driver_version.is_empty(), "{said:?}");
            Ok(())
        })
        .await;
    report
        .check("GetGatewayListenerRequirements is answered or not served", async {
            let request = GetGatewayListenerRequirementsRequest {};
            tolerated(c.get_gateway_listener_requirements(request).await)
        })
        .await;
    report
        .check("workspaces are answered or not served", async {
            let workspace = "conformance".to_owned();
            let request = EnsureWorkspaceRequest { workspace: workspace.clone() };
            tolerated(c.ensure_workspace(request).await)?;
            tolerated(c.delete_workspace(DeleteWorkspaceRequest { workspace }).await)
        })
        .await;
    report
        .check("what is unknown is NOT_FOUND, and deleting it succeeds", async {
            let name = "conformance-none";
            refused(find(client, name, name).await, &[Code::NotFound])?;
            refused(find(client, "", "").await, &[Code::InvalidArgument])?;
            refused(stop(client, name).await, &[Code::NotFound])?;
            refused(start(client, name).await, &[Code::NotFound])?;
            ensure!(!delete(client, name).await?, "it was deleted");
            Ok(())
        })
        .await;
}

async fn requests(report: &mut Report, client: &Client, image: &str) {
    let good = sandbox(NAMES[0], image);
    let with = |change: &dyn Fn(&mut DriverSandbox)| {
        let mut changed = good.clone();
        change(&mut changed);
        Some(changed)
    };
    let template = |change: &dyn Fn(&mut DriverSandboxTemplate)| {
        with(&|sandbox| {
            let spec = sandbox.spec.get_or_insert_default();
            change(spec.template.get_or_insert_default());
        })
    };
    let key = ("no_such_key".to_owned(), prost_types::Value { kind: Some(Kind::BoolValue(true)) });
    let config = prost_types::Struct { fields: [key].into() };
    for (what, sandbox, code) in [
        ("no sandbox", None, Code::InvalidArgument),
        ("no specification", with(&|sandbox| sandbox.spec = None), Code::InvalidArgument),
        ("an id that climbs", with(&|sandbox| sandbox.id = "..".into()), Code::InvalidArgument),
        ("an id with a slash", with(&|sandbox| sandbox.id = "a/b".into()), Code::InvalidArgument),
        ("an empty id", with(&|sandbox| sandbox.id = String::new()), Code::InvalidArgument),
        ("a long id", with(&|sandbox| sandbox.id = "a".repeat(129)), Code::InvalidArgument),
        (
            "an agent's socket",
            template(&|template| template.agent_socket_path = "/s".into()),
            Code::FailedPrecondition,
        ),
        (
            "a platform's configuration",
            template(&|template| template.platform_config = Some(prost_types::Struct::default())),
            Code::FailedPrecondition,
        ),
        (
            "an unknown key of driver_config",
            template(&|template| template.driver_config = Some(config.clone())),
            Code::InvalidArgument,
        ),
    ] {
        let mut c = client.clone();
        report
            .check(&format!("{what} is {code:?}, before and at creation"), async {
                let request = ValidateSandboxCreateRequest { sandbox: sandbox.clone() };
                refused(c.validate_sandbox_create(request).await, &[code])?;
                refused(c.create_sandbox(CreateSandboxRequest { sandbox }).await, &[code])
            })
            .await;
    }
    let mut c = client.clone();
    report
        .check("a good request is valid and makes nothing", async {
            let request = ValidateSandboxCreateRequest { sandbox: Some(good.clone()) };
            c.validate_sandbox_create(request).await?;
            refused(find(client, NAMES[0], "").await, &[Code::NotFound])
        })
        .await;
}

async fn life(report: &mut Report, client: &Client, image: &str) {
    let [a, b] = NAMES;
    let mut c = client.clone();
    let Ok(watch) = c.watch_sandboxes(WatchSandboxesRequest {}).await else {
        report.check("WatchSandboxes is served", async { bail!("it is not") }).await;
        return;
    };
    let mut watch = watch.into_inner();
    let made = report
        .check("CreateSandbox accepts, a watcher hears of it, and of Scheduled", async {
            for name in [b, a] {
                create(client, name, image).await?;
            }
            heard(&mut watch, |payload| is_of(payload, a)).await?;
            Ok(())
        })
        .await;
    if !made {
        return;
    }
    report
        .check("a second sandbox of the same id is ALREADY_EXISTS", async {
            refused(create(client, a, image).await, &[Code::AlreadyExists])
        })
        .await;
    report.check("it is found by id and by name, without its specification", found(client)).await;
    report
        .check("ListSandboxes is sorted by name", async {
            let mut c = client.clone();
            let listed = c.list_sandboxes(ListSandboxesRequest {}).await?.into_inner().sandboxes;
            let names: Vec<_> = listed.iter().map(|sandbox| sandbox.name.as_str()).collect();
            ensure!(
                names.is_sorted() && NAMES.iter().all(|name| names.contains(name)),
                "{names:?}"
            );
            Ok(())
        })
        .await;
    report
        .check("a new watcher hears of every sandbox first", async {
            let mut c = client.clone();
            let mut watch = c.watch_sandboxes(WatchSandboxesRequest {}).await?.into_inner();
            let mut missing = NAMES.to_vec();
            while !missing.is_empty() {
                let payload = heard(&mut watch, |_| true).await?;
                missing.retain(|name| !is_of(&payload, name));
            }
            Ok(())
        })
        .await;
    report
        .check("StopSandbox is idempotent, and what is stopped says so", async {
            stop(client, a).await?;
            stop(client, a).await?;
            let status = find(client, a, "").await?.status.unwrap_or_default();
            let says = |condition: &DriverCondition| {
                let stopped = matches!(condition.r#type.as_str(), "Stopped" | "Suspended");
                stopped && condition.status == "True"
            };
            ensure!(status.conditions.iter().any(says), "{status:?}");
            Ok(())
        })
        .await;
    report
        .check("StartSandbox is idempotent, and what starts is not Ready", async {
            start(client, a).await?;
            start(client, a).await?;
            not_ready(&find(client, a, "").await?)
        })
        .await;
    report
        .check(
            "DeleteSandbox tells first that it deletes, then that it is gone",
            gone(client, &mut watch),
        )
        .await;
}

async fn found(client: &Client) -> Result<()> {
    let [a, b] = NAMES;
    for (id, name) in [(a, ""), ("", a), (a, a)] {
        let sandbox = find(client, id, name).await?;
        ensure!(sandbox.id == a && sandbox.name == a, "{sandbox:?}");
        ensure!(sandbox.spec.is_none(), "it shows its specification, which has the token");
        not_ready(&sandbox)?;
    }
    refused(find(client, a, b).await, &[Code::FailedPrecondition])
}

async fn gone(client: &Client, watch: &mut Streaming<WatchSandboxesEvent>) -> Result<()> {
    let a = NAMES[0];
    ensure!(delete(client, a).await?, "it was not there");
    let mut deleting = false;
    loop {
        let payload = heard(watch, |_| true).await?;
        match payload {
            Payload::Sandbox(said) => {
                let Some(sandbox) = said.sandbox.filter(|sandbox| sandbox.id == a) else {
                    continue;
                };
                deleting = sandbox.status.is_some_and(|status| status.deleting);
            }
            Payload::Deleted(deleted) if deleted.sandbox_id == a => break,
            _ => {}
        }
    }
    ensure!(deleting, "no snapshot with `deleting` came before");
    refused(find(client, a, "").await, &[Code::NotFound])?;
    ensure!(!delete(client, a).await?, "it was deleted twice");
    Ok(())
}

/// Only a gateway says that.
fn not_ready(sandbox: &DriverSandbox) -> Result<()> {
    let status = sandbox.status.clone().unwrap_or_default();
    ensure!(!status.conditions.is_empty(), "no condition");
    let ready =
        |condition: &DriverCondition| condition.r#type == "Ready" && condition.status == "True";
    ensure!(!status.conditions.iter().any(ready), "the driver says Ready: {status:?}");
    Ok(())
}

fn is_of(payload: &Payload, id: &str) -> bool {
    matches!(payload, Payload::Sandbox(said) if said.sandbox.as_ref().is_some_and(|sandbox| sandbox.id == id))
}

/// The next event that is wanted.
async fn heard(
    watch: &mut Streaming<WatchSandboxesEvent>,
    wanted: impl Fn(&Payload) -> bool,
) -> Result<Payload> {
    let next = async {
        while let Some(event) = watch.next().await {
            if let Some(payload) = event?.payload
                && wanted(&payload)
            {
                return Ok(payload);
            }
        }
        bail!("the watch has ended")
    };
    tokio::time::timeout(Duration::from_secs(20), next).await.context("no such event came")?
}

async fn create(client: &Client, name: &str, image: &str) -> Result<(), Status> {
    let request = CreateSandboxRequest { sandbox: Some(sandbox(name, image)) };
    client.clone().create_sandbox(request).await.map(drop)
}

async fn find(client: &Client, id: &str, name: &str) -> Result<DriverSandbox, Status> {
    let request = GetSandboxRequest { sandbox_id: id.into(), sandbox_name: name.into() };
    let found = client.clone().get_sandbox(request).await?.into_inner().sandbox;
    found.ok_or_else(|| Status::internal("an answer without a sandbox"))
}

async fn stop(client: &Client, name: &str) -> Result<(), Status> {
    let request = StopSandboxRequest { sandbox_id: name.into(), sandbox_name: name.into() };
    client.clone().stop_sandbox(request).await.map(drop)
}

async fn start(client: &Client, name: &str) -> Result<(), Status> {
    let request = StartSandboxRequest { sandbox_id: name.into(), sandbox_name: name.into() };
    client.clone().start_sandbox(request).await.map(drop)
}

async fn delete(client: &Client, name: &str) -> Result<bool, Status> {
    let request = DeleteSandboxRequest { sandbox_id: name.into(), sandbox_name: name.into() };
    Ok(client.clone().delete_sandbox(request).await?.into_inner().deleted)
}
