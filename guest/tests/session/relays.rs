//! What comes through relays: ports of the guest, and its SSH server.

use std::sync::Arc;
use std::time::Duration;

use openshell_proto::v1::TcpRelayTarget;
use openshell_proto::v1::gateway_message::Payload as Theirs;
use openshell_proto::v1::relay_open::Target;
use openshell_proto::v1::{RelayClose, SshRelayTarget};
use russh::client;
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelMsg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::gateway::{Gateway, PATIENCE, Session};
use crate::supervisor::Supervisor;

const LARGE: usize = 64 << 20;

struct Rig {
    gateway: Gateway,
    session: Session,
    _supervisor: Supervisor,
}

async fn rig(main: &str) -> Rig {
    let mut gateway = Gateway::start(Arc::default(), 0);
    let supervisor = Supervisor::start(&gateway, main);
    let session = gateway.session().await;
    Rig { gateway, session, _supervisor: supervisor }
}

impl Rig {
    async fn tcp(&mut self, channel: &str, host: &str, port: u32) -> Result<DuplexStream, String> {
        let target = Target::Tcp(TcpRelayTarget { host: host.to_owned(), port });
        let state = Arc::clone(&self.gateway.state);
        self.session.relay(&state, channel, Some(target)).await
    }

    async fn ssh(&mut self, channel: &str) -> client::Handle<Client> {
        let state = Arc::clone(&self.gateway.state);
        let target = Some(Target::Ssh(SshRelayTarget {}));
        let stream = self.session.relay(&state, channel, target).await.unwrap();
        let config = Arc::new(client::Config::default());
        let mut client = client::connect_stream(config, stream, Client).await.unwrap();
        assert!(client.authenticate_none("sandbox").await.unwrap().success());
        client
    }
}

struct Client;

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// A port of the guest whose connections are echoed until their end, then ended; their number is not limited.
async fn echo() -> u32 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                drop(tokio::io::copy(&mut read, &mut write).await);
                drop(write.shutdown().await);
            });
        }
    });
    u32::from(port)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 253).to_le_bytes()[0]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_goes_both_ways_and_each_half_closes_by_itself() {
    let mut rig = rig("sleep 1000").await;
    let stream = rig.tcp("c1", "127.0.0.1", echo().await).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let sent = pattern(LARGE);
    let expected = sent.clone();
    let send = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        // The echo ends only because this end of file reaches it.
        write.shutdown().await.unwrap();
        write
    });
    let mut received = Vec::with_capacity(LARGE);
    timeout(PATIENCE * 2, read.read_to_end(&mut received)).await.expect("the end").unwrap();
    send.await.unwrap();
    assert!(received == expected, "{} of {LARGE} bytes, or others", received.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_do_not_hold_each_other() {
    let mut rig = rig("sleep 1000").await;
    let port = echo().await;
    // Nobody reads what comes back on this one.
    let mut stuck = rig.tcp("stuck", "localhost", port).await.unwrap();
    let more = pattern(4 << 20);
    drop(timeout(Duration::from_secs(2), stuck.write_all(&more)).await);
    for number in 0..20 {
        let mut stream = rig.tcp(&format!("c{number}"), "::1", port).await;
        if stream.is_err() {
            // The echo listens on IPv4.
            stream = rig.tcp(&format!("d{number}"), "", port).await;
        }
        let mut stream = stream.unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("an answer").unwrap();
        assert_eq!(&bytes, b"ping");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_open_ports_of_the_loopback_are_reached() {
    let mut rig = rig("sleep 1000").await;
    for (number, (host, port)) in [
        ("127.0.0.1", 1),
        ("10.0.0.1", 80),
        ("localhost", 0),
        ("localhost", 70_000),
        ("example.com", 80),
    ]
    .into_iter()
    .enumerate()
    {
        let refused = rig.tcp(&format!("c{number}"), host, port).await;
        assert!(refused.is_err_and(|why| !why.is_empty()), "{host}:{port}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_the_gateway_closes_ends() {
    let mut rig = rig("sleep 1000").await;
    let mut stream = rig.tcp("c1", "localhost", echo().await).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut bytes = [0; 1];
    stream.read_exact(&mut bytes).await.unwrap();
    let close = RelayClose { channel_id: "c1".to_owned(), reason: "test".to_owned() };
    rig.session.send(Theirs::RelayClose(close)).await;
    let end = timeout(PATIENCE, stream.read(&mut bytes)).await.expect("an end").unwrap();
    assert_eq!(end, 0);
}

async fn to_the_end(channel: &mut Channel<client::Msg>) -> (Vec<u8>, Option<u32>) {
    let (mut output, mut status) = (Vec::new(), None);
    let all = async {
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => {
                    output.extend(&*data);
                }
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                _ => {}
            }
        }
    };
    timeout(PATIENCE * 2, all).await.expect("the channel ends");
    (output, status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_through_a_relay() {
    let mut rig = rig("sleep 1000").await;
    let client = rig.ssh("c1").await;
    let mut exec = client.channel_open_session().await.unwrap();
    exec.exec(true, "echo $GIVEN; exit 5").await.unwrap();
    assert_eq!(to_the_end(&mut exec).await, (b"by the user\n".to_vec(), Some(5)));
    let mut exec = client.channel_open_session().await.unwrap();
    exec.exec(true, format!("head -c {LARGE} /dev/zero")).await.unwrap();
    let (output, status) = to_the_end(&mut exec).await;
    assert_eq!((output.len(), status), (LARGE, Some(0)));
    let mut shell = client.channel_open_session().await.unwrap();
    shell.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    shell.request_shell(true).await.unwrap();
    shell.data(&b"tty; exit 3\n"[..]).await.unwrap();
    let (output, status) = to_the_end(&mut shell).await;
    assert!(String::from_utf8_lossy(&output).contains("/dev/pts/"));
    assert_eq!(status, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_attached_is_told_how_the_main_process_ended() {
    let mut rig = rig("echo up; read line; echo $line; exit 6").await;
    let client = rig.ssh("c1").await;
    let mut main = client.channel_open_session().await.unwrap();
    main.request_subsystem(true, "openshell-main").await.unwrap();
    main.data(&b"last words\n"[..]).await.unwrap();
    assert_eq!(to_the_end(&mut main).await, (b"up\nlast words\n".to_vec(), Some(6)));
}
