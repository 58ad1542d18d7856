//! How connections end: each side first, both at once, with a reset, and those that never stood.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use crate::rig::{DEADLINE, GATEWAY, Rig, WORLD, eventually};

fn say(mut to: &TcpStream, text: &str) {
    to.write_all(text.as_bytes()).unwrap();
}

fn hear(mut from: &TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    from.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, text.as_bytes());
}

fn hear_end(mut from: &TcpStream) {
    assert_eq!(from.read(&mut [0; 8]).unwrap(), 0, "the end");
}

#[test]
fn each_side_may_end_first_and_go_on_reading() {
    let rig = Rig::open();
    for round in 0..8 {
        let (near, far) = rig.pair();
        let (first, second) = if round % 2 == 0 { (&near, &far) } else { (&far, &near) };
        say(first, "question");
        if round & 2 == 0 {
            hear(second, "question");
        }
        first.shutdown(Shutdown::Write).unwrap();
        if round & 2 != 0 {
            hear(second, "question");
        }
        hear_end(second);
        for _ in 0..3 {
            say(second, "answer");
            hear(first, "answer");
        }
        second.shutdown(Shutdown::Write).unwrap();
        hear_end(first);
    }
    for _ in 0..8 {
        let (near, far) = rig.pair();
        say(&near, "a");
        say(&far, "b");
        std::thread::scope(|scope| {
            scope.spawn(|| near.shutdown(Shutdown::Write).unwrap());
            scope.spawn(|| far.shutdown(Shutdown::Write).unwrap());
        });
        hear(&far, "a");
        hear(&near, "b");
        hear_end(&near);
        hear_end(&far);
    }
    // The stack keeps nothing of them.
    openshell_tests::signal(rig.pid(), libc::SIGUSR1).unwrap();
    let said = rig.end();
    assert_eq!(Rig::counter(&said, "tcp_resets_sent"), 0, "{said}");
    assert_eq!(Rig::counter(&said, "tcp_established"), 16, "{said}");
}

fn reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    openshell_tests::netns::set_linger(stream.as_raw_fd(), linger).unwrap();
    drop(stream);
}

fn expect_reset(mut stream: &TcpStream) {
    let kind = loop {
        match stream.read(&mut [0; 4096]) {
            Ok(count) => assert_ne!(count, 0, "an orderly end"),
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(kind, ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_is_a_reset_on_the_other_side() {
    let rig = Rig::open();
    for with_data in [false, true] {
        for guest_resets in [true, false] {
            let (near, far) = rig.pair();
            let (resets, sees) = if guest_resets { (near, far) } else { (far, near) };
            if with_data {
                say(&sees, "never read");
                say(&resets, "read");
                hear(&sees, "read");
            }
            reset(resets);
            expect_reset(&sees);
        }
    }
    // After one side has ended its own half.
    for guest_resets in [true, false] {
        let (near, far) = rig.pair();
        let (resets, sees) = if guest_resets { (near, far) } else { (far, near) };
        sees.shutdown(Shutdown::Write).unwrap();
        hear_end(&resets);
        reset(resets);
        expect_reset(&sees);
    }
    rig.end();
}

#[test]
fn what_cannot_be_reached_is_told_as_it_is() {
    let rig = Rig::open();
    let refused = |to: SocketAddr| rig.connect(to).unwrap_err().kind();
    let (listener, at) = rig.listen();
    drop(listener);
    assert_eq!(refused(at), ErrorKind::ConnectionRefused, "nobody listens");
    assert_eq!(refused((WORLD, 9).into()), ErrorKind::ConnectionRefused, "nobody in the world");
    for port in [22, 80, 443] {
        assert_eq!(refused((GATEWAY, port).into()), ErrorKind::ConnectionRefused, "the gateway");
    }
    rig.host.ip("route replace unreachable 11.0.0.0/8").unwrap();
    let kind = refused(([11, 1, 1, 1], 80).into());
    assert!(matches!(kind, ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{kind:?}");
    rig.host.ip("route del default").unwrap();
    let kind = refused(([12, 1, 1, 1], 80).into());
    assert!(matches!(kind, ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{kind:?}");
    rig.end();
}

#[test]
fn an_address_and_port_can_be_used_again_at_once() {
    let rig = Rig::open();
    let (listener, at) = rig.listen();
    for _ in 0..200 {
        let near = rig.connect(at).unwrap();
        let (far, _) = listener.accept().unwrap();
        say(&near, "x");
        hear(&far, "x");
        reset(near);
    }
    rig.end();
}

#[test]
fn published_ports_lead_to_the_guest() {
    let rig = Rig::with(&["--publish", "18080:80", "--publish", "8.51.100.2:18081:80"]);
    let listener = rig.guest.inside(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    for (namespace, at) in [
        (&rig.host, "127.0.0.1:18080"),
        (&rig.world, "8.51.100.2:18081"),
        (&rig.host, "127.0.0.1:18080"),
    ] {
        let at: SocketAddr = at.parse().unwrap();
        let near = namespace.inside(|| TcpStream::connect_timeout(&at, DEADLINE)).unwrap();
        let (far, from) = listener.accept().unwrap();
        assert!(!from.ip().is_loopback(), "{from}");
        say(&near, "in");
        hear(&far, "in");
        say(&far, "out");
        hear(&near, "out");
        drop(near);
        hear_end(&far);
    }
    // Where the guest serves nothing, whoever came is told so.
    drop(listener);
    let at: SocketAddr = "127.0.0.1:18080".parse().unwrap();
    eventually("a port that the guest does not serve", || {
        let stream = rig.host.inside(|| TcpStream::connect_timeout(&at, DEADLINE)).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        (&stream).read(&mut [0; 8]).err().filter(|error| error.kind() == ErrorKind::ConnectionReset)
    });
    rig.end();
}
