//! The thread against clients of every kind, with a test in the place of the event loop.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use super::client::Client;
use super::protocol::{Reply, Request};
use super::*;

struct Rig {
    home: tempfile::TempDir,
    link: Link,
}

impl Rig {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("control");
        let plan = ControlPlan {
            listener: UnixListener::bind(&path).unwrap(),
            path,
            guest: home.path().join("vsock"),
            stop_signal: 15,
            grace: Duration::from_secs(1),
        };
        let link = Link::start(plan, Arc::default(), Jail { seccomp: true }).unwrap();
        Self { home, link }
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("control")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }

    fn order(&self) -> Order {
        let begin = Instant::now();
        loop {
            if let Some(order) = self.link.next() {
                return order;
            }
            assert!(begin.elapsed() < Duration::from_secs(5), "no order came");
            std::thread::yield_now();
        }
    }
}

const PATIENCE: Option<Duration> = Some(Duration::from_secs(5));

fn ending() -> Ending {
    Ending { code: 7, source: "guest".to_owned(), reason: "it ended".to_owned() }
}

#[test]
fn status_follows_what_the_event_loop_says() {
    let rig = Rig::new();
    let mut client = rig.client();
    for state in [State::Running, State::Paused, State::Stopping] {
        rig.link.tell(News::State(state));
        let begin = Instant::now();
        let mut seen = String::new();
        while seen != state.name() && begin.elapsed() < Duration::from_secs(5) {
            let reply = client.ask(&Request::Status, PATIENCE).unwrap();
            assert_eq!((reply.ok, reply.booted), (true, Some(false)));
            seen = reply.state.unwrap();
        }
        assert_eq!(seen, state.name());
    }
    rig.link.finish(ending());
}

#[test]
fn orders_reach_the_event_loop_and_its_answers_their_client() {
    let rig = Rig::new();
    std::thread::scope(|scope| {
        let mut client = rig.client();
        let asking = scope.spawn(move || {
            let paused = client.ask(&Request::Pause, PATIENCE).unwrap();
            let refused = client.ask(&Request::Resume, PATIENCE).unwrap();
            (paused, refused)
        });
        let Order::Pause(id) = rig.order() else { panic!("another order") };
        rig.link.tell(News::State(State::Paused));
        rig.link.tell(News::Done { client: id, result: Ok(()) });
        assert_eq!(rig.order(), Order::Resume(id));
        rig.link.tell(News::Done { client: id, result: Err("no".to_owned()) });
        let (paused, refused) = asking.join().unwrap();
        assert_eq!((paused.ok, paused.state.as_deref()), (true, Some("paused")));
        assert_eq!((refused.ok, refused.error.as_deref()), (false, Some("no")));
    });
    let mut client = rig.client();
    let stop = Request::Stop { signal: Some(2), grace_ms: Some(1500) };
    assert!(client.ask(&stop, PATIENCE).unwrap().ok);
    let grace = Some(Duration::from_millis(1500));
    assert_eq!(rig.order(), Order::Stop { signal: Some(2), grace });
    assert!(client.ask(&Request::Kill { signal: Some(9) }, PATIENCE).unwrap().ok);
    assert_eq!(rig.order(), Order::Kill);
    rig.link.finish(ending());
}

#[test]
fn who_waits_is_told_the_end_and_the_socket_goes() {
    let rig = Rig::new();
    let mut clients: Vec<_> = (0..5).map(|_| rig.client()).collect();
    let waiting: Vec<_> = clients
        .drain(..)
        .map(|mut client| {
            // The server has the connection before the machine ends.
            assert!(client.ask(&Request::Status, PATIENCE).unwrap().ok);
            std::thread::Builder::new()
                .spawn(move || client.ask(&Request::Wait, PATIENCE).unwrap())
                .unwrap()
        })
        .collect();
    // Requests that are on their way are read before the news: each connection is in order.
    std::thread::sleep(Duration::from_millis(100));
    let path = rig.path();
    rig.link.finish(ending());
    for client in waiting {
        assert_eq!(client.join().unwrap().ended, Some(ending()));
    }
    assert!(!path.exists());
}

#[test]
fn a_guest_is_asked_until_it_listens_and_its_consent_is_an_order() {
    let rig = Rig::new();
    rig.link.tell(News::Ask(Ask::Stop { signal: 15, grace: Duration::from_secs(4) }));
    std::thread::sleep(Duration::from_millis(150));
    let listener = UnixListener::bind(rig.home.path().join("vsock")).unwrap();
    let (peer, _) = listener.accept().unwrap();
    let mut lines = BufReader::new(peer);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    lines.get_mut().write_all(b"OK 1\n").unwrap();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "CONNECT 1023\nSTOP 4\n");
    lines.get_mut().write_all(b"OK\n").unwrap();
    assert_eq!(rig.order(), Order::Agreed);
    let mut client = rig.client();
    assert!(client.ask(&Request::Kill { signal: Some(10) }, PATIENCE).unwrap().ok);
    let (peer, _) = listener.accept().unwrap();
    let mut lines = BufReader::new(peer);
    line.clear();
    lines.read_line(&mut line).unwrap();
    lines.get_mut().write_all(b"OK 2\n").unwrap();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "CONNECT 1023\nSIGNAL 10\n");
    rig.link.finish(ending());
}

#[test]
fn clients_of_every_kind_leave_the_machine_alone() {
    let rig = Rig::new();
    let mut long = UnixStream::connect(rig.path()).unwrap();
    long.write_all(&vec![b'x'; 3 * protocol::LINE_MAX]).unwrap();
    let mut answer = String::new();
    // The rest is not read, and so may be reset.
    drop(long.read_to_string(&mut answer));
    assert!(answer.is_empty() || answer.contains("at most"), "{answer}");
    let mut wrong = UnixStream::connect(rig.path()).unwrap();
    wrong.write_all(b"\xff\n{}\n{\"op\":\"status\"}\n").unwrap();
    let mut lines = BufReader::new(wrong);
    for ok in [false, false, true] {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap().ok, ok, "{line}");
    }
    // More connections than are kept, and one that never reads.
    let idle: Vec<_> = (0..100).map(|_| UnixStream::connect(rig.path()).unwrap()).collect();
    drop(idle);
    let mut greedy = UnixStream::connect(rig.path()).unwrap();
    greedy.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    for _ in 0..100_000 {
        if greedy.write_all(b"{\"op\":\"status\"}\n").is_err() {
            break;
        }
    }
    let begin = Instant::now();
    loop {
        let asked = Client::connect(&rig.path())
            .and_then(|mut client| client.ask(&Request::Status, PATIENCE));
        if asked.is_ok_and(|reply| reply.ok) {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "the socket is dead");
    }
    rig.link.finish(ending());
}
