//! Disks as the guest sees them and as they are on the host afterwards.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use openshell_tests::pattern::Pattern;

use crate::guest::{self, Guest};

const MIB: u64 = 1 << 20;

/// Checks the first `bytes` of the file on the host against the pattern of `seed`.
#[track_caller]
fn assert_holds(path: &Path, bytes: u64, seed: u64) {
    let file = File::open(path).unwrap();
    let pattern = Pattern::new(seed);
    let mut chunk = vec![0; 1 << 20];
    for offset in (0..bytes).step_by(1 << 20) {
        file.read_exact_at(&mut chunk, offset).unwrap();
        pattern.check(offset, &chunk).unwrap();
    }
}

#[test]
fn a_gibibyte_comes_back() {
    let script = "guest-probe write /dev/vdc 1073741824 5
        echo 3 >/proc/sys/vm/drop_caches
        guest-probe verify /dev/vdc 1073741824 5";
    let guest = Guest::running(script).option("--memory", "256M").option("--cpus", "2");
    let data = guest.path("data");
    guest::blank(&data, 1024 * MIB);
    let (running, _directory) = guest.disk(&data, "").deadline(Duration::from_mins(5)).start();
    let told = running.wait().expect_code(0).text();
    assert!(told.contains("verified 1073741824 bytes of seed 5"), "{told}");
    assert_holds(&data, 1024 * MIB, 5);
}

#[test]
fn discarded_space_is_given_back() {
    let place = tempfile::tempdir().unwrap();
    let (root, data) = (place.path().join("root"), place.path().join("data"));
    guest::copy_root(&root);
    guest::blank(&data, 64 * MIB);
    let write = "guest-probe write /root/file 16777216 1
        guest-probe write /dev/vdc 33554432 2
        sync";
    Guest::running(write).root(&root, "").disk(&data, "").finish();
    let (root_full, data_full) = (guest::allocated(&root), guest::allocated(&data));
    assert!(data_full >= 32 * MIB, "{data_full}");
    let discard = "guest-probe verify /root/file 16777216 1
        rm /root/file
        sync
        fstrim -v /
        blkdiscard -o 0 -l 16777216 /dev/vdc
        dd if=/dev/vdc bs=1M count=16 2>/dev/null | tr -d '\\0' | wc -c";
    let told = Guest::running(discard).root(&root, "").disk(&data, "").finish().text();
    assert!(told.contains("\r\n0\r\n"), "{told}");
    let (root_left, data_left) = (guest::allocated(&root), guest::allocated(&data));
    assert!(root_left + 15 * MIB <= root_full, "{root_full} -> {root_left}: {told}");
    assert!(data_left + 16 * MIB <= data_full, "{data_full} -> {data_left}: {told}");
    let mut rest = vec![0; 1 << 20];
    File::open(&data).unwrap().read_exact_at(&mut rest, 16 * MIB).unwrap();
    Pattern::new(2).check(16 * MIB, &rest).unwrap();
}

#[test]
fn queues_carry_parallel_load() {
    let script = "echo queues=$(ls /sys/block/vdc/mq | wc -l)
        guest-probe hammer /dev/vdc 8 1048576";
    let guest = Guest::running(script).option("--cpus", "4");
    let data = guest.path("data");
    guest::blank(&data, 8 * MIB);
    let (running, _directory) = guest.disk(&data, "").start();
    let told = running.wait().expect_code(0).text();
    assert!(told.contains("queues=4\r"), "{told}");
    assert!(told.contains("hammered 2048 blocks from 8 threads"), "{told}");
    for thread in 0..8 {
        let mut part = vec![0; 1 << 20];
        File::open(&data).unwrap().read_exact_at(&mut part, thread * MIB).unwrap();
        Pattern::new(thread).check(thread * MIB, &part).unwrap();
    }
}

#[test]
fn eight_disks_are_eight_disks() {
    let mut script = String::new();
    let letters = ["c", "d", "e", "f", "g", "h"];
    for (seed, letter) in (1..).zip(letters) {
        script.push_str(&format!("guest-probe write /dev/vd{letter} 1048576 {seed}\n"));
    }
    script
        .push_str("for disk in /sys/block/vd?; do cat $disk/serial; echo; done | sort -u | wc -l");
    let place = tempfile::tempdir().unwrap();
    let mut guest = Guest::running(&script);
    for letter in letters {
        let path = place.path().join(letter);
        guest::blank(&path, MIB);
        guest = guest.disk(&path, "");
    }
    let told = guest.finish().text();
    assert!(told.ends_with("\n8\r\n"), "{told}");
    for (seed, letter) in (1..).zip(letters) {
        assert_holds(&place.path().join(letter), MIB, seed);
    }
}

#[test]
fn operations_are_limited() {
    // The burst is one second's worth: of 150 operations, 100 wait for the rate of 50 per second.
    let guest = Guest::running("guest-probe pace /dev/vdc 150");
    let data = guest.path("data");
    guest::blank(&data, MIB);
    let (running, _directory) = guest.disk(&data, ",iops=50").start();
    let told = running.wait().expect_code(0).text();
    let millis: u64 = told
        .lines()
        .find_map(|line| line.strip_prefix("probe: 150 operations in ")?.strip_suffix(" ms"))
        .and_then(|millis| millis.parse().ok())
        .unwrap_or_else(|| panic!("no figure in {told}"));
    assert!((1900..20_000).contains(&millis), "{millis} ms");
}

#[test]
fn a_read_only_root_stays_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    guest::copy_root(&root);
    let script = "grep ' / ' /proc/mounts
        if touch /root/file; then exit 1; fi
        if mount -o remount,rw /; then exit 2; fi
        if dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync; then exit 3; fi
        echo ro=$(cat /sys/block/vda/ro)";
    let told = Guest::running(script).root(&root, ",ro").finish().text();
    assert!(told.contains("ext4 ro") && told.contains("ro=1\r"), "{told}");
    assert!(guest::is_pristine_root(&root));
}
