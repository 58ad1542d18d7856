//! Copies through a whole session; what trees and archives are made of is tested where they are.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use openshell_agent_proto::{FailureKind, FromGuest, GuestPath, Stream};

use super::*;

fn guest(path: &Path) -> GuestPath {
    GuestPath::new(path.as_os_str().as_encoded_bytes().to_vec()).unwrap()
}

/// Names, sizes, modes and times of everything below a directory.
fn listing(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.file_name().unwrap().to_owned();
        let time = (metadata.mtime(), metadata.mtime_nsec());
        found.push(format!("{name:?} {:o} {:?}", metadata.mode(), time));
        if metadata.is_dir() {
            found.extend(listing(&path));
        } else {
            found.push(format!("{:?}", fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_tree_of_twenty_thousand_files_goes_in_and_out() {
    let machine = Machine::new();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for outer in 0..100 {
        let inner = at("from").join(format!("d{outer}"));
        fs::create_dir_all(&inner).unwrap();
        for file in 0..200 {
            fs::write(inner.join(format!("f{file}")), format!("{outer} {file}").repeat(file))
                .unwrap();
        }
    }
    let totals = copy_in(&machine.path(), &at("from"), &guest(&at("in")), false, false).unwrap();
    assert_eq!(totals.files, 20_101);
    let totals = copy_out(&machine.path(), &guest(&at("in")), &at("out"), false, false).unwrap();
    assert_eq!(totals.files, 20_101);
    assert!(listing(&at("from")) == listing(&at("out")), "the trees differ");
}

#[test]
fn a_large_file_is_larger_than_any_window() {
    let machine = Machine::new();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let bytes: Vec<u8> =
        (0..30_000_001_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    fs::write(at("file"), &bytes).unwrap();
    copy_in(&machine.path(), &at("file"), &guest(&at("in")), false, false).unwrap();
    let mut archive = Vec::new();
    stream_out(&machine.path(), &guest(&at("in")), &mut archive, false).unwrap();
    fs::create_dir(at("to")).unwrap();
    stream_in(&machine.path(), archive.as_slice(), &guest(&at("to")), false).unwrap();
    assert!(fs::read(at("to/in")).unwrap() == bytes);
}

#[test]
fn who_fails_says_why() {
    let machine = Machine::new();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    // More than the windows hold, so that the sender waits when the other side fails.
    fs::write(at("file"), vec![1; 2 << 20]).unwrap();
    let (file, none) = (guest(&at("file")), guest(&at("no/where")));
    let text = |result: Result<openshell_copy::Totals, AgentError>| match result.unwrap_err() {
        AgentError::Guest(failure) => format!("guest {:?} {failure}", failure.kind()),
        AgentError::Copy(error) => format!("host {error}"),
        error => panic!("{error:?}"),
    };
    let path = machine.path();
    let found = text(copy_in(&path, &at("file"), &none, false, false));
    assert!(found.starts_with("guest Path") && found.contains("/no: No such file"), "{found}");
    let found = text(copy_in(&path, &at("none"), &file, false, false));
    assert!(found.starts_with("host") && found.contains("/none: No such file"), "{found}");
    let found = text(copy_out(&path, &none, &at("to"), false, false));
    assert!(found.starts_with("guest Path") && found.contains("/no: No such file"), "{found}");
    let found = text(copy_out(&path, &file, &at("no/where"), false, false));
    assert!(found.starts_with("host") && found.contains("/no: No such file"), "{found}");
    let found = text(stream_in(&path, &[7; 4096][..], &guest(directory.path()), false));
    assert!(found.starts_with("guest Archive"), "{found}");
    let found = text(stream_in(&path, &b"cut"[..], &guest(directory.path()), false));
    assert!(found.starts_with("guest Archive"), "{found}");
}

#[test]
fn a_hostile_guest_writes_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("from")).unwrap();
    std::os::unix::fs::symlink(outside.path(), outside.path().join("from/link")).unwrap();
    let mut archive = Vec::new();
    openshell_copy::pack(&outside.path().join("from/link"), false, &mut archive).unwrap();
    // The end of an archive, and then an entry below the link.
    archive.truncate(512);
    let mut file = Vec::new();
    fs::create_dir_all(outside.path().join("link")).unwrap();
    fs::write(outside.path().join("link/x"), "x").unwrap();
    openshell_copy::pack(&outside.path().join("link"), false, &mut file).unwrap();
    fs::remove_dir_all(outside.path().join("link")).unwrap();
    let at = (0..file.len()).step_by(512).find(|at| file[*at..].starts_with(b"link/x")).unwrap();
    archive.extend(&file[at..]);
    let machine = Machine::with(move |mut socket| {
        let mut said = Vec::new();
        for frame in [
            FromGuest::Welcome(1),
            FromGuest::Data(Stream::Output, &archive),
            FromGuest::End(Stream::Output),
            FromGuest::Done { files: 2, bytes: 1 },
        ] {
            frame.encode(&mut said);
        }
        drop(socket.write_all(&said));
        drop(std::io::copy(&mut socket, &mut std::io::sink()));
    });
    let to = outside.path().join("to");
    fs::create_dir(&to).unwrap();
    let error = copy_out(&machine.path(), &guest(Path::new("/x")), &to, false, false).unwrap_err();
    assert!(matches!(error, AgentError::Copy(_)), "{error:?}");
    assert!(!outside.path().join("x").exists());
    assert_eq!(FailureKind::Path.exit_code(), 1);
}
