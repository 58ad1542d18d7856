//! The server over its socket, with the client of the same library: what a gateway does through a relay.

use std::time::{Duration, Instant};

use russh::client::{self, AuthResult};
use russh::{ChannelMsg, Sig};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::process::tests::{sandbox, words};

struct Client;

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _key: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

struct Server {
    _directory: tempfile::TempDir,
    path: std::path::PathBuf,
    main: Arc<MainProcess>,
}

impl Server {
    fn start_with(sandbox: Sandbox, main: &str, tty: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("private/ssh.sock");
        let program = words(&["/bin/sh", "-c", main]);
        let main =
            Arc::new(MainProcess::start(&sandbox, &program, tty, mpsc::channel(1).0).unwrap());
        let context = Arc::new(Context { sandbox, main: Arc::clone(&main) });
        tokio::spawn(serve(listen(&path).unwrap(), context));
        Self { _directory: directory, path, main }
    }

    fn start() -> Self {
        Self::start_with(sandbox(), "sleep 1000", false)
    }

    async fn client(&self) -> client::Handle<Client> {
        let stream = UnixStream::connect(&self.path).await.unwrap();
        let config = Arc::new(client::Config::default());
        let mut client = client::connect_stream(config, stream, Client).await.unwrap();
        let authenticated = client.authenticate_none("sandbox").await.unwrap();
        assert!(matches!(authenticated, AuthResult::Success));
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.main.signal(rustix::process::Signal::KILL);
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    output: Vec<u8>,
    errors: Vec<u8>,
    status: Option<u32>,
}

impl Said {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

async fn to_the_end(channel: &mut Channel<client::Msg>) -> Said {
    let mut said = Said::default();
    let all = async {
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => said.output.extend(&*data),
                ChannelMsg::ExtendedData { data, ext: 1 } => said.errors.extend(&*data),
                ChannelMsg::ExitStatus { exit_status } => said.status = Some(exit_status),
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), all).await.expect("the channel ends");
    said
}

async fn exec(client: &client::Handle<Client>, command: &str, input: Option<&[u8]>) -> Said {
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, command).await.unwrap();
    if let Some(input) = input {
        channel.data(input).await.unwrap();
        channel.eof().await.unwrap();
    }
    to_the_end(&mut channel).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_and_streams_are_told() {
    let server = Server::start();
    let client = server.client().await;
    for (command, output, errors, status) in [
        ("echo smoke-ok", "smoke-ok\n", "", 0),
        ("echo out; echo err >&2; exit 42", "out\n", "err\n", 42),
        ("kill -9 $$", "", "", 137),
        ("kill -TERM $$", "", "", 143),
        ("A='x y' sh -c 'echo $A'", "x y\n", "", 0),
        ("cd /usr && pwd", "/usr\n", "", 0),
    ] {
        let said = exec(&client, command, None).await;
        let expected = Said { output: output.into(), errors: errors.into(), status: Some(status) };
        assert_eq!(said, expected, "{command}");
    }
    assert_eq!(exec(&client, "none-such-program", None).await.status, Some(127));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_input_reaches_the_process() {
    let server = Server::start();
    let client = server.client().await;
    let said = exec(&client, "wc -c", Some(&vec![7; 300_000])).await;
    assert_eq!((said.text().trim(), said.status), ("300000", Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_reads_nothing_does_not_hold_the_others() {
    let server = Server::start();
    let client = server.client().await;
    let stuck = client.channel_open_session().await.unwrap();
    stuck.exec(true, "sleep 1000").await.unwrap();
    stuck.data(&vec![0; 4 << 20][..]).await.unwrap();
    let begin = Instant::now();
    assert_eq!(exec(&client, "echo other", None).await.text(), "other\n");
    assert!(begin.elapsed() < Duration::from_secs(20));
    stuck.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_goes_both_ways_at_once() {
    let server = Server::start();
    let client = server.client().await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "cat").await.unwrap();
    let bytes: Vec<u8> = (0..32_u32 << 20).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let mut writer = channel.make_writer();
    let sent = bytes.clone();
    let send = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let said = to_the_end(&mut channel).await;
    send.await.unwrap();
    assert_eq!(said.status, Some(0));
    assert!(said.output == bytes, "{} of {} bytes, or others", said.output.len(), bytes.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_on_in_the_background_does_not_hold_the_channel() {
    let server = Server::start();
    let client = server.client().await;
    let begin = Instant::now();
    let said = exec(&client, "head -c 100000 /dev/zero; sleep 1000 & exit 4", None).await;
    assert_eq!((said.output.len(), said.status), (100_000, Some(4)));
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_has_a_terminal_that_changes_its_size() {
    let server = Server::start();
    let client = server.client().await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "vt100", 90, 33, 0, 0, &[]).await.unwrap();
    channel.request_shell(true).await.unwrap();
    channel.window_change(120, 40, 0, 0).await.unwrap();
    let script = b"stty size; tty; echo $TERM; exit 6\n";
    channel.data(&script[..]).await.unwrap();
    let said = to_the_end(&mut channel).await;
    assert_eq!(said.status, Some(6));
    for expected in ["40 120", "/dev/pts/", "vt100"] {
        assert!(said.text().contains(expected), "no {expected}: {}", said.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_reaches_the_process() {
    let server = Server::start();
    let client = server.client().await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel
        .exec(true, "trap 'echo caught; exit 3' INT; echo up; while :; do sleep 0.05; done")
        .await
        .unwrap();
    let mut seen = Vec::new();
    while !seen.starts_with(b"up") {
        if let Some(ChannelMsg::Data { data }) = channel.wait().await {
            seen.extend(&*data);
        }
    }
    channel.signal(Sig::INT).await.unwrap();
    let said = to_the_end(&mut channel).await;
    assert_eq!((said.text().as_str(), said.status), ("caught\n", Some(3)));
}

/// Runs a script that prints its number and goes on, and waits for the number.
async fn endless(client: &client::Handle<Client>, prepare: &str) -> (Channel<client::Msg>, String) {
    let mut channel = client.channel_open_session().await.unwrap();
    let script = format!("{prepare}; echo $$; while :; do sleep 0.05; done");
    channel.exec(true, script).await.unwrap();
    let mut text = String::new();
    while !text.ends_with('\n') {
        if let ChannelMsg::Data { data } = channel.wait().await.unwrap() {
            text.push_str(std::str::from_utf8(&data).unwrap());
        }
    }
    (channel, format!("/proc/{}", text.trim()))
}

async fn ends(process: &str) {
    let ends = Instant::now() + Duration::from_secs(60);
    while Path::new(process).exists() {
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap_or_default();
        assert!(Instant::now() < ends, "the process goes on: {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_of_a_client_that_has_gone_is_ended() {
    let server = Server::start();
    for prepare in [":", "trap '' HUP"] {
        let client = server.client().await;
        let (channel, process) = endless(&client, prepare).await;
        drop(channel);
        drop(client);
        ends(&process).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_of_a_closed_channel_is_ended_and_the_others_go_on() {
    let server = Server::start();
    let client = server.client().await;
    let (closed, process) = endless(&client, ":").await;
    let (kept, other) = endless(&client, ":").await;
    closed.close().await.unwrap();
    ends(&process).await;
    assert!(Path::new(&other).exists());
    drop((closed, kept, client));
    ends(&other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_told_before_it_is_ended() {
    let server = Server::start();
    let client = server.client().await;
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("mark");
    // The shell writes the mark itself: another process to start could take longer than it is given on a busy machine.
    let (channel, process) =
        endless(&client, &format!("trap ': >{}; exit' HUP", mark.display())).await;
    drop(channel);
    drop(client);
    ends(&process).await;
    assert!(mark.exists(), "ended without having been told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_attach_to_the_main_process() {
    let script = "echo hello; read a; echo got $a; exit 9";
    let server = Server::start_with(sandbox(), script, false);
    let client = server.client().await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "openshell-main").await.unwrap();
    channel.data(&b"word\n"[..]).await.unwrap();
    let said = to_the_end(&mut channel).await;
    assert_eq!((said.text().as_str(), said.status), ("hello\ngot word\n", Some(9)));
    let mut other = client.channel_open_session().await.unwrap();
    other.request_subsystem(true, "sftp").await.unwrap();
    let failed = loop {
        match other.wait().await {
            Some(ChannelMsg::Failure) => break true,
            Some(ChannelMsg::Success) | None => break false,
            Some(_) => {}
        }
    };
    assert!(failed, "there is no such subsystem");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_reach_the_loopback_only() {
    let server = Server::start();
    let client = server.client().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        // After the client's half is closed.
        stream.write_all(&bytes).await.unwrap();
    });
    let channel =
        client.channel_open_direct_tcpip("localhost", u32::from(port), "x", 1).await.unwrap();
    let mut channel = channel;
    let bytes = vec![9; 1 << 20];
    channel.data(&bytes[..]).await.unwrap();
    channel.eof().await.unwrap();
    assert!(to_the_end(&mut channel).await.output == bytes);
    for (host, port) in [("localhost", 1), ("10.0.0.1", u32::from(port)), ("localhost", 70_000)] {
        assert!(
            client.channel_open_direct_tcpip(host, port, "x", 1).await.is_err(),
            "{host}:{port}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_are_bounded() {
    let server = Server::start();
    let client = server.client().await;
    let mut open = Vec::new();
    for _ in 0..CHANNELS_MAX {
        open.push(client.channel_open_session().await.unwrap());
    }
    assert!(client.channel_open_session().await.is_err());
    open.pop().unwrap().close().await.unwrap();
    let ends = Instant::now() + Duration::from_secs(10);
    while client.channel_open_session().await.is_err() {
        assert!(Instant::now() < ends, "the place is not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_socket_is_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("private/ssh.sock");
    let first = listen(&path).unwrap();
    drop(first);
    drop(listen(&path).unwrap());
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
}
