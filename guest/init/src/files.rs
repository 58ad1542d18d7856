//! The config disk's files, and how files are put into the guest.
//!
//! Invariant: a file appears whole, with its owner and mode, in place of whatever had its name: it is written beside it and
//! renamed, so that no link is followed at the end of a path.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{
    MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, symlink,
};
use std::path::{Path, PathBuf};

use crate::disks::{HOME, TOOLS};
use crate::failure::{Failure, Step};
use crate::tools::Tool;

const FILES_MAX: usize = 1024;
const BYTES_MAX: u64 = 16 << 20;
const DEPTH_MAX: usize = 32;

/// A file for the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Given {
    /// Where it goes.
    pub path: PathBuf,
    /// Its mode.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Reads every regular file below `root`, with paths as seen from there; nothing when `root` does not exist.
///
/// # Errors
/// When something cannot be read, or there is too much.
pub fn read_given(root: &Path) -> Result<Vec<Given>, Failure> {
    let mut found = Vec::new();
    let mut left = BYTES_MAX;
    if root.is_dir() {
        walk(root, Path::new("/"), &mut found, &mut left, DEPTH_MAX)?;
    }
    Ok(found)
}

fn walk(
    from: &Path,
    to: &Path,
    found: &mut Vec<Given>,
    left: &mut u64,
    depth: usize,
) -> Result<(), Failure> {
    let step = Step::Files;
    let too_much = || Failure::new(step, "more files than a config disk may hold").path(to);
    let depth = depth.checked_sub(1).ok_or_else(too_much)?;
    for entry in fs::read_dir(from).map_err(step.io(to))? {
        let entry = entry.map_err(step.io(to))?;
        let to = to.join(entry.file_name());
        let metadata = entry.metadata().map_err(step.io(&to))?;
        if metadata.is_dir() {
            walk(&entry.path(), &to, found, left, depth)?;
        } else if metadata.is_file() {
            *left = left.checked_sub(metadata.len()).ok_or_else(too_much)?;
            if found.len() == FILES_MAX {
                return Err(too_much());
            }
            let bytes = fs::read(entry.path()).map_err(step.io(&to))?;
            let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
            found.push(Given { path: to, mode, uid, gid, bytes });
        }
    }
    Ok(())
}

/// Puts a file into its place; missing directories are made.
///
/// # Errors
/// A call that failed, of `step`.
pub fn put(step: Step, file: &Given) -> Result<(), Failure> {
    let path = &file.path;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Failure::new(step, "no file can be there").path(path));
    };
    if !directory.is_dir() {
        fs::create_dir_all(directory).map_err(step.io(directory))?;
    }
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(".new");
    let beside = directory.join(beside);
    write(&beside, file).map_err(step.io(&beside))?;
    fs::rename(&beside, path).map_err(step.io(path))
}

fn write(path: &Path, file: &Given) -> std::io::Result<()> {
    // What an interrupted start left.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut target = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    target.write_all(&file.bytes)?;
    fchown(&target, Some(file.uid), Some(file.gid))?;
    target.set_permissions(fs::Permissions::from_mode(file.mode))
}

/// Puts a text into its place, root's and readable by everybody, unless it is there already: a start that changes nothing
/// writes nothing.
///
/// # Errors
/// As [`put`].
pub fn put_text(step: Step, path: &str, text: &str) -> Result<(), Failure> {
    if holds(Path::new(path), text.as_bytes()) {
        return Ok(());
    }
    let bytes = text.as_bytes().to_vec();
    put(step, &Given { path: path.into(), mode: 0o644, uid: 0, gid: 0, bytes })
}

fn holds(path: &Path, bytes: &[u8]) -> bool {
    let plain = fs::symlink_metadata(path).is_ok_and(|metadata| {
        metadata.is_file() && usize::try_from(metadata.len()) == Ok(bytes.len())
    });
    let mut found = Vec::new();
    let mut read = || File::open(path)?.take(bytes.len() as u64 + 1).read_to_end(&mut found);
    plain && read().is_ok() && found == bytes
}

