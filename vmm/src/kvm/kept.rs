//! KVM's answer to `KVM_GET_SUPPORTED_CPUID`, kept from one run to the next.
//!
//! KVM asks the processor some sixty times for this table, and inside a virtual machine each time is an exit to its host: more
//! than a quarter of what a small run costs there. The table depends on the processor, on the running kernel and on the loaded
//! module, so it is kept in a directory that does not outlive a boot, with a [`Key`] of the three.
//!
//! Invariant: what is read back is a table of this format, of this user and with this key, or nothing; whatever goes wrong
//! with the file costs time only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

const NAME: &str = "supported-cpuid";
/// Also the format's version.
const MAGIC: u64 = u64::from_le_bytes(*b"osvmcpu1");
const KEY_WORDS: usize = 9;
const KEY_BYTES: usize = KEY_WORDS * 8;
const ENTRY_BYTES: usize = 7 * 4;
const MAX_BYTES: usize = KEY_BYTES + KVM_MAX_CPUID_ENTRIES * ENTRY_BYTES;

/// What the table depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key([u64; KEY_WORDS]);

impl Key {
    /// The key of the node `device` of KVM, which is made anew by every boot and every load of the module, on this
    /// processor: a host that was itself moved to another machine keeps its nodes.
    ///
    /// # Errors
    /// What the host said of the node.
    pub(super) fn of(device: &Path) -> io::Result<Self> {
        let node = fs::metadata(device)?;
        let model = std::arch::x86_64::__cpuid(0x1);
        let features = std::arch::x86_64::__cpuid_count(0x7, 0);
        let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        Ok(Self([
            MAGIC,
            node.dev(),
            node.ino(),
            node.ctime().cast_unsigned(),
            node.ctime_nsec().cast_unsigned(),
            // Not EBX, which tells the processor that answered.
            pair(model.eax, model.ecx),
            pair(model.edx, features.edx),
            pair(features.ebx, features.ecx),
            pair(0, features.eax),
        ]))
    }
}

/// The table that was kept in `directory` with this `key`.
pub(super) fn read(directory: &Path, key: &Key) -> Option<CpuId> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(directory.join(NAME))
        .ok()?;
    let found = file.metadata().ok()?;
    if !found.is_file() || !is_ours_alone(&found) {
        return None;
    }
    // One more than a table has, so that a longer file is seen to be one.
    let mut bytes = [0; MAX_BYTES + 1];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]).ok()? {
            0 => break,
            read => filled += read,
        }
    }
    parse(&bytes[..filled], key)
}

/// Keeps `table` in `directory`, which is made when it is missing.
///
/// # Errors
/// What the host said. A file that was there before is left as it was.
pub(super) fn write(directory: &Path, key: &Key, table: &CpuId) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if !is_ours_alone(&fs::symlink_metadata(directory)?) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let staged = directory.join(format!("{NAME}.{}", std::process::id()));
    let done = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staged)
        .and_then(|mut file| file.write_all(&render(key, table)))
        .and_then(|()| fs::rename(&staged, directory.join(NAME)));
    if done.is_err() {
        fs::remove_file(&staged).ok();
    }
    done
}

/// Nobody else could have written it.
fn is_ours_alone(found: &fs::Metadata) -> bool {
    found.uid() == crate::sys::user::effective_id() && found.mode() & 0o022 == 0
}

fn render(key: &Key, table: &CpuId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAX_BYTES);
    for word in key.0 {
        bytes.extend(word.to_le_bytes());
    }
    for entry in table.as_slice() {
        let words =
            [entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx];
        for word in words {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

fn parse(bytes: &[u8], key: &Key) -> Option<CpuId> {
    let (header, entries) = bytes.split_at_checked(KEY_BYTES)?;
    let (words, _) = header.as_chunks::<8>();
    let same = words.iter().map(|word| u64::from_le_bytes(*word)).eq(key.0);
    let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
    if !same || !rest.is_empty() || entries.is_empty() {
        return None;
    }
    let entries: Vec<_> = entries.iter().map(entry).collect();
    CpuId::from_entries(&entries).ok()
}

fn entry(bytes: &[u8; ENTRY_BYTES]) -> kvm_cpuid_entry2 {
    let (words, _) = bytes.as_chunks::<4>();
    let word = |index: usize| words.get(index).map_or(0, |word| u32::from_le_bytes(*word));
    kvm_cpuid_entry2 {
        function: word(0),
        index: word(1),
        flags: word(2),
        eax: word(3),
        ebx: word(4),
        ecx: word(5),
        edx: word(6),
        padding: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const KEY: Key = Key([MAGIC, 1, 2, 3, 4, 5, 6, 7, 8]);

    fn table(count: u32) -> CpuId {
        let entries: Vec<_> = (0..count)
            .map(|function| kvm_cpuid_entry2 {
                function,
                index: 1,
                flags: 1,
                eax: 0x1000 + function,
                ebx: 3,
                ecx: 4,
                edx: u32::MAX,
                padding: [0; 3],
            })
            .collect();
        CpuId::from_entries(&entries).unwrap()
    }

    #[test]
    fn a_table_comes_back_as_it_was_kept() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("openshell-vmm");
        assert_eq!(read(&directory, &KEY), None);
        for count in [1, 60, u32::try_from(KVM_MAX_CPUID_ENTRIES).unwrap()] {
            write(&directory, &KEY, &table(count)).unwrap();
            assert_eq!(read(&directory, &KEY).as_ref(), Some(&table(count)));
        }
        let left: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [NAME]);
    }

    #[test]
    fn a_table_of_another_key_is_not_taken() {
        let place = tempfile::tempdir().unwrap();
        write(place.path(), &KEY, &table(3)).unwrap();
        for word in 0..KEY_WORDS {
            let mut other = KEY;
            other.0[word] ^= 1 << 40;
            assert_eq!(read(place.path(), &other), None, "word {word}");
        }
    }

    #[test]
    fn a_file_of_another_shape_is_not_taken() {
        let whole = render(&KEY, &table(3));
        for length in 0..whole.len() {
            let cut = parse(&whole[..length], &KEY).map(|table| table.as_slice().len());
            let entries = length.checked_sub(KEY_BYTES).filter(|rest| rest % ENTRY_BYTES == 0);
            assert_eq!(cut, entries.map(|rest| rest / ENTRY_BYTES).filter(|&count| count > 0));
        }
        let mut long = render(&KEY, &table(u32::try_from(KVM_MAX_CPUID_ENTRIES).unwrap()));
        long.extend([0; ENTRY_BYTES]);
        assert_eq!(parse(&long, &KEY), None);
    }

    #[test]
    fn what_others_can_write_is_not_taken() {
        let place = tempfile::tempdir().unwrap();
        write(place.path(), &KEY, &table(3)).unwrap();
        let file = place.path().join(NAME);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(read(place.path(), &KEY), None);

        let open = place.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        write(&open, &KEY, &table(3)).unwrap_err();

        let linked = place.path().join("linked");
        fs::create_dir(&linked).unwrap();
        symlink(&file, linked.join(NAME)).unwrap();
        assert_eq!(read(&linked, &KEY), None);
    }

    #[test]
    fn the_key_of_a_node_is_stable_and_its_own() {
        let (one, other) =
            (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        assert_eq!(Key::of(one.path()).unwrap(), Key::of(one.path()).unwrap());
        assert_ne!(Key::of(one.path()).unwrap(), Key::of(other.path()).unwrap());
    }
}
