//! From a tree to an archive.
//!
//! Invariant: a file's data has the length that its header says, whatever happens to the file meanwhile, or the archive ends without an
//! end. What is held is one descriptor per level, the names of one directory per level, and the numbers of files with several names.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, openat, statat};
use rustix::io::Errno;

use crate::Totals;
use crate::archive::{self, Attributes, EXTENTS_MAX, Entry, Kind};
use crate::error::CopyError;
use crate::place::Source;

/// Directories in directories.
const DEPTH_MAX: usize = 256;
/// Files with several names whose other names are links; what comes beyond is packed again.
const LINKS_MAX: usize = 1 << 16;
const LIST_MAX: usize = 64 << 10;
const CHUNK: usize = 64 << 10;

/// Writes `path` and everything below it to `out`, as an archive with its end. Sockets are left out. `follow`: a symbolic link at the path
/// stands for what it points to.
///
/// # Errors
/// What cannot be read, and when `out` takes nothing more.
pub fn pack(path: &Path, follow: bool, out: &mut impl Write) -> Result<Totals, CopyError> {
    let source = Source::of(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = openat(CWD, &source.parent, flags, Mode::empty());
    let parent = parent.map_err(CopyError::file(&source.parent))?;
    let mut packer =
        Packer { out, totals: Totals::default(), links: HashMap::new(), chunk: vec![0; CHUNK] };
    let follow = follow || source.is_directory;
    let (name, below) = match &source.name {
        Some(name) => (name.as_slice(), name.clone()),
        None => (&b"."[..], b".".to_vec()),
    };
    let node = Node { parent: &parent, name, shown: path.to_owned(), follow };
    if source.is_directory && !node.stat()?.is_directory() {
        return Err(CopyError::unfit(path, "not a directory"));
    }
    packer.node(&node, below, 0)?;
    archive::write_end(packer.out).and_then(|()| packer.out.flush()).map_err(CopyError::Stream)?;
    Ok(packer.totals)
}

/// A file by the directory that it lies in.
struct Node<'a> {
    parent: &'a OwnedFd,
    name: &'a [u8],
    shown: PathBuf,
    follow: bool,
}

impl Node<'_> {
    fn stat(&self) -> Result<Found, CopyError> {
        let flags = if self.follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        statat(self.parent, self.name, flags).map(Found).map_err(self.wrong())
    }

    fn open(&self, flags: OFlags) -> Result<OwnedFd, CopyError> {
        let follow = if self.follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        // What became a pipe meanwhile is not waited for.
        let flags = flags | follow | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat(self.parent, self.name, flags, Mode::empty()).map_err(self.wrong())
    }

    fn wrong(&self) -> impl FnOnce(Errno) -> CopyError + use<> {
        CopyError::file(&self.shown)
    }

    /// Names and values of its extended attributes; none where there are none.
    fn xattrs(&self) -> Result<Attributes, CopyError> {
        let directory = format!("/proc/self/fd/{}/", self.parent.as_raw_fd());
        let path = [directory.as_bytes(), self.name].concat();
        let mut list = vec![0; LIST_MAX];
        let listed = if self.follow {
            rustix::fs::listxattr(&*path, &mut list[..])
        } else {
            rustix::fs::llistxattr(&*path, &mut list[..])
        };
        let len = match listed {
            Ok(len) => len,
            Err(Errno::NOTSUP | Errno::PERM | Errno::NOENT | Errno::ACCESS) => {
                return Ok(Vec::new());
            }
            Err(errno) => return Err(self.wrong()(errno)),
        };
        let mut found = Vec::new();
        for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; LIST_MAX];
            let got = if self.follow {
                rustix::fs::getxattr(&*path, name, &mut value[..])
            } else {
                rustix::fs::lgetxattr(&*path, name, &mut value[..])
            };
            match got {
                Ok(len) => {
                    value.truncate(len);
                    found.push((name.to_vec(), value));
                }
                // It went away, or is not for us.
                Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => {}
                Err(errno) => return Err(self.wrong()(errno)),
            }
        }
        Ok(found)
    }
}

struct Found(Stat);

impl Found {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.0.st_mode)
    }

    fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    fn size(&self) -> u64 {
        u64::try_from(self.0.st_size).unwrap_or(0)
    }

    fn device(&self) -> (u32, u32) {
        (rustix::fs::major(self.0.st_rdev), rustix::fs::minor(self.0.st_rdev))
    }
}

struct Packer<'o, W> {
    out: &'o mut W,
    totals: Totals,
    links: HashMap<(u64, u64), Vec<u8>>,
    chunk: Vec<u8>,
}

