//! Many connections: idle ones cost little, those that lead nowhere hold up nobody.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use openshell_tests::netns::{begin_connect, set_backlog};

use crate::rig::{DEADLINE, Rig};

/// Idle connections. Each takes a descriptor in the stack and one here.
const IDLE: u16 = 10_000;
const BLACK_HOLES: usize = 1000;

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn idle_connections_stand_and_cost_little() {
    let rig = Rig::open();
    rig.host.run("sysctl", "-qw net.core.somaxconn=12000").unwrap();
    rig.host.run("sysctl", "-qw net.ipv4.tcp_max_syn_backlog=12000").unwrap();
    let (listener, at) = rig.listen();
    // The host's ends wait in its kernel, so that two processes' descriptors do for 10,000 connections.
    set_backlog(listener.as_raw_fd(), 12_000).unwrap();
    let connect = |count: u16| {
        let one = || TcpStream::connect_timeout(&at, DEADLINE).unwrap();
        rig.guest.inside(|| (0..count).map(|_| one()).collect::<Vec<_>>())
    };
    let mut near = connect(100);
    let before = resident_kib(rig.pid());
    near.extend(connect(IDLE - 100));
    let grown = resident_kib(rig.pid()).saturating_sub(before);
    println!("{IDLE} idle connections take {grown} KiB");
    assert!(grown < 5 << 10, "{IDLE} idle connections take {grown} KiB");
    // Their order at the listener need not be that of the guest: each is known by what it says, and hears the same.
    for (number, near) in (0..IDLE).zip(&mut near) {
        near.write_all(&number.to_le_bytes()).unwrap();
    }
    let mut seen: Vec<u16> = (0..IDLE)
        .map(|_| {
            let (mut far, _) = listener.accept().unwrap();
            far.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut bytes = [0; 2];
            far.read_exact(&mut bytes).unwrap();
            far.write_all(&bytes).unwrap();
            u16::from_le_bytes(bytes)
        })
        .collect();
    for (number, near) in (0..IDLE).zip(&mut near) {
        near.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut bytes = [0; 2];
        near.read_exact(&mut bytes).unwrap();
        assert_eq!(u16::from_le_bytes(bytes), number);
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..IDLE));
    drop(near);
    // And new ones are served after them.
    drop(connect(1));
    let said = rig.end();
    assert_eq!(Rig::counter(&said, "tcp_full") + Rig::counter(&said, "tcp_evicted"), 0, "{said}");
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

#[test]
fn a_limit_of_the_users_holds() {
    let rig = Rig::with(&["--allow", "host", "--net-limit", "tcp-flows=4"]);
    let (_listener, at) = rig.listen();
    let standing: Vec<_> = (0..4).map(|_| rig.connect(at).unwrap()).collect();
    assert_eq!(rig.connect(at).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    drop(standing);
    let said = rig.end();
    assert_eq!(Rig::counter(&said, "tcp_full"), 1, "{said}");
}
