//! Frames from the host to the guest.

use crate::decoder::Receive;
use crate::exec::{Exec, Size};
use crate::wire::{Reader, WireError, Writer};
use crate::{DATA_MAX, REQUEST_MAX, Stream};

const MAGIC: &[u8; 4] = b"OSVA";
const PATH_MAX: usize = 4096;
const SIGNAL_MAX: u8 = 64;

const HELLO: u8 = 0x01;
const EXEC: u8 = 0x02;
const COPY_IN: u8 = 0x03;
const COPY_OUT: u8 = 0x04;
const STATS: u8 = 0x05;
const SET_CLOCK: u8 = 0x06;
const ATTACH: u8 = 0x07;
pub(crate) const DATA: u8 = 0x20;
pub(crate) const END: u8 = 0x21;
pub(crate) const CREDIT: u8 = 0x22;
const RESIZE: u8 = 0x23;
const SIGNAL: u8 = 0x24;

/// A signal's number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(u8);

impl Signal {
    /// The signal with this number, if there is one.
    #[must_use]
    pub fn new(number: i32) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| (1..=SIGNAL_MAX).contains(number)).map(Self)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }
}

/// A path in the guest, from its root: not empty, no zero byte, shorter than 4,096 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPath(Vec<u8>);

impl GuestPath {
    /// Takes a path; none when it cannot be one.
    #[must_use]
    pub fn new(path: Vec<u8>) -> Option<Self> {
        let fits = !path.is_empty() && path.len() < PATH_MAX && !path.contains(&0);
        fits.then_some(Self(path))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// An archive to be unpacked in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyIn {
    /// Where: a directory that takes what comes, or the new name of what comes.
    pub path: GuestPath,
    /// The path must be a directory, and names stay as they are.
    pub into: bool,
    /// Owners are the archive's; else everything becomes root's.
    pub owners: bool,
}

/// Something of the guest to be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOut {
    /// What.
    pub path: GuestPath,
    /// A symbolic link at the path stands for what it points to.
    pub follow: bool,
}

/// A frame from the host to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromHost<'a> {
    /// The first frame: the versions that the host speaks.
    Hello {
        /// The lowest.
        lowest: u16,
        /// The highest.
        highest: u16,
    },
    /// Start a process.
    Exec(Exec),
    /// Unpack the archive that comes on the input.
    CopyIn(CopyIn),
    /// Send an archive on the output.
    CopyOut(CopyOut),
    /// Tell what the guest uses.
    Stats,
    /// Set the clock to this time, in nanoseconds since 1970.
    SetClock(u64),
    /// Carry the streams of the main process.
    Attach {
        /// Who asks also gives the input.
        input: bool,
    },
    /// A piece of a stream.
    Data(Stream, &'a [u8]),
    /// The end of a stream; of an output, that nobody reads it any more.
    End(Stream),
    /// So many more bytes of a stream may be sent.
    Credit(Stream, u32),
    /// The terminal has another size.
    Resize(Size),
    /// A signal for the process and its group.
    Signal(Signal),
}

impl FromHost<'_> {
    /// Appends the frame to `out`.
    ///
    /// # Panics
    /// When data is longer than [`DATA_MAX`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let frame = |kind, out| Writer::new(kind, out);
        match self {
            Self::Hello { lowest, highest } => {
                frame(HELLO, out).raw(MAGIC).u16(*lowest).u16(*highest).end();
            }
            Self::Exec(exec) => exec.write(EXEC, out),
            Self::CopyIn(copy) => {
                let writer = frame(COPY_IN, out).u8(copy.into.into()).u8(copy.owners.into());
                writer.raw(copy.path.as_bytes()).end();
            }
            Self::CopyOut(copy) => {
                frame(COPY_OUT, out).u8(copy.follow.into()).raw(copy.path.as_bytes()).end();
            }
            Self::Stats => frame(STATS, out).end(),
            Self::SetClock(time) => frame(SET_CLOCK, out).u64(*time).end(),
            Self::Attach { input } => frame(ATTACH, out).u8((*input).into()).end(),
            Self::Data(stream, bytes) => {
                assert!(bytes.len() <= DATA_MAX, "a piece of a stream is bounded");
                frame(DATA, out).u8(stream.number()).raw(bytes).end();
            }
            Self::End(stream) => frame(END, out).u8(stream.number()).end(),
            Self::Credit(stream, bytes) => {
                frame(CREDIT, out).u8(stream.number()).u32(*bytes).end();
            }
            Self::Resize(size) => size.write(frame(RESIZE, out)).end(),
            Self::Signal(signal) => frame(SIGNAL, out).u8(signal.0).end(),
        }
    }
}

impl<'a> Receive<'a> for FromHost<'a> {
    fn limit(kind: u8) -> Option<usize> {
        Some(match kind {
            EXEC => REQUEST_MAX,
            COPY_IN | COPY_OUT => PATH_MAX + 2,
            DATA => DATA_MAX + 1,
            HELLO | STATS | SET_CLOCK | ATTACH | END | CREDIT | RESIZE | SIGNAL => 16,
            _ => return None,
        })
    }

    fn parse(kind: u8, payload: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(kind, payload);
        let frame = match kind {
            HELLO => {
                if reader.take(MAGIC.len())? != MAGIC {
                    return Err(WireError::Magic);
                }
                Self::Hello { lowest: reader.u16()?, highest: reader.u16()? }
            }
            EXEC => return Exec::read(reader).map(Self::Exec),
            COPY_IN => {
                let (into, owners) = (reader.flag("into")?, reader.flag("owners")?);
                Self::CopyIn(CopyIn { into, owners, path: path(&mut reader)? })
            }
            COPY_OUT => {
                let follow = reader.flag("follow")?;
                Self::CopyOut(CopyOut { follow, path: path(&mut reader)? })
            }
            STATS => Self::Stats,
            SET_CLOCK => Self::SetClock(reader.u64()?),
            ATTACH => Self::Attach { input: reader.flag("input")? },
            DATA => Self::Data(Stream::of(reader.u8()?)?, reader.rest()),
            END => Self::End(Stream::of(reader.u8()?)?),
            CREDIT => Self::Credit(Stream::of(reader.u8()?)?, reader.u32()?),
            RESIZE => Self::Resize(Size::read(&mut reader)?),
            SIGNAL => {
                let signal = Signal::new(i32::from(reader.u8()?));
                Self::Signal(signal.ok_or(WireError::Value("signal"))?)
            }
            _ => return Err(WireError::Kind(kind)),
        };
        reader.end(frame)
    }
}

fn path(reader: &mut Reader<'_>) -> Result<GuestPath, WireError> {
    GuestPath::new(reader.rest().to_vec()).ok_or(WireError::Value("path"))
}
