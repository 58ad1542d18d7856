//! What a user asks of the gateway, in the words of the tests.

use openshell_proto::v1::exec_sandbox_event::Payload;
use openshell_proto::v1::{
    CreateSandboxRequest, CreateSshSessionRequest, DeleteSandboxRequest, ExecSandboxEvent,
    ExecSandboxInput, ExecSandboxRequest, Sandbox, SandboxSpec, StartSandboxRequest,
    StopSandboxRequest, TcpForwardFrame, TcpForwardInit, exec_sandbox_input, tcp_forward_frame,
    tcp_forward_init,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{PATIENCE, Rig};

/// A main process that waits to be ended.
const WAIT: &str = "while :; do sleep 3600; done";

/// What a sandbox is to be.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// A script for the main process; empty: one that waits.
    pub(crate) script: &'static str,
    /// A variable.
    pub(crate) variable: Option<(&'static str, &'static str)>,
}

/// What a command did.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) code: Option<i32>,
}

impl Said {
    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Rig {
    /// Creates a sandbox.
    pub(crate) async fn create(&self, name: &str, wanted: Wanted) -> Result<Sandbox, Status> {
        let script = if wanted.script.is_empty() { WAIT } else { wanted.script };
        let variables =
            wanted.variable.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let spec = SandboxSpec {
            command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            environment: variables.collect(),
            ..Default::default()
        };
        let request =
            CreateSandboxRequest { name: name.into(), spec: Some(spec), ..Default::default() };
        let answer = self.client().create_sandbox(request).await?;
        Ok(answer.into_inner().sandbox.unwrap_or_default())
    }

    /// Asks for the stop of a sandbox.
    pub(crate) async fn stop(&self, name: &str) -> Result<(), Status> {
        let request = StopSandboxRequest { name: name.into(), ..Default::default() };
        self.client().stop_sandbox(request).await.map(drop)
    }

    /// Asks for the start of a sandbox.
    pub(crate) async fn start_again(&self, name: &str) -> Result<(), Status> {
        let request = StartSandboxRequest { name: name.into(), ..Default::default() };
        self.client().start_sandbox(request).await.map(drop)
    }

    /// Deletes a sandbox; whether there was one.
    pub(crate) async fn delete(&self, name: &str) -> Result<bool, Status> {
        let request = DeleteSandboxRequest { name: name.into(), ..Default::default() };
        Ok(self.client().delete_sandbox(request).await?.into_inner().deleted)
    }

    /// Runs a script of the shell.
    pub(crate) async fn shell(&self, id: &str, script: &str) -> Result<Said, Status> {
        self.exec(command(id, &["/bin/sh", "-c", script])).await
    }

    /// Runs a command to its end.
    pub(crate) async fn exec(&self, request: ExecSandboxRequest) -> Result<Said, Status> {
        collect(self.client().exec_sandbox(request).await?.into_inner()).await
    }

    /// Runs a command that is given its input bit by bit.
    pub(crate) async fn interact(&self, request: ExecSandboxRequest) -> Result<Typing, Status> {
        let (typed, input) = mpsc::channel(4);
        let start = exec_sandbox_input::Payload::Start(request);
        // There is room for it: the channel is new.
        drop(typed.try_send(ExecSandboxInput { payload: Some(start) }));
        let call = self.client().exec_sandbox_interactive(ReceiverStream::new(input)).await?;
        Ok(Typing { typed: Some(typed), events: call.into_inner(), said: Said::default() })
    }

    /// Opens a connection to a port of the guest, or without one to its SSH server.
    pub(crate) async fn forward(&self, id: &str, port: Option<u16>) -> Result<Forward, Status> {
        let request = CreateSshSessionRequest { sandbox_id: id.into() };
        let token = self.client().create_ssh_session(request).await?.into_inner().token;
        let target = match port {
            Some(port) => tcp_forward_init::Target::Tcp(openshell_proto::v1::TcpRelayTarget {
                host: "127.0.0.1".into(),
                port: port.into(),
            }),
            None => tcp_forward_init::Target::Ssh(openshell_proto::v1::SshRelayTarget {}),
        };
        let init = TcpForwardInit {
            sandbox_id: id.into(),
            authorization_token: token,
            target: Some(target),
            ..Default::default()
        };
        let (sent, frames) = mpsc::channel(4);
        let init = TcpForwardFrame { payload: Some(tcp_forward_frame::Payload::Init(init)) };
        drop(sent.try_send(init));
        let call = self.client().forward_tcp(ReceiverStream::new(frames)).await?;
        Ok(Forward { sent: Some(sent), frames: call.into_inner() })
    }
}

/// A command of a sandbox.
pub(crate) fn command(id: &str, words: &[&str]) -> ExecSandboxRequest {
    ExecSandboxRequest {
        sandbox_id: id.into(),
        command: words.iter().map(|&word| word.to_owned()).collect(),
        ..Default::default()
    }
}

/// A command that is being typed to.
#[derive(Debug)]
pub(crate) struct Typing {
    typed: Option<mpsc::Sender<ExecSandboxInput>>,
    events: Streaming<ExecSandboxEvent>,
    said: Said,
}

impl Typing {
    /// Types something.
    pub(crate) async fn send(&self, bytes: &[u8]) {
        self.put(exec_sandbox_input::Payload::Stdin(bytes.to_vec().into())).await;
    }

