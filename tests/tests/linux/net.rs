//! The network of an ordinary guest: its lease, names, transfers through the host's sockets, the policy, published ports.

use std::io::Write as _;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::Builder;
use std::time::Duration;

use openshell_tests::machine::{Finished, fixture};
use openshell_tests::streams::{exchange, of_tcp, receive_pattern, send_pattern};

use crate::guest::Guest;

/// The pattern of one-way transfers, as the guest's program knows it.
const SEED: u64 = 77;
const PATIENCE: Duration = Duration::from_mins(3);

/// Brings the card up and asks for a lease, which is printed.
const LEASE: &str = r#"cat >/tmp/lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add $ip/$mask dev $interface
ip link set mtu ${mtu:-1500} dev $interface
ip route add default via $router
echo "lease: $ip/$mask via $router dns $dns mtu $mtu for $lease"
END
chmod +x /tmp/lease
ip link set eth0 up
udhcpc -i eth0 -f -n -q -t 5 -T 2 -s /tmp/lease 2>/dev/null
"#;

const HOST: &str = "192.168.127.254";

/// Bytes of a large transfer.
const LARGE: u64 = 256 << 20;
/// For a guest that makes two of them, in a lab with one emulated processor on a busy host.
const LARGE_DEADLINE: Duration = Duration::from_mins(8);

/// A guest with its lease that runs `script`, under the policy that `allow` adds to the usual one.
fn guest(script: &str, allow: &[String]) -> Guest {
    let guest = Guest::running(&format!("{LEASE}{script}"));
    allow.iter().fold(guest, |guest, rule| guest.option("--allow", rule))
}

fn host_port(address: SocketAddr) -> String {
    format!("host:{}", address.port())
}

#[track_caller]
fn said(finished: &Finished, what: &str) {
    assert!(finished.text().contains(what), "no {what:?}: {finished}");
}

/// Serves `count` connections to a listener on the host's loopback, each on a thread of its own.
fn serve(count: usize, serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let accept = move || {
        for stream in listener.incoming().take(count) {
            let stream = stream.unwrap();
            Builder::new().name("serve".to_owned()).spawn(move || serve(stream)).unwrap();
        }
    };
    Builder::new().name("accept".to_owned()).spawn(accept).unwrap();
    address
}

#[expect(clippy::needless_pass_by_value, reason = "the thread that serves it owns it")]
fn echo(stream: TcpStream) {
    std::io::copy(&mut &stream, &mut &stream).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}

fn download(stream: TcpStream) {
    send_pattern(&of_tcp(stream), SEED, LARGE).unwrap();
}

fn upload(stream: TcpStream) {
    let stream = of_tcp(stream);
    let result = receive_pattern(&stream, SEED, LARGE);
    let answer = result.map_or_else(|error| format!("{error:#}"), |()| "right".to_owned());
    (&stream).write_all(answer.as_bytes()).unwrap();
}

fn datagrams() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    let serve = move || {
        let mut bytes = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(&bytes[..len], from).unwrap();
        }
    };
    Builder::new().name("datagrams".to_owned()).spawn(serve).unwrap();
    address
}

/// Everything an ordinary guest does, on one kernel.
fn everyday(kernel: fn(Guest) -> Guest) {
    let (down, up, echoed) = (serve(1, download), serve(1, upload), serve(8, echo));
    let datagrams = datagrams();
    let bytes = LARGE;
    let script = format!(
        "ping -c 1 -W 10 192.168.127.1 | grep 'bytes from'
        ping -c 1 -W 10 {HOST} | grep 'bytes from'
        for name in host.openshell.internal host.containers.internal host.docker.internal gateway.containers.internal; do
            nslookup -type=a $name 192.168.127.1 | sed -n 's/^Address: /'$name' is /p'
        done
        guest-probe tcp-get {HOST}:{} {bytes}
        guest-probe tcp-put {HOST}:{} {bytes}
        guest-probe tcp-exchange {HOST}:{} 8 100000
        guest-probe udp-exchange {HOST}:{} 20 1400
        guest-probe udp-exchange {HOST}:{} 3 8000
        awk '/^TcpExt:/ {{ if (known) for (i = 2; i <= NF; i++) if (name[i] == \"TCPFastRetrans\") print \"taken for lost: \" $i
            known = split($0, name) }}' /proc/net/netstat
        awk '/^Tcp: [0-9]/ {{print \"sent again: \" $13}}' /proc/net/snmp",
        down.port(),
        up.port(),
        echoed.port(),
        datagrams.port(),
        datagrams.port(),
    );
    let mut allow: Vec<_> = [down, up, echoed].map(host_port).into();
    allow.extend([host_port(datagrams), "icmp:host".to_owned()]);
    let guest = guest(&script, &allow).deadline(LARGE_DEADLINE);
    let finished = kernel(guest).finish();
    said(&finished, "lease: 192.168.127.2/24 via 192.168.127.1 dns 192.168.127.1 mtu 1500 for ");
    said(&finished, "bytes from 192.168.127.1:");
    said(&finished, "bytes from 192.168.127.254:");
    for name in ["host.openshell", "host.containers", "host.docker"] {
        said(&finished, &format!("{name}.internal is 192.168.127.254"));
    }
    said(&finished, "gateway.containers.internal is 192.168.127.1");
    said(&finished, &format!("downloaded {bytes} bytes"));
    said(&finished, &format!("uploaded {bytes} bytes"));
    said(&finished, "exchanged 100000 bytes on each of 8 connections");
    said(&finished, "exchanged 20 datagrams of 1400 bytes");
    said(&finished, "exchanged 3 datagrams of 8000 bytes");
    // What a guest sends again by its clock says how long the host let it wait; what it takes for lost was lost.
    said(&finished, "taken for lost: 0\r");
    let text = finished.text();
    let (_, again) = text.split_once("sent again: ").unwrap();
    let again: u32 = again.split('\r').next().unwrap().parse().unwrap();
    assert!(again < 10, "{finished}");
}

