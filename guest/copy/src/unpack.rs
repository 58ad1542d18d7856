//! From an archive to a tree.
//!
//! Invariant: every path is resolved by the kernel beneath the destination, without links that lead out; a file is made new in place of
//! what had its name. A directory gets its metadata when the last entry below it was made.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    chownat, fchmod, fchown, ftruncate, futimens, linkat, mkdirat, mknodat, openat, openat2,
    statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::Totals;
use crate::archive::{Entry, Kind, Reader};
use crate::error::CopyError;
use crate::place::Mapping;

const CHUNK: usize = 64 << 10;

/// What of an archive's metadata is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Permissions without the special bits, times, attributes that anybody may set. Owners are whoever unpacks; devices are refused.
    Plain,
    /// Everything.
    All,
}

/// Unpacks the archive that `source` reads, to its end. With `into`, `destination` must be a directory; else it may also be the name that
/// the archive's first part gets.
///
/// # Errors
/// What cannot be made, and what the archive must not hold. What was made until then stays.
pub fn unpack(
    destination: &Path,
    into: bool,
    keep: Keep,
    source: impl Read,
) -> Result<Totals, CopyError> {
    let mut reader = Reader::new(source);
    let Some(first) = reader.next_entry()? else {
        // Nothing was packed; that is no archive that we make.
        return Err(CopyError::archive(b"", "the archive is empty"));
    };
    let is_directory = first.kind == Kind::Directory;
    let (base, rename) = base(destination, into, is_directory)?;
    let mapping = Mapping::new(rename, &first.path);
    let mapping = mapping.ok_or_else(|| CopyError::archive(&first.path, OUTSIDE))?;
    let mut unpacker = Unpacker {
        base,
        shown: destination.to_owned(),
        keep,
        open: Vec::new(),
        chunk: vec![0; CHUNK],
        totals: Totals::default(),
    };
    let mut next = Some(first);
    while let Some(entry) = next {
        let parts = mapping.map(&entry.path);
        let parts = parts.ok_or_else(|| CopyError::archive(&entry.path, OUTSIDE))?;
        let target = match &entry.kind {
            Kind::HardLink(to) => {
                let to = mapping.map(to).filter(|parts| !parts.is_empty());
                Some(to.ok_or_else(|| CopyError::archive(&entry.path, OUTSIDE))?)
            }
            _ => None,
        };
        unpacker.entry(&entry, &parts, target.as_deref(), &mut reader)?;
        next = reader.next_entry()?;
    }
    unpacker.close_to(0)?;
    reader.drain()?;
    Ok(unpacker.totals)
}

const OUTSIDE: &str = "it leads out of the destination";

/// The directory to unpack into, and the name that the first part gets.
fn base(
    destination: &Path,
    into: bool,
    is_directory: bool,
) -> Result<(OwnedFd, Option<Vec<u8>>), CopyError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, destination, flags, Mode::empty()) {
        Ok(base) => return Ok((base, None)),
        Err(Errno::NOENT | Errno::NOTDIR) if !into => {}
        Err(errno) => return Err(CopyError::file(destination)(errno)),
    }
    let bytes = destination.as_os_str().as_bytes();
    let is_there = rustix::fs::stat(destination).is_ok();
    if is_directory && is_there {
        return Err(CopyError::unfit(destination, "not a directory"));
    }
    if bytes.ends_with(b"/") && !is_directory {
        return Err(CopyError::unfit(destination, "no such directory"));
    }
    let (Some(name), Some(parent)) = (destination.file_name(), destination.parent()) else {
        return Err(CopyError::unfit(destination, "no such directory"));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let base = openat(CWD, parent, flags, Mode::empty()).map_err(CopyError::file(parent))?;
    Ok((base, Some(name.as_bytes().to_vec())))
}

/// A directory that is being filled.
struct Open {
    /// Its parts, from the destination.
    parts: Vec<Vec<u8>>,
    fd: OwnedFd,
    /// What it gets in the end, if the archive says.
    entry: Option<Entry>,
}

struct Unpacker {
    base: OwnedFd,
    shown: PathBuf,
    keep: Keep,
    /// The way to the last entry, the outermost directory first.
    open: Vec<Open>,
    chunk: Vec<u8>,
    totals: Totals,
}

