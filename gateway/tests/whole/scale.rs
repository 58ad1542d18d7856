//! Many sandboxes, sessions and relays, without machines: what the gateway and the driver cost.
//!
//! Counts and bounds are asserted; times are printed, and bounded only where something would be badly wrong. `cargo xtask bench gateway`
//! measures them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openshell_proto::v1::open_shell_client::OpenShellClient;
use openshell_proto::v1::sandbox_stream_event::Payload;
use openshell_proto::v1::{
    CreateSandboxRequest, CreateSshSessionRequest, DeleteSandboxRequest, ExecSandboxRequest,
    GatewayMessage, ListSandboxesRequest, RelayFrame, RelayInit, Sandbox, SandboxPhase,
    SupervisorHello, SupervisorMessage, TcpForwardFrame, TcpForwardInit, TcpRelayTarget,
    WatchSandboxRequest, exec_sandbox_event, gateway_message, relay_frame, supervisor_message,
    tcp_forward_frame, tcp_forward_init,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::rig::{Door, PATIENCE, Rig};
use crate::supervisor::Supervisor;

type Client = OpenShellClient<Channel>;

/// Requests under way at one time.
const IN_FLIGHT: usize = 50;
const SANDBOXES: usize = 1000;

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let header = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", header);
    request
}

/// Runs `count` requests, so many at a time.
async fn many<F: Future<Output = ()> + Send + 'static>(count: usize, request: impl Fn(usize) -> F) {
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut all = JoinSet::new();
    for number in 0..count {
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        let request = request(number);
        all.spawn(async move {
            request.await;
            drop(place);
        });
        while let Some(done) = all.try_join_next() {
            done.unwrap();
        }
    }
    all.join_all().await;
}

async fn create(mut client: Client, name: String) -> Sandbox {
    let request = CreateSandboxRequest { name, ..CreateSandboxRequest::default() };
    client.create_sandbox(request).await.unwrap().into_inner().sandbox.unwrap()
}

async fn delete(mut client: Client, name: String) {
    let request = DeleteSandboxRequest { name, workspace: String::new() };
    assert!(client.delete_sandbox(request).await.unwrap().into_inner().deleted);
}

async fn list(client: &mut Client) -> Vec<Sandbox> {
    let request = ListSandboxesRequest { limit: 1000, ..ListSandboxesRequest::default() };
    client.list_sandboxes(request).await.unwrap().into_inner().sandboxes
}

