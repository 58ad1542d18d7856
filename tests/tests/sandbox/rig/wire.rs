//! The network between guests and the gateway, which a test can take away.

use std::net::Ipv4Addr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Net {
    /// They pass.
    Up,
    /// They are lost without a word.
    Silent,
    /// Connections end, and new ones as well.
    Cut,
}

/// A port of the loopback that leads to the gateway's.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) port: u16,
    state: watch::Sender<Net>,
    task: JoinHandle<()>,
}

impl Wire {
    /// One that leads to this port.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (state, states) = watch::channel(Net::Up);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, port, states.clone()));
            }
        });
        Self { port: own, state, task }
    }

    /// Makes it so from now on.
    pub(crate) fn set(&self, state: Net) {
        self.state.send_replace(state);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(near: TcpStream, port: u16, mut state: watch::Receiver<Net>) {
    // Where the wire has gone, so has the test.
    let up = state.wait_for(|state| *state != Net::Silent).await;
    if up.map_or(Net::Cut, |state| *state) == Net::Cut {
        return;
    }
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let both = async {
        tokio::join!(
            copy(near_read, far_write, state.clone()),
            copy(far_read, near_write, state.clone())
        )
    };
    let mut cut = state.clone();
    tokio::select! {
        _ = cut.wait_for(|state| *state == Net::Cut) => {}
        _ = both => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<Net>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = from.read(&mut buffer).await.unwrap_or(0);
        if state.wait_for(|state| *state != Net::Silent).await.is_err() {
            return;
        }
        if len == 0 {
            // The other side may have gone.
            drop(to.shutdown().await);
            return;
        }
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}
