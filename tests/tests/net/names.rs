//! Names and leases: what `dig` and a DHCP client are told, with a resolver of the test's own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};

use crate::rig::{Rig, eventually, output};

/// A resolver that knows `known.example`, `large.example` by TCP only, and the address in names such as `at0a000001.example`.
pub(crate) struct Resolver {
    asked: Arc<AtomicU64>,
    _threads: [JoinHandle<()>; 2],
}

impl Resolver {
    pub(crate) fn start(rig: &Rig, at: &'static str, answer: Ipv4Addr) -> Self {
        let asked = Arc::new(AtomicU64::new(0));
        let udp = rig.host.inside(|| UdpSocket::bind((at, 53))).unwrap();
        let tcp = rig.host.inside(|| TcpListener::bind((at, 53))).unwrap();
        let count = Arc::clone(&asked);
        let by_udp = Builder::new().spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((len, from)) = udp.recv_from(&mut bytes) {
                count.fetch_add(1, Ordering::SeqCst);
                udp.send_to(&reply(&bytes[..len], answer, false), from).ok();
            }
        });
        let by_tcp = Builder::new().spawn(move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                let mut len = [0; 2];
                while stream.read_exact(&mut len).is_ok() {
                    let mut query = vec![0; u16::from_be_bytes(len).into()];
                    stream.read_exact(&mut query).unwrap();
                    let reply = reply(&query, answer, true);
                    let len = u16::try_from(reply.len()).unwrap();
                    stream.write_all(&[&len.to_be_bytes()[..], &reply].concat()).unwrap();
                }
            }
        });
        Self { asked, _threads: [by_udp.unwrap(), by_tcp.unwrap()] }
    }
}

/// Header and question of the query, and an answer by its name.
fn reply(query: &[u8], answer: Ipv4Addr, by_tcp: bool) -> Vec<u8> {
    let question_len = query[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
    let question = &query[12..12 + question_len];
    let mut reply = query[..12 + question_len].to_vec();
    let has = |label: &[u8]| query.windows(label.len()).any(|part| part == label);
    reply[2] |= 0x80;
    reply[3] = 0x80;
    reply[6..12].fill(0);
    let written = question.strip_prefix(b"\x0aat").and_then(|rest| rest.get(..8));
    let written = written.and_then(|hex| u32::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
    let answer = written.map_or(answer, Ipv4Addr::from);
    if has(b"\x05large") && !by_tcp {
        reply[2] |= 2;
    } else if written.is_some() || has(b"\x05known") || has(b"\x05large") {
        reply[7] = 1;
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0x2c, 0, 4]);
        reply.extend_from_slice(&answer.octets());
    } else if has(b"\x06broken") {
        reply[3] |= 2;
    } else {
        reply[3] |= 3;
    }
    reply
}

pub(crate) fn dig(rig: &Rig, words: &str) -> String {
    let mut dig = rig.guest.command("dig");
    let words = words.split(' ');
    output(dig.args(["@192.168.127.1", "+tries=2", "+time=10", "+noedns"]).args(words))
}

#[test]
fn names_are_resolved_by_the_hosts_resolver_as_it_says() {
    let rig = Rig::open();
    let resolver = Resolver::start(&rig, "127.0.0.1", Ipv4Addr::new(8, 1, 2, 3));
    for words in ["known.example", "known.example +tcp", "large.example"] {
        let said = dig(&rig, words);
        assert!(said.contains("status: NOERROR"), "{said}");
        let line = said.lines().find(|line| line.contains("\tIN\tA\t")).unwrap();
        assert!(line.contains("300") && line.ends_with("8.1.2.3"), "{line}");
    }
    assert!(dig(&rig, "nothing.example").contains("status: NXDOMAIN"));
    assert!(dig(&rig, "broken.example").contains("status: SERVFAIL"));
    let asked = resolver.asked.load(Ordering::SeqCst);
    for (name, address) in [
        ("host.openshell.internal", "192.168.127.254"),
        ("host.containers.internal", "192.168.127.254"),
        ("HOST.docker.INTERNAL", "192.168.127.254"),
        ("gateway.containers.internal", "192.168.127.1"),
    ] {
        let said = dig(&rig, &format!("{name} A"));
        assert!(said.contains("NOERROR") && said.contains(&format!("\t{address}\n")), "{said}");
        let said = dig(&rig, &format!("{name} AAAA"));
        assert!(said.contains("NOERROR") && said.contains("ANSWER: 0"), "{said}");
    }
    assert_eq!(resolver.asked.load(Ordering::SeqCst), asked, "those are known without asking");
    rig.end();
}

#[test]
fn a_change_of_the_hosts_resolvers_is_followed() {
    let rig = Rig::open();
    let _first = Resolver::start(&rig, "127.0.0.1", Ipv4Addr::new(8, 0, 0, 1));
    let _second = Resolver::start(&rig, "127.0.0.2", Ipv4Addr::new(8, 0, 0, 2));
    assert!(dig(&rig, "known.example").contains("\t8.0.0.1\n"));
    let file = rig.path("resolv.conf");
    let answers = |want: &str| {
        eventually(want, || dig(&rig, "known.example").contains(want).then_some(()));
    };
    // As an editor writes it, and as programs that replace it do.
    std::fs::write(&file, "nameserver 127.0.0.2\n").unwrap();
    answers("\t8.0.0.2\n");
    std::fs::write(rig.path("new"), "nameserver 127.0.0.1\n").unwrap();
    std::fs::rename(rig.path("new"), &file).unwrap();
    answers("\t8.0.0.1\n");
    std::fs::remove_file(&file).unwrap();
    answers("SERVFAIL");
    std::fs::write(&file, "nameserver 127.0.0.2\n").unwrap();
    answers("\t8.0.0.2\n");
    rig.end();
}

#[test]
fn a_guest_is_told_its_address_by_dhcp() {
    let rig = Rig::open();
    rig.guest.ip("addr flush dev tap0").unwrap();
    let script = rig.path("script");
    std::fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] && env\nexit 0\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).unwrap();
    for _ in 0..2 {
        let mut client = rig.guest.command("busybox");
        client.args(["udhcpc", "-i", "tap0", "-n", "-q", "-f", "-t", "10", "-s"]).arg(&script);
        let said = output(&mut client);
        for line in [
            "ip=192.168.127.2",
            "router=192.168.127.1",
            "dns=192.168.127.1",
            "subnet=255.255.255.0",
            "serverid=192.168.127.1",
        ] {
            assert!(said.lines().any(|found| found == line), "{line}\n{said}");
        }
    }
    rig.end();
}