fn id(row: &Sandbox) -> String {
    row.metadata.clone().unwrap().id
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// A session that lasts as long as this, and whose relays echo.
struct Session {
    _messages: mpsc::Sender<SupervisorMessage>,
}

impl Session {
    async fn open(mut client: Client, sandbox_id: &str, token: String) -> Self {
        let (messages, outbound) = mpsc::channel(4);
        let hello = SupervisorHello { sandbox_id: sandbox_id.into(), instance_id: "run-1".into() };
        let payload = Some(supervisor_message::Payload::Hello(hello));
        messages.send(SupervisorMessage { payload }).await.unwrap();
        let call = with(&token, ReceiverStream::new(outbound));
        let mut inbound = client.connect_supervisor(call).await.unwrap().into_inner();
        let first = inbound.next().await.unwrap().unwrap().payload;
        assert!(matches!(first, Some(gateway_message::Payload::SessionAccepted(_))), "{first:?}");
        tokio::spawn(async move { answer(inbound, client, token).await });
        Self { _messages: messages }
    }
}

async fn answer(mut inbound: Streaming<GatewayMessage>, client: Client, token: String) {
    while let Some(Ok(message)) = inbound.next().await {
        let Some(gateway_message::Payload::RelayOpen(open)) = message.payload else { continue };
        let (mut client, token) = (client.clone(), token.clone());
        tokio::spawn(async move {
            let (frames, outbound) = mpsc::channel(4);
            let init = relay_frame::Payload::Init(RelayInit { channel_id: open.channel_id });
            frames.send(RelayFrame { payload: Some(init) }).await.unwrap();
            let call = with(&token, ReceiverStream::new(outbound));
            let mut back = client.relay_stream(call).await.unwrap().into_inner();
            while let Some(frame) = back.next().await {
                let frame = frame.expect("the relay lasts until its user is done");
                frames.send(frame).await.expect("what is echoed is taken");
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sandboxes_and_256_relays() {
    let rig = Rig::new(Door::Open);
    let mut client = rig.client().await;
    let began = Instant::now();
    many(SANDBOXES, |number| {
        let client = client.clone();
        async move { drop(create(client, format!("s{number}")).await) }
    })
    .await;
    println!("{SANDBOXES} creates, {IN_FLIGHT} in flight: {:?}", began.elapsed());

    let rows = list(&mut client).await;
    assert_eq!(rows.len(), SANDBOXES);
    let mut times = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        assert_eq!(list(&mut client).await.len(), SANDBOXES);
        times.push(began.elapsed());
    }
    times.sort();
    println!("list of {SANDBOXES}: best {:?}, worst {:?}", times[0], times[9]);
    assert!(times[0] < Duration::from_secs(2), "{times:?}");

    let began = Instant::now();
    let mut sessions = Vec::new();
    for part in rows.chunks(125) {
        // As supervisors do: not all on one connection.
        let client = rig.client().await;
        for row in part {
            let id = id(row);
            sessions.push(Session::open(client.clone(), &id, rig.token(&id)).await);
        }
    }
    println!("{SANDBOXES} sessions: {:?}", began.elapsed());
    let ends = Instant::now() + PATIENCE;
    loop {
        let phase = |row: &Sandbox| row.status.clone().unwrap_or_default().phase();
        let ready =
            list(&mut client).await.iter().filter(|row| phase(row) == SandboxPhase::Ready).count();
        if ready == SANDBOXES {
            break;
        }
        assert!(Instant::now() < ends, "{ready} are ready");
    }
    relays(&rig, &client, &rows[..16]).await;

    let began = Instant::now();
    many(SANDBOXES, |number| {
        let client = client.clone();
        async move { delete(client, format!("s{number}")).await }
    })
    .await;
    println!("{SANDBOXES} deletes: {:?}", began.elapsed());
    assert!(list(&mut client).await.is_empty());
    assert_eq!(rig.stub.running(), 0);
}

/// Sixteen connections to each of sixteen sandboxes, all open at once.
async fn relays(rig: &Rig, client: &Client, rows: &[Sandbox]) {
    let began = Instant::now();
    let mut all = JoinSet::new();
    let gate = Arc::new(tokio::sync::Barrier::new(256));
    for row in rows {
        let mut token = String::new();
        for number in 0..16 {
            // Three of a token.
            if number % 3 == 0 {
                let asked = CreateSshSessionRequest { sandbox_id: id(row) };
                let session = client.clone().create_ssh_session(asked).await.unwrap();
                token = session.into_inner().token;
            }
            let init = TcpForwardInit {
                sandbox_id: id(row),
                target: Some(tcp_forward_init::Target::Tcp(TcpRelayTarget {
                    host: String::new(),
                    port: 8080,
                })),
                authorization_token: token.clone(),
                ..TcpForwardInit::default()
            };
            all.spawn(echoed(rig.client().await, init, Arc::clone(&gate)));
        }
    }
    assert_eq!(all.join_all().await, vec![64 << 10; 256]);
    println!("256 relays, 64 KiB each way: {:?}", began.elapsed());
}

/// Sends 64 KiB once every connection is open; how many came back.
async fn echoed(
    mut client: Client,
    init: TcpForwardInit,
    gate: Arc<tokio::sync::Barrier>,
) -> usize {
    let (frames, outbound) = mpsc::channel(4);
    let init = tcp_forward_frame::Payload::Init(init);
    frames.send(TcpForwardFrame { payload: Some(init) }).await.unwrap();
    let mut back = client.forward_tcp(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    gate.wait().await;
    for _ in 0..4 {
        let data = tcp_forward_frame::Payload::Data(vec![7; 16 << 10].into());
        frames.send(TcpForwardFrame { payload: Some(data) }).await.unwrap();
    }
    drop(frames);
    let mut heard = 0;
    while let Some(frame) = back.next().await {
        let frame = frame.expect("the relay lasts until both ends are done");
        if let Some(tcp_forward_frame::Payload::Data(data)) = frame.payload {
            assert!(data.iter().all(|byte| *byte == 7));
            heard += data.len();
        }
    }
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_flat_over_many_cycles() {
    let rig = Rig::new(Door::Open);
    let client = rig.client().await;
    let cycle = |number: usize| {
        let client = client.clone();
        async move {
            drop(create(client.clone(), format!("s{number}")).await);
            delete(client, format!("s{number}")).await;
        }
    };
    many(2000, cycle).await;
    let before = resident(rig.pid());
    let began = Instant::now();
    many(10_000, cycle).await;
    let after = resident(rig.pid());
    println!("10000 cycles: {:?}, {before} KiB before, {after} KiB after", began.elapsed());
    // A KiB kept of each would be 10 MiB; an allocator takes some for itself.
    assert!(after < before + (9 << 10), "{before} KiB became {after} KiB");
    assert_eq!(rig.stub.running(), 0);
}

/// What a gateway and its driver hold: descriptors and threads of the gateway, files of sandboxes.
fn held(rig: &Rig) -> [usize; 3] {
    let count = |path: &std::path::Path| std::fs::read_dir(path).unwrap().count();
    let process = std::path::PathBuf::from(format!("/proc/{}", rig.pid()));
    let sandboxes = rig.place.path().join("driver/sandboxes");
    [count(&process.join("fd")), count(&process.join("task")), count(&sandboxes)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_cycles_from_create_to_a_commands_output_leave_nothing() {
    let rig = Rig::new(Door::Open);
    let mut client = rig.client().await;
    let mut before = None;
    for number in 0..220 {
        // What programs take once and keep.
        if number == 20 {
            before = Some((held(&rig), resident(rig.pid())));
        }
        let name = format!("s{number}");
        let id = id(&create(client.clone(), name.clone()).await);
        let request =
            WatchSandboxRequest { id: id.clone(), follow_status: true, ..Default::default() };
        let mut events = client.watch_sandbox(request).await.unwrap().into_inner();
        let _supervisor = Supervisor::start(&rig, &id, "run-1");
        loop {
            let event = events.next().await.unwrap().unwrap();
            if let Some(Payload::Sandbox(row)) = event.payload
                && row.status.unwrap_or_default().phase() == SandboxPhase::Ready
            {
                break;
            }
        }
        let command = ["echo", &name].map(str::to_owned).to_vec();
        let request =
            ExecSandboxRequest { sandbox_id: id, command, ..ExecSandboxRequest::default() };
        let mut said = client.exec_sandbox(request).await.unwrap().into_inner();
        let (mut out, mut code) = (Vec::new(), None);
        while let Some(event) = said.next().await {
            match event.unwrap().payload {
                Some(exec_sandbox_event::Payload::Stdout(piece)) => out.extend(&piece.data[..]),
                Some(exec_sandbox_event::Payload::Exit(exit)) => code = Some(exit.exit_code),
                _ => {}
            }
        }
        assert_eq!((out, code), (format!("{name}\n").into_bytes(), Some(0)));
        delete(client.clone(), name).await;
    }
    let (before, memory) = before.unwrap();
    assert!(list(&mut client).await.is_empty());
    assert_eq!((rig.stub.running(), before[2]), (0, 0));
    let ends = Instant::now() + PATIENCE;
    loop {
        // Connections that are kept come and go by ones.
        let after = held(&rig);
        if after[0] <= before[0] + 2 && after[1] <= before[1] + 2 && after[2] == 0 {
            break;
        }
        assert!(Instant::now() < ends, "{before:?} became {after:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = resident(rig.pid());
    println!("200 cycles to a command's output: {memory} KiB before, {after} KiB after");
    assert!(after < memory + (8 << 10), "{memory} KiB became {after} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_does_not_read_costs_little() {
    let rig = Rig::new(Door::Open);
    let mut client = rig.client().await;
    let row = create(client.clone(), "one".to_owned()).await;
    let _supervisor = Supervisor::start(&rig, &id(&row), "run-1");
    rig.until("one", "ready").await;
    let command = ["sh", "-c", "head -c 268435456 /dev/zero; echo done > done"];
    let place = tempfile::tempdir().unwrap();
    let request = ExecSandboxRequest {
        sandbox_id: id(&row),
        command: command.map(str::to_owned).to_vec(),
        workdir: place.path().to_str().unwrap().to_owned(),
        ..ExecSandboxRequest::default()
    };
    let before = resident(rig.pid());
    let mut events = client.exec_sandbox(request).await.unwrap().into_inner();
    events.next().await.unwrap().unwrap();
    // Nothing tells when a command cannot go on: its memory would grow within a blink.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = resident(rig.pid());
    println!("256 MiB for who does not read: {before} KiB before, {after} KiB after");
    assert!(after < before + (16 << 10), "{before} KiB became {after} KiB");
    assert!(!place.path().join("done").exists(), "it waits for its reader");
    let mut count = 0;
    while let Some(event) = events.next().await {
        event.unwrap();
        count += 1;
    }
    assert!(count > 1000 && place.path().join("done").exists(), "{count} pieces");
}
