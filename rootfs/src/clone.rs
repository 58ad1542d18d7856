//! Copies of images: blocks shared where the file system can, holes kept where it cannot.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The copy shares the blocks of the original until either is written to.
    Reflink,
    /// The data was copied, the holes were not.
    Sparse,
}

/// Copies a file to a new one of the same length.
///
/// # Errors
///
/// When the target exists, or either cannot be read or written. A target that is not complete is removed.
pub fn clone_file(source: &Path, target: &Path) -> io::Result<Method> {
    let from = File::open(source)?;
    let to = File::create_new(target)?;
    let cloned = clone_into(&from, &to);
    if cloned.is_err() {
        drop(std::fs::remove_file(target));
    }
    cloned
}

/// Copies a file into an empty one.
///
/// # Errors
///
/// When either cannot be read or written.
pub fn clone_into(from: &File, to: &File) -> io::Result<Method> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(Method::Reflink);
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    while let Some((start, end)) = data_from(from, at, length)? {
        copy(from, to, start, end)?;
        at = end;
    }
    Ok(Method::Sparse)
}

/// The next run of data, as the file system knows it. All that is left where it does not know.
fn data_from(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, length))),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(length))))
}

fn copy(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut source, mut target) = (start, start);
    while source < end {
        let wanted = usize::try_from(end - source).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_through_memory(from, to, source, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_through_memory(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let mut buffer = vec![0; 1 << 20];
    let mut at = start;
    while at < end {
        let wanted = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        from.read_exact_at(&mut buffer[..wanted], at)?;
        to.write_all_at(&buffer[..wanted], at)?;
        at += wanted as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_holes() {
        let directory = tempfile::tempdir().expect("a directory");
        let (source, target) = (directory.path().join("a"), directory.path().join("b"));
        let file = File::create_new(&source).expect("new");
        file.set_len(64 << 20).expect("sparse");
        file.write_all_at(&[1; 8192], 1 << 20).expect("written");
        file.write_all_at(&[2; 100], (64 << 20) - 100).expect("written");
        clone_file(&source, &target).expect("copied");
        assert!(std::fs::read(&source).expect("read") == std::fs::read(&target).expect("read"));
        let blocks = std::fs::metadata(&target).expect("there").blocks();
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
        assert!(clone_file(&source, &target).is_err());
        assert!(target.exists());
    }
}
