//! `guest-probe`: what end-to-end tests run inside the guest, one static program.
//!
//! It prints one line that begins with `probe:` when it has done its work and says what went wrong otherwise, with exit code 1.

mod disk;
mod network;
mod ports;
mod streams;
mod tree;

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(text) => say(&format!("probe: {text}")),
        Err(error) => {
            say(&format!("probe: FAILED: {}: {error:#}", words.join(" ")));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<String> {
    match *words {
        ["write", path, bytes, seed] => disk::write(path, number(bytes)?, number(seed)?),
        ["verify", path, bytes, seed] => disk::verify(path, number(bytes)?, number(seed)?),
        ["hammer", path, threads, bytes] => disk::hammer(path, number(threads)?, number(bytes)?),
        ["pace", path, operations] => disk::pace(path, number(operations)?),
        ["walk", directory, to] => tree::walk_to(directory, to),
        ["lines", count] => lines(number(count)?),
        ["abort"] => std::process::abort(),
        ["mark-init"] => ports::mark_init(),
        ["exit-code", code] => ports::exit_code(byte(code)?),
        ["exit-signal", signal] => ports::exit_signal(byte(signal)?),
        ["vsock-send", port, streams, bytes] => {
            streams::send(port_number(port)?, number(streams)?, number(bytes)?)
        }
        ["tcp-exchange", to, streams, bytes] => {
            network::exchange_all(address(to)?, number(streams)?, number(bytes)?)
        }
        ["tcp-get", from, bytes] => network::get(address(from)?, number(bytes)?),
        ["tcp-put", to, bytes] => network::put(address(to)?, number(bytes)?),
        ["tcp-refused", to] => network::refused(address(to)?),
        ["tcp-serve", port, streams] => network::serve(port.parse()?, number(streams)?),
        ["udp-exchange", to, count, bytes] => {
            network::exchange_datagrams(address(to)?, number(count)?, number(bytes)?)
        }
        ["udp-serve", port, count] => network::serve_datagrams(port.parse()?, number(count)?),
        ["vsock-serve", port, streams] => streams::serve(port_number(port)?, number(streams)?),
        _ => bail!("no such command"),
    }
}

/// Prints `count` numbered lines of 64 bytes.
fn lines(count: u64) -> Result<String> {
    let mut out = std::io::stdout().lock();
    for number in 0..count {
        writeln!(out, "{number:08} {}", "=".repeat(54))?;
    }
    out.flush()?;
    Ok(format!("printed {count} lines"))
}

fn say(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("`{text}` is no number"))
}

fn byte(text: &str) -> Result<u8> {
    text.parse().with_context(|| format!("`{text}` is no byte"))
}

fn address(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("`{text}` is no address with a port"))
}

fn port_number(text: &str) -> Result<u32> {
    text.parse().with_context(|| format!("`{text}` is no port"))
}
