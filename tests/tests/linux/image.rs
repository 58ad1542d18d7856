//! An image of a distribution that `openshell-rootfs` built: as the root of a guest, seen from inside, and below a sandbox's own disk.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use openshell_ext4::tree::Metadata;
use openshell_ext4::{Identity, Image};
use openshell_rootfs::sandbox::{GivenFile, WritableDisk, writable_disk};
use openshell_tests::machine::fixture;

use crate::guest::{self, Guest};

/// More than a listing takes.
const LISTING: u64 = 4 << 20;

/// A copy of the image, which a mistake could not spoil for others.
fn image(path: &Path) {
    std::fs::copy(fixture("image.ext4"), path).unwrap();
}

/// The text at the beginning of a disk.
fn text_of(disk: &Path) -> String {
    let mut text = Vec::new();
    File::open(disk).unwrap().take(LISTING).read_to_end(&mut text).unwrap();
    let end = text.iter().position(|byte| *byte == 0).expect("the disk is larger");
    text.truncate(end);
    String::from_utf8(text).unwrap()
}

#[track_caller]
fn assert_same_lines(seen: &str, expected: &str) {
    let differ = |(left, right): &(&str, &str)| left != right;
    if let Some((seen, expected)) = seen.lines().zip(expected.lines()).find(differ) {
        panic!("in the guest:\n{seen}\nexpected:\n{expected}");
    }
    assert_eq!(seen.lines().count(), expected.lines().count());
}

#[test]
fn an_image_boots_and_its_guest_sees_every_path_as_umoci_unpacks_it() {
    let expected = std::fs::read_to_string(fixture("image.txt")).unwrap();
    assert!(expected.lines().count() > 1000, "{}", expected.lines().count());
    for kind in [" d1777 ", " f6755 70000:80000 ", " l0777 ", " c0644 ", " b0644 ", " p0644 "] {
        assert!(expected.contains(kind), "{kind}");
    }
    // What the guest mounted over directories is not the image's: a second mount shows what is below.
    let script = "grep ' / ' /proc/mounts
        mkdir /run/below
        mount -t ext4 -o ro /dev/vda /run/below
        guest-probe walk /run/below /dev/vdc";
    let guest = Guest::running(script);
    let (root, listing) = (guest.path("image"), guest.path("listing"));
    image(&root);
    guest::blank(&listing, LISTING);
    let (running, _directory) = guest.root(&root, ",ro").disk(&listing, "").start();
    let told = running.wait().expect_code(0).text();
    assert!(told.contains(" / ext4 ro,"), "{told}");
    assert_same_lines(&text_of(&listing), &expected);
    assert!(std::fs::read(&root).unwrap() == std::fs::read(fixture("image.ext4")).unwrap());
}

/// A sandbox's disk of 64 GiB above the image, with one file of the sandbox's in it.
fn make_upper(path: &Path) {
    let base = Image::open(File::open(fixture("image.ext4")).unwrap()).unwrap();
    let tree = base.read_tree().unwrap();
    let root = Metadata { uid: 7, gid: 8, ..Metadata::new(0o751, 0, 0) };
    let inodes = u32::try_from(tree.len() * 2).unwrap();
    let disk = WritableDisk { size_bytes: 64 << 30, inodes, root };
    let token = GivenFile {
        path: b"etc/opt/token".to_vec(),
        mode: 0o400,
        uid: 1000,
        gid: 1001,
        bytes: b"secret".to_vec(),
    };
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    writable_disk(&file, &disk, &[token], Identity::from_digest(&[7; 32])).unwrap();
    assert!(guest::allocated(path) <= 400 << 10, "{}", guest::allocated(path));
}

#[test]
fn a_sandbox_writes_above_a_base_that_stays_as_it_is() {
    let script = "mkdir -p /run/upper /run/all
        mount -t ext4 /dev/vdc /run/upper
        mount -t overlay -o lowerdir=/,upperdir=/run/upper/upper,workdir=/run/upper/work overlay /run/all
        cd /run/all
        test \"$(stat -c '%a %u:%g' .)\" = '751 7:8'
        test \"$(stat -c '%a %u:%g %s' etc/opt/token)\" = '400 1000:1001 6'
        test \"$(cat etc/opt/token)\" = secret
        test \"$(stat -c '%a %u:%g' proof/program)\" = '6755 70000:80000'
        echo more >>proof/many/name-of-a-file-7
        rm -r proof/many/name-of-a-file-9 proof/pipe
        mkdir proof/pipe
        touch proof/pipe/own
        chown 12:13 proof/capable
        guest-probe write var/written 4194304 9
        chroot . /bin/busybox cat /proof/many/name-of-a-file-7
        test -e /proof/many/name-of-a-file-9
        cd /
        umount /run/all
        umount /run/upper";
    let guest = Guest::running(script);
    let (root, upper) = (guest.path("image"), guest.path("upper"));
    image(&root);
    make_upper(&upper);
    let (running, _directory) = guest.root(&root, ",ro").disk(&upper, "").start();
    let told = running.wait().expect_code(0).text();
    assert!(told.contains("seven\r\nmore\r\n"), "{told}");
    assert!(std::fs::read(&root).unwrap() == std::fs::read(fixture("image.ext4")).unwrap());

    let checked = Command::new(fixture("e2fsck")).args(["-f", "-n"]).arg(&upper).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let disk = Image::open(File::open(&upper).unwrap()).unwrap();
    let report = disk.check().unwrap();
    assert!(report.is_clean(), "{:?}", report.faults());
    let tree = disk.read_tree().unwrap();
    let owner = |path: &[u8]| {
        let node = tree.node(tree.at(path).unwrap()).unwrap();
        (node.metadata.uid, node.metadata.gid)
    };
    assert_eq!(owner(b"upper/proof/capable"), (12, 13));
    assert_eq!(owner(b"upper/etc/opt/token"), (1000, 1001));
    let written = disk.find(b"upper/var/written").unwrap().unwrap();
    assert_eq!(written.size_bytes(), 4 << 20);
    assert!(tree.at(b"upper/proof/program").is_none(), "what was not written is not copied");
    // Deleted names are character devices 0:0 for the overlay.
    let gone = tree.node(tree.at(b"upper/proof/many/name-of-a-file-9").unwrap()).unwrap();
    assert!(format!("{:?}", gone.kind()).starts_with("CharDevice"), "{:?}", gone.kind());
}