    /// Sends any input.
    pub(crate) async fn put(&self, payload: exec_sandbox_input::Payload) {
        let typed = self.typed.as_ref().unwrap();
        typed.send(ExecSandboxInput { payload: Some(payload) }).await.unwrap();
    }

    /// Reads until standard output holds `text`.
    pub(crate) async fn wait_for(&mut self, text: &str) {
        while !self.said.text().contains(text) {
            let event = timeout(PATIENCE, self.events.message()).await;
            let event = event.ok().and_then(|event| event.unwrap());
            let event = event.unwrap_or_else(|| panic!("no {text:?}: {:?}", self.said.text()));
            self.said.take(event);
        }
    }

    /// Ends the input and waits for the end.
    pub(crate) async fn end(mut self) -> Result<Said, Status> {
        self.typed = None;
        while let Some(event) = self.events.message().await? {
            self.said.take(event);
        }
        Ok(self.said)
    }
}

impl Said {
    fn take(&mut self, event: ExecSandboxEvent) {
        assert_eq!(self.code, None, "something comes after the exit status");
        match event.payload {
            Some(Payload::Stdout(some)) => self.stdout.extend(&some.data[..]),
            Some(Payload::Stderr(some)) => self.stderr.extend(&some.data[..]),
            Some(Payload::Exit(exit)) => self.code = Some(exit.exit_code),
            None => {}
        }
    }
}

async fn collect(mut events: Streaming<ExecSandboxEvent>) -> Result<Said, Status> {
    let mut said = Said::default();
    while let Some(event) = events.message().await? {
        said.take(event);
    }
    Ok(said)
}

/// A connection into a sandbox.
#[derive(Debug)]
pub(crate) struct Forward {
    sent: Option<mpsc::Sender<TcpForwardFrame>>,
    frames: Streaming<TcpForwardFrame>,
}

impl Forward {
    /// Sends bytes.
    pub(crate) async fn send(&self, bytes: &[u8]) {
        let payload = tcp_forward_frame::Payload::Data(bytes.to_vec().into());
        let frame = TcpForwardFrame { payload: Some(payload) };
        self.sent.as_ref().unwrap().send(frame).await.unwrap();
    }

    /// The next bytes; none at the end.
    pub(crate) async fn read(&mut self) -> Result<Vec<u8>, Status> {
        match self.frames.message().await?.and_then(|frame| frame.payload) {
            Some(tcp_forward_frame::Payload::Data(bytes)) => Ok(bytes.to_vec()),
            _ => Ok(Vec::new()),
        }
    }

    /// Ends what is sent, and reads to the end.
    pub(crate) async fn rest(mut self) -> Result<Vec<u8>, Status> {
        self.sent = None;
        let mut all = Vec::new();
        loop {
            let some = self.read().await?;
            if some.is_empty() {
                return Ok(all);
            }
            all.extend(some);
        }
    }

    /// The connection as a stream of bytes.
    pub(crate) fn stream(self) -> DuplexStream {
        let Self { sent, mut frames } = self;
        let (near, far) = duplex(64 << 10);
        let (mut from, mut to) = split(far);
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 << 10];
            while let (Ok(len @ 1..), Some(sent)) = (from.read(&mut buffer).await, &sent) {
                let payload = tcp_forward_frame::Payload::Data(buffer[..len].to_vec().into());
                let frame = TcpForwardFrame { payload: Some(payload) };
                if sent.send(frame).await.is_err() {
                    break;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                let Some(tcp_forward_frame::Payload::Data(bytes)) = frame.payload else { break };
                if to.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // Whoever reads sees the end.
            drop(to.shutdown().await);
        });
        near
    }
}
