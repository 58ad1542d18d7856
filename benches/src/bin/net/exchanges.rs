//! Small exchanges: a byte there and back, connections that are made for one, and connections that lead nowhere or do nothing.
//!
//! Invariant: a client waits for each answer before it goes on, so that a time is one exchange's and nothing is queued.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use openshell_tests::netns::begin_connect;

use crate::rig::{PATIENCE, Rig};
use crate::streams::{self, To};

/// Exchanges before the first that counts.
const WARM_UP: usize = 50;

/// How long each exchange took, and all of them together.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    pub(crate) each: Vec<Duration>,
    pub(crate) wall: Duration,
}

/// Sends a byte and waits for one, on one connection, for `window`.
pub(crate) fn round_trips(rig: &Rig, window: Duration) -> Result<Ran> {
    let (mut near, mut far) = streams::connect(rig, To::Host, 1)?.pop().context("one stream")?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
    }
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            let mut byte = [0];
            while matches!(far.read(&mut byte), Ok(1)) && far.write_all(&byte).is_ok() {}
        });
        let mut one = || {
            let mut byte = [1];
            near.write_all(&byte).and_then(|()| near.read_exact(&mut byte))
        };
        let ran = repeat(window, &mut one);
        near.shutdown(Shutdown::Both).ok();
        server.join().ok();
        Ok(ran?)
    })
}

/// Connects, sends a byte, waits for one and closes, again and again for `window`.
pub(crate) fn connections(rig: &Rig, window: Duration) -> Result<Ran> {
    let (listener, at) = rig.listen()?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listener, &ended));
        let ran = rig.near().inside(|| repeat(window, &mut || connect_once(at)));
        ended.store(true, Ordering::Relaxed);
        // Whatever the stack did, the server's last wait ends.
        rig.host.inside(|| TcpStream::connect(listener.local_addr()?)).ok();
        server.join().ok();
        Ok(ran?)
    })
}

/// The same beside `count` connections of which nothing becomes.
pub(crate) fn beside_black_holes(rig: &Rig, count: u16, window: Duration) -> Result<Ran> {
    let pending: Vec<OwnedFd> = rig.guest.inside(|| {
        // Some dozens to each address: stacks have limits for one, and those are not what is asked here.
        let to = |number: u16| {
            let last = u8::try_from(1 + number % 200).unwrap_or(1);
            SocketAddr::from((Ipv4Addr::new(203, 0, 113, last), 80))
        };
        (0..count).map(|number| begin_connect(to(number))).collect::<io::Result<_>>()
    })?;
    let ran = connections(rig, window)?;
    drop(pending);
    Ok(ran)
}

/// Memory of the stack with `count` idle connections: KiB before them and with them.
pub(crate) fn idle(rig: &Rig, count: usize) -> Result<(u64, u64)> {
    let resident = || rig.resident_kib()?.context("there is a stack");
    let before = resident()?;
    let mut pairs = streams::connect(rig, To::Host, count)?;
    // The last one works, so the stack has done what it does for each.
    let (near, far) = pairs.last_mut().context("at least one")?;
    near.write_all(b"x")?;
    far.set_read_timeout(Some(PATIENCE))?;
    far.read_exact(&mut [0])?;
    Ok((before, resident()?))
}

fn repeat(window: Duration, one: &mut impl FnMut() -> io::Result<()>) -> io::Result<Ran> {
    for _ in 0..WARM_UP {
        one()?;
    }
    let begin = Instant::now();
    let mut each = Vec::new();
    let mut at = begin;
    while at - begin < window || each.is_empty() {
        one()?;
        let now = Instant::now();
        each.push(now - at);
        at = now;
    }
    Ok(Ran { each, wall: at - begin })
}

fn connect_once(at: SocketAddr) -> io::Result<()> {
    let mut near = TcpStream::connect_timeout(&at, PATIENCE)?;
    near.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [1];
    near.write_all(&byte)?;
    near.read_exact(&mut byte)
}

fn serve(listener: &TcpListener, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let Ok((mut far, _)) = listener.accept() else { return };
        let mut byte = [0];
        far.set_read_timeout(Some(PATIENCE)).ok();
        if matches!(far.read(&mut byte), Ok(1)) {
            far.write_all(&byte).ok();
        }
    }
}
