//! What a guest reaches by default, and what rules change.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::names::{Resolver, dig};
use crate::rig::{DEADLINE, GATEWAY, HOST, Rig, WORLD};

/// Whether a connection from the guest to this address and port stands.
fn reaches(rig: &Rig, to: impl Into<SocketAddr>) -> bool {
    match rig.connect(to.into()) {
        Ok(_) => true,
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::TimedOut, "refusals are told at once");
            false
        }
    }
}

fn host_listener(rig: &Rig, at: &str) -> TcpListener {
    rig.host.inside(|| TcpListener::bind(at)).unwrap()
}

#[test]
fn by_default_the_world_is_open_and_the_host_is_not() {
    let rig = Rig::with(&[]);
    let world = rig.world.inside(|| TcpListener::bind((WORLD, 80))).unwrap();
    let private = rig.world.inside(|| {
        for words in ["10.9.9.9/32", "169.254.169.254/32", "100.100.100.200/32"] {
            rig.world.ip(&format!("addr add {words} dev down0")).unwrap();
        }
        TcpListener::bind("0.0.0.0:81").unwrap()
    });
    let loopback = host_listener(&rig, "127.0.0.1:82");
    let everywhere = host_listener(&rig, "0.0.0.0:83");
    assert!(reaches(&rig, (WORLD, 80)));
    assert!(reaches(&rig, (WORLD, 81)));
    for address in [[10, 9, 9, 9], [169, 254, 169, 254], [100, 100, 100, 200]] {
        assert!(!reaches(&rig, (Ipv4Addr::from(address), 81)), "{address:?}");
    }
    for (address, port) in [
        (HOST, 82),
        (HOST, 83),
        // An address of the host's own, told by the kernel.
        (Ipv4Addr::new(8, 51, 100, 2), 83),
    ] {
        assert!(!reaches(&rig, (address, port)), "{address}:{port}");
    }
    // An address that the host gets later.
    assert!(!reaches(&rig, (Ipv4Addr::new(8, 51, 100, 3), 83)));
    rig.host.ip("addr add 8.51.100.3/24 dev up0").unwrap();
    crate::rig::eventually("the new address", || {
        (!reaches(&rig, (Ipv4Addr::new(8, 51, 100, 3), 83))).then_some(())
    });
    drop((world, private, loopback, everywhere));
    rig.end();
}