impl Unpacker {
    fn entry<R: Read>(
        &mut self,
        entry: &Entry,
        parts: &[&[u8]],
        target: Option<&[&[u8]]>,
        reader: &mut Reader<R>,
    ) -> Result<(), CopyError> {
        let Some((name, parents)) = parts.split_last() else {
            // The destination itself, which was there before: it stays as it is.
            return Ok(());
        };
        self.totals.files += 1;
        self.enter(parents)?;
        if entry.kind == Kind::Directory {
            return self.directory(entry, name, parts);
        }
        let shown = self.shown_of(parts);
        let linked = target.map(|target| self.parent_of(target)).transpose()?;
        let parent = self.open.last().map_or(&self.base, |open| &open.fd);
        remove(parent, name, &shown)?;
        let wrong = |errno| CopyError::file(&shown)(errno);
        let device = |major, minor| rustix::fs::makedev(major, minor);
        match &entry.kind {
            Kind::Directory => return Ok(()),
            Kind::File { size, extents } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let file =
                    openat(parent, *name, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o600));
                let file = file.map_err(wrong)?;
                let bytes =
                    data(&file, *size, extents.as_deref(), reader, &mut self.chunk, &shown)?;
                self.totals.bytes += bytes;
                return self.finish(&file, entry, &shown);
            }
            Kind::HardLink(_) => {
                let (Some(linked), Some(last)) = (linked, target.and_then(<[_]>::last)) else {
                    return Ok(());
                };
                return linkat(&linked, *last, parent, *name, AtFlags::empty()).map_err(wrong);
            }
            Kind::Symlink(to) => symlinkat(OsStr::from_bytes(to), parent, *name).map_err(wrong)?,
            Kind::Character(..) | Kind::Block(..) if self.keep == Keep::Plain => {
                return Err(CopyError::archive(
                    &entry.path,
                    "devices are taken over in archive mode only",
                ));
            }
            Kind::Character(major, minor) => {
                let kind = FileType::CharacterDevice;
                mknodat(parent, *name, kind, mode(entry, self.keep), device(*major, *minor))
                    .map_err(wrong)?;
            }
            Kind::Block(major, minor) => {
                let kind = FileType::BlockDevice;
                mknodat(parent, *name, kind, mode(entry, self.keep), device(*major, *minor))
                    .map_err(wrong)?;
            }
            Kind::Fifo => {
                mknodat(parent, *name, FileType::Fifo, mode(entry, self.keep), 0).map_err(wrong)?;
            }
        }
        self.finish_at(parent, name, entry, &shown)
    }

    /// Makes `parents` the way to the last entry, and what is missing of it.
    fn enter(&mut self, parents: &[&[u8]]) -> Result<(), CopyError> {
        let is_on_the_way = |open: &Open| {
            open.parts.len() <= parents.len() && open.parts.iter().zip(parents).all(|(a, b)| a == b)
        };
        let shared = self.open.iter().take_while(|open| is_on_the_way(open)).count();
        self.close_to(shared)?;
        while self.open.len() < parents.len() {
            let parts = &parents[..=self.open.len()];
            let name = parts[parts.len() - 1];
            let parent = self.open.last().map_or(&self.base, |open| &open.fd);
            match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(CopyError::file(&self.shown_of(parts))(errno)),
            }
            let fd = self.opened(parts)?;
            let parts = parts.iter().map(|part| part.to_vec()).collect();
            self.open.push(Open { parts, fd, entry: None });
        }
        Ok(())
    }

    fn directory(&mut self, entry: &Entry, name: &[u8], parts: &[&[u8]]) -> Result<(), CopyError> {
        let parent = self.open.last().map_or(&self.base, |open| &open.fd);
        let wrong = |errno| CopyError::file(&self.shown_of(parts))(errno);
        match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(wrong)?;
                if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
                    return Err(CopyError::unfit(&self.shown_of(parts), "not a directory"));
                }
            }
            Err(errno) => return Err(wrong(errno)),
        }
        let fd = self.opened(parts)?;
        let parts = parts.iter().map(|part| part.to_vec()).collect();
        self.open.push(Open { parts, fd, entry: Some(entry.clone()) });
        Ok(())
    }

    /// Gives the directories their metadata that are not on the way any more.
    fn close_to(&mut self, len: usize) -> Result<(), CopyError> {
        while self.open.len() > len {
            let Some(Open { parts, fd, entry }) = self.open.pop() else { break };
            if let Some(entry) = entry {
                let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                self.finish(&fd, &entry, &self.shown_of(&parts))?;
            }
        }
        Ok(())
    }

    /// The directory at `parts`, wherever links beneath the destination lead.
    fn opened(&self, parts: &[&[u8]]) -> Result<OwnedFd, CopyError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let path = parts.join(&b'/');
        openat2(&self.base, OsStr::from_bytes(&path), flags, Mode::empty(), resolve)
            .map_err(CopyError::file(&self.shown_of(parts)))
    }

    fn parent_of(&self, target: &[&[u8]]) -> Result<OwnedFd, CopyError> {
        match target.split_last() {
            Some((_, parents)) if !parents.is_empty() => self.opened(parents),
            _ => self.opened(&[b"."]),
        }
    }

    fn shown_of(&self, parts: &[&[u8]]) -> PathBuf {
        parts.iter().fold(self.shown.clone(), |path, part| path.join(OsStr::from_bytes(part)))
    }

    /// Gives an open file or directory its metadata. The owner first: a change of it clears bits and capabilities.
    fn finish(&self, fd: &OwnedFd, entry: &Entry, shown: &Path) -> Result<(), CopyError> {
        let wrong = |errno| CopyError::file(shown)(errno);
        if self.keep == Keep::All {
            let (uid, gid) = owner(entry);
            fchown(fd, Some(uid), Some(gid)).map_err(wrong)?;
        }
        for (name, value) in &entry.xattrs {
            let set = rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty());
            self.judge(set, shown)?;
        }
        fchmod(fd, mode(entry, self.keep)).map_err(wrong)?;
        futimens(fd, &times(entry)).map_err(wrong)
    }

    /// As [`Self::finish`], of what cannot be opened.
    fn finish_at(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        shown: &Path,
    ) -> Result<(), CopyError> {
        let wrong = |errno| CopyError::file(shown)(errno);
        if self.keep == Keep::All {
            let (uid, gid) = owner(entry);
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(wrong)?;
        }
        let directory = format!("/proc/self/fd/{}/", parent.as_raw_fd());
        let path = [directory.as_bytes(), name].concat();
        for (attribute, value) in &entry.xattrs {
            let set =
                rustix::fs::lsetxattr(&*path, attribute.as_slice(), value, XattrFlags::empty());
            self.judge(set, shown)?;
        }
        if !matches!(entry.kind, Kind::Symlink(_)) {
            // It was made with what the mask left.
            rustix::fs::chmodat(parent, name, mode(entry, self.keep), AtFlags::empty())
                .map_err(wrong)?;
        }
        utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(wrong)
    }

    /// An attribute that not everybody may set, or not every file system has, is worth a failure when everything was to be kept.
    fn judge(&self, set: Result<(), Errno>, shown: &Path) -> Result<(), CopyError> {
        match set {
            Err(Errno::PERM | Errno::NOTSUP | Errno::INVAL) if self.keep == Keep::Plain => Ok(()),
            set => set.map_err(CopyError::file(shown)),
        }
    }
}

