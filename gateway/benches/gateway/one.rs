//! One sandbox: how long it takes to be ready, to run a command, to carry bytes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use openshell_proto::v1::open_shell_client::OpenShellClient;
use openshell_proto::v1::{
    CreateSandboxRequest, CreateSshSessionRequest, DeleteSandboxRequest, ExecSandboxRequest,
    SandboxPhase, SandboxStreamEvent, TcpForwardFrame, TcpForwardInit, TcpRelayTarget,
    WatchSandboxRequest, exec_sandbox_event, sandbox_stream_event, tcp_forward_frame,
    tcp_forward_init,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::results::Document;
use crate::rig::{Door, Rig};
use crate::supervisor::Supervisor;
use crate::{SYSTEM, ms};

type Client = OpenShellClient<Channel>;

const CREATES: usize = 200;
const EXECS: usize = 200;
const STREAMS: usize = 12;
const STREAM: usize = 64 << 20;

pub(crate) async fn run(document: &mut Document) -> Result<()> {
    let rig = Rig::new(Door::Open);
    let mut client = rig.client().await;
    for number in 0..CREATES {
        let name = format!("s{number}");
        ready(document, &rig, &mut client, &name).await?;
        client.delete_sandbox(DeleteSandboxRequest { name, ..Default::default() }).await?;
    }
    let id = create(&mut client, "one").await?;
    let _supervisor = Supervisor::start(&rig, &id, "run-1");
    let mut events = follow(&mut client, &id).await?;
    until(&mut events, SandboxPhase::Ready).await?;
    for _ in 0..EXECS {
        let began = Instant::now();
        let said = exec(&mut client, &id, &["true"]).await?;
        ensure!(said == 0, "true has said something");
        document.sample("exec true", SYSTEM, "round trip", "ms", ms(began));
    }
    for _ in 0..STREAMS {
        let began = Instant::now();
        let script = format!("head -c {STREAM} /dev/zero");
        let said = exec(&mut client, &id, &["sh", "-c", &script]).await?;
        ensure!(said == STREAM, "{said} bytes");
        document.sample("exec, 64 MiB of output", SYSTEM, "rate", "MB/s", rate(began));
    }
    forward(document, &mut client, &id).await
}

/// Megabytes per second of a stream that took so long.
fn rate(since: Instant) -> f64 {
    (STREAM >> 20) as f64 * 1.048_576 / since.elapsed().as_secs_f64()
}

async fn create(client: &mut Client, name: &str) -> Result<String> {
    let request = CreateSandboxRequest { name: name.to_owned(), ..Default::default() };
    let row = client.create_sandbox(request).await?.into_inner().sandbox;
    Ok(row.and_then(|row| row.metadata).context("no row")?.id)
}

async fn follow(client: &mut Client, id: &str) -> Result<Streaming<SandboxStreamEvent>> {
    let request = WatchSandboxRequest {
        id: id.to_owned(),
        follow_status: true,
        follow_events: true,
        event_tail: 64,
        ..Default::default()
    };
    Ok(client.watch_sandbox(request).await?.into_inner())
}

async fn until(events: &mut Streaming<SandboxStreamEvent>, phase: SandboxPhase) -> Result<()> {
    loop {
        let event = events.next().await.context("the watch has ended")??;
        if let Some(sandbox_stream_event::Payload::Sandbox(row)) = event.payload
            && row.status.unwrap_or_default().phase() == phase
        {
            return Ok(());
        }
    }
}

/// From the request to a sandbox that is ready, by its phases.
async fn ready(document: &mut Document, rig: &Rig, client: &mut Client, name: &str) -> Result<()> {
    let mut sample = |figure: &str, value| {
        document.sample("create to ready, no machine", SYSTEM, figure, "ms", value);
    };
    let began = Instant::now();
    let id = create(client, name).await?;
    sample("accepted", ms(began));
    let mut events = follow(client, &id).await?;
    while rig.stub.running() == 0 {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    sample("machine asked for", ms(began));
    let starting = Instant::now();
    let supervisor = Supervisor::start(rig, &id, "run-1");
    until(&mut events, SandboxPhase::Ready).await?;
    sample("ready", ms(began));
    sample("supervisor started to ready", ms(starting));
    // The session ends: how long until a watcher has heard of it.
    let ending = Instant::now();
    drop(supervisor);
    until(&mut events, SandboxPhase::Provisioning).await?;
    document.sample("watch", SYSTEM, "session lost to heard", "ms", ms(ending));
    Ok(())
}

/// Runs a command; how many bytes it has said.
async fn exec(client: &mut Client, id: &str, command: &[&str]) -> Result<usize> {
    let request = ExecSandboxRequest {
        sandbox_id: id.to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..Default::default()
    };
    let mut events = client.exec_sandbox(request).await?.into_inner();
    let mut said = 0;
    while let Some(event) = events.next().await {
        match event?.payload {
            Some(exec_sandbox_event::Payload::Stdout(piece)) => said += piece.data.len(),
            Some(exec_sandbox_event::Payload::Exit(exit)) => {
                ensure!(exit.exit_code == 0, "exit code {}", exit.exit_code);
                return Ok(said);
            }
            _ => {}
        }
    }
    anyhow::bail!("no exit code")
}

/// 64 MiB through a forwarded port, each way.
async fn forward(document: &mut Document, client: &mut Client, id: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = u32::from(listener.local_addr()?.port());
    // One byte says which way: it takes a stream, or gives one.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = vec![0; 64 << 10];
            if stream.read_u8().await.is_ok_and(|way| way == b'g') {
                for _ in 0..STREAM / buffer.len() {
                    drop(stream.write_all(&buffer).await);
                }
                continue;
            }
            while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
            drop(stream.write_u8(b'd').await);
        }
    });
    for way in [b'g', b't'].into_iter().cycle().take(2 * STREAMS) {
        let asked = CreateSshSessionRequest { sandbox_id: id.to_owned() };
        let session = client.create_ssh_session(asked).await?.into_inner();
        let target = TcpRelayTarget { host: String::new(), port };
        let init = TcpForwardInit {
            sandbox_id: id.to_owned(),
            target: Some(tcp_forward_init::Target::Tcp(target)),
            authorization_token: session.token,
            ..Default::default()
        };
        let (frames, outbound) = mpsc::channel(4);
        let frame = |payload| TcpForwardFrame { payload: Some(payload) };
        let data = |bytes: &[u8]| frame(tcp_forward_frame::Payload::Data(bytes.to_vec().into()));
        frames.send(frame(tcp_forward_frame::Payload::Init(init))).await?;
        let mut back = client.forward_tcp(ReceiverStream::new(outbound)).await?.into_inner();
        let began = Instant::now();
        frames.send(data(&[way])).await?;
        let give = tokio::spawn(async move {
            if way == b't' {
                let piece = prost::bytes::Bytes::from(vec![0; 16 << 10]);
                for _ in 0..STREAM / piece.len() {
                    let payload = tcp_forward_frame::Payload::Data(piece.clone());
                    frames.send(TcpForwardFrame { payload: Some(payload) }).await?;
                }
            }
            anyhow::Ok(())
        });
        let mut heard = 0;
        while let Some(frame) = back.next().await {
            if let Some(tcp_forward_frame::Payload::Data(data)) = frame?.payload {
                heard += data.len();
            }
        }
        give.await??;
        let (case, expected) = match way {
            b'g' => ("forwarded port, from the guest", STREAM),
            _ => ("forwarded port, to the guest", 1),
        };
        ensure!(heard == expected, "{case}: {heard} bytes");
        document.sample(case, SYSTEM, "rate", "MB/s", rate(began));
    }
    Ok(())
}
