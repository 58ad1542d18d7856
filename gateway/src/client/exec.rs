//! A command in a sandbox, with this process's standard input and output.
//!
//! Input is read on a thread of its own, a few pieces ahead; output is written as it comes.
//!
//! Invariant: all output is written before the exit code is returned.

use std::io::{Read as _, stderr, stdin, stdout};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use openshell_proto::v1::exec_sandbox_event::Payload;
use openshell_proto::v1::{
    ExecSandboxInput, ExecSandboxRequest, ExecSandboxWindowResize, exec_sandbox_input,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::channel::Client;
use super::terminal::{Raw, size};
use super::{Failure, LATE, OURS, find, pair, said};

/// Pieces of input that are not sent yet.
const AHEAD: usize = 4;
const PIECE: usize = 32 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// Which sandbox
    name: String,
    /// Where it runs
    #[arg(long, default_value = "")]
    workdir: String,
    /// A variable of its environment; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// How long it may take, in seconds; 0: for ever
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    timeout: u32,
    /// It gets a terminal
    #[arg(short, long)]
    tty: bool,
    /// Its standard input is empty
    #[arg(short = 'n', long)]
    no_stdin: bool,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(super) async fn run(mut client: Client, asked: Exec, workspace: &str) -> Result<ExitCode> {
    let name = asked.name.clone();
    let id = find(&mut client, &name, workspace).await?.metadata.unwrap_or_default().id;
    let (cols, rows) = if asked.tty { size().unwrap_or_default() } else { (0, 0) };
    let start = ExecSandboxRequest {
        sandbox_id: id,
        command: asked.command,
        workdir: asked.workdir,
        environment: asked.env.into_iter().collect(),
        timeout_seconds: asked.timeout,
        stdin: vec![],
        tty: asked.tty,
        cols,
        rows,
    };
    let (input, inbound) = mpsc::channel(AHEAD);
    send(&input, exec_sandbox_input::Payload::Start(start)).await;
    let raw = if asked.tty { Raw::take()? } else { None };
    if raw.is_some() {
        tokio::spawn(resize(input.clone()));
    }
    let call = client.exec_sandbox_interactive(ReceiverStream::new(inbound));
    if !asked.no_stdin {
        feed(input.clone())?;
    }
    drop(input);
    let failed = |status: tonic::Status| -> anyhow::Error {
        let code = if status.code() == Code::DeadlineExceeded { LATE } else { OURS };
        Failure { code, text: format!("{:#}", said(&status, &name)) }.into()
    };
    let mut events = call.await.map_err(failed)?.into_inner();
    let mut code = None;
    while let Some(event) = events.next().await {
        match event.map_err(failed)?.payload {
            Some(Payload::Stdout(piece)) => write(stdout().lock(), &piece.data)?,
            Some(Payload::Stderr(piece)) => write(stderr().lock(), &piece.data)?,
            Some(Payload::Exit(exit)) => code = Some(exit.exit_code),
            None => {}
        }
    }
    drop(raw);
    let code = code.context("the gateway has ended the call before the command ended")?;
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(OURS)))
}

fn write(mut to: impl std::io::Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("cannot write what the command said")
}

async fn send(input: &mpsc::Sender<ExecSandboxInput>, payload: exec_sandbox_input::Payload) {
    // An error means that the call has ended, which says why.
    drop(input.send(ExecSandboxInput { payload: Some(payload) }).await);
}

/// Hands standard input on, from a thread: a read of it cannot be called off.
fn feed(input: mpsc::Sender<ExecSandboxInput>) -> Result<()> {
    let read = move || {
        let mut piece = vec![0; PIECE];
        loop {
            let count = match stdin().lock().read(&mut piece) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Ok(count @ 1..) => count,
                _ => return,
            };
            let data = piece.get(..count).unwrap_or_default().to_vec();
            let payload = Some(exec_sandbox_input::Payload::Stdin(data.into()));
            if input.blocking_send(ExecSandboxInput { payload }).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read).context("no thread")?;
    Ok(())
}

async fn resize(input: mpsc::Sender<ExecSandboxInput>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    while changed.recv().await.is_some() {
        let Some((cols, rows)) = size() else { return };
        let size = ExecSandboxWindowResize { cols, rows };
        send(&input, exec_sandbox_input::Payload::Resize(size)).await;
    }
}
