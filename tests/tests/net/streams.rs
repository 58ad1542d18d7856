//! Bytes of TCP connections: all of them, in order, both ways, however they are cut and however slowly they are read.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use openshell_tests::netns::Namespace;

use crate::rig::Rig;

/// The byte at `at` of every stream here.
fn byte(at: usize) -> u8 {
    let mixed = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

pub(crate) fn send(mut to: &TcpStream, len: usize) {
    let mut at = 0;
    let mut bytes = Vec::new();
    while at < len {
        let count = (len - at).min(256 << 10);
        bytes.clear();
        bytes.extend((at..at + count).map(byte));
        to.write_all(&bytes).unwrap();
        at += count;
    }
    to.shutdown(Shutdown::Write).unwrap();
}

/// Reads to the end, `step` bytes at a time with a pause after each.
pub(crate) fn receive(mut from: &TcpStream, len: usize, step: usize, pause: Duration) {
    let mut bytes = vec![0; step];
    let mut at = 0;
    loop {
        let count = from.read(&mut bytes).unwrap();
        if count == 0 {
            break;
        }
        for (offset, &found) in bytes[..count].iter().enumerate() {
            assert_eq!(found, byte(at + offset), "byte {} of {len}", at + offset);
        }
        at += count;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    assert_eq!(at, len);
}

fn carry(rig: &Rig, to_host: usize, to_guest: usize, step: usize, pause: Duration) {
    let (near, far) = rig.pair();
    std::thread::scope(|scope| {
        scope.spawn(|| send(&near, to_host));
        scope.spawn(|| send(&far, to_guest));
        scope.spawn(|| receive(&far, to_host, step, pause));
        scope.spawn(|| receive(&near, to_guest, step, pause));
    });
}

#[test]
fn streams_of_every_size_arrive_both_ways() {
    let rig = Rig::open();
    let large = if std::env::var_os("OPENSHELL_NET_LONG").is_some() { 1 << 30 } else { 24 << 20 };
    for len in [0, 1, 2, 1447, 1448, 1449, 65_535, 65_536, 65_537, 1 << 20, large] {
        carry(&rig, len, 0, 128 << 10, Duration::ZERO);
        carry(&rig, 0, len, 128 << 10, Duration::ZERO);
        carry(&rig, len, len / 2, 128 << 10, Duration::ZERO);
    }
    rig.end();
}

#[test]
fn slow_readers_slow_the_sender_and_lose_nothing() {
    let rig = Rig::open();
    let pause = Duration::from_millis(4);
    std::thread::scope(|scope| {
        scope.spawn(|| carry(&rig, 6 << 20, 0, 16 << 10, pause));
        scope.spawn(|| carry(&rig, 0, 6 << 20, 16 << 10, pause));
        scope.spawn(|| carry(&rig, 2 << 20, 2 << 20, 7_001, pause));
    });
    let said = rig.end();
    assert_eq!(Rig::counter(&said, "tcp_resets_sent"), 0, "{said}");
}

#[test]
fn streams_arrive_without_offloads_too() {
    let rig = Rig::with(&["--allow", "host", "--no-offloads"]);
    for len in [1, 1 << 20, 8 << 20] {
        carry(&rig, len, len, 64 << 10, Duration::ZERO);
    }
    rig.end();
}

#[test]
fn a_reader_that_stops_for_a_while_gets_all_of_it() {
    let rig = Rig::open();
    let (near, far) = rig.pair();
    let len = 16 << 20;
    std::thread::scope(|scope| {
        scope.spawn(|| send(&near, len));
        scope.spawn(|| send(&far, len));
        // Long enough for every buffer between them to be full, and for probes of a closed window.
        std::thread::sleep(Duration::from_secs(3));
        scope.spawn(|| receive(&far, len, 1 << 20, Duration::ZERO));
        scope.spawn(|| receive(&near, len, 1 << 20, Duration::ZERO));
    });
    rig.end();
}

#[test]
fn streams_arrive_with_every_congestion_control_on_either_side() {
    let known = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control");
    let rig = Rig::open();
    let known = known.unwrap();
    let known: Vec<&str> = known.split_ascii_whitespace().collect();
    // In a namespace of its own a user may choose only among those that are allowed to all.
    let choose = |namespace: &Namespace, name: &str| {
        let setting = format!("-qw net.ipv4.tcp_congestion_control={name}");
        namespace.run("sysctl", &setting).is_ok()
    };
    let mut pairs = 0;
    for host in &known {
        for guest in &known {
            if choose(&rig.host, host) && choose(&rig.guest, guest) {
                carry(&rig, 8 << 20, 8 << 20, 128 << 10, Duration::ZERO);
                pairs += 1;
            }
        }
    }
    assert!(pairs > 0, "{known:?}");
    rig.end();
}