fn distribution(guest: Guest) -> Guest {
    guest.kernel("distribution-vmlinuz").option("--initrd", fixture("distribution-initrd"))
}

#[test]
fn a_guest_uses_its_network() {
    everyday(|guest| guest);
}

#[test]
fn the_distributions_kernel_uses_its_network() {
    everyday(distribution);
}

/// A guest without any offload sends and takes packets as on a wire.
#[test]
fn a_card_without_offloads_does_the_same_slowly() {
    let echoed = serve(4, echo);
    let script = format!("guest-probe tcp-exchange {HOST}:{} 4 300000", echoed.port());
    let without = "csum,guest_csum,mrg_rxbuf,event_idx,indirect_desc,ctrl_vq";
    let finished = guest(&script, &[host_port(echoed)]).option("--net-without", without).finish();
    said(&finished, "exchanged 300000 bytes on each of 4 connections");
}

/// Without a rule nothing of the host is reached, and the refusal comes at once.
#[test]
fn the_host_is_closed_unless_a_port_is_opened() {
    host_is_closed(|guest| guest);
}

#[test]
fn the_host_is_closed_to_the_distributions_kernel() {
    host_is_closed(distribution);
}

fn host_is_closed(kernel: fn(Guest) -> Guest) {
    let (open, closed) = (serve(1, echo), serve(1, echo));
    let script = format!(
        "guest-probe tcp-exchange {HOST}:{} 1 1000
        for to in {HOST}:{closed} 192.168.127.1:80 192.168.127.1:22 169.254.169.254:80 127.0.0.2:{closed} 10.0.0.1:80; do
            [ $to = 127.0.0.2:{closed} ] || guest-probe tcp-refused $to
        done
        ! ping -c 1 -W 2 {HOST}",
        open.port(),
        closed = closed.port(),
    );
    let finished = kernel(guest(&script, &[host_port(open)])).finish();
    said(&finished, "exchanged 1000 bytes on each of 1 connections");
    for refused in [format!("{HOST}:{}", closed.port()), "169.254.169.254:80".to_owned()] {
        said(&finished, &format!("{refused} refused"));
    }
}

#[test]
fn a_published_port_leads_to_the_guest() {
    published(|guest| guest);
}

#[test]
fn a_published_port_leads_to_the_distributions_kernel() {
    published(distribution);
}

fn published(kernel: fn(Guest) -> Guest) {
    let free = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap()
    };
    let (tcp, udp) = (free(), free());
    let script = "guest-probe udp-serve 7001 5 &
        guest-probe tcp-serve 7000 4
        wait";
    let guest = kernel(guest(script, &[]))
        .option("--publish", format!("{}:7000", tcp.port()))
        .option("--publish", format!("{}:7001/udp", udp.port()));
    let (running, _directory) = guest.start();
    running.wait_for("probe: listening on 7000");
    running.wait_for("probe: listening on 7001");
    for number in 0..4 {
        let stream = TcpStream::connect(tcp).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        exchange(&of_tcp(stream), number, 200_000).unwrap();
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(udp).unwrap();
    for number in 0..5_u8 {
        socket.send(&[number; 700]).unwrap();
        let mut bytes = [0; 1000];
        assert_eq!(socket.recv(&mut bytes).unwrap(), 700);
        assert_eq!(bytes[..700], [number; 700]);
    }
    let finished = running.wait().expect_code(0);
    said(&finished, "served 4 connections");
    said(&finished, "served 5 datagrams");
}
