//! The VMM is killed while its guest works: to the guest's disks that is a power cut.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use openshell_tests::machine::fixture;
use openshell_vmm::config::lock;

use crate::guest::{self, Guest};

#[track_caller]
fn assert_clean(image: &Path) {
    let check = Command::new(fixture("e2fsck")).args(["-f", "-n"]).arg(image).output().unwrap();
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success(), "e2fsck: {}\n{text}", check.status);
}

#[test]
fn what_was_synced_survives_a_power_cut() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    guest::copy_root(&root);
    // The directory entry is as durable as the data, and files go on being written when the cut comes.
    let write = "number=0
        while :; do
            number=$((number + 1))
            mkdir -p /root/$((number % 3))
            guest-probe write /root/$((number % 3))/$number 262144 $number >/dev/null
            sync
            echo durable $number
        done";
    let guest = Guest::running(write).root(&root, "").option("--cpus", "2");
    let (running, _directory) = guest.start();
    running.wait_for("\ndurable 8\r");
    running.signal(libc::SIGKILL);
    let finished = running.wait();
    assert_eq!(finished.signal, Some(libc::SIGKILL), "{finished}");
    let verify = "dmesg | grep -i 'recovery complete'
        for number in 1 2 3 4 5 6 7 8; do
            guest-probe verify /root/$((number % 3))/$number 262144 $number
        done
        mount -o remount,ro /";
    let told = Guest::running(verify).root(&root, "").finish().text();
    assert!(told.contains("verified 262144 bytes of seed 8"), "{told}");
    assert_clean(&root);
}

#[test]
fn a_killed_machine_leaves_nothing_behind() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    guest::copy_root(&path("root"));
    guest::blank(&path("data"), 1 << 20);
    let options = format!(",overlay={}", path("delta").display());
    let guest = || {
        Guest::running("echo running; test -e /root/go || sleep 1000")
            .root(&path("root"), &options)
            .disk(&path("data"), "")
            .option("--vsock", path("vsock"))
            .option("--result", path("result"))
    };
    let (running, _directory) = guest().start();
    running.wait_for("running\r");
    let children = format!("/proc/{0}/task/{0}/children", running.pid());
    assert_eq!(fs::read_to_string(children).unwrap_or_default(), "");
    running.signal(libc::SIGKILL);
    let finished = running.wait();
    assert_eq!(finished.signal, Some(libc::SIGKILL), "{finished}");

    for name in ["root", "data", "delta"] {
        // As the next run does it: the kernel lets go of a ring's files some milliseconds after the process is gone.
        let file = File::open(path(name)).unwrap();
        lock::lock(&file, false).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    let names: BTreeSet<_> =
        fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let expected = ["data", "delta", "result", "root", "vsock"].map(Into::into);
    assert_eq!(
        names,
        BTreeSet::from(expected),
        "only the socket's name is left, which the next run replaces"
    );

    let (running, _directory) = guest().start();
    running.wait_for("running\r");
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    assert!(!path("vsock").exists() && path("result").exists());
}
