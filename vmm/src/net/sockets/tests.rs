//! Sockets of the host against peers of the standard library.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use openshell_usernet::Payload;
use openshell_usernet::sockets::Readiness;

use super::*;
use crate::config::net::{PublishSpec, Transport};

/// Payload of plain bytes.
struct Plain(Vec<u8>);

impl Payload for Plain {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn skip(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
    }
    fn truncate(&mut self, count: usize) {
        self.0.truncate(count);
    }
    fn copy_to(&self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.0.len());
        out[..count].copy_from_slice(&self.0[..count]);
        count
    }
}

impl Iovecs for Plain {
    fn gather<'a>(&'a self, into: &mut Gather<'a>) {
        into.bytes(&self.0);
    }
}

struct Bench {
    epoll: Arc<Epoll>,
    sockets: HostSockets,
}

impl Bench {
    fn new(bound: usize, forwards: Vec<PublishedPort>) -> Self {
        let epoll = Arc::new(Epoll::new().unwrap());
        Self { sockets: HostSockets::new(Arc::clone(&epoll), bound, 1500, forwards), epoll }
    }

    fn io(&mut self) -> &mut dyn Sockets<Plain> {
        &mut self.sockets
    }

    /// What becomes ready of `flow`, until `wanted` holds of all that was told.
    fn wait(&mut self, flow: FlowId, wanted: impl Fn(Readiness) -> bool) -> Readiness {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut told = Readiness::default();
        while !wanted(told) {
            assert!(Instant::now() < deadline, "only {told:?}");
            let mut events = [EpollEvent::default(); 8];
            let count = self.epoll.wait(100, &mut events).unwrap();
            for event in events.iter().take(count) {
                if FlowId::from_bits(event.data()) == flow {
                    let set = event.event_set();
                    told.readable |= set.intersects(EventSet::IN | EventSet::READ_HANG_UP);
                    told.writable |= set.contains(EventSet::OUT);
                    told.failed |= set.contains(EventSet::ERROR);
                }
            }
        }
        told
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

const FLOW: FlowId = FlowId::new(3, 1);

#[test]
fn a_connection_carries_bytes_both_ways_and_ends_on_each_side() {
    let mut bench = Bench::new(8, Vec::new());
    let server = listener();
    let peer = server.local_addr().unwrap();
    assert_eq!(bench.io().tcp_connect(FLOW, peer), Ok(Connect::UnderWay));
    let (mut far, _) = server.accept().unwrap();
    bench.wait(FLOW, |told| told.writable);
    assert_eq!(bench.io().take_error(FLOW), None);
    let parts = [Plain(b"one ".to_vec()), Plain(b"two".to_vec())];
    assert_eq!(bench.io().tcp_send(FLOW, &parts), Ok(7));
    bench.io().tcp_shutdown_write(FLOW);
    let mut text = String::new();
    far.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one two");
    far.write_all(b"back").unwrap();
    drop(far);
    bench.wait(FLOW, |told| told.readable);
    let (mut a, mut b) = ([0; 3], [0; 8]);
    let got = bench.io().tcp_receive(FLOW, &mut [&mut a, &mut b]);
    assert_eq!((got, &a, &b[..1]), (Ok(Received::Bytes(4)), b"bac", &b"k"[..]));
    assert_eq!(bench.io().tcp_receive(FLOW, &mut [&mut a]), Ok(Received::End));
    bench.io().close(FLOW, Close::Orderly);
    assert_eq!(bench.sockets.open_sockets(), 0);
    assert_eq!(bench.io().tcp_receive(FLOW, &mut [&mut a]), Err(HostError::Other(libc::EBADF)));
}

#[test]
fn what_a_host_refuses_is_told() {
    let mut bench = Bench::new(8, Vec::new());
    let nobody = listener().local_addr().unwrap();
    assert_eq!(bench.io().tcp_connect(FLOW, nobody), Ok(Connect::UnderWay));
    bench.wait(FLOW, |told| told.failed);
    assert_eq!(bench.io().take_error(FLOW), Some(HostError::Refused));
    assert_eq!(bench.io().take_error(FLOW), None);
}

#[test]
fn a_reset_is_seen_as_one() {
    let mut bench = Bench::new(8, Vec::new());
    let server = listener();
    bench.io().tcp_connect(FLOW, server.local_addr().unwrap()).unwrap();
    let (mut far, _) = server.accept().unwrap();
    bench.io().close(FLOW, Close::Reset);
    let error = far.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_full_socket_has_no_space_and_tells_when_it_has() {
    let mut bench = Bench::new(8, Vec::new());
    let server = listener();
    bench.io().tcp_connect(FLOW, server.local_addr().unwrap()).unwrap();
    let (mut far, _) = server.accept().unwrap();
    bench.wait(FLOW, |told| told.writable);
    let mut sent = 0;
    // As a guest that keeps to its window: the socket itself never says that it is full.
    loop {
        let space = bench.io().tcp_send_space(FLOW);
        if space == 0 {
            break;
        }
        assert_eq!(bench.io().tcp_send_bytes(FLOW, &vec![7; space]), Ok(space), "space is kept");
        sent += space;
    }
    assert!(sent > 64 << 10 && sent < 64 << 20, "{sent}");
    let reader = std::thread::Builder::new()
        .spawn(move || {
            let mut bytes = vec![0; sent];
            far.read_exact(&mut bytes).unwrap();
            far
        })
        .unwrap();
    bench.wait(FLOW, |told| told.writable);
    assert!(bench.io().tcp_send_space(FLOW) > 0);
    reader.join().unwrap();
}

#[test]
fn there_are_no_more_sockets_than_the_bound() {
    let mut bench = Bench::new(2, Vec::new());
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flows = [0, 1, 2].map(|index| FlowId::new(index, 0));
    assert_eq!(bench.io().udp_open(flows[0], peer), Ok(()));
    assert_eq!(bench.io().udp_open(flows[1], peer), Ok(()));
    assert_eq!(bench.io().udp_open(flows[2], peer), Err(HostError::NoRoom));
    assert_eq!(bench.sockets.counters().too_many, 1);
    bench.io().close(flows[0], Close::Orderly);
    assert_eq!(bench.io().udp_open(flows[2], peer), Ok(()));
    let far = FlowId::new(u32::MAX, 0);
    bench.io().close(flows[1], Close::Orderly);
    assert_eq!(bench.io().udp_open(far, peer), Err(HostError::NoRoom));
}

#[test]
fn datagrams_keep_their_bounds() {
    let mut bench = Bench::new(8, Vec::new());
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    bench.io().udp_open(FLOW, far.local_addr().unwrap()).unwrap();
    let unsent = |text: &str, segment| Unsent { payload: Plain(text.into()), segment };
    bench.io().udp_send(FLOW, &[unsent("abcabcx", Some(3))]).unwrap();
    bench.io().udp_send_bytes(FLOW, b"").unwrap();
    let mut bytes = [0; 16];
    let (mut seen, mut near) = (Vec::new(), None);
    for _ in 0..4 {
        let (len, from) = far.recv_from(&mut bytes).unwrap();
        seen.push(len);
        near = Some(from);
    }
    assert_eq!(seen, [3, 3, 1, 0]);
    // Joined or not, those of a batch arrive one by one and in their order.
    let texts = ["aaa", "bbb", "c", "dd", "", "eeee", "ffff", "gggg", "hhhhh"];
    let mut batch: Vec<_> = texts.iter().map(|text| unsent(text, None)).collect();
    batch.insert(4, unsent("xxyyz", Some(2)));
    batch.extend((0..200).map(|_| unsent("many", None)));
    bench.io().udp_send(FLOW, &batch).unwrap();
    let want = ["aaa", "bbb", "c", "dd", "xx", "yy", "z", "", "eeee", "ffff", "gggg", "hhhhh"];
    for want in want.into_iter().chain(std::iter::repeat_n("many", 200)) {
        let (len, _) = far.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], want.as_bytes());
    }
    let batch = [unsent("a", None), Unsent { payload: Plain(vec![0; 65_535]), segment: None }];
    let failed = bench.io().udp_send(FLOW, &batch).unwrap_err();
    assert!(matches!(failed, Unsendable { index: 1, error: HostError::TooLarge { .. } }));
    assert_eq!(far.recv_from(&mut bytes).unwrap().0, 1);
    for text in ["aa", "bb", "c", "dd", "eeee", "", "ff"] {
        far.send_to(text.as_bytes(), near.unwrap()).unwrap();
    }
    let mut got = Vec::new();
    let mut into = [0; 256];
    let deadline = Instant::now() + Duration::from_secs(10);
    while got.len() < 7 && Instant::now() < deadline {
        let Some(Datagrams { len, segment }) = bench.io().udp_receive(FLOW, &mut into).unwrap()
        else {
            continue;
        };
        match segment {
            0 => got.push(String::new()),
            _ => got.extend(
                into[..len].chunks(segment).map(|part| String::from_utf8(part.to_vec()).unwrap()),
            ),
        }
    }
    assert_eq!(got, ["aa", "bb", "c", "dd", "eeee", "", "ff"]);
    assert_eq!(bench.io().udp_receive(FLOW, &mut into), Ok(None));
}

#[test]
fn a_datagram_that_nobody_takes_is_told_once() {
    let mut bench = Bench::new(8, Vec::new());
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    bench.io().udp_open(FLOW, nobody).unwrap();
    bench.io().udp_send_bytes(FLOW, b"x").unwrap();
    bench.wait(FLOW, |told| told.failed);
    assert_eq!(bench.io().take_error(FLOW), Some(HostError::Refused));
    assert_eq!(bench.io().take_error(FLOW), None);
    assert_eq!(bench.io().udp_receive(FLOW, &mut [0; 8]), Ok(None));
    bench.io().udp_send_bytes(FLOW, b"x").unwrap();
    assert_eq!(bench.io().udp_receive(FLOW, &mut [0; 8]), Err(HostError::Refused));
    assert_eq!(bench.io().udp_receive(FLOW, &mut [0; 8]), Ok(None));
}

fn published(transport: Transport) -> (Bench, SocketAddr) {
    let free = match transport {
        Transport::Tcp => listener().local_addr().unwrap(),
        Transport::Udp => UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
    };
    let spec = PublishSpec { host: free, guest_port: 1, transport };
    let forward = crate::config::publish::publish_one(spec).unwrap();
    (Bench::new(8, vec![forward]), free)
}

#[test]
fn connections_to_a_published_port_are_taken() {
    let (mut bench, port) = published(Transport::Tcp);
    assert_eq!(bench.io().tcp_accept(ForwardId(0), FLOW), Ok(None));
    let mut client = TcpStream::connect(port).unwrap();
    let peer = bench.io().tcp_accept(ForwardId(0), FLOW).unwrap();
    assert_eq!(peer, Some(client.local_addr().unwrap()));
    assert_eq!(bench.io().tcp_send_bytes(FLOW, b"hello"), Ok(5));
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn each_sender_to_a_published_port_has_a_flow() {
    let (mut bench, port) = published(Transport::Udp);
    let clients = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    for text in ["a", "b"] {
        for client in &clients {
            client.send_to(text.as_bytes(), port).unwrap();
        }
    }
    let flows = [FlowId::new(0, 0), FlowId::new(1, 0)];
    for (flow, client) in flows.into_iter().zip(&clients) {
        let peer = bench.io().udp_accept(ForwardId(0), flow).unwrap();
        assert_eq!(peer, Some(client.local_addr().unwrap()));
    }
    assert_eq!(bench.io().udp_accept(ForwardId(0), FLOW), Ok(None));
    for client in &clients {
        client.send_to(b"c", port).unwrap();
    }
    let mut woken = Vec::new();
    while let Some(flow) = bench.sockets.take_woken() {
        woken.push(flow);
    }
    woken.sort();
    assert_eq!(woken, flows, "their second datagrams came by the published port");
    for (flow, client) in flows.into_iter().zip(&clients) {
        let mut got = Vec::new();
        let mut into = [0; 64];
        while let Some(Datagrams { len, .. }) = bench.io().udp_receive(flow, &mut into).unwrap() {
            got.extend_from_slice(&into[..len]);
        }
        assert_eq!(got, b"abc");
        bench.io().udp_send_bytes(flow, b"answer").unwrap();
        let (len, from) = client.recv_from(&mut into).unwrap();
        assert_eq!((&into[..len], from), (&b"answer"[..], port));
    }
}

#[test]
fn an_echo_is_answered_or_prohibited() {
    let mut bench = Bench::new(8, Vec::new());
    let peer = SocketAddr::from(([127, 0, 0, 1], 0));
    match bench.io().echo_open(FLOW, peer) {
        Err(HostError::Prohibited) => return,
        opened => opened.unwrap(),
    }
    bench.io().echo_send(FLOW, 7, b"data").unwrap();
    bench.wait(FLOW, |told| told.readable);
    let mut into = [0; 16];
    assert_eq!(bench.io().echo_receive(FLOW, &mut into), Ok(Some((7, 4))));
    assert_eq!(&into[..4], b"data");
    assert_eq!(bench.io().echo_receive(FLOW, &mut into), Ok(None));
}

#[test]
fn errors_of_the_host_are_told_as_what_they_are_to_a_guest() {
    for (errno, want) in [
        (libc::ECONNREFUSED, HostError::Refused),
        (libc::EPIPE, HostError::Reset),
        (libc::ENETUNREACH, HostError::NetworkUnreachable),
        (libc::EHOSTUNREACH, HostError::HostUnreachable),
        (libc::EPERM, HostError::Prohibited),
        (libc::ETIMEDOUT, HostError::TimedOut),
        (libc::EMSGSIZE, HostError::TooLarge { mtu: None }),
        (libc::EMFILE, HostError::NoRoom),
        (libc::EINVAL, HostError::Other(libc::EINVAL)),
    ] {
        assert_eq!(told(&io::Error::from_raw_os_error(errno)), want);
    }
}
