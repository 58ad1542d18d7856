//! Streams of known bytes: sent, received, or sent back by the other side.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::pattern::{Pattern, SECTOR};

const CHUNK: usize = 64 << 10;

/// Sends `bytes` of the pattern of `seed`, closes that direction, and checks that the same bytes come back, then the end.
///
/// # Errors
/// What the stream said, or what came instead.
pub fn exchange(stream: &UnixStream, seed: u64, bytes: u64) -> Result<()> {
    let pattern = &Pattern::new(seed);
    thread::scope(|scope| {
        let sender = scope.spawn(move || send(stream, pattern, bytes).context("sending"));
        let received = receive(stream, pattern, bytes).context("receiving");
        let sent = sender.join().map_err(|_panic| anyhow!("the sender panicked"))?;
        sent.and(received)
    })
}

/// Sends `bytes` of the pattern of `seed` and closes that direction.
///
/// # Errors
/// What the stream said.
pub fn send_pattern(stream: &UnixStream, seed: u64, bytes: u64) -> Result<()> {
    send(stream, &Pattern::new(seed), bytes)
}

/// Checks that `bytes` of the pattern of `seed` come, then the end.
///
/// # Errors
/// What the stream said, or what came instead.
pub fn receive_pattern(stream: &UnixStream, seed: u64, bytes: u64) -> Result<()> {
    receive(stream, &Pattern::new(seed), bytes)
}

/// A TCP stream as one of the kind that the functions here take: connected stream sockets of any family read, write and shut down alike.
#[must_use]
pub fn of_tcp(stream: TcpStream) -> UnixStream {
    UnixStream::from(OwnedFd::from(stream))
}

fn send(mut stream: &UnixStream, pattern: &Pattern, bytes: u64) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    while sent < bytes {
        let len = usize::try_from(bytes - sent)?.min(CHUNK);
        pattern.fill(sent, &mut chunk[..len]);
        stream.write_all(&chunk[..len]).with_context(|| format!("after {sent} bytes"))?;
        sent += len as u64;
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn receive(mut stream: &UnixStream, pattern: &Pattern, bytes: u64) -> Result<()> {
    // Always begins at a sector; the part of one that came last waits at its front for the rest.
    let mut chunk = vec![0; CHUNK];
    let (mut checked, mut held) = (0_u64, 0);
    loop {
        let len = stream
            .read(&mut chunk[held..])
            .with_context(|| format!("after {} bytes", checked + held as u64))?;
        held += len;
        let ready = if len == 0 { held } else { held - held % SECTOR };
        pattern.check(checked, &chunk[..ready]).map_err(|wrong| anyhow!(wrong))?;
        chunk.copy_within(ready..held, 0);
        (checked, held) = (checked + ready as u64, held - ready);
        if len == 0 {
            ensure!(checked == bytes, "{checked} bytes came back of {bytes}");
            return Ok(());
        }
        ensure!(checked <= bytes, "more than {bytes} bytes came back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(change: fn(&mut Vec<u8>)) -> Result<()> {
        let (near, mut far) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut all = Vec::new();
                far.read_to_end(&mut all).unwrap();
                change(&mut all);
                far.write_all(&all).unwrap();
            });
            exchange(&near, 3, 200_001)
        })
    }

    #[test]
    fn only_the_same_bytes_are_right() {
        echo(|_| {}).unwrap();
        assert!(format!("{:#}", echo(|all| all[70_000] ^= 1).unwrap_err()).contains("sector 136"));
        assert!(echo(|all| all.truncate(1000)).is_err());
        assert!(echo(|all| all.push(0)).is_err());
        assert!(echo(|all| drop(all.drain(..512))).is_err());
    }
}
