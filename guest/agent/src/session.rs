//! One session: which version is spoken, what the host wants, and that it is done.
//!
//! Invariant: a peer that says nothing is heard for [`PATIENCE`]; every session ends with exactly one last frame.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use openshell_agent_proto::{
    CopyIn, CopyOut, Decoder, Exec, Failure, FailureKind, FromGuest, FromHost, VERSIONS, WireError,
};
use rustix::io::Errno;

use crate::channel::Wire;
use crate::exec::Started;
use crate::relay::Relay;
use crate::{clock, copy, exec, stats};

/// How long a peer may take to say what it wants, or to hear the last frame.
const PATIENCE: Duration = Duration::from_secs(10);

/// How processes start when a request does not say otherwise.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// The user, as in an image's configuration.
    pub user: String,
    /// Supplementary groups.
    pub groups: Vec<String>,
    /// The working directory.
    pub directory: PathBuf,
}

impl Guest {
    /// The environment of this process, root, `/`.
    #[must_use]
    pub fn of_process() -> Self {
        let env = std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec()));
        Self { env: env.collect(), user: String::new(), groups: Vec::new(), directory: "/".into() }
    }
}

/// Why a session ended early.
enum End {
    /// The host is to be told.
    Failed(Failure),
    /// There is nobody to be told.
    Gone,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Errno> for End {
    fn from(_: Errno) -> Self {
        Self::Gone
    }
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Self::Failed(Failure::new(FailureKind::Protocol, error.to_string()))
    }
}

/// What the host may want, read completely.
enum Request {
    Exec(Exec),
    CopyIn(CopyIn),
    CopyOut(CopyOut),
    Stats,
    SetClock(u64),
    Attach,
}

/// Serves the host at the other end of `socket`, until it has what it wanted or has gone.
pub fn serve(socket: OwnedFd, guest: &Guest) {
    let Ok(mut wire) = Wire::new(socket) else { return };
    let mut decoder = Decoder::new();
    let ends = Some(Instant::now() + PATIENCE);
    let result = request(&mut wire, &mut decoder, ends)
        .and_then(|request| answer(request, &mut wire, &mut decoder, guest));
    conclude(wire, result);
}

/// Carries the streams of the main process, which has `started`, for the host at the other end of `socket`.
pub fn serve_main(socket: OwnedFd, started: Started) {
    let Ok(mut wire) = Wire::new(socket) else { return };
    let mut decoder = Decoder::new();
    // The host has been there before its guest was.
    let result = request(&mut wire, &mut decoder, None).and_then(|request| match request {
        Request::Attach => carry(started, &mut wire, &mut decoder),
        _ => Err(Failure::new(FailureKind::Protocol, "it carries the main process alone").into()),
    });
    conclude(wire, result);
}

fn conclude(mut wire: Wire, result: Result<(), End>) {
    match result {
        Ok(()) => {}
        Err(End::Failed(failure)) => wire.send(&FromGuest::Failed(failure)),
        Err(End::Gone) => return,
    }
    wire.finish(PATIENCE);
}

/// Tells a host that there is no room for it.
pub fn turn_away(socket: OwnedFd) {
    if let Ok(mut wire) = Wire::new(socket) {
        let failure = Failure::new(FailureKind::Busy, "the guest's agent has no session left");
        wire.send(&FromGuest::Failed(failure));
        // What a new socket does not take at once is not worth waiting for.
        _ = wire.flush();
    }
}

fn request(wire: &mut Wire, decoder: &mut Decoder, ends: Option<Instant>) -> Result<Request, End> {
    let mut welcomed = false;
    loop {
        while let Some(frame) = decoder.next::<FromHost<'_>>()? {
            match frame {
                FromHost::Hello { lowest, highest } if !welcomed => {
                    wire.send(&FromGuest::Welcome(version(lowest, highest)?));
                    wire.flush()?;
                    welcomed = true;
                }
                FromHost::Exec(exec) if welcomed => return Ok(Request::Exec(exec)),
                FromHost::CopyIn(copy) if welcomed => return Ok(Request::CopyIn(copy)),
                FromHost::CopyOut(copy) if welcomed => return Ok(Request::CopyOut(copy)),
                FromHost::Stats if welcomed => return Ok(Request::Stats),
                FromHost::SetClock(time) if welcomed => return Ok(Request::SetClock(time)),
                FromHost::Attach { .. } if welcomed => return Ok(Request::Attach),
                _ => {
                    let text = "a session begins with a greeting and a request";
                    return Err(Failure::new(FailureKind::Protocol, text).into());
                }
            }
        }
        if !wire.receive(decoder)? {
            wire.wait(ends)?;
            wire.flush()?;
        }
    }
}

fn version(lowest: u16, highest: u16) -> Result<u16, Failure> {
    let version = highest.min(VERSIONS.1);
    if version >= lowest.max(VERSIONS.0) {
        return Ok(version);
    }
    let (ours, upto) = VERSIONS;
    let text =
        format!("the host speaks versions {lowest} to {highest}, this guest {ours} to {upto}");
    Err(Failure::new(FailureKind::Version, text))
}

fn answer(
    request: Request,
    wire: &mut Wire,
    decoder: &mut Decoder,
    guest: &Guest,
) -> Result<(), End> {
    match request {
        Request::Exec(exec) => {
            let started = exec::start(&exec, guest)?;
            carry(started, wire, decoder)
        }
        Request::Attach => {
            let text = "the main process has a connection of its own";
            Err(Failure::new(FailureKind::Protocol, text).into())
        }
        Request::CopyIn(copy) => {
            let totals = copy::take(&copy, wire, decoder)?;
            wire.send(&FromGuest::Done { files: totals.files, bytes: totals.bytes });
            Ok(())
        }
        Request::CopyOut(copy) => {
            let totals = copy::give(&copy, wire, decoder)?;
            wire.send(&FromGuest::Done { files: totals.files, bytes: totals.bytes });
            Ok(())
        }
        Request::Stats => {
            wire.send(&FromGuest::Stats(stats::read()));
            Ok(())
        }
        Request::SetClock(time) => {
            clock::set(time)?;
            wire.send(&FromGuest::Done { files: 0, bytes: 0 });
            Ok(())
        }
    }
}

fn carry(started: Started, wire: &mut Wire, decoder: &mut Decoder) -> Result<(), End> {
    let relay = Relay::new(started, wire, decoder);
    relay.run().map_err(|error| error.map_or(End::Gone, End::Failed))
}