impl<W: Write> Packer<'_, W> {
    fn node(&mut self, node: &Node<'_>, path: Vec<u8>, depth: usize) -> Result<(), CopyError> {
        let found = node.stat()?;
        let first = self.first_name(&found, &path);
        let kind = match (found.kind(), first) {
            (FileType::Directory, _) => Kind::Directory,
            (_, Some(first)) => Kind::HardLink(first),
            (FileType::RegularFile, _) => return self.file(node, path),
            (FileType::Symlink, _) => {
                let target = rustix::fs::readlinkat(node.parent, node.name, Vec::new());
                Kind::Symlink(target.map_err(node.wrong())?.into_bytes())
            }
            (FileType::CharacterDevice, _) => {
                let (major, minor) = found.device();
                Kind::Character(major, minor)
            }
            (FileType::BlockDevice, _) => {
                let (major, minor) = found.device();
                Kind::Block(major, minor)
            }
            (FileType::Fifo, _) => Kind::Fifo,
            _ => return Ok(()),
        };
        let is_link = matches!(kind, Kind::HardLink(_));
        let xattrs = if is_link { Vec::new() } else { node.xattrs()? };
        self.entry(&entry(path.clone(), kind, &found, xattrs))?;
        if found.is_directory() {
            self.directory(node, &path, depth)?;
        }
        Ok(())
    }

    /// What the file was called when it was packed before.
    fn first_name(&mut self, found: &Found, path: &[u8]) -> Option<Vec<u8>> {
        if found.0.st_nlink < 2 || found.is_directory() {
            return None;
        }
        let key = (found.0.st_dev, found.0.st_ino);
        if let Some(first) = self.links.get(&key) {
            return Some(first.clone());
        }
        if self.links.len() < LINKS_MAX {
            self.links.insert(key, path.to_vec());
        }
        None
    }

    fn directory(&mut self, node: &Node<'_>, path: &[u8], depth: usize) -> Result<(), CopyError> {
        if depth >= DEPTH_MAX {
            return Err(CopyError::unfit(&node.shown, "too many directories in directories"));
        }
        let opened = node.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&opened).map_err(node.wrong())? {
            let entry = entry.map_err(node.wrong())?;
            let name: &CStr = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name.to_bytes().to_vec());
            }
        }
        names.sort_unstable();
        for name in names {
            let shown = node.shown.join(OsStr::from_bytes(&name));
            let below = [path, b"/", &name].concat();
            let inner = Node { parent: &opened, name: &name, shown, follow: false };
            match self.node(&inner, below, depth + 1) {
                // A file that went away while its directory was read is no more part of it.
                Err(CopyError::File { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn file(&mut self, node: &Node<'_>, path: Vec<u8>) -> Result<(), CopyError> {
        let file = node.open(OFlags::RDONLY)?;
        // What was opened may be another file than the one that was looked at.
        let found = rustix::fs::fstat(&file).map(Found).map_err(node.wrong())?;
        if found.kind() != FileType::RegularFile {
            return Err(CopyError::unfit(&node.shown, "it changed while it was read"));
        }
        let size = found.size();
        let has_holes = u64::try_from(found.0.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        let extents = if has_holes { extents(&file, size) } else { None };
        let pieces = extents.clone().unwrap_or_else(|| vec![(0, size)]);
        let mut stored = pieces.iter().map(|(_, len)| len).sum::<u64>();
        stored += extents.as_deref().map_or(0, archive::map_len);
        self.entry(&entry(path, Kind::File { size, extents }, &found, node.xattrs()?))?;
        for (mut offset, len) in pieces {
            let end = offset + len;
            while offset < end {
                let wanted = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
                let read = rustix::io::pread(&file, &mut self.chunk[..wanted], offset);
                let read = match read {
                    Ok(0) => {
                        return Err(CopyError::unfit(
                            &node.shown,
                            "it became shorter while it was read",
                        ));
                    }
                    Err(Errno::INTR) => continue,
                    read => read.map_err(node.wrong())?,
                };
                self.out.write_all(&self.chunk[..read]).map_err(CopyError::Stream)?;
                self.totals.bytes += read as u64;
                offset += read as u64;
            }
        }
        archive::pad(self.out, stored).map_err(CopyError::Stream)
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), CopyError> {
        self.totals.files += 1;
        archive::write_entry(self.out, entry).map_err(CopyError::Stream)
    }
}

fn entry(path: Vec<u8>, kind: Kind, found: &Found, xattrs: Attributes) -> Entry {
    let Found(stat) = found;
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: (stat.st_mtime, nanos),
        xattrs,
    }
}

/// Where a file has data; none when its file system does not tell, or it has too many pieces to be worth it.
fn extents(file: impl AsFd, size: u64) -> Option<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start.min(size),
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).ok()?.min(size);
        if end <= start {
            break;
        }
        found.push((start, end - start));
        if found.len() > EXTENTS_MAX {
            return None;
        }
        at = end;
    }
    Some(found)
}
