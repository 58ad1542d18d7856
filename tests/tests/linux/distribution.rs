//! The distribution's own kernel, unmodified: a bzImage with its modules in an initramfs, which finds its devices through ACPI alone.

use openshell_tests::machine::fixture;

use crate::guest::{self, Guest};

fn distribution(guest: Guest) -> Guest {
    guest.kernel("distribution-vmlinuz").option("--initrd", fixture("distribution-initrd"))
}

#[test]
fn the_distributions_kernel_boots_from_the_disk() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    guest::copy_root(&root);
    let script = "echo kernel=$(uname -r) cpus=$(nproc)
        grep /dev/vda /proc/mounts
        guest-probe write /root/file 1048576 1
        sync
        guest-probe verify /root/file 1048576 1";
    let guest = distribution(Guest::running(script)).root(&root, "").option("--cpus", "2");
    let told = guest.finish().text();
    assert!(told.contains("-cloud-amd64 cpus=2\r"), "{told}");
    assert!(told.contains("/dev/vda / ext4 rw"), "{told}");
    assert!(told.contains("verified 1048576 bytes of seed 1"), "{told}");
}

#[test]
fn a_crash_of_the_distributions_kernel_is_told() {
    let guest =
        distribution(Guest::running("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"));
    let finished = guest.end().expect_code(125);
    let text = &finished.stderr;
    assert!(text.contains("error: the guest kernel panicked: sysrq triggered crash"), "{finished}");
    assert!(text.contains("console lines:"), "{finished}");
}
