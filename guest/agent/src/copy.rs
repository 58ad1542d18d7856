//! Archives into the guest and out of it.
//!
//! Invariant: an archive counts only when its stream has ended in order; who sends waits for credit.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use openshell_agent_proto::{
    CopyIn, CopyOut, DATA_MAX, Decoder, Failure, FailureKind, FromGuest, FromHost, GuestPath,
    ReceiveWindow, SendWindow, Stream,
};
use openshell_copy::{CopyError, Keep, Totals, pack, unpack};

use crate::channel::Wire;

/// Unpacks what the host sends.
///
/// # Errors
/// What the host is to be told; nobody hears it when the host has gone.
pub fn take(copy: &CopyIn, wire: &mut Wire, decoder: &mut Decoder) -> Result<Totals, Failure> {
    let keep = if copy.owners { Keep::All } else { Keep::Plain };
    let incoming = Incoming {
        wire,
        decoder,
        held: Vec::new(),
        at: 0,
        ended: false,
        window: ReceiveWindow::default(),
    };
    unpack(&place(&copy.path), copy.into, keep, incoming).map_err(|error| failure(&error))
}

/// Sends the archive that the host asks for.
///
/// # Errors
/// As [`take`].
pub fn give(copy: &CopyOut, wire: &mut Wire, decoder: &mut Decoder) -> Result<Totals, Failure> {
    let mut outgoing = Outgoing {
        wire,
        decoder,
        held: Vec::with_capacity(DATA_MAX),
        window: SendWindow::default(),
    };
    let packed = pack(&place(&copy.path), copy.follow, &mut outgoing);
    let totals = packed.map_err(|error| failure(&error))?;
    wire.send(&FromGuest::End(Stream::Output));
    Ok(totals)
}

/// Paths of a guest begin at its root.
fn place(path: &GuestPath) -> PathBuf {
    Path::new("/").join(OsStr::from_bytes(path.as_bytes()))
}

fn failure(error: &CopyError) -> Failure {
    let kind = match error {
        CopyError::File { source, .. } => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::Space,
            _ => FailureKind::Path,
        },
        CopyError::Unfit { .. } => FailureKind::Path,
        CopyError::Archive { .. } => FailureKind::Archive,
        CopyError::Stream(_) => FailureKind::Protocol,
    };
    Failure::new(kind, error.to_string())
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unexpected frame of a copy")
}

/// What comes on the input.
struct Incoming<'a> {
    wire: &'a mut Wire,
    decoder: &'a mut Decoder,
    held: Vec<u8>,
    at: usize,
    ended: bool,
    window: ReceiveWindow,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.held.len() {
            if self.ended {
                return Ok(0);
            }
            self.refill()?;
        }
        let len = buffer.len().min(self.held.len() - self.at);
        buffer[..len].copy_from_slice(&self.held[self.at..self.at + len]);
        self.at += len;
        if let Some(credit) = self.window.used(len) {
            self.wire.send(&FromGuest::Credit(Stream::Input, credit));
            self.wire.flush()?;
        }
        Ok(len)
    }
}

impl Incoming<'_> {
    fn refill(&mut self) -> io::Result<()> {
        match self.decoder.next::<FromHost<'_>>().map_err(io::Error::other)? {
            Some(FromHost::Data(Stream::Input, bytes)) => {
                self.window.received(bytes.len()).map_err(io::Error::other)?;
                self.held.clear();
                self.held.extend_from_slice(bytes);
                self.at = 0;
            }
            Some(FromHost::End(Stream::Input)) => self.ended = true,
            Some(_) => return Err(unexpected()),
            None => {
                // An end of the connection is no end of the archive.
                if !self.wire.receive(self.decoder)? {
                    self.wire.wait(None)?;
                    self.wire.flush()?;
                }
            }
        }
        Ok(())
    }
}

/// What goes to the output, in large pieces.
struct Outgoing<'a> {
    wire: &'a mut Wire,
    decoder: &'a mut Decoder,
    held: Vec<u8>,
    window: SendWindow,
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.held.len() == DATA_MAX {
            self.flush()?;
        }
        let len = bytes.len().min(DATA_MAX - self.held.len());
        self.held.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut left = self.held.as_slice();
        while !left.is_empty() {
            while let Some(frame) = self.decoder.next::<FromHost<'_>>().map_err(io::Error::other)? {
                match frame {
                    FromHost::Credit(Stream::Output, bytes) => {
                        self.window.credit(bytes).map_err(io::Error::other)?;
                    }
                    FromHost::End(Stream::Input) => {}
                    _ => return Err(unexpected()),
                }
            }
            let (piece, rest) = left.split_at(left.len().min(self.window.left()));
            if piece.is_empty() || self.wire.is_full() {
                self.wire.flush()?;
                if !self.wire.receive(self.decoder)? {
                    self.wire.wait(None)?;
                }
                continue;
            }
            self.wire.send(&FromGuest::Data(Stream::Output, piece));
            self.window.sent(piece.len());
            left = rest;
        }
        self.held.clear();
        self.wire.flush()?;
        Ok(())
    }
}