/// Reads a file that an image may lack or have grown; nothing when it is missing.
///
/// # Errors
/// When it is larger than 1 MiB or cannot be read.
pub fn read_text(step: Step, path: &str) -> Result<String, Failure> {
    const MAX: u64 = 1 << 20;
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        result => result.map_err(step.io(path))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX + 1).read_to_end(&mut bytes).map_err(step.io(path))?;
    if bytes.len() as u64 > MAX {
        return Err(Failure::new(step, "larger than 1 MiB").path(path));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes `bin` of [`HOME`], and gives the image those of the `wanted` programs that it lacks.
///
/// # Errors
/// A link that cannot be made.
pub fn programs(wanted: &[Tool]) -> Result<(), Failure> {
    let step = Step::Files;
    let bin = Path::new(HOME).join("bin");
    fs::create_dir(&bin).map_err(step.io(&bin))?;
    let tools = Path::new(TOOLS).join("bin");
    let link = |target: &Path, place: &Path| symlink(target, place).map_err(step.io(place));
    for entry in fs::read_dir(&tools).map_err(step.io(&tools))? {
        let entry = entry.map_err(step.io(&tools))?;
        link(&entry.path(), &bin.join(entry.file_name()))?;
    }
    for (name, directory) in wanted.iter().map(|tool| tool.place()) {
        let ours = bin.join(name);
        if fs::symlink_metadata(&ours).is_err() {
            link(&tools.join("openshell-init"), &ours)?;
        }
        let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
        if places.iter().any(|place| fs::symlink_metadata(Path::new(place).join(name)).is_ok()) {
            continue;
        }
        fs::create_dir_all(directory).map_err(step.io(directory))?;
        link(&ours, &Path::new(directory).join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(path: PathBuf, mode: u32, bytes: &[u8]) -> Given {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        Given { path, mode, uid, gid, bytes: bytes.to_vec() }
    }

    #[test]
    fn a_file_is_put_with_its_mode_in_place_of_a_link() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = root.path().join("elsewhere");
        fs::write(&elsewhere, "kept").unwrap();
        let place = root.path().join("a/b/key");
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(&elsewhere, &place).unwrap();
        for bytes in [&b"one"[..], b"two"] {
            put(Step::Files, &own(place.clone(), 0o600, bytes)).unwrap();
            let metadata = fs::symlink_metadata(&place).unwrap();
            assert!(metadata.is_file());
            assert_eq!(metadata.mode() & 0o7777, 0o600);
            assert_eq!(fs::read(&place).unwrap(), bytes);
        }
        assert_eq!(fs::read_to_string(elsewhere).unwrap(), "kept");
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 1, "nothing beside it");
    }

    #[test]
    fn what_cannot_be_put_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let place = root.path().join("file/below");
        let failure = put(Step::Files, &own(place, 0o600, b"")).unwrap_err().to_string();
        assert!(failure.contains("error: files: ") && failure.contains("(E"), "{failure}");
    }

    #[test]
    fn files_are_read_as_seen_from_their_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("opt/x")).unwrap();
        fs::write(root.path().join("opt/x/key"), "secret").unwrap();
        fs::set_permissions(root.path().join("opt/x/key"), fs::Permissions::from_mode(0o640))
            .unwrap();
        symlink("/etc/passwd", root.path().join("opt/link")).unwrap();
        let found = read_given(root.path()).unwrap();
        assert_eq!(found, [own("/opt/x/key".into(), 0o640, b"secret")]);
        assert_eq!(read_given(&root.path().join("none")).unwrap(), []);
    }

    #[test]
    fn too_much_is_refused() {
        let root = tempfile::tempdir().unwrap();
        File::create(root.path().join("large")).unwrap().set_len(BYTES_MAX + 1).unwrap();
        assert!(read_given(root.path()).unwrap_err().to_string().contains("more files"));
        let root = tempfile::tempdir().unwrap();
        for number in 0..=FILES_MAX {
            File::create(root.path().join(number.to_string())).unwrap();
        }
        assert!(read_given(root.path()).is_err());
        let root = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", DEPTH_MAX + 1).collect();
        fs::create_dir_all(root.path().join(deep)).unwrap();
        assert!(read_given(root.path()).is_err());
    }

    #[test]
    fn a_text_that_is_there_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("hosts");
        fs::write(&path, "same").unwrap();
        let before = fs::metadata(&path).unwrap().ino();
        put_text(Step::Hostname, path.to_str().unwrap(), "same").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), before);
        assert!(!holds(&path, b"other") && !holds(&path, b"sam"));
    }
}
