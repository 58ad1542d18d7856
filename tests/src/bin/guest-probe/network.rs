//! TCP and UDP, with bytes that are checked at both ends.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use openshell_tests::streams::{exchange, of_tcp, receive_pattern, send_pattern};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// The pattern of one-way transfers.
const SEED: u64 = 77;

/// Opens `streams` connections at once, sends `bytes` on each and checks that they come back.
pub(crate) fn exchange_all(to: SocketAddr, streams: u64, bytes: u64) -> Result<String> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..streams)
            .map(|number| scope.spawn(move || exchange(&of_tcp(connect(to)?), number, bytes)))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().map_err(|_panic| anyhow!("a thread panicked")).and_then(|result| result)
        })
    })?;
    Ok(format!("exchanged {bytes} bytes on each of {streams} connections"))
}

/// Checks that `bytes` come from there, then the end.
pub(crate) fn get(from: SocketAddr, bytes: u64) -> Result<String> {
    let begin = Instant::now();
    receive_pattern(&of_tcp(connect(from)?), SEED, bytes)?;
    Ok(format!("downloaded {bytes} bytes in {} ms", begin.elapsed().as_millis()))
}

/// Sends `bytes` there, and waits until the other side says that they were right.
pub(crate) fn put(to: SocketAddr, bytes: u64) -> Result<String> {
    let begin = Instant::now();
    let stream = of_tcp(connect(to)?);
    send_pattern(&stream, SEED, bytes)?;
    let mut answer = String::new();
    (&stream).read_to_string(&mut answer)?;
    ensure!(answer == "right", "the other side said {answer:?}");
    Ok(format!("uploaded {bytes} bytes in {} ms", begin.elapsed().as_millis()))
}

/// Succeeds when a connection is refused, and not when it only is not answered.
pub(crate) fn refused(to: SocketAddr) -> Result<String> {
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => bail!("{to} took the connection"),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Ok(format!("{to} refused"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Accepts `streams` connections and sends back what comes, each until its end.
pub(crate) fn serve(port: u16, streams: u64) -> Result<String> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    writeln!(std::io::stdout(), "probe: listening on {port}")?;
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..streams {
            let (stream, _) = listener.accept()?;
            workers.push(scope.spawn(move || echo(&stream)));
        }
        workers.into_iter().try_for_each(|worker| {
            worker.join().map_err(|_panic| anyhow!("a thread panicked")).and_then(|result| result)
        })
    })?;
    Ok(format!("served {streams} connections"))
}

/// Sends `count` datagrams of `bytes`, one after the other, and checks that each comes back.
pub(crate) fn exchange_datagrams(to: SocketAddr, count: u64, bytes: u64) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut sent = vec![0; usize::try_from(bytes)?];
    let mut received = vec![0; sent.len() + 1];
    for number in 0..count {
        for (place, byte) in sent.iter_mut().zip((number..).flat_map(u64::to_le_bytes)) {
            *place = byte;
        }
        socket.send(&sent).with_context(|| format!("datagram {number}"))?;
        let len = socket.recv(&mut received).with_context(|| format!("datagram {number}"))?;
        ensure!(received[..len] == sent, "datagram {number} came back with {len} other bytes");
    }
    Ok(format!("exchanged {count} datagrams of {bytes} bytes"))
}

/// Sends back `count` datagrams.
pub(crate) fn serve_datagrams(port: u16, count: u64) -> Result<String> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    writeln!(std::io::stdout(), "probe: listening on {port}")?;
    let mut bytes = vec![0; 65_536];
    for _ in 0..count {
        let (len, from) = socket.recv_from(&mut bytes)?;
        socket.send_to(&bytes[..len], from)?;
    }
    Ok(format!("served {count} datagrams"))
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("cannot connect to {to}"))
}

fn echo(mut stream: &TcpStream) -> Result<()> {
    std::io::copy(&mut &*stream, &mut stream)?;
    Ok(stream.shutdown(Shutdown::Write)?)
}
