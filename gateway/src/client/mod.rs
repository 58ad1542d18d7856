//! `openshell-gateway sandbox`: a small client for scripts and tests.
//!
//! Invariant: results go to standard output, everything else to standard error in one line; the exit code of `exec` is the command's own,
//! and 124 and 125 are ours.

mod channel;
mod exec;
mod show;
mod terminal;
mod watch;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use openshell_proto::v1 as api;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::Status;

use channel::{Client, Connection};
use show::Output;

/// A wait took too long.
const LATE: u8 = 124;
/// Something of ours failed before the command ended.
const OURS: u8 = 125;

#[derive(Debug, Args)]
pub(crate) struct Sandbox {
    #[command(flatten)]
    connection: Connection,
    /// Workspace of the sandbox
    #[arg(long, global = true, default_value = "default")]
    workspace: String,
    /// How results are written
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a sandbox
    Create(Create),
    /// List sandboxes
    List {
        /// Only those with these labels: a=b,c
        #[arg(long, default_value = "")]
        selector: String,
        /// Of every workspace
        #[arg(long)]
        all_workspaces: bool,
    },
    /// Show one
    Get {
        /// Which
        name: String,
    },
    /// Run a command in one, and end with its exit code
    Exec(exec::Exec),
    /// Show what one has logged
    Logs(watch::Logs),
    /// Stop one; what it has written is kept
    Stop(Change),
    /// Start one that is stopped
    Start(Change),
    /// Delete sandboxes, with all they have written
    Delete {
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Follow one
    Watch(watch::Watch),
}

#[derive(Debug, Args)]
struct Create {
    /// Its name; made up if not given
    name: Option<String>,
    /// The image it is made of
    #[arg(long, alias = "from", default_value = "")]
    image: String,
    /// A variable of its environment; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Processors, as Kubernetes writes them
    #[arg(long)]
    cpu: Option<String>,
    /// Memory, as Kubernetes writes it
    #[arg(long)]
    memory: Option<String>,
    /// Configuration of drivers: an object by their names
    #[arg(long, value_name = "JSON")]
    driver_config_json: Option<String>,
    /// The main process gets a terminal
    #[arg(long)]
    tty: bool,
    #[command(flatten)]
    wait: Wait,
    /// The main process
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct Change {
    /// Which
    name: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
struct Wait {
    /// Return when that is done, not when it is accepted
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

impl Wait {
    fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// Why a verb has failed, where its exit code says more than that.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    code: u8,
    text: String,
}

/// Runs a verb.
pub(crate) fn run(asked: Sandbox) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start a runtime")?;
    let is_exec = matches!(asked.verb, Verb::Exec(_));
    let done = runtime.block_on(call(asked));
    // Standard input may never end.
    runtime.shutdown_background();
    match done {
        Err(error) => {
            let usual = if is_exec { OURS } else { 1 };
            let code = error.downcast_ref::<Failure>().map_or(usual, |failure| failure.code);
            drop(writeln!(std::io::stderr(), "openshell-gateway: {error:#}"));
            Ok(ExitCode::from(code))
        }
        done => done,
    }
}

async fn call(asked: Sandbox) -> Result<ExitCode> {
    let Sandbox { connection, workspace, output, verb } = asked;
    let mut client = connection.connect().await?;
    match verb {
        Verb::Create(asked) => create(client, asked, workspace, output).await?,
        Verb::List { selector, all_workspaces } => {
            let rows = list(&mut client, selector, workspace, all_workspaces).await?;
            print(&show::rows(&rows, output))?;
        }
        Verb::Get { name } => {
            print(&show::row(&find(&mut client, &name, &workspace).await?, output))?;
        }
        Verb::Exec(asked) => return exec::run(client, asked, &workspace).await,
        Verb::Logs(asked) => watch::logs(client, asked, &workspace, output).await?,
        Verb::Stop(Change { name, wait }) => {
            let request = api::StopSandboxRequest { name: name.clone(), workspace };
            let row = taken(client.stop_sandbox(request).await, &name)?;
            settle(client, row, &wait, api::SandboxPhase::Stopped, output).await?;
        }
        Verb::Start(Change { name, wait }) => {
            let request = api::StartSandboxRequest { name: name.clone(), workspace };
            let row = taken(client.start_sandbox(request).await, &name)?;
            settle(client, row, &wait, api::SandboxPhase::Ready, output).await?;
        }
        Verb::Delete { names } => {
            for name in names {
                let workspace = workspace.clone();
                let request = api::DeleteSandboxRequest { name: name.clone(), workspace };
                let deleted = client.delete_sandbox(request).await.map_err(|s| said(&s, &name))?;
                if !deleted.into_inner().deleted {
                    bail!("sandbox `{name}`: not found");
                }
                print(&show::deleted(&name, output))?;
            }
        }
        Verb::Watch(asked) => watch::run(client, asked, &workspace, output).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(
    mut client: Client,
    asked: Create,
    workspace: String,
    output: Output,
) -> Result<()> {
    let limits: Vec<_> = [("cpu", asked.cpu), ("memory", asked.memory)]
        .into_iter()
        .filter_map(|(name, text)| Some((name, Kind::StringValue(text?))))
        .collect();
    let resources =
        (!limits.is_empty()).then(|| object([("limits", Kind::StructValue(object(limits)))]));
    let driver_config = match asked.driver_config_json {
        None => None,
        Some(text) => match kind(serde_json::from_str(&text).context("--driver-config-json")?) {
            Kind::StructValue(config) => Some(config),
            _ => bail!("--driver-config-json is not an object"),
        },
    };
    let template =
        api::SandboxTemplate { image: asked.image, resources, driver_config, ..Default::default() };
    let spec = api::SandboxSpec {
        environment: asked.env.into_iter().collect(),
        template: Some(template),
        command: asked.command,
        tty: asked.tty,
        ..Default::default()
    };
    let name = asked.name.unwrap_or_default();
    let request = api::CreateSandboxRequest {
        spec: Some(spec),
        name: name.clone(),
        labels: asked.label.into_iter().collect(),
        workspace,
        ..Default::default()
    };
    let row = taken(client.create_sandbox(request).await, &name)?;
    settle(client, row, &asked.wait, api::SandboxPhase::Ready, output).await
}

/// Waits for a phase if that is wanted, and shows the row.
async fn settle(
    client: Client,
    row: api::Sandbox,
    wait: &Wait,
    phase: api::SandboxPhase,
    output: Output,
) -> Result<()> {
    let row = match wait.wait {
        true => watch::until(client, row, phase, wait.limit()).await?,
        false => row,
    };
    print(&show::row(&row, output))
}

async fn list(
    client: &mut Client,
    label_selector: String,
    workspace: String,
    all_workspaces: bool,
) -> Result<Vec<api::Sandbox>> {
    const PAGE: u32 = 1000;
    let mut request = api::ListSandboxesRequest {
        limit: PAGE,
        offset: 0,
        label_selector,
        workspace,
        all_workspaces,
    };
    let mut rows = Vec::new();
    loop {
        let page = client.list_sandboxes(request.clone()).await;
        let page = page.map_err(|status| said(&status, ""))?.into_inner().sandboxes;
        let last = page.len() < PAGE as usize;
        rows.extend(page);
        if last {
            return Ok(rows);
        }
        request.offset += PAGE;
    }
}

async fn find(client: &mut Client, name: &str, workspace: &str) -> Result<api::Sandbox> {
    let request = api::GetSandboxRequest { name: name.into(), workspace: workspace.into() };
    taken(client.get_sandbox(request).await, name)
}

fn taken(
    answer: Result<tonic::Response<api::SandboxResponse>, Status>,
    name: &str,
) -> Result<api::Sandbox> {
    let answer = answer.map_err(|status| said(&status, name))?;
    answer.into_inner().sandbox.context("the gateway has answered with no sandbox")
}

/// What a gateway has said, in one line.
fn said(status: &Status, name: &str) -> anyhow::Error {
    let about = if name.is_empty() { String::new() } else { format!("sandbox `{name}`: ") };
    let text = match status.code() {
        tonic::Code::NotFound => format!("{about}not found"),
        code => format!("{about}{} ({code:?})", status.message().replace('\n', " ")),
    };
    let code = if status.code() == tonic::Code::DeadlineExceeded { LATE } else { 1 };
    if code == 1 { anyhow::anyhow!(text) } else { Failure { code, text }.into() }
}

/// Writes a result. A reader that has seen enough is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("is not KEY=VALUE".to_owned()),
    }
}

fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Kind)>) -> Struct {
    let fields = fields.into_iter();
    Struct {
        fields: fields.map(|(key, kind)| (key.to_owned(), Value { kind: Some(kind) })).collect(),
    }
}

fn kind(json: serde_json::Value) -> Kind {
    use serde_json::Value as Json;
    match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(yes) => Kind::BoolValue(yes),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(all) => Kind::ListValue(prost_types::ListValue {
            values: all.into_iter().map(|one| Value { kind: Some(kind(one)) }).collect(),
        }),
        Json::Object(all) => Kind::StructValue(Struct {
            fields: all
                .into_iter()
                .map(|(key, one)| (key, Value { kind: Some(kind(one)) }))
                .collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_have_a_key() {
        assert_eq!(pair("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(pair("A").is_err() && pair("=b").is_err());
    }

    #[test]
    fn what_a_gateway_says_is_one_line() {
        let status = Status::failed_precondition("sandbox is\nnot ready");
        let line = format!("{:#}", said(&status, "a"));
        assert_eq!(line, "sandbox `a`: sandbox is not ready (FailedPrecondition)");
        let late = said(&Status::deadline_exceeded("late"), "a");
        assert_eq!(late.downcast_ref::<Failure>().map(|failure| failure.code), Some(LATE));
    }

    #[test]
    fn configuration_of_drivers_is_carried_as_it_is() {
        let json = serde_json::json!({"vm": {"a": [1, "x", true, null]}});
        let Kind::StructValue(all) = kind(json) else { panic!("no object") };
        let Some(Kind::StructValue(vm)) = &all.fields["vm"].kind else { panic!("no object") };
        let Some(Kind::ListValue(list)) = &vm.fields["a"].kind else { panic!("no list") };
        assert_eq!(list.values.len(), 4);
        assert_eq!(list.values[0].kind, Some(Kind::NumberValue(1.0)));
    }
}
