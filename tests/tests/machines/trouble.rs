//! What goes wrong in a machine, or with it, is told as its user expects, and leaves nothing.

use std::fs;

use openshell_tests::image::Registry;
use openshell_tests::machine::fixture;

use crate::rig::{Home, last_line};

const SIGKILL: i32 = 9;
/// The first bytes of a program for 64-bit ARM.
const ARM_PROGRAM: [u8; 20] =
    [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0xb7, 0];

#[test]
fn a_process_that_wants_all_memory_is_killed_and_not_the_machine() {
    let home = Home::new();
    let image = home.shell_image();
    let script = "busybox tail /dev/zero; echo ended with $?; exit 7";
    let finished = home.run([image.as_str(), "--", script]).finish().expect_code(7);
    assert_eq!(last_line(&finished), "ended with 137");
}

#[test]
fn a_full_disk_is_an_error_of_the_process() {
    let home = Home::new();
    let image = home.shell_image();
    let script = "busybox dd if=/dev/zero of=/big bs=1M 2>&1; busybox rm /big; echo it fits >/small; cat /small; exit 4";
    let finished = home.run(["--disk-size", "64M", &image, "--", script]).finish().expect_code(4);
    assert!(finished.text().contains("No space left on device"), "{finished}");
    assert_eq!(last_line(&finished), "it fits");
}

#[test]
fn programs_and_images_of_another_processor_are_refused_by_name() {
    let home = Home::new();
    let tree = home.scratch();
    let program = std::path::Path::new(&tree).join("arm");
    fs::copy(fixture("busybox"), &program).unwrap();
    fs::write(&program, ARM_PROGRAM).unwrap();
    let finished = home.run([tree.as_str(), "--", "/arm"]).finish().expect_code(126);
    assert!(finished.text().contains("/arm"), "{finished}");
    let image = home.shell_image_for("arm64");
    let finished = home.run([image.as_str()]).finish().expect_code(125);
    assert!(finished.stderr.contains("arm64"), "{finished}");
    assert!(finished.stderr.contains("fix: "), "{finished}");
}

#[test]
fn a_machine_without_a_network_has_none() {
    let home = Home::new();
    let image = home.shell_image();
    let script = "echo devices: $(ls /sys/class/net); echo routes: $(busybox ip route)";
    let finished = home.run(["--net", "none", &image, "--", script]).finish().expect_code(0);
    assert_eq!(finished.text(), "devices: lo\nroutes:\n");
}

#[test]
fn a_guest_kernel_that_panics_is_said_with_its_last_words() {
    let home = Home::new();
    let image = home.shell_image();
    let finished = home.run(["--append", "init=/none", &image]).finish().expect_code(125);
    assert!(finished.stderr.contains("the guest kernel panicked"), "{finished}");
    assert!(finished.stderr.contains("Requested init /none failed"), "{finished}");
}

#[test]
fn a_machine_whose_process_is_killed_is_gone_with_the_next_verb() {
    let home = Home::new();
    let image = home.shell_image();
    let running = home.run([image.as_str(), "--", "echo ready; sleep 1000"]).spawn();
    running.wait_for("ready");
    running.signal(SIGKILL);
    assert_eq!(running.wait().signal, Some(SIGKILL));
    assert_eq!(home.says(&["ps", "-aq"]), "");
    assert_eq!(home.left(), Vec::<String>::new());
}

#[test]
fn a_distribution_of_several_layers_runs_from_a_registry() {
    let home = Home::new();
    let registry = Registry::serve(&fixture("oci")).unwrap();
    let image = format!("{}/debian:image", registry.address());
    let script = ". /etc/os-release; echo $ID; test -u /bin/ping || getcap /bin/ping";
    let finished = home.run([image.as_str(), "--", "/bin/busybox", "sh", "-c", script]).finish();
    assert!(finished.text().contains("debian"), "{finished}");
    finished.expect_code(0);
}