fn owner(entry: &Entry) -> (Uid, Gid) {
    (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid))
}

fn mode(entry: &Entry, keep: Keep) -> Mode {
    let kept = match (keep, &entry.kind) {
        (Keep::All, _) => 0o7777,
        (Keep::Plain, Kind::Directory) => 0o1777,
        (Keep::Plain, _) => 0o777,
    };
    Mode::from_raw_mode(entry.mode & kept)
}

fn times(entry: &Entry) -> Timestamps {
    let (tv_sec, nanos) = entry.modified;
    let time = Timespec { tv_sec, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Removes what has the name, unless it is a directory.
fn remove(parent: &OwnedFd, name: &[u8], shown: &Path) -> Result<(), CopyError> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Err(CopyError::unfit(shown, "a directory is in its place")),
        Err(errno) => Err(CopyError::file(shown)(errno)),
    }
}

/// Writes a file's data where it belongs; how many bytes.
fn data<R: Read>(
    file: &OwnedFd,
    size: u64,
    extents: Option<&[(u64, u64)]>,
    reader: &mut Reader<R>,
    chunk: &mut [u8],
    shown: &Path,
) -> Result<u64, CopyError> {
    let whole = [(0, size)];
    let mut written = 0;
    for &(start, len) in extents.unwrap_or(&whole) {
        let (mut at, end) = (start, start + len);
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(chunk.len()).min(chunk.len());
            let read = reader.read_data(&mut chunk[..wanted])?;
            let mut left = &chunk[..read];
            while !left.is_empty() {
                match rustix::io::pwrite(file, left, at) {
                    Err(Errno::INTR) => {}
                    len => {
                        let len = len.map_err(CopyError::file(shown))?;
                        left = &left[len..];
                        at += len as u64;
                    }
                }
            }
            written += read as u64;
        }
    }
    if extents.is_some() {
        ftruncate(file, size).map_err(CopyError::file(shown))?;
    }
    Ok(written)
}
