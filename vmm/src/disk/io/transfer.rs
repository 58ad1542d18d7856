//! One disk operation as a sequence of system calls: short transfers are resumed, refused ways of zeroing fall back to slower ones.
//!
//! Invariant: a transfer ends only when every byte of it is done or the host named an error; both engines run this same machine, so they
//! answer alike. It makes no system call itself.

use std::io;

use crate::memory::IoBuf;

/// What to do with a disk, apart from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffers.
    Read,
    /// Store the buffers; `durable` means that they are on stable storage when it ends.
    Write {
        /// As FUA.
        durable: bool,
    },
    /// Make all writes that have ended durable.
    Flush,
    /// Give the range back to the host; it may read as anything afterwards, and does read as zeroes.
    Discard {
        /// Length in bytes.
        len_bytes: u64,
    },
    /// Make the range read as zeroes.
    Zero {
        /// Length in bytes.
        len_bytes: u64,
        /// The host may give the space back.
        unmap: bool,
    },
}

/// An I/O vector entry as the kernel takes it.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Iovec(libc::iovec);

// SAFETY: an address and a length for the kernel; nothing is dereferenced through it in this process.
unsafe impl Send for Iovec {}

impl Iovec {
    fn new(buf: &IoBuf) -> Self {
        Self(libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len_bytes() })
    }

    fn zeroes(len: usize) -> Self {
        Self(libc::iovec { iov_base: ZEROES.as_ptr().cast_mut().cast(), iov_len: len })
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    pub(super) fn len(&self) -> usize {
        self.0.iov_len
    }
}

/// One system call of a transfer.
#[derive(Debug)]
pub(super) enum Step<'a> {
    Read {
        bufs: &'a [Iovec],
        offset: u64,
    },
    Write {
        bufs: &'a [Iovec],
        offset: u64,
        durable: bool,
    },
    Sync,
    Fallocate {
        mode: i32,
        offset: u64,
        len: u64,
    },
    /// Nothing is left to do.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Vectored,
    Sync,
    Punch,
    ZeroRange,
    WriteZeroes,
}

/// Vectors per system call: the kernel's limit.
const MAX_VECTORS: usize = 1024;
/// Zeroes written per system call where the host can't zero a range itself.
const ZERO_PIECE_BYTES: u64 = 1 << 20;
static ZEROES: [u8; 4096] = [0; 4096];

/// The state of one operation between system calls.
#[derive(Debug)]
pub(super) struct Transfer {
    op: Op,
    way: Way,
    offset: u64,
    left: u64,
    bufs: Vec<Iovec>,
    first: usize,
}

impl Default for Transfer {
    fn default() -> Self {
        Self { op: Op::Flush, way: Way::Sync, offset: 0, left: 0, bufs: Vec::new(), first: 0 }
    }
}

impl Transfer {
    /// Starts over with another operation; the vector's memory is kept.
    pub(super) fn start(&mut self, op: Op, offset: u64, bufs: &[IoBuf]) {
        self.op = op;
        self.offset = offset;
        self.first = 0;
        self.bufs.clear();
        (self.way, self.left) = match op {
            Op::Read | Op::Write { .. } => {
                self.bufs.extend(bufs.iter().filter(|buf| buf.len_bytes() > 0).map(Iovec::new));
                (Way::Vectored, bufs.iter().map(|buf| buf.len_bytes() as u64).sum())
            }
            Op::Flush => (Way::Sync, 0),
            Op::Discard { len_bytes } | Op::Zero { len_bytes, unmap: true } => {
                (Way::Punch, len_bytes)
            }
            Op::Zero { len_bytes, unmap: false } => (Way::ZeroRange, len_bytes),
        };
    }

