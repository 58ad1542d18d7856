//! Files into a guest and out of it.
//!
//! Invariant: an archive of a guest is unpacked beneath its destination or refused; a copy is done when both sides say so.

use std::io::{self, Read, Write};
use std::path::Path;

use openshell_agent_proto::{
    CopyIn, CopyOut, DATA_MAX, FromGuest, FromHost, GuestPath, ReceiveWindow, SendWindow, Stream,
};
use openshell_copy::{CopyError, Keep, Totals, pack, unpack};

use super::connection::Connection;
use super::error::AgentError;

/// Copies `from`, a path of this host, to `to` in the guest of the machine whose vsock socket is at `path`.
///
/// # Errors
/// [`AgentError`]: of either side.
pub fn copy_in(
    path: &Path,
    from: &Path,
    to: &GuestPath,
    follow: bool,
    owners: bool,
) -> Result<Totals, AgentError> {
    let mut outgoing = Outgoing::open(path, to, false, owners)?;
    let packed = pack(from, follow, &mut outgoing);
    outgoing.finish(packed.map(drop))
}

/// Unpacks the archive that `from` reads in the directory `to` of the guest.
///
/// # Errors
/// [`AgentError`]: of either side.
pub fn stream_in(
    path: &Path,
    mut from: impl Read,
    to: &GuestPath,
    owners: bool,
) -> Result<Totals, AgentError> {
    let mut outgoing = Outgoing::open(path, to, true, owners)?;
    let copied = io::copy(&mut from, &mut outgoing).and_then(|_| outgoing.flush());
    outgoing.finish(copied.map_err(CopyError::Stream))
}

/// Copies `from` of the guest to `to`, a path of this host.
///
/// # Errors
/// [`AgentError`]: of either side.
pub fn copy_out(
    path: &Path,
    from: &GuestPath,
    to: &Path,
    follow: bool,
    owners: bool,
) -> Result<Totals, AgentError> {
    let mut incoming = Incoming::open(path, from, follow)?;
    let keep = if owners { Keep::All } else { Keep::Plain };
    let unpacked = unpack(to, false, keep, &mut incoming);
    incoming.finish(unpacked)
}

/// Writes the archive of `from` of the guest to `to`.
///
/// # Errors
/// [`AgentError`]: of either side.
pub fn stream_out(
    path: &Path,
    from: &GuestPath,
    to: &mut impl Write,
    follow: bool,
) -> Result<Totals, AgentError> {
    let mut incoming = Incoming::open(path, from, follow)?;
    let copied = io::copy(&mut incoming, to).and_then(|_| to.flush());
    incoming.finish(copied.map(|_| Totals::default()).map_err(CopyError::Stream))
}

/// The archive on its way into the guest.
struct Outgoing {
    connection: Connection,
    held: Vec<u8>,
    window: SendWindow,
    /// What the guest said, or why it cannot be spoken with.
    end: Option<Result<Totals, AgentError>>,
}

impl Outgoing {
    fn open(path: &Path, to: &GuestPath, into: bool, owners: bool) -> Result<Self, AgentError> {
        let request = CopyIn { path: to.clone(), into, owners };
        let connection = Connection::open(path, &FromHost::CopyIn(request))?;
        let held = Vec::with_capacity(DATA_MAX);
        Ok(Self { connection, held, window: SendWindow::default(), end: None })
    }

    fn send_held(&mut self) -> Result<(), AgentError> {
        let mut at = 0;
        while at < self.held.len() {
            self.take_frames()?;
            let len = (self.held.len() - at).min(self.window.left());
            if self.end.is_some() {
                // The guest has stopped reading.
                return Err(AgentError::Broken);
            }
            if len == 0 || self.connection.is_full() {
                self.connection.flush()?;
                self.look(true)?;
                continue;
            }
            self.connection.send(&FromHost::Data(Stream::Input, &self.held[at..at + len]));
            self.window.sent(len);
            at += len;
        }
        self.held.clear();
        self.connection.flush()
    }

    fn look(&mut self, patient: bool) -> Result<(), AgentError> {
        if !self.connection.receive()? && patient {
            self.connection.wait(None)?;
        }
        Ok(())
    }

