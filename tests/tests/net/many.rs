//! Many connections: idle ones cost little, those that lead nowhere hold up nobody.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use openshell_tests::netns::begin_connect;

use crate::rig::Rig;

/// Idle connections. Each takes a descriptor in the stack and two here.
const IDLE: usize = 5000;
const BLACK_HOLES: usize = 1000;

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn idle_connections_stand_and_cost_little() {
    let rig = Rig::open();
    let (listener, at) = rig.listen();
    let one = |listener: &std::net::TcpListener| {
        let near = rig.connect(at).unwrap();
        (near, listener.accept().unwrap().0)
    };
    let mut pairs: Vec<(TcpStream, TcpStream)> = (0..100).map(|_| one(&listener)).collect();
    let before = resident_kib(rig.pid());
    // One thread inside, so that none is started for each.
    let more: Vec<TcpStream> = std::thread::scope(|scope| {
        let accepting =
            scope.spawn(|| (0..IDLE).map(|_| listener.accept().unwrap().0).collect::<Vec<_>>());
        let near = rig
            .guest
            .inside(|| (0..IDLE).map(|_| TcpStream::connect(at).unwrap()).collect::<Vec<_>>());
        pairs.extend(near.into_iter().zip(accepting.join().unwrap()));
        Vec::new()
    });
    drop(more);
    let grown = resident_kib(rig.pid()).saturating_sub(before);
    assert!(grown < 10 << 10, "{IDLE} idle connections take {grown} KiB");
    // Their order at the listener need not be that of the guest: each pair is found by what it says.
    for (number, (near, _)) in (0_u32..).zip(&mut pairs) {
        near.write_all(&number.to_le_bytes()).unwrap();
    }
    let mut seen: Vec<u32> = pairs
        .iter_mut()
        .map(|(_, far)| {
            let mut bytes = [0; 4];
            far.read_exact(&mut bytes).unwrap();
            far.write_all(&bytes).unwrap();
            u32::from_le_bytes(bytes)
        })
        .collect();
    for (number, (near, _)) in (0_u32..).zip(&mut pairs) {
        let mut bytes = [0; 4];
        near.read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), number);
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..u32::try_from(pairs.len()).unwrap()));
    drop(pairs);
    // And new ones are served after them.
    drop(one(&listener));
    rig.end();
}

#[test]
fn connections_that_lead_nowhere_hold_up_nobody() {
    let rig = Rig::open();
    let (listener, at) = rig.listen();
    let round_trip = || {
        let begin = Instant::now();
        let mut near = rig.connect(at).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        far.write_all(b"x").unwrap();
        near.read_exact(&mut [0]).unwrap();
        begin.elapsed()
    };
    let alone = (0..20).map(|_| round_trip()).max().unwrap();
    let pending: Vec<OwnedFd> = rig.guest.inside(|| {
        (0..BLACK_HOLES)
            .map(|number| {
                // A few dozen to each: more to one address are the pending limit's matter.
                let last = u8::try_from(1 + number / 60).unwrap();
                let to: SocketAddr = ([9, 0, 0, last], 80).into();
                begin_connect(to).unwrap()
            })
            .collect()
    });
    let beside = (0..50).map(|_| round_trip()).max().unwrap();
    assert!(
        beside < alone * 4 + Duration::from_millis(200),
        "a connection takes {beside:?} beside {BLACK_HOLES} that lead nowhere, and {alone:?} alone"
    );
    drop(pending);
    let said = rig.end();
    assert!(Rig::counter(&said, "tcp_opened") >= 1000, "{said}");
}
