//! Where a pack's bytes go: into its file, into the digests of its pieces, and on to the disk while more come.
//!
//! A thread of its own writes and hashes, so that the one that reads the archive need not; another one waits for the disk. Invariant:
//! an error of either is returned by [`Output::close`] or [`WriteBack::settle`] at the latest: an error that the kernel has told once it
//! does not tell again.

use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::pieces::PieceSums;

/// Buffers that wait to be written.
const WAITING: usize = 2;
/// Bytes after which the disk is asked to take what was written: large enough to cost little, small enough to be done soon.
const WRITE_BACK: u64 = 16 << 20;

/// A file, and who writes it.
#[derive(Debug)]
pub(super) enum Output {
    /// The caller.
    Here(Sink),
    /// A thread.
    Beside(Beside),
}

/// A thread that writes.
#[derive(Debug)]
pub(super) struct Beside {
    full: SyncSender<(u64, Vec<u8>)>,
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<io::Result<Sink>>,
}

/// A file that is written from its beginning to its end.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    sums: Option<PieceSums>,
    /// Whether it is to reach the disk: what is thrown away need not.
    is_kept: bool,
    write_back: Option<WriteBack>,
    bytes: u64,
}

/// A file that is complete, while the disk may still be busy with it.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) file: File,
    pub(super) sums: Option<PieceSums>,
    pub(super) write_back: Option<WriteBack>,
}

/// A thread that waits for the disk.
#[derive(Debug)]
pub struct WriteBack {
    more: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Output {
    pub(super) fn new(file: File, sums: Option<PieceSums>, is_kept: bool) -> Self {
        Self::Here(Sink { file, sums, is_kept, write_back: None, bytes: 0 })
    }

    /// Writes the buffer at `offset`, behind everything else, and makes it empty.
    pub(super) fn put(self, offset: u64, buffer: &mut Vec<u8>) -> io::Result<Self> {
        let beside = match self {
            Self::Beside(beside) => beside,
            // What fits into one buffer is not worth a thread.
            Self::Here(mut sink) if sink.bytes == 0 => {
                sink.put(offset, buffer)?;
                buffer.clear();
                return Ok(Self::Here(sink));
            }
            Self::Here(sink) => Beside::start(sink)?,
        };
        let empty = beside.empty.try_recv().unwrap_or_default();
        let full = mem::replace(buffer, empty);
        match beside.full.send((offset, full)) {
            Ok(()) => Ok(Self::Beside(beside)),
            Err(_) => Err(beside.close().err().unwrap_or_else(|| io::Error::other("given up"))),
        }
    }

    /// Waits until everything is written.
    pub(super) fn close(self) -> io::Result<Written> {
        let sink = match self {
            Self::Here(sink) => sink,
            Self::Beside(beside) => beside.close()?,
        };
        let Sink { file, sums, write_back, .. } = sink;
        Ok(Written { file, sums, write_back })
    }
}

impl Beside {
    fn start(mut sink: Sink) -> io::Result<Self> {
        let (full, buffers) = sync_channel::<(u64, Vec<u8>)>(WAITING);
        let (used, empty) = sync_channel(WAITING + 1);
        let write = move || {
            for (offset, mut buffer) in buffers {
                sink.put(offset, &buffer)?;
                buffer.clear();
                // One that nobody waits for is not kept.
                drop(used.try_send(buffer));
            }
            Ok(sink)
        };
        let thread = Builder::new().name("store".to_owned()).spawn(write)?;
        Ok(Self { full, empty, thread })
    }

    fn close(self) -> io::Result<Sink> {
        let Self { full, thread, .. } = self;
        drop(full);
        thread.join().expect("the storing thread does not panic")
    }
}

impl Sink {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        if let Some(sums) = &mut self.sums {
            sums.skip_to(offset);
            sums.feed(bytes);
        }
        let before = self.bytes / WRITE_BACK;
        self.bytes += bytes.len() as u64;
        if self.is_kept && self.bytes / WRITE_BACK > before {
            let write_back = match self.write_back.take() {
                Some(write_back) => write_back,
                None => WriteBack::start(&self.file)?,
            };
            self.write_back.insert(write_back).more()?;
        }
        Ok(())
    }
}

impl WriteBack {
    fn start(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        // While the disk is busy one request stands for all that come.
        let (more, requests) = sync_channel(1);
        let sync = move || requests.into_iter().try_for_each(|()| file.sync_data());
        let thread = Builder::new().name("write-back".to_owned()).spawn(sync)?;
        Ok(Self { more, thread })
    }

    fn more(&self) -> io::Result<()> {
        match self.more.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => Ok(()),
            Err(TrySendError::Disconnected(())) => Err(io::Error::other("the disk failed")),
        }
    }

    /// Waits for the disk's answer to what it was asked to take; it may have been asked for less than everything.
    ///
    /// # Errors
    ///
    /// When something did not reach the disk.
    pub fn settle(self) -> io::Result<()> {
        let Self { more, thread } = self;
        drop(more);
        thread.join().expect("waiting for the disk does not panic")
    }
}
