//! Connections of a client to ports of the guest.
//!
//! Invariant: only the guest's loopback is reached: what a sandbox may reach outside is decided elsewhere.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::input;

const PATIENCE: Duration = Duration::from_secs(10);
const CHUNK: usize = 32 << 10;

/// The loopback address that a peer means, if it means one.
#[must_use]
pub fn loopback(host: &str) -> Option<IpAddr> {
    if host.is_empty() || host.eq_ignore_ascii_case("localhost") {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok().filter(IpAddr::is_loopback)
}

/// Connects to a port of the guest.
pub(super) async fn connect(host: &str, port: u32) -> Result<TcpStream, ChannelOpenFailure> {
    let address = loopback(host).ok_or(ChannelOpenFailure::AdministrativelyProhibited)?;
    let port = u16::try_from(port).map_err(|_| ChannelOpenFailure::ConnectFailed)?;
    let connected = tokio::time::timeout(PATIENCE, TcpStream::connect((address, port))).await;
    let stream = connected.ok().and_then(Result::ok).ok_or(ChannelOpenFailure::ConnectFailed)?;
    // Small messages of two programs that wait for each other.
    drop(stream.set_nodelay(true));
    Ok(stream)
}

/// Carries bytes both ways until both sides have ended, or the client has gone.
pub(super) async fn serve(channel: Channel<Msg>, stream: TcpStream) {
    let (mut client, to_client) = channel.split();
    let (mut from_port, mut to_port) = stream.into_split();
    let (feed, mut fed) = input::channel();
    let mut writer = to_client.make_writer();
    let mut up = tokio::spawn(async move {
        let mut bytes = vec![0; CHUNK];
        while let Ok(len @ 1..) = from_port.read(&mut bytes).await {
            if writer.write_all(&bytes[..len]).await.is_err() {
                return;
            }
        }
        // Half of the connection goes on.
        drop(writer.shutdown().await);
    });
    let down = tokio::spawn(async move {
        while let Some(bytes) = fed.next().await {
            if to_port.write_all(&bytes).await.is_err() {
                return;
            }
        }
        drop(to_port.shutdown().await);
    });
    let mut feed = Some(feed);
    let mut port_open = true;
    while port_open || feed.is_some() {
        tokio::select! {
            _ = &mut up, if port_open => port_open = false,
            message = client.wait() => match message {
                Some(ChannelMsg::Data { data }) => {
                    let taken = match &feed {
                        Some(feed) => feed.push(data).await,
                        None => true,
                    };
                    if !taken {
                        feed = None;
                    }
                }
                Some(ChannelMsg::Eof) => feed = None,
                None | Some(ChannelMsg::Close) => {
                    up.abort();
                    down.abort();
                    return;
                }
                Some(_) => {}
            },
        }
    }
    drop(down.await);
    drop(to_client.close().await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_is_meant() {
        for (host, expected) in [
            ("localhost", Some("127.0.0.1")),
            ("LOCALHOST", Some("127.0.0.1")),
            ("", Some("127.0.0.1")),
            ("127.0.0.9", Some("127.0.0.9")),
            ("::1", Some("::1")),
            ("[::1]", Some("::1")),
            ("10.0.0.1", None),
            ("0.0.0.0", None),
            ("169.254.169.254", None),
            ("example.com", None),
            ("::ffff:10.0.0.1", None),
        ] {
            let expected = expected.map(|address| address.parse().unwrap());
            assert_eq!(loopback(host), expected, "{host}");
        }
    }
}