/// Addresses of every class that the host's kernel sends out by a tap, each by TCP, UDP, echo and as the answer to a lookup.
#[test]
fn every_class_of_addresses_is_closed_to_all_protocols_alike() {
    let rig = Rig::with(&[]);
    let _resolver = Resolver::start(&rig, "127.0.0.1", Ipv4Addr::UNSPECIFIED);
    let world = rig.world.inside(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    let everywhere = host_listener(&rig, "0.0.0.0:80");
    let closed = [
        ("private", "10.0.0.1"),
        ("private", "100.64.0.1"),
        ("private", "172.31.255.255"),
        ("private", "192.168.0.1"),
        ("metadata", "169.254.169.254"),
        ("metadata", "100.100.100.200"),
        ("metadata", "168.63.129.16"),
        ("metadata", "192.0.0.192"),
        ("host", "192.168.127.254"),
        ("host", "8.51.100.2"),
        ("special", "198.18.0.1"),
        ("special", "203.0.113.1"),
        ("special", "240.0.0.1"),
    ];
    for (class, address) in closed {
        let address: Ipv4Addr = address.parse().unwrap();
        let tried = rig.connect((address, 80).into());
        assert_eq!(
            tried.unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "TCP {class} {address}"
        );
        assert_eq!(udp_hears(&rig, address), ErrorKind::HostUnreachable, "UDP {class} {address}");
        let said = ping(&rig, address);
        assert!(said.contains("From 192.168.127.1 icmp_seq=1 Packet filtered"), "{class} {said}");
        let said = dig(&rig, &format!("at{:08x}.example", u32::from(address)));
        assert!(said.contains("NOERROR") && said.contains("ANSWER: 0"), "{class} {said}");
    }
    assert!(reaches(&rig, (WORLD, 80)));
    assert_eq!(udp_hears(&rig, WORLD), ErrorKind::ConnectionRefused, "nobody listens there");
    assert!(ping(&rig, WORLD).contains("1 received"));
    let said = dig(&rig, &format!("at{:08x}.example", u32::from(WORLD)));
    assert!(said.contains(&format!("\t{WORLD}\n")), "{said}");
    drop((world, everywhere));
    let said = rig.end();
    for class in ["private", "metadata", "host", "special"] {
        let count = closed.iter().filter(|(of, _)| *of == class).count();
        let counted = Rig::counter(&said, &format!("denied_{class}"));
        assert!(counted >= 4 * count as u64, "{class}: {said}");
    }
}

/// What a datagram to this address comes to.
fn udp_hears(rig: &Rig, address: Ipv4Addr) -> ErrorKind {
    let client = rig.guest.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.connect((address, 80)).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send(b"x").unwrap();
    client.recv(&mut [0; 8]).unwrap_err().kind()
}

fn ping(rig: &Rig, address: Ipv4Addr) -> String {
    let mut ping = rig.guest.command("ping");
    let words = ["-n", "-c", "1", "-W", "10", &address.to_string()];
    String::from_utf8(ping.args(words).output().unwrap().stdout).unwrap()
}

#[test]
fn rules_open_and_close_by_address_and_port() {
    let rig = Rig::with(&["--allow", "tcp:host:82", "--deny", "8.51.100.9:80"]);
    let world = rig.world.inside(|| TcpListener::bind((WORLD, 80))).unwrap();
    let other = rig.world.inside(|| TcpListener::bind((WORLD, 81))).unwrap();
    let open = host_listener(&rig, "127.0.0.1:82");
    let closed = host_listener(&rig, "127.0.0.1:83");
    assert!(reaches(&rig, (HOST, 82)) && !reaches(&rig, (HOST, 83)));
    assert!(reaches(&rig, (WORLD, 81)) && !reaches(&rig, (WORLD, 80)));
    drop((world, other, open, closed));
    rig.end();
}

/// What a client hears of a destination that the policy denies, under each way to refuse, and after a change of the file.
#[test]
fn refusals_are_told_as_the_user_wants() {
    let denied: SocketAddr = ([10, 9, 9, 9], 80).into();
    let heard = |rig: &Rig| {
        let patience = Duration::from_millis(700);
        let tried = rig.guest.inside(|| TcpStream::connect_timeout(&denied, patience));
        tried.unwrap_err().kind()
    };
    for (how, want) in [
        ("reset", ErrorKind::ConnectionRefused),
        ("icmp", ErrorKind::HostUnreachable),
        ("drop", ErrorKind::TimedOut),
    ] {
        let rig = Rig::with(&["--net-refuse", how]);
        assert_eq!(heard(&rig), want, "{how}");
        // What is not refused by the policy says so in any case.
        let to_gateway = rig.connect((GATEWAY, 80).into()).unwrap_err().kind();
        assert_eq!(to_gateway, ErrorKind::ConnectionRefused, "{how}");
        let client = rig.guest.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        client.connect(denied).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        client.send(b"x").unwrap();
        let kind = client.recv(&mut [0; 8]).unwrap_err().kind();
        let silent = kind == ErrorKind::WouldBlock;
        assert_eq!(silent, how == "drop", "{how}: {kind:?}");
        let said = rig.end();
        assert!(Rig::counter(&said, "denied_private") >= 2, "{said}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.toml");
    std::fs::write(&file, "refuse = \"drop\"").unwrap();
    let rig = Rig::with(&["--net-policy", file.to_str().unwrap()]);
    assert_eq!(heard(&rig), ErrorKind::TimedOut);
    std::fs::write(&file, "refuse = \"icmp\"").unwrap();
    crate::rig::eventually("the new way", || {
        (heard(&rig) == ErrorKind::HostUnreachable).then_some(())
    });
    rig.end();
}

#[test]
fn datagrams_to_what_is_denied_arrive_nowhere() {
    let rig = Rig::with(&[]);
    let server = rig.host.inside(|| UdpSocket::bind("0.0.0.0:84")).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let client = rig.guest.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    for address in [HOST, Ipv4Addr::new(8, 51, 100, 2)] {
        for _ in 0..3 {
            // An ICMP error of the one before may come back here.
            client.send_to(b"x", (address, 84)).ok();
        }
    }
    assert_eq!(server.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let said = rig.end();
    assert_eq!(Rig::counter(&said, "udp_opened"), 0, "{said}");
    assert!(Rig::counter(&said, "icmp_errors_sent") > 0, "and the guest is told: {said}");
}

#[test]
fn frames_of_another_address_are_ignored() {
    let rig = Rig::open();
    let (listener, at) = rig.listen();
    rig.connect(at).unwrap();
    listener.accept().unwrap();
    rig.guest.ip("addr add 192.168.127.77/24 dev tap0").unwrap();
    let spoofed = rig.guest.inside(|| UdpSocket::bind("192.168.127.77:0")).unwrap();
    spoofed.connect((HOST, 9)).unwrap();
    for _ in 0..5 {
        spoofed.send(b"x").unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    let said = rig.end();
    assert!(Rig::counter(&said, "spoofed") >= 5, "{said}");
}
