//! `dir:DIRECTORY`: a root file system as it lies on this host.
//!
//! It is read as if it had been archived first, in the order of names, so that it takes the way of every layer and the
//! same content gives the same image. Links are archived, never followed. Sockets are left out.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, Metadata as HostMetadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use openshell_ext4::tree::{Device, Metadata, Time, Xattrs};
use rustix::fs::{OFlags, lgetxattr, llistxattr};

use super::plain::Once;
use super::{Local, Plan, SourceError};
use crate::layer::LayerSource;
use crate::tar::{END, Entry, Kind, encode, padding};

/// The tree below a directory.
///
/// # Errors
///
/// When it is not a directory that can be read.
pub fn directory(path: &Path) -> Result<Local, SourceError> {
    let error = |source| SourceError::Read { path: path.to_owned(), source };
    let root = fs::canonicalize(path).map_err(error)?;
    fs::read_dir(&root).map_err(error)?;
    let name = path.display().to_string();
    let layer = LayerSource { name, ..LayerSource::default() };
    let plan = Plan { identity: None, layers: vec![layer], manifest: None, config: None };
    let stream: Box<dyn Read + Send> = Box::new(Stream::new(root));
    Ok(Local { plan, layers: Box::new(Once(Mutex::new(Some(stream)))) })
}

/// An archive of a directory, made while it is read.
struct Stream {
    root: PathBuf,
    /// Paths below the root that are still to come, the next one last.
    pending: Vec<PathBuf>,
    /// First paths of files that have several.
    linked: HashMap<(u64, u64), Vec<u8>>,
    headers: VecDeque<u8>,
    data: Option<Data>,
    ended: bool,
}

/// A file whose data goes into the archive.
struct Data {
    path: PathBuf,
    file: File,
    size: u64,
    left: u64,
}

impl Stream {
    fn new(root: PathBuf) -> Self {
        let (pending, linked, headers) = (vec![PathBuf::new()], HashMap::new(), VecDeque::new());
        Self { root, pending, linked, headers, data: None, ended: false }
    }

    fn next(&mut self) -> io::Result<()> {
        let Some(inside) = self.pending.pop() else {
            if !self.ended {
                self.headers.extend(END);
            }
            self.ended = true;
            return Ok(());
        };
        let path = self.root.join(&inside);
        self.entry(&inside, &path).map_err(|error| named(&path, &error))
    }

    fn entry(&mut self, inside: &Path, path: &Path) -> io::Result<()> {
        let host = fs::symlink_metadata(path)?;
        let Some(mut kind) = kind_of(&host, path)? else { return Ok(()) };
        let name = inside.as_os_str().as_bytes().to_vec();
        if kind == Kind::Directory {
            let mut names = Vec::new();
            for child in fs::read_dir(path)? {
                names.push(inside.join(child?.file_name()));
            }
            names.sort_unstable_by(|a, b| b.cmp(a));
            self.pending.extend(names);
        } else if host.nlink() > 1 {
            let first = self.linked.entry((host.dev(), host.ino())).or_insert_with(|| name.clone());
            if *first != name {
                kind = Kind::HardLink(first.clone());
            }
        }
        if let Kind::File { size, .. } = kind {
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
            let file = File::options().read(true).custom_flags(flags).open(path)?;
            self.data = Some(Data { path: path.to_owned(), file, size, left: size });
        }
        let metadata = Metadata {
            mode: u16::try_from(host.mode() & 0o7777).expect("twelve bits"),
            uid: host.uid(),
            gid: host.gid(),
            modified: time_of(&host)?,
            xattrs: xattrs_of(path)?,
        };
        self.headers.extend(encode(&Entry { path: name, kind, metadata }));
        Ok(())
    }

    fn read_data(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(Data { path, file, size, left }) = &mut self.data else { return Ok(0) };
        if *left == 0 {
            self.data = None;
            return Ok(0);
        }
        let wanted = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let read = file.read(&mut into[..wanted]).map_err(|error| named(path, &error))?;
        if read == 0 {
            return Err(named(path, &io::Error::other("it became shorter while it was read")));
        }
        *left -= read as u64;
        if *left == 0 {
            self.headers.extend(std::iter::repeat_n(0, padding(*size)));
        }
        Ok(read)
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.headers.is_empty() {
                return self.headers.read(into);
            }
            let read = self.read_data(into)?;
            if read > 0 {
                return Ok(read);
            }
            if self.ended {
                return Ok(0);
            }
            self.next()?;
        }
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// None for what an archive does not hold.
fn kind_of(host: &HostMetadata, path: &Path) -> io::Result<Option<Kind>> {
    let device =
        || Device { major: rustix::fs::major(host.rdev()), minor: rustix::fs::minor(host.rdev()) };
    let kind = host.file_type();
    Ok(Some(if kind.is_dir() {
        Kind::Directory
    } else if kind.is_file() {
        Kind::File { size: host.len(), sparse: None }
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(path)?.into_os_string().into_vec())
    } else if kind.is_char_device() {
        Kind::CharDevice(device())
    } else if kind.is_block_device() {
        Kind::BlockDevice(device())
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        return Ok(None);
    }))
}

fn time_of(host: &HostMetadata) -> io::Result<Time> {
    let nanoseconds = u32::try_from(host.mtime_nsec()).unwrap_or(0);
    Time::new(host.mtime(), nanoseconds).map_err(io::Error::other)
}

/// Attributes that mean the same on another host: not labels and lists of the host's own policy.
fn xattrs_of(path: &Path) -> io::Result<Xattrs> {
    let mut found = Xattrs::new();
    let mut names = vec![0u8; 64 << 10];
    let length = match llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(found),
        Err(error) => return Err(error.into()),
    };
    let mut value = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !name.starts_with(b"user.") && name != b"security.capability" {
            continue;
        }
        value.resize(64 << 10, 0);
        let length = lgetxattr(path, name, &mut value[..])?;
        found.insert(name.to_vec(), value[..length].to_vec());
    }
    Ok(found)
}
