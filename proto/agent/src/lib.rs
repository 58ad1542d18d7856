//! The protocol between a host and the agent of its guest: frames on a byte stream, one stream per session.
//!
//! Pure: bytes in, values out. What is decoded can be used as it is: lengths, names and numbers were checked on the way.
//! Invariant: no byte of a peer makes a decoder panic, keep more than one frame, or wait for a frame longer than its
//! kind may be. `docs/agent.md` has the tables.
#![forbid(unsafe_code)]

mod decoder;
mod exec;
mod failure;
mod guest;
mod host;
mod room;
mod stats;
#[cfg(test)]
mod tests;
mod window;
mod wire;

pub use decoder::{Decoder, Receive};
pub use exec::{Exec, ExecError, Size, Stdio};
pub use failure::{Failure, FailureKind};
pub use guest::{Exit, FromGuest};
pub use host::{CopyIn, CopyOut, FromHost, GuestPath, Signal};
pub use room::Room;
pub use stats::Stats;
pub use window::{ReceiveWindow, SendWindow};
pub use wire::WireError;

/// Where the agent listens; below 1024, so that only root of the guest could have taken it.
pub const PORT: u32 = 1022;

/// Where the host waits for the guest's connection that carries the streams of its main process.
pub const MAIN_PORT: u32 = 1021;

/// The lowest and the highest version that this library speaks.
pub const VERSIONS: (u16, u16) = (1, 1);

/// Bytes of a stream that may be on their way or lie unread at the receiver, until it gives credit for more.
pub const WINDOW_BYTES: u32 = 256 << 10;

/// The longest piece of a stream in one frame, in bytes.
pub const DATA_MAX: usize = 64 << 10;

/// The longest request, in bytes.
pub const REQUEST_MAX: usize = 1 << 20;

/// A stream of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard input, or an archive on its way into the guest.
    Input,
    /// Standard output, what a terminal shows, or an archive on its way out.
    Output,
    /// Standard error.
    Error,
}

impl Stream {
    fn number(self) -> u8 {
        match self {
            Self::Input => 0,
            Self::Output => 1,
            Self::Error => 2,
        }
    }

    fn of(number: u8) -> Result<Self, WireError> {
        match number {
            0 => Ok(Self::Input),
            1 => Ok(Self::Output),
            2 => Ok(Self::Error),
            _ => Err(WireError::Value("stream")),
        }
    }
}
