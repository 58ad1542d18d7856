//! A directory tree as text, one line for each path: what two trees are compared by, on the host and inside a guest.
//!
//! Invariant: equal listings mean equal trees. A line has the path, the type and the mode, owner and group, the time of
//! modification with its nanoseconds, names (of a directory, the directories in it), the first path of the same inode, the size or the
//! device number, the hash of the content or the target, and the extended attributes. `lost+found` of the root, which belongs to
//! the file system, is left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

/// The tree below `root`, in the order of the bytes of its paths.
///
/// # Errors
/// When something cannot be read, or a directory's count of names is not that of what is in it.
pub fn walk(root: &Path) -> Result<String> {
    let mut paths = BTreeMap::from([(Vec::new(), root.to_path_buf())]);
    let mut open = vec![(Vec::new(), root.to_path_buf())];
    while let Some((relative, path)) = open.pop() {
        for entry in fs::read_dir(&path).with_context(|| format!("{}", path.display()))? {
            let entry = entry?;
            let mut below = relative.clone();
            below.push(b'/');
            below.extend_from_slice(entry.file_name().as_bytes());
            if below == b"/lost+found" {
                continue;
            }
            if entry.file_type()?.is_dir() {
                open.push((below.clone(), entry.path()));
            }
            paths.insert(below, entry.path());
        }
    }
    let mut listing = Listing::default();
    for (name, path) in &paths {
        listing.add(name, path).with_context(|| format!("{}", path.display()))?;
    }
    Ok(listing.text)
}

#[derive(Default)]
struct Listing {
    text: String,
    /// The first path of an inode with several names.
    first: BTreeMap<u64, String>,
}

impl Listing {
    fn add(&mut self, name: &[u8], path: &PathBuf) -> Result<()> {
        let stat = fs::symlink_metadata(path)?;
        let name = if name.is_empty() { "/".to_owned() } else { name.escape_ascii().to_string() };
        let (letter, content) = content(path, &stat)?;
        let names = if stat.is_dir() { directories(path, &stat)? } else { stat.nlink() };
        let first = match (stat.is_dir(), names) {
            (true, _) | (_, 1) => "-",
            _ => self.first.entry(stat.ino()).or_insert_with(|| name.clone()),
        };
        write!(
            self.text,
            "{name} {letter}{:04o} {}:{} {}.{:09} {names} {first} {content}",
            stat.mode() & 0o7777,
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
        )?;
        for (name, value) in attributes(path)? {
            write!(self.text, " {}={}", name.escape_ascii(), hex(&value))?;
        }
        self.text.push('\n');
        Ok(())
    }
}

/// The letter of the type, and what is in it.
fn content(path: &Path, stat: &Metadata) -> Result<(char, String)> {
    let kind = stat.file_type();
    let device = || {
        let number = stat.rdev();
        let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00));
        format!("{major},{minor}")
    };
    Ok(if kind.is_dir() {
        ('d', "-".to_owned())
    } else if kind.is_symlink() {
        ('l', fs::read_link(path)?.as_os_str().as_bytes().escape_ascii().to_string())
    } else if kind.is_char_device() {
        ('c', device())
    } else if kind.is_block_device() {
        ('b', device())
    } else if kind.is_fifo() {
        ('p', "-".to_owned())
    } else if kind.is_socket() {
        ('s', "-".to_owned())
    } else {
        ('f', format!("{}:{}", stat.len(), hash(path)?))
    })
}

fn hash(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// How many directories are in one: as its count of names says, where its file system counts them.
fn directories(path: &Path, stat: &Metadata) -> Result<u64> {
    let mut found = 0;
    for entry in fs::read_dir(path)? {
        found += u64::from(entry?.file_type()?.is_dir());
    }
    ensure!([1, found + 2].contains(&stat.nlink()), "{} names, {found} directories", stat.nlink());
    let own = path.join("lost+found").is_dir();
    Ok(found - u64::from(own))
}

fn attributes(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut attributes = BTreeMap::new();
    for name in xattr::list(path)? {
        let value = xattr::get(path, &name)?;
        attributes.insert(name.as_bytes().to_vec(), value.context("an attribute has a value")?);
    }
    Ok(attributes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into memory can't fail.
        _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_anything_shows() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/f"), "x").unwrap();
        std::os::unix::fs::symlink("f", at("d/l")).unwrap();
        let seen = |what: &str, change: &dyn Fn()| {
            let before = walk(directory.path()).unwrap();
            change();
            assert_ne!(walk(directory.path()).unwrap(), before, "{what}");
        };
        let time = || {
            let file = File::options().write(true).open(at("d/f")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1)).unwrap();
        };
        seen("time", &time);
        seen("content", &|| {
            fs::write(at("d/f"), "y").unwrap();
            time();
        });
        seen("mode", &|| {
            fs::set_permissions(at("d"), std::os::unix::fs::PermissionsExt::from_mode(0o1755))
                .unwrap();
        });
        seen("another name", &|| fs::hard_link(at("d/f"), at("e")).unwrap());
        let text = walk(directory.path()).unwrap();
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("/d/f f0644 ").contains(".000000001 2 /d/f 1:"), "{text}");
        assert!(line("/e ").contains(" 2 /d/f 1:"), "{text}");
        assert!(line("/d/l l").ends_with(" f"), "{text}");
        assert!(line("/d d1755").contains(" 0 - -"), "{text}");
    }
}
