//! Vsock streams, many at once.

#![expect(unsafe_code, reason = "the standard library knows no AF_VSOCK")]

use std::io::{Error, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use openshell_tests::streams::exchange;

const HOST: u32 = 2;
const ANY: u32 = u32::MAX;
const BACKLOG: i32 = 128;

/// Opens `streams` streams to the host at once, sends `bytes` on each and checks that they come back.
pub(crate) fn send(port: u32, streams: u64, bytes: u64) -> Result<String> {
    each(streams, |number| {
        let stream = connect(HOST, port).with_context(|| format!("stream {number}"))?;
        exchange(&stream, number, bytes).with_context(|| format!("stream {number}"))
    })?;
    Ok(format!("exchanged {bytes} bytes on each of {streams} streams"))
}

/// Accepts `streams` streams and sends back what comes, each until its end.
pub(crate) fn serve(port: u32, streams: u64) -> Result<String> {
    let listener = listen(port)?;
    writeln!(std::io::stdout(), "probe: listening on {port}")?;
    each(streams, |number| {
        let stream = accept(&listener).with_context(|| format!("stream {number}"))?;
        echo(stream).with_context(|| format!("stream {number}"))
    })?;
    Ok(format!("served {streams} streams"))
}

fn each(streams: u64, run: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..streams)
            .map(|number| {
                scope.spawn({
                    let run = &run;
                    move || run(number)
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().map_err(|_panic| anyhow!("a thread panicked")).and_then(|result| result)
        })
    })
}

fn echo(mut stream: UnixStream) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(stream.shutdown(Shutdown::Write)?);
        }
        stream.write_all(&buffer[..len])?;
    }
}

fn connect(cid: u32, port: u32) -> Result<UnixStream> {
    let socket = socket()?;
    let (address, len) = address(cid, port)?;
    // SAFETY: `address` is a valid sockaddr_vm of `len` bytes and is read.
    let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    ensure!(done == 0, "cannot connect to port {port}: {}", Error::last_os_error());
    // A connected stream socket of any family reads, writes and shuts down like a Unix one.
    Ok(UnixStream::from(socket))
}

fn listen(port: u32) -> Result<OwnedFd> {
    let socket = socket()?;
    let (address, len) = address(ANY, port)?;
    // SAFETY: `address` is a valid sockaddr_vm of `len` bytes and is read.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    ensure!(done == 0, "cannot bind port {port}: {}", Error::last_os_error());
    // SAFETY: no memory is passed.
    let done = unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) };
    ensure!(done == 0, "cannot listen on port {port}: {}", Error::last_os_error());
    Ok(socket)
}

fn accept(listener: &OwnedFd) -> Result<UnixStream> {
    let (none, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: null pointers mean that the peer's address is not wanted.
    let fd = unsafe { libc::accept(listener.as_raw_fd(), none, no_len) };
    Ok(UnixStream::from(owned(fd).context("accept")?))
}

fn socket() -> Result<OwnedFd> {
    // SAFETY: no memory is passed.
    owned(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
        .context("socket")
}

fn owned(fd: RawFd) -> Result<OwnedFd> {
    ensure!(fd >= 0, "{}", Error::last_os_error());
    // SAFETY: the kernel just made `fd` for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> Result<(libc::sockaddr_vm, libc::socklen_t)> {
    let address = libc::sockaddr_vm {
        svm_family: libc::sa_family_t::try_from(libc::AF_VSOCK)?,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    };
    Ok((address, libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>())?))
}
