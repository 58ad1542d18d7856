//! TCP streams between two kernels with a stack in between: bytes that arrive in a window of time.
//!
//! Invariant: what is counted arrived at a receiver inside the window; threads end because their sockets are shut, whatever the stack
//! does with them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::process;
use crate::rig::{PATIENCE, Rig, WORLD};

/// Bytes of one read or write.
const BLOCK_BYTES: usize = 128 << 10;
/// Before the window: slow start, and buffers that grow.
pub(crate) const WARM_UP: Duration = Duration::from_millis(300);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the guest to the host.
    Out,
    /// From the host to the guest.
    In,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// The host's loopback.
    Host,
    /// The world, over a veth pair.
    World,
}

/// What one run came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) bytes: u64,
    pub(crate) wall: Duration,
    /// Processor time of the stack.
    pub(crate) cpu: Duration,
    /// Segments that senders sent again, from the beginning to the end.
    pub(crate) retransmits: u32,
}

/// Runs `count` streams for `window`.
pub(crate) fn run(rig: &Rig, way: Way, to: To, count: usize, window: Duration) -> Result<Ran> {
    let pairs = connect(rig, to, count)?;
    let (ended, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let senders = pairs.iter().map(|(near, far)| if way == Way::Out { near } else { far });
    let mut ran = Err(anyhow::anyhow!("not run"));
    thread::scope(|scope| {
        for (near, far) in &pairs {
            let (sender, receiver) = if way == Way::Out { (near, far) } else { (far, near) };
            let (ended, received) = (&ended, &received);
            scope.spawn(move || send(sender, ended));
            scope.spawn(move || receive(receiver, received));
        }
        thread::sleep(WARM_UP);
        ran = measure(rig, &received, window);
        ended.store(true, Ordering::Relaxed);
        for (near, far) in &pairs {
            near.shutdown(Shutdown::Both).ok();
            far.shutdown(Shutdown::Both).ok();
        }
    });
    let retransmits = senders.map(|sender| process::retransmits(sender).unwrap_or(0)).sum();
    Ok(Ran { retransmits, ..ran? })
}

fn measure(rig: &Rig, received: &AtomicU64, window: Duration) -> Result<Ran> {
    let (begin, cpu) = (Instant::now(), rig.cpu_time()?);
    let before = received.load(Ordering::Relaxed);
    thread::sleep(window);
    let bytes = received.load(Ordering::Relaxed) - before;
    let (wall, cpu) = (begin.elapsed(), rig.cpu_time()?.saturating_sub(cpu));
    Ok(Ran { bytes, wall, cpu, retransmits: 0 })
}

/// Connections from the guest, each with its other end.
pub(crate) fn connect(rig: &Rig, to: To, count: usize) -> Result<Vec<(TcpStream, TcpStream)>> {
    let (listener, at) = match to {
        To::Host => rig.listen()?,
        To::World => {
            let listener = rig.world.inside(|| TcpListener::bind((WORLD, 0)))?;
            let at = SocketAddr::from((WORLD, listener.local_addr()?.port()));
            (listener, at)
        }
    };
    listener.set_nonblocking(true)?;
    let near = rig.near().inside(|| {
        let one = || TcpStream::connect_timeout(&at, PATIENCE);
        (0..count).map(|_| one().and_then(|near| Ok((near, accept(&listener)?)))).collect()
    });
    let pairs: std::io::Result<Vec<_>> = near;
    pairs.with_context(|| format!("{} does not connect to {at}", rig.system.name))
}

/// The next who connects, within the time there is for anything.
pub(crate) fn accept(listener: &TcpListener) -> std::io::Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((far, _)) => {
                far.set_nonblocking(false)?;
                return Ok(far);
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::yield_now(),
        }
    }
}

fn send(mut sender: &TcpStream, ended: &AtomicBool) {
    let block = vec![0x5a; BLOCK_BYTES];
    while !ended.load(Ordering::Relaxed) && sender.write_all(&block).is_ok() {}
}

fn receive(mut receiver: &TcpStream, received: &AtomicU64) {
    let mut block = vec![0; BLOCK_BYTES];
    while let Ok(count @ 1..) = receiver.read(&mut block) {
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
}
