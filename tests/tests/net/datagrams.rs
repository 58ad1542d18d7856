//! UDP and ICMP: datagrams of every size, both ways, published ports, errors, echo.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::rig::{DEADLINE, GATEWAY, HOST, Rig, WORLD, eventually, output};

fn socket(inside: &openshell_tests::netns::Namespace, at: &str) -> UdpSocket {
    let socket = inside.inside(|| UdpSocket::bind(at)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

#[test]
fn datagrams_of_every_size_arrive_and_are_answered() {
    let rig = Rig::open();
    let server = socket(&rig.host, "127.0.0.1:0");
    let client = socket(&rig.guest, "0.0.0.0:0");
    client.connect((HOST, server.local_addr().unwrap().port())).unwrap();
    let mut bytes = vec![0; 1 << 16];
    for len in [0, 1, 2, 511, 1471, 1472, 1473, 4096, 9000, 32_768, 65_507] {
        let sent: Vec<u8> = (0..len).map(|at: usize| at.to_le_bytes()[0]).collect();
        client.send(&sent).unwrap();
        let (count, from) = server.recv_from(&mut bytes).unwrap();
        assert!(bytes[..count] == sent, "{len} bytes to the host");
        server.send_to(&sent, from).unwrap();
        let count = client.recv(&mut bytes).unwrap();
        assert!(bytes[..count] == sent, "{len} bytes to the guest");
    }
    rig.end();
}

#[test]
fn a_burst_of_datagrams_keeps_its_order_and_bounds() {
    let rig = Rig::open();
    let server = socket(&rig.host, "127.0.0.1:0");
    let client = socket(&rig.guest, "0.0.0.0:0");
    client.connect((HOST, server.local_addr().unwrap().port())).unwrap();
    let mut bytes = [0; 2048];
    client.send(b"hello").unwrap();
    let (_, guest) = server.recv_from(&mut bytes).unwrap();
    for round in 0..20_u8 {
        let lens: Vec<usize> =
            (0..24).map(|at| 200 + (at * 37 + usize::from(round)) % 800).collect();
        for (number, &len) in (0..).zip(&lens) {
            let mut datagram = vec![round; len];
            datagram[0] = number;
            server.send_to(&datagram, guest).unwrap();
        }
        for (number, &len) in (0_u8..).zip(&lens) {
            let count = client.recv(&mut bytes).unwrap();
            assert_eq!((count, bytes[0], bytes[count - 1]), (len, number, round));
        }
    }
    rig.end();
}

#[test]
fn flows_that_send_at_once_keep_their_datagrams_apart() {
    let rig = Rig::open();
    let server = socket(&rig.host, "127.0.0.1:0");
    let clients = [(); 5].map(|()| socket(&rig.guest, "0.0.0.0:0"));
    for client in &clients {
        client.connect((HOST, server.local_addr().unwrap().port())).unwrap();
    }
    // The guest's kernel may send what waited for the gateway's hardware address behind what came later.
    let mut bytes = [0; 2048];
    for client in &clients {
        client.send(b"hello").unwrap();
        server.recv_from(&mut bytes).unwrap();
    }
    // Runs of equal ones, of shorter and of longer ones, and empty ones among them.
    let len = |at: usize| [1200, 1200, 1200, 700, 1200, 0, 1400, 1400, 3][at % 9];
    for round in 0..40_usize {
        let mut sent = [0; 5];
        for at in 0..12 {
            for (number, client) in clients.iter().enumerate() {
                let mut datagram = vec![0; len(at + number + round)];
                let tag = [number, at].map(|byte| byte.to_le_bytes()[0]);
                let count = tag.len().min(datagram.len());
                datagram[..count].copy_from_slice(&tag[..count]);
                client.send(&datagram).unwrap();
            }
        }
        let mut ports = std::collections::BTreeMap::new();
        for _ in 0..12 * clients.len() {
            let (count, from) = server.recv_from(&mut bytes).unwrap();
            let next = ports.len();
            let known = *ports.entry(from).or_insert(next);
            let at = sent[known];
            sent[known] += 1;
            if count >= 2 {
                let number = usize::from(bytes[0]);
                assert_eq!((usize::from(bytes[1]), count), (at, len(at + number + round)));
            }
        }
        assert_eq!(sent, [12; 5], "round {round}");
    }
    let said = rig.end();
    assert_eq!(Rig::counter(&said, "datagrams_unsent"), 0, "{said}");
}

#[test]
fn a_port_that_nobody_serves_is_told_and_costs_nothing() {
    let rig = Rig::open();
    let free = socket(&rig.host, "127.0.0.1:0").local_addr().unwrap().port();
    let client = socket(&rig.guest, "0.0.0.0:0");
    client.connect((HOST, free)).unwrap();
    let refused = eventually("an ICMP error", || {
        client.send(b"x").ok();
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        client.recv(&mut [0; 8]).err().filter(|error| error.kind() != ErrorKind::WouldBlock)
    });
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let used = cpu_ticks(rig.pid());
    std::thread::sleep(Duration::from_secs(1));
    let spent = cpu_ticks(rig.pid()) - used;
    assert!(spent < 20, "an error that is read without end: {spent} ticks in a second");
    rig.end();
}

/// Processor time of the process, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_published_port_serves_every_sender() {
    let rig = Rig::with(&["--publish", "15353:53/udp"]);
    let server = socket(&rig.guest, "0.0.0.0:53");
    let clients = [(); 3].map(|()| socket(&rig.host, "127.0.0.1:0"));
    let at: SocketAddr = "127.0.0.1:15353".parse().unwrap();
    let mut bytes = [0; 64];
    for round in 0..3_u8 {
        for (number, client) in (0..).zip(&clients) {
            client.send_to(&[round, number], at).unwrap();
            let (count, from) = server.recv_from(&mut bytes).unwrap();
            assert_eq!(bytes[..count], [round, number]);
            assert!(!from.ip().is_loopback(), "{from}");
            server.send_to(&[number, round], from).unwrap();
            let (count, from) = client.recv_from(&mut bytes).unwrap();
            assert_eq!((&bytes[..count], from), (&[number, round][..], at));
        }
    }
    rig.end();
}

#[test]
fn echo_requests_are_answered_by_whom_they_reach() {
    let rig = Rig::with(&["--allow", "host"]);
    for (address, size) in [(GATEWAY, 56), (GATEWAY, 1400), (HOST, 56), (WORLD, 56), (WORLD, 1400)]
    {
        let size = size.to_string();
        let mut ping = rig.guest.command("ping");
        let said = output(
            ping.args(["-n", "-c", "3", "-i", "0.2", "-W", "10", "-s", &size])
                .arg(address.to_string()),
        );
        assert!(said.contains("3 received") && !said.contains("DUP"), "{said}");
    }
    for (hops, to, told) in [("1", WORLD, true), ("2", WORLD, false), ("1", HOST, false)] {
        let mut ping = rig.guest.command("ping");
        let words = ["-n", "-c", "1", "-W", "10", "-t", hops, &to.to_string()];
        let said = ping.args(words).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        assert_eq!(
            said.contains("From 192.168.127.1 icmp_seq=1 Time to live exceeded"),
            told,
            "{said}"
        );
    }
    let mut ping = rig.guest.command("ping");
    let silent = ping.args(["-n", "-c", "1", "-W", "1", "8.51.100.77"]).output().unwrap();
    assert!(!silent.status.success(), "nobody has this address, so that nobody answers");
    rig.end();
}
