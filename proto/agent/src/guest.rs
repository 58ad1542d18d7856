//! Frames from the guest to the host. Everything in them is what a hostile guest may say.

use crate::decoder::Receive;
use crate::failure::{Failure, TEXT_MAX};
use crate::host::{CREDIT, DATA, END, Signal};
use crate::stats::Stats;
use crate::wire::{Reader, WireError, Writer};
use crate::{DATA_MAX, Stream};

const WELCOME: u8 = 0x41;
const STARTED: u8 = 0x42;
const EXITED: u8 = 0x43;
const FAILED: u8 = 0x44;
const STATS: u8 = 0x45;
const DONE: u8 = 0x46;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(Signal),
}

impl Exit {
    /// As a shell tells it: a signal is 128 and its number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(signal.number()).unwrap_or(0).saturating_add(128),
        }
    }
}

/// A frame from the guest to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromGuest<'a> {
    /// The answer to the first frame: the version that is spoken from here on.
    Welcome(u16),
    /// The process runs, with this number in the guest.
    Started(u32),
    /// The process has ended, and all of its output was sent.
    Exited(Exit),
    /// The session has failed; nothing follows.
    Failed(Failure),
    /// What the guest uses.
    Stats(Stats),
    /// What was asked for is done: so many files, so many bytes of their data.
    Done {
        /// Files.
        files: u64,
        /// Bytes.
        bytes: u64,
    },
    /// A piece of a stream.
    Data(Stream, &'a [u8]),
    /// The end of a stream.
    End(Stream),
    /// So many more bytes of a stream may be sent.
    Credit(Stream, u32),
}

impl FromGuest<'_> {
    /// Appends the frame to `out`.
    ///
    /// # Panics
    /// When data is longer than [`DATA_MAX`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let frame = |kind, out| Writer::new(kind, out);
        match self {
            Self::Welcome(version) => frame(WELCOME, out).u16(*version).end(),
            Self::Started(pid) => frame(STARTED, out).u32(*pid).end(),
            Self::Exited(Exit::Code(code)) => frame(EXITED, out).u8(0).u8(*code).end(),
            Self::Exited(Exit::Signal(signal)) => {
                let number = u8::try_from(signal.number()).unwrap_or(0);
                frame(EXITED, out).u8(1).u8(number).end();
            }
            Self::Failed(failure) => failure.write(FAILED, out),
            Self::Stats(stats) => stats.write(STATS, out),
            Self::Done { files, bytes } => frame(DONE, out).u64(*files).u64(*bytes).end(),
            Self::Data(stream, bytes) => {
                assert!(bytes.len() <= DATA_MAX, "a piece of a stream is bounded");
                frame(DATA, out).u8(stream.number()).raw(bytes).end();
            }
            Self::End(stream) => frame(END, out).u8(stream.number()).end(),
            Self::Credit(stream, bytes) => {
                frame(CREDIT, out).u8(stream.number()).u32(*bytes).end();
            }
        }
    }
}

impl<'a> Receive<'a> for FromGuest<'a> {
    fn limit(kind: u8) -> Option<usize> {
        Some(match kind {
            DATA => DATA_MAX + 1,
            FAILED => 1 + TEXT_MAX,
            STATS => 1024,
            WELCOME | STARTED | EXITED | DONE | END | CREDIT => 16,
            _ => return None,
        })
    }

    fn parse(kind: u8, payload: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(kind, payload);
        let frame = match kind {
            WELCOME => Self::Welcome(reader.u16()?),
            STARTED => Self::Started(reader.u32()?),
            EXITED => Self::Exited(match (reader.u8()?, reader.u8()?) {
                (0, code) => Exit::Code(code),
                (1, number) => {
                    let signal = Signal::new(i32::from(number));
                    Exit::Signal(signal.ok_or(WireError::Value("signal"))?)
                }
                _ => return Err(WireError::Value("exit")),
            }),
            FAILED => return Failure::read(reader).map(Self::Failed),
            STATS => return Stats::read(reader).map(Self::Stats),
            DONE => Self::Done { files: reader.u64()?, bytes: reader.u64()? },
            DATA => Self::Data(Stream::of(reader.u8()?)?, reader.rest()),
            END => Self::End(Stream::of(reader.u8()?)?),
            CREDIT => Self::Credit(Stream::of(reader.u8()?)?, reader.u32()?),
            _ => return Err(WireError::Kind(kind)),
        };
        reader.end(frame)
    }
}
