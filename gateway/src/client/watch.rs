//! Following a sandbox: until it is as wanted, or for ever.
//!
//! Invariant: every wait has an end, and says what was last heard when it comes.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use openshell_proto::v1::sandbox_stream_event::Payload;
use openshell_proto::v1::{
    GetSandboxLogsRequest, Sandbox, SandboxPhase, SandboxStreamEvent, WatchSandboxRequest,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Streaming};

use super::channel::Client;
use super::show::{self, Output};
use super::{Failure, LATE, find, print, said};

#[derive(Debug, clap::Args)]
pub(super) struct Watch {
    /// Which
    name: String,
    /// Return when it is in this phase: ready, stopped, error, deleted
    #[arg(long, value_name = "PHASE")]
    until: Option<String>,
    /// How long to watch, in seconds; 0: for ever
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    timeout: u64,
    /// Show what the driver does as well
    #[arg(long)]
    events: bool,
    /// Show what is logged as well
    #[arg(long)]
    logs: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// Whose
    name: String,
    /// No more than the last so many lines
    #[arg(long, default_value_t = 200, value_name = "LINES")]
    tail: u32,
    /// At least this level: error, warn, info, debug
    #[arg(long, default_value = "")]
    level: String,
    /// Go on with what is logged from now on
    #[arg(short, long)]
    follow: bool,
}

/// Waits until a sandbox is in a phase, or can get there no more.
pub(super) async fn until(
    mut client: Client,
    row: Sandbox,
    wanted: SandboxPhase,
    limit: Duration,
) -> Result<Sandbox> {
    let metadata = row.metadata.clone().unwrap_or_default();
    let mut last = row;
    let waited = tokio::time::timeout(limit, async {
        let mut stream = follow(&mut client, request(&metadata.id), &metadata.name).await?;
        while let Some(event) = next(&mut stream, &metadata.name).await? {
            let Some(Payload::Sandbox(row)) = event.payload else { continue };
            last = *row;
            match last.status.clone().unwrap_or_default().phase() {
                phase if phase == wanted => return Ok(()),
                SandboxPhase::Error => {
                    let code = last.status.as_ref().and_then(|status| status.exit_code);
                    let code = code.map_or_else(String::new, |code| format!(" (exit code {code})"));
                    bail!("sandbox `{}` failed: {}{code}", metadata.name, show::why(&last));
                }
                SandboxPhase::Deleting => bail!("sandbox `{}` is being deleted", metadata.name),
                _ => {}
            }
        }
        bail!("the gateway has ended the watch of sandbox `{}`", metadata.name)
    });
    match waited.await {
        Ok(done) => done.map(|()| last),
        Err(_) => {
            let (phase, why) = (show::phase(&last), show::why(&last));
            let text = format!(
                "sandbox `{}` is {phase} after {} s, not {}; {why}",
                metadata.name,
                limit.as_secs(),
                wanted.as_str_name().trim_start_matches("SANDBOX_PHASE_").to_lowercase()
            );
            Err(Failure { code: LATE, text }.into())
        }
    }
}

pub(super) async fn run(
    mut client: Client,
    asked: Watch,
    workspace: &str,
    output: Output,
) -> Result<()> {
    let id = find(&mut client, &asked.name, workspace).await?.metadata.unwrap_or_default().id;
    let request = WatchSandboxRequest {
        follow_events: asked.events,
        follow_logs: asked.logs,
        event_tail: 64,
        ..request(&id)
    };
    let wanted = asked.until.as_deref().map(str::to_lowercase);
    let watched = async {
        let mut stream = follow(&mut client, request, &asked.name).await?;
        loop {
            let event = match stream.next().await {
                Some(Ok(event)) => event,
                None => bail!("the gateway has ended the watch of sandbox `{}`", asked.name),
                Some(Err(status)) => {
                    let gone = matches!(status.code(), Code::Cancelled | Code::NotFound);
                    if gone && wanted.as_deref() == Some("deleted") {
                        return Ok(());
                    }
                    return Err(said(&status, &asked.name));
                }
            };
            show(&event, output)?;
            if let Some(Payload::Sandbox(row)) = event.payload
                && wanted.as_deref() == Some(&show::phase(&row).to_lowercase())
            {
                return Ok(());
            }
        }
    };
    if asked.timeout == 0 {
        return watched.await;
    }
    let limit = Duration::from_secs(asked.timeout);
    match tokio::time::timeout(limit, watched).await {
        Ok(done) => done,
        Err(_) if wanted.is_none() => Ok(()),
        Err(_) => {
            let wanted = wanted.unwrap_or_default();
            let text =
                format!("sandbox `{}` was not {wanted} within {} s", asked.name, asked.timeout);
            Err(Failure { code: LATE, text }.into())
        }
    }
}

pub(super) async fn logs(
    mut client: Client,
    asked: Logs,
    workspace: &str,
    output: Output,
) -> Result<()> {
    let id = find(&mut client, &asked.name, workspace).await?.metadata.unwrap_or_default().id;
    if !asked.follow {
        let request = GetSandboxLogsRequest {
            sandbox_id: id,
            lines: asked.tail,
            min_level: asked.level,
            workspace: workspace.to_owned(),
            ..GetSandboxLogsRequest::default()
        };
        let lines = client.get_sandbox_logs(request).await.map_err(|s| said(&s, &asked.name))?;
        let text: String =
            lines.into_inner().logs.iter().map(|line| show::log(line, output)).collect();
        return print(&text);
    }
    let request = WatchSandboxRequest {
        follow_status: false,
        follow_logs: true,
        log_tail_lines: asked.tail,
        log_min_level: asked.level,
        ..request(&id)
    };
    let mut stream = follow(&mut client, request, &asked.name).await?;
    while let Some(event) = next(&mut stream, &asked.name).await? {
        if matches!(event.payload, Some(Payload::Log(_) | Payload::Warning(_))) {
            show(&event, output)?;
        }
    }
    Ok(())
}

fn request(id: &str) -> WatchSandboxRequest {
    WatchSandboxRequest { id: id.to_owned(), follow_status: true, ..WatchSandboxRequest::default() }
}

async fn follow(
    client: &mut Client,
    request: WatchSandboxRequest,
    name: &str,
) -> Result<Streaming<SandboxStreamEvent>> {
    let stream = client.watch_sandbox(request).await.map_err(|status| said(&status, name))?;
    Ok(stream.into_inner())
}

async fn next(
    stream: &mut Streaming<SandboxStreamEvent>,
    name: &str,
) -> Result<Option<SandboxStreamEvent>> {
    stream.next().await.transpose().map_err(|status| said(&status, name)).context("watch")
}

fn show(event: &SandboxStreamEvent, output: Output) -> Result<()> {
    print(&match &event.payload {
        Some(Payload::Sandbox(row)) => show::change(row, output),
        Some(Payload::Event(event)) => show::event(event, output),
        Some(Payload::Log(line)) => show::log(line, output),
        Some(Payload::Warning(warning)) => show::warning(&warning.message, output),
        _ => return Ok(()),
    })
}