    fn take_frames(&mut self) -> Result<(), AgentError> {
        while let Some(frame) = self.connection.decoder.next::<FromGuest<'_>>()? {
            match frame {
                FromGuest::Credit(Stream::Input, bytes) => self.window.credit(bytes)?,
                FromGuest::Failed(failure) => self.end = Some(Err(AgentError::Guest(failure))),
                FromGuest::Done { files, bytes } => self.end = Some(Ok(Totals { files, bytes })),
                _ => return Err(AgentError::Unexpected { what: "frame of a copy" }),
            }
        }
        Ok(())
    }

    /// Ends the archive, if all of it was `sent`, and hears what the guest made of it.
    fn finish(mut self, sent: Result<(), CopyError>) -> Result<Totals, AgentError> {
        match (sent, self.end.take()) {
            // What the guest said is why nothing more could be sent.
            (_, Some(Err(error))) => return Err(error),
            (Err(error), _) => return Err(AgentError::Copy(error)),
            (Ok(()), end) => self.end = end,
        }
        self.connection.send(&FromHost::End(Stream::Input));
        loop {
            self.take_frames()?;
            if let Some(end) = self.end.take() {
                return end;
            }
            self.connection.flush()?;
            self.look(true)?;
        }
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.held.len() == DATA_MAX {
            self.flush()?;
        }
        let len = bytes.len().min(DATA_MAX - self.held.len());
        self.held.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_held().map_err(|error| {
            let text = error.to_string();
            self.end.get_or_insert(Err(error));
            io::Error::other(text)
        })
    }
}

/// The archive on its way out of the guest.
struct Incoming {
    connection: Connection,
    held: Vec<u8>,
    at: usize,
    ended: bool,
    window: ReceiveWindow,
    end: Option<Result<Totals, AgentError>>,
}

impl Incoming {
    fn open(path: &Path, from: &GuestPath, follow: bool) -> Result<Self, AgentError> {
        let request = CopyOut { path: from.clone(), follow };
        let connection = Connection::open(path, &FromHost::CopyOut(request))?;
        let window = ReceiveWindow::default();
        Ok(Self { connection, held: Vec::new(), at: 0, ended: false, window, end: None })
    }

    fn refill(&mut self) -> Result<(), AgentError> {
        match self.connection.decoder.next::<FromGuest<'_>>()? {
            Some(FromGuest::Data(Stream::Output, bytes)) if !self.ended => {
                self.window.received(bytes.len())?;
                self.held.clear();
                self.held.extend_from_slice(bytes);
                self.at = 0;
            }
            Some(FromGuest::End(Stream::Output)) => self.ended = true,
            Some(FromGuest::Done { files, bytes }) if self.ended => {
                self.end = Some(Ok(Totals { files, bytes }));
            }
            Some(FromGuest::Failed(failure)) => return Err(AgentError::Guest(failure)),
            Some(_) => return Err(AgentError::Unexpected { what: "frame of a copy" }),
            None => {
                self.connection.flush()?;
                if !self.connection.receive()? {
                    self.connection.wait(None)?;
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, taken: Result<Totals, CopyError>) -> Result<Totals, AgentError> {
        if let Some(Err(error)) = self.end {
            return Err(error);
        }
        taken.map_err(AgentError::Copy)?;
        loop {
            if let Some(end) = self.end.take() {
                return end;
            }
            self.refill()?;
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.held.len() {
            if self.ended {
                return Ok(0);
            }
            if let Err(error) = self.refill() {
                let text = error.to_string();
                self.end = Some(Err(error));
                return Err(io::Error::other(text));
            }
        }
        let len = buffer.len().min(self.held.len() - self.at);
        buffer[..len].copy_from_slice(&self.held[self.at..self.at + len]);
        self.at += len;
        if let Some(credit) = self.window.used(len) {
            self.connection.send(&FromHost::Credit(Stream::Output, credit));
            // A guest that has gone is found out by the next read.
            drop(self.connection.flush());
        }
        Ok(len)
    }
}
