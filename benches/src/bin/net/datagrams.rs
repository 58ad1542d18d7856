//! UDP through a stack: datagrams as fast as a sender makes them, or at a rate of its own.
//!
//! Invariant: a datagram counts when it arrives inside the window, as it was sent; what was sent is counted in the same window.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::rig::{PATIENCE, Rig};
use crate::streams::Way;

const WARM_UP: Duration = Duration::from_millis(200);
/// The receiver looks this often whether it is over.
const TICK: Duration = Duration::from_millis(50);
/// What the guest says first, so that there is a flow.
const HELLO: &[u8] = b"hello";

/// What one run came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) wall: Duration,
    /// Processor time of the stack.
    pub(crate) cpu: Duration,
}

/// Sends datagrams of `len` bytes for `window`; no more than `per_second` if given.
pub(crate) fn run(
    rig: &Rig,
    way: Way,
    len: usize,
    per_second: Option<u32>,
    window: Duration,
) -> Result<Ran> {
    let (near, far) = connect(rig)?;
    let (sender, receiver) = if way == Way::Out { (&near, &far) } else { (&far, &near) };
    receiver.set_read_timeout(Some(TICK))?;
    let (ended, sent, received) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut ran = Err(anyhow::anyhow!("not run"));
    thread::scope(|scope| {
        scope.spawn(|| send(sender, len, per_second, &sent, &ended));
        scope.spawn(|| receive(receiver, len, &received, &ended));
        thread::sleep(WARM_UP);
        let counts = || (sent.load(Ordering::Relaxed), received.load(Ordering::Relaxed));
        let (begin, cpu, before) = (Instant::now(), rig.cpu_time(), counts());
        thread::sleep(window);
        let (after, wall) = (counts(), begin.elapsed());
        let done = rig.cpu_time();
        ended.store(true, Ordering::Relaxed);
        ran = cpu.and_then(|cpu| {
            let (sent, received) = (after.0 - before.0, after.1 - before.1);
            Ok(Ran { sent, received, wall, cpu: done?.saturating_sub(cpu) })
        });
    });
    ran
}

/// A socket of the guest's and one on the host's loopback, connected to each other.
fn connect(rig: &Rig) -> Result<(UdpSocket, UdpSocket)> {
    let far = rig.host.inside(|| UdpSocket::bind("127.0.0.1:0"))?;
    let near = rig.near().inside(|| UdpSocket::bind("0.0.0.0:0"))?;
    near.connect((rig.system.host_address(), far.local_addr()?.port()))?;
    far.set_read_timeout(Some(Duration::from_millis(500)))?;
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = [0; 64];
    loop {
        near.send(HELLO)?;
        if let Ok((count, from)) = far.recv_from(&mut bytes) {
            ensure!(bytes[..count] == *HELLO, "something else arrived");
            far.connect(from)?;
            return Ok((near, far));
        }
        ensure!(Instant::now() < deadline, "no datagram arrives");
    }
}

fn send(
    sender: &UdpSocket,
    len: usize,
    per_second: Option<u32>,
    sent: &AtomicU64,
    ended: &AtomicBool,
) {
    let bytes = vec![0x5a; len];
    let begin = Instant::now();
    let mut count = 0_u64;
    while !ended.load(Ordering::Relaxed) {
        if let Some(per_second) = per_second {
            let due = begin.elapsed().as_secs_f64() * f64::from(per_second);
            #[expect(clippy::cast_precision_loss, reason = "a run has fewer datagrams")]
            if count as f64 >= due {
                // A timer's slack makes small bursts, as a media stream does.
                thread::sleep(Duration::from_micros(200));
                continue;
            }
        }
        count += 1;
        // A queue that is full, or an error told by ICMP, loses this one.
        if sender.send(&bytes).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn receive(receiver: &UdpSocket, len: usize, received: &AtomicU64, ended: &AtomicBool) {
    let mut bytes = vec![0; 1 << 16];
    while !ended.load(Ordering::Relaxed) {
        if let Ok(count) = receiver.recv(&mut bytes)
            && count == len
        {
            received.fetch_add(1, Ordering::Relaxed);
        }
    }
}
