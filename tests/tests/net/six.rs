//! IPv6, where it is asked for: addresses, names, connections, datagrams, echo, and the same policy.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::rig::{DEADLINE, Rig, eventually, output};
use crate::streams::{receive, send};

const NETWORK: Ipv6Addr = Ipv6Addr::new(0xfd6f, 0x7368, 0x656c, 0x6c00, 0, 0, 0, 0);
/// The stack itself.
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd6f, 0x7368, 0x656c, 0x6c00, 0, 0, 0, 1);
/// What the guest calls the host's loopback.
const HOST: Ipv6Addr = Ipv6Addr::new(0xfd6f, 0x7368, 0x656c, 0x6c00, 0, 0, 0, 0xfe);
/// An address of the world's, and one of the host's own.
const WORLD: Ipv6Addr = Ipv6Addr::new(0x2a10, 0x51, 0, 0, 0, 0, 0, 9);
const OWN: Ipv6Addr = Ipv6Addr::new(0x2a10, 0x51, 0, 0, 0, 0, 0, 2);

/// A guest that has made its address, and a world with IPv6.
fn rig(args: &[&str]) -> Rig {
    let rig = Rig::with(&[&["--ipv6"], args].concat());
    rig.host.ip(&format!("addr add {OWN}/64 dev up0 nodad")).unwrap();
    rig.world.ip(&format!("addr add {WORLD}/64 dev down0 nodad")).unwrap();
    rig.host.ip(&format!("-6 route add default via {WORLD}")).unwrap();
    eventually("an address", || (!addresses(&rig).is_empty()).then_some(()));
    rig
}

/// Those that the guest has made and may use.
fn addresses(rig: &Rig) -> Vec<Ipv6Addr> {
    let mut ip = rig.guest.command("ip");
    let said = output(ip.args([
        "-6",
        "-o",
        "addr",
        "show",
        "dev",
        "tap0",
        "scope",
        "global",
        "-tentative",
    ]));
    let address = |line: &str| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok();
    said.lines().filter_map(address).collect()
}

fn pair(rig: &Rig, listener: &TcpListener, to: Ipv6Addr) -> (TcpStream, TcpStream) {
    let near = rig.connect((to, listener.local_addr().unwrap().port()).into()).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    far.set_write_timeout(Some(DEADLINE)).unwrap();
    (near, far)
}

#[test]
fn a_guest_makes_its_address_and_finds_its_way() {
    let rig = rig(&[]);
    for address in addresses(&rig) {
        assert_eq!(address.segments()[..4], NETWORK.segments()[..4]);
    }
    let mut ip = rig.guest.command("ip");
    let routes = output(ip.args(["-6", "route", "show", "default"]));
    assert!(routes.contains("default via fe80::1 dev tap0 proto ra"), "{routes}");
    let mut dig = rig.guest.command("dig");
    let at = format!("@{GATEWAY}");
    let said = output(
        dig.args([&at, "+tries=2", "+time=10", "+noall", "+answer"]).arg("host.openshell.internal"),
    );
    assert!(said.trim_end().ends_with("192.168.127.254"), "{said}");
    rig.end();
}

#[test]
fn connections_and_datagrams_go_both_ways() {
    let rig = rig(&["--allow", "host"]);
    let near_host = rig.host.inside(|| TcpListener::bind("[::1]:0")).unwrap();
    let in_world = rig.world.inside(|| TcpListener::bind((WORLD, 0))).unwrap();
    for (listener, to) in [(&near_host, HOST), (&in_world, WORLD)] {
        for len in [1, 1 << 16, 6 << 20] {
            let (near, far) = pair(&rig, listener, to);
            std::thread::scope(|scope| {
                for (from, to) in [(&near, &far), (&far, &near)] {
                    scope.spawn(|| send(from, len));
                    scope.spawn(|| receive(to, len, 128 << 10, Duration::ZERO));
                }
            });
        }
    }
    let server = rig.host.inside(|| UdpSocket::bind("[::1]:0")).unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let client = rig.guest.inside(|| UdpSocket::bind("[::]:0")).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.connect((HOST, server.local_addr().unwrap().port())).unwrap();
    let mut bytes = vec![0; 1 << 16];
    for len in [0, 1, 1452, 1453, 9000, 60_000] {
        let sent: Vec<u8> = (0..len).map(|at: usize| at.to_le_bytes()[0]).collect();
        client.send(&sent).unwrap();
        let (count, from) = server.recv_from(&mut bytes).unwrap();
        assert!(bytes[..count] == sent, "{len} bytes to the host");
        server.send_to(&sent, from).unwrap();
        let count = client.recv(&mut bytes).unwrap();
        assert!(bytes[..count] == sent, "{len} bytes to the guest");
    }
    for to in [GATEWAY, HOST, WORLD] {
        let mut ping = rig.guest.command("ping");
        let said =
            output(ping.args(["-6", "-n", "-c", "2", "-i", "0.2", "-W", "10"]).arg(to.to_string()));
        assert!(said.contains("2 received") && !said.contains("DUP"), "{said}");
    }
    let said = rig.end();
    assert_eq!(Rig::counter(&said, "tcp_resets_sent"), 0, "{said}");
    assert_eq!(Rig::counter(&said, "malformed"), 0, "{said}");
}

#[test]
fn the_policy_is_the_same() {
    let rig = rig(&[]);
    let kind = |to: (Ipv6Addr, u16)| rig.connect(to.into()).err().map(|error| error.kind());
    let everywhere = rig.host.inside(|| TcpListener::bind("[::]:83")).unwrap();
    let world = rig.world.inside(|| TcpListener::bind((WORLD, 83))).unwrap();
    assert_eq!(kind((WORLD, 83)), None);
    let closed = ["fd00:ec2::254", "fd12:3456::1", "2001:db8::1", "64:ff9b::a9fe:a9fe"];
    let closed = closed.iter().map(|text| text.parse().unwrap());
    for to in [HOST, OWN, GATEWAY].into_iter().chain(closed) {
        assert_eq!(kind((to, 83)), Some(ErrorKind::ConnectionRefused), "{to}");
        let client = rig.guest.inside(|| UdpSocket::bind("[::]:0")).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.connect(SocketAddr::from((to, 83))).unwrap();
        client.send(b"x").unwrap();
        assert_ne!(client.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock, "{to}");
    }
    // A host without a way there says so at once.
    rig.host.ip("-6 route del default").unwrap();
    let kind = kind(("2a10:77::1".parse().unwrap(), 83));
    assert!(
        matches!(kind, Some(ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable)),
        "{kind:?}"
    );
    drop((everywhere, world));
    rig.end();
}

#[test]
fn a_guest_has_none_unless_it_is_asked_for() {
    let (without, with) = (Rig::open(), rig(&[]));
    // Whoever asks later than this one has been answered.
    assert!(addresses(&without).is_empty());
    let listener = without.host.inside(|| TcpListener::bind("[::1]:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(without.connect((HOST, port).into()).is_err());
    // Nor when the guest takes an address and a way by itself.
    without.guest.ip(&format!("addr add {NETWORK}2/64 dev tap0 nodad")).unwrap();
    let patience = Duration::from_millis(500);
    let tried = without.guest.inside(|| TcpStream::connect_timeout(&(HOST, port).into(), patience));
    assert!(tried.is_err());
    without.end();
    with.end();
}
