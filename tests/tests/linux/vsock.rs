//! Vsock streams between the guest and Unix sockets of the host.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, Builder};
use std::time::Duration;

use openshell_tests::streams::exchange;

use crate::guest::Guest;

const STREAMS: u64 = 64;
/// Each way: all streams together carry 100 MiB out and back.
const STREAM_BYTES: u64 = (100 << 20) / STREAMS / 2;
/// How long one operation on a stream may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_guest_reaches_the_host_on_many_streams() {
    let script = format!("guest-probe vsock-send 5000 {STREAMS} {STREAM_BYTES}");
    let guest = Guest::running(&script).option("--cpus", "2");
    let path = guest.path("vsock");
    let listener = UnixListener::bind(guest.path("vsock_5000")).unwrap();
    let echoed = serve(listener);
    let (running, _directory) = guest.option("--vsock", &path).start();
    let finished = running.wait().expect_code(0);
    let expected = format!("exchanged {STREAM_BYTES} bytes on each of {STREAMS} streams");
    assert!(finished.text().contains(&expected), "{finished}");
    let bytes: u64 = (0..STREAMS).map(|_| echoed.recv_timeout(PATIENCE).unwrap()).sum();
    assert_eq!(bytes, STREAMS * STREAM_BYTES);
}

#[test]
fn the_host_reaches_the_guest_on_many_streams() {
    let script = format!("guest-probe vsock-serve 5000 {STREAMS}");
    let guest = Guest::running(&script).option("--cpus", "2");
    let path = guest.path("vsock");
    let (running, _directory) = guest.option("--vsock", &path).start();
    running.wait_for("probe: listening on 5000");
    let results: Vec<_> = thread::scope(|scope| {
        let path = &path;
        let clients: Vec<_> = (0..STREAMS)
            .map(|number| scope.spawn(move || exchange_with_guest(path, number)))
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let finished = running.wait().expect_code(0);
    for result in results {
        result.unwrap_or_else(|error| panic!("{error:#}: {finished}"));
    }
    assert!(finished.text().contains(&format!("served {STREAMS} streams")), "{finished}");
}

#[test]
fn a_port_that_nobody_serves_is_refused() {
    let script = "guest-probe vsock-send 6000 1 512 || echo refused";
    let guest = Guest::running(script);
    let path = guest.path("vsock");
    let (running, _directory) = guest.option("--vsock", &path).start();
    running.wait_for("\nrefused\r");
    let finished = running.wait().expect_code(0);
    assert!(
        finished.text().contains("cannot connect to port 6000: Connection reset"),
        "{finished}"
    );
}

/// Sends back what comes on each stream; tells how many bytes when one has ended.
fn serve(listener: UnixListener) -> Receiver<u64> {
    let (told, echoed) = channel();
    let accept = move || {
        for stream in listener.incoming() {
            let told = told.clone();
            let echo = move || told.send(echo(&stream.unwrap()).unwrap()).unwrap();
            Builder::new().name("echo".to_owned()).spawn(echo).unwrap();
        }
    };
    Builder::new().name("accept".to_owned()).spawn(accept).unwrap();
    echoed
}

fn echo(mut stream: &UnixStream) -> std::io::Result<u64> {
    let bytes = std::io::copy(&mut &*stream, &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(bytes)
}

fn exchange_with_guest(path: &Path, number: u64) -> anyhow::Result<()> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    (&stream).write_all(b"CONNECT 5000\n")?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        (&stream).read_exact(&mut byte)?;
        answer.extend(byte);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    anyhow::ensure!(answer.starts_with("OK "), "the answer was {answer:?}");
    exchange(&stream, number, STREAM_BYTES)
}