    /// The system call to make next.
    pub(super) fn step(&mut self) -> Step<'_> {
        if self.left == 0 && self.way != Way::Sync {
            return Step::Nothing;
        }
        let offset = self.offset;
        match self.way {
            Way::Sync => Step::Sync,
            Way::Punch => self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            Way::ZeroRange => {
                self.fallocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
            }
            Way::WriteZeroes => {
                self.fill_zeroes();
                Step::Write { bufs: &self.bufs, offset, durable: false }
            }
            Way::Vectored => {
                let rest = self.bufs.get(self.first..).unwrap_or_default();
                let bufs = rest.get(..MAX_VECTORS).unwrap_or(rest);
                match self.op {
                    Op::Write { durable } => Step::Write { bufs, offset, durable },
                    _ => Step::Read { bufs, offset },
                }
            }
        }
    }

    /// Takes the result of the last step (a count, or a negated errno). `None` means that another step follows.
    pub(super) fn advance(&mut self, result: i32) -> Option<io::Result<()>> {
        let Ok(count) = u64::try_from(result) else {
            return self.failed(result.wrapping_neg());
        };
        match self.way {
            Way::Sync | Way::Punch | Way::ZeroRange => return Some(Ok(())),
            Way::Vectored | Way::WriteZeroes => {}
        }
        if self.left == 0 {
            return Some(Ok(()));
        }
        if count == 0 {
            return Some(Err(match self.op {
                Op::Read => io::ErrorKind::UnexpectedEof.into(),
                _ => io::ErrorKind::WriteZero.into(),
            }));
        }
        let count = count.min(self.left);
        self.left -= count;
        self.offset += count;
        if self.left == 0 {
            return Some(Ok(()));
        }
        if self.way == Way::Vectored {
            self.skip(count);
        }
        None
    }

    fn failed(&mut self, errno: i32) -> Option<io::Result<()>> {
        let refused =
            matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV);
        match (self.op, self.way) {
            _ if errno == libc::EINTR => return None,
            (Op::Zero { .. }, Way::Punch) if refused => self.way = Way::ZeroRange,
            (Op::Zero { .. }, Way::ZeroRange) if refused => self.way = Way::WriteZeroes,
            (Op::Discard { .. }, _) if refused => {
                return Some(Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
            }
            _ => return Some(Err(io::Error::from_raw_os_error(errno))),
        }
        None
    }

    fn fallocate(&self, mode: i32) -> Step<'static> {
        Step::Fallocate { mode, offset: self.offset, len: self.left }
    }

    fn fill_zeroes(&mut self) {
        let mut piece = self.left.min(ZERO_PIECE_BYTES);
        self.bufs.clear();
        while piece > 0 {
            let len = piece.min(ZEROES.len() as u64);
            piece -= len;
            self.bufs.push(Iovec::zeroes(usize::try_from(len).unwrap_or(ZEROES.len())));
        }
    }

    fn skip(&mut self, count: u64) {
        let mut count = usize::try_from(count).unwrap_or(usize::MAX);
        while let Some(buf) = self.bufs.get_mut(self.first) {
            if count < buf.0.iov_len {
                buf.0.iov_base = buf.base().wrapping_add(count).cast();
                buf.0.iov_len -= count;
                break;
            }
            count -= buf.0.iov_len;
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(op: Op, bufs: &mut [Vec<u8>]) -> Transfer {
        let bufs: Vec<_> = bufs.iter_mut().map(|bytes| IoBuf::staging(bytes)).collect();
        let mut transfer = Transfer::default();
        transfer.start(op, 4096, &bufs);
        transfer
    }

    fn lens(step: &Step<'_>) -> (Vec<usize>, u64) {
        match step {
            Step::Read { bufs, offset } | Step::Write { bufs, offset, .. } => {
                (bufs.iter().map(Iovec::len).collect(), *offset)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_short_transfer_resumes_where_it_stopped() {
        let mut bufs = [vec![0; 100], vec![], vec![0; 50], vec![0; 7]];
        for op in [Op::Read, Op::Write { durable: true }] {
            let mut transfer = started(op, &mut bufs);
            assert_eq!(lens(&transfer.step()), (vec![100, 50, 7], 4096));
            assert!(transfer.advance(30).is_none());
            assert_eq!(lens(&transfer.step()), (vec![70, 50, 7], 4126));
            assert!(transfer.advance(-libc::EINTR).is_none());
            assert!(transfer.advance(120).is_none());
            assert_eq!(lens(&transfer.step()), (vec![7], 4246));
            assert!(matches!(transfer.advance(7), Some(Ok(()))));
        }
    }

    #[test]
    fn the_end_of_the_file_and_errors_end_a_transfer() {
        let mut bufs = [vec![0; 100]];
        for (op, result, kind) in [
            (Op::Read, 0, io::ErrorKind::UnexpectedEof),
            (Op::Write { durable: false }, 0, io::ErrorKind::WriteZero),
            (Op::Read, -libc::ENOENT, io::ErrorKind::NotFound),
            (Op::Flush, -libc::ENOSPC, io::ErrorKind::StorageFull),
            (Op::Discard { len_bytes: 1 }, -libc::EINVAL, io::ErrorKind::Unsupported),
            (Op::Zero { len_bytes: 1, unmap: true }, -libc::ENOSPC, io::ErrorKind::StorageFull),
        ] {
            let error = started(op, &mut bufs).advance(result).unwrap().unwrap_err();
            assert_eq!(error.kind(), kind, "{op:?}");
        }
    }

    #[test]
    fn zeroing_falls_back_to_bounded_writes() {
        let len_bytes = 2 * ZERO_PIECE_BYTES + 512;
        let mut transfer = started(Op::Zero { len_bytes, unmap: true }, &mut []);
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        assert!(
            matches!(transfer.step(), Step::Fallocate { mode, offset: 4096, .. } if mode == punch)
        );
        assert!(transfer.advance(-libc::EOPNOTSUPP).is_none());
        let range = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        assert!(matches!(transfer.step(), Step::Fallocate { mode, .. } if mode == range));
        assert!(transfer.advance(-libc::EOPNOTSUPP).is_none());
        let mut written = 0;
        let done = loop {
            let (lens, offset) = lens(&transfer.step());
            let count: usize = lens.iter().sum();
            assert!(count as u64 <= ZERO_PIECE_BYTES);
            assert_eq!(offset, 4096 + written);
            written += count as u64;
            if let Some(done) = transfer.advance(i32::try_from(count).unwrap()) {
                break done;
            }
        };
        done.unwrap();
        assert_eq!(written, len_bytes);
    }

    #[test]
    fn a_long_vector_is_split_at_the_kernel_limit() {
        let mut bufs = vec![vec![0; 1]; MAX_VECTORS + 3];
        let mut transfer = started(Op::Read, &mut bufs);
        assert_eq!(lens(&transfer.step()).0.len(), MAX_VECTORS);
        assert!(transfer.advance(i32::try_from(MAX_VECTORS).unwrap()).is_none());
        assert_eq!(lens(&transfer.step()).0.len(), 3);
    }

    #[test]
    fn nothing_to_move_needs_no_system_call() {
        assert!(matches!(started(Op::Read, &mut []).step(), Step::Nothing));
        assert!(matches!(
            started(Op::Zero { len_bytes: 0, unmap: true }, &mut []).step(),
            Step::Nothing
        ));
    }
}
