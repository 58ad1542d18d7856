//! The host under the stack: its network goes and comes, its ports are taken, its other links.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use openshell_tests::machine::fixture;

use crate::rig::{Beside, DEADLINE, Rig, WORLD, eventually, output};

#[test]
fn a_network_that_comes_back_is_used_at_once() {
    let rig = Rig::with(&[]);
    let listener = rig.world.inside(|| TcpListener::bind((WORLD, 80))).unwrap();
    let at: SocketAddr = (WORLD, 80).into();
    let mut standing = rig.connect(at).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    rig.host.ip("link set up0 down").unwrap();
    assert!(rig.connect(at).is_err(), "there is no way");
    standing.write_all(b"kept").unwrap();
    rig.host.ip("link set up0 up").unwrap();
    rig.host.ip("route replace default via 8.51.100.1").unwrap();
    let begin = Instant::now();
    eventually("a new connection", || rig.connect(at).ok());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let mut bytes = [0; 4];
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"kept");
    rig.end();
}

#[test]
fn a_port_in_use_names_its_holder_and_nothing_is_started() {
    let rig = Rig::open();
    let held = rig.host.inside(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = held.local_addr().unwrap().port();
    let mut command = rig.host.command(fixture("openshell-vmm").to_str().unwrap());
    let output = command
        .args(["net", "--tap", "tap9", "--publish", &format!("{port}:80")])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let want =
        format!("error: port {port} of 127.0.0.1 is in use by process {}", std::process::id());
    assert!(said.starts_with(&want), "{said}");
    assert!(said.contains("publish another port"), "{said}");
    rig.end();
}

#[test]
fn counters_are_printed_when_asked_for() {
    let mut rig = Rig::open();
    let (mut near, mut far) = rig.pair();
    // What it has passed on it has counted before.
    near.write_all(b"x").unwrap();
    far.read_exact(&mut [0]).unwrap();
    openshell_tests::signal(rig.pid(), libc::SIGUSR1).unwrap();
    rig.wait_for("tcp_established 1");
    rig.end();
}

#[test]
fn frames_are_captured() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.pcapng");
    let rig = Rig::with(&["--allow", "host", "--pcap", file.to_str().unwrap()]);
    let (mut near, mut far) = rig.pair();
    near.write_all(b"a mark in the capture").unwrap();
    far.read_exact(&mut [0; 21]).unwrap();
    drop((near, far));
    rig.end();
    let tshark = |words: &[&str]| {
        let mut tshark = Command::new("tshark");
        output(tshark.arg("-n").arg("-r").arg(&file).args(words))
    };
    let followed = tshark(&["-q", "-z", "follow,tcp,ascii,0"]);
    assert!(followed.contains("a mark in the capture"), "{followed}");
    let malformed = tshark(&["-Y", "_ws.malformed || tcp.analysis.lost_segment"]);
    assert!(!malformed.contains("192.168.127"), "{malformed}");
    let fields =
        ["-Y", "tcp", "-T", "fields", "-e", "ip.src", "-e", "frame.packet_flags_direction"];
    let directions = tshark(&fields);
    for (from, direction) in [("192.168.127.2", "2"), ("192.168.127.254", "1")] {
        let of_it = || directions.lines().filter_map(|line| line.split_once('\t'));
        let right = |(source, found): (&str, &str)| {
            source != from || found.trim_start_matches("0x").trim_start_matches('0') == direction
        };
        assert!(of_it().any(|(source, _)| source == from), "{directions}");
        assert!(of_it().all(right), "{directions}");
    }
}

#[test]
fn a_rate_limit_holds_and_loses_nothing() {
    let rig = Rig::with(&["--allow", "host", "--net-bw", "2M"]);
    let len = 4 << 20;
    let (near, far) = rig.pair();
    for (from, to) in [(&near, &far), (&far, &near)] {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| (&mut &*from).write_all(&vec![7; len]).unwrap());
            scope.spawn(|| {
                let mut bytes = vec![0; len];
                (&mut &*to).read_exact(&mut bytes).unwrap();
                assert!(bytes.iter().all(|&byte| byte == 7));
            });
        });
        let took = begin.elapsed();
        assert!(took > Duration::from_millis(1200), "4 MiB at 2 MiB/s took {took:?}");
    }
    rig.end();
}

/// An ARP request for the gateway in a frame with its length before it.
fn who_has_the_gateway() -> Vec<u8> {
    let guest = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
    let mut frame = vec![0, 0, 0, 42];
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&guest);
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&guest);
    frame.extend_from_slice(&[192, 168, 127, 2, 0, 0, 0, 0, 0, 0, 192, 168, 127, 1]);
    frame
}

#[test]
fn a_unix_stream_carries_frames_behind_their_length() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let mut command = Command::new(fixture("openshell-vmm"));
    let _stack = Beside::start(command.args(["net", "--dns", "192.0.2.1", "--stream"]).arg(&path));
    let mut stream = eventually("the socket", || UnixStream::connect(&path).ok());
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = who_has_the_gateway();
    let (start, rest) = request.split_at(17);
    stream.write_all(start).unwrap();
    stream.write_all(rest).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[12..14], [8, 6]);
    assert_eq!(reply[20..22], [0, 2], "a reply");
    assert_eq!(reply[22..28], [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]);
    assert_eq!(reply[28..32], [192, 168, 127, 1]);
}

#[test]
fn a_stack_without_a_resolver_says_so_and_serves_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none");
    let mut command = Command::new(fixture("openshell-vmm"));
    command
        .args(["net", "--stream"])
        .arg(directory.path().join("s"))
        .arg("--resolv-conf")
        .arg(missing);
    let mut bounded = Command::new("timeout");
    let said =
        bounded.args(["-s", "TERM", "1"]).arg(command.get_program()).args(command.get_args());
    let said = said.output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.starts_with("warning: no resolver in "), "{said}");
    assert!(said.contains("the network stack waits at"), "{said}");
}
