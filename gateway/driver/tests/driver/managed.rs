//! The driver as a gateway of ours starts it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use openshell_gateway::compute::driver::Driver as _;
use openshell_gateway::managed::{Managed, PROGRAM, Running};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::time::{Instant, sleep};

use crate::fixture::PATIENCE;

const DRIVER: &str = env!("CARGO_BIN_EXE_openshell-driver-vm");

/// The driver, behind a script that leaves its process id.
fn managed(place: &Path) -> Managed {
    let program = place.join(PROGRAM);
    let pids = place.join("pids");
    let script = format!(
        "#!/bin/sh\necho $$ >> {}\nexport OPENSHELL_VM_RUNTIME_DIR={}\nexec {DRIVER} \"$@\"\n",
        pids.display(),
        place.display()
    );
    for (name, text) in [
        (PROGRAM, script.as_str()),
        ("openshell-rootfs", ""),
        ("openshell-vmm", ""),
        ("tools.ext4", ""),
    ] {
        fs::write(place.join(name), text).expect("written");
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(0o755)).expect("set");
    }
    assert!(program.is_file());
    Managed {
        driver_dir: Some(place.to_owned()),
        state_dir: place.join("state"),
        log_level: "warn".to_owned(),
        endpoint: "http://127.0.0.1:17670".to_owned(),
        options: vec![("--default-image", "registry.example/base:1".to_owned())],
    }
}

fn pids(place: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(place.join("pids")).unwrap_or_default();
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

#[tokio::test]
async fn a_gateway_starts_its_driver_and_starts_it_again() {
    let place = tempfile::tempdir().expect("a directory");
    let (running, driver, capabilities) =
        Running::start(managed(place.path())).await.expect("it runs");
    assert_eq!(capabilities.default_image, "registry.example/base:1");
    assert!(capabilities.gateway_manages_lifecycle);
    let first = pids(place.path());
    kill_process(first[0], Signal::KILL).expect("killed");
    let ends = Instant::now() + PATIENCE;
    // The same handle reaches the next one.
    while running.starts() < 2 || driver.list().await.is_err() {
        assert!(Instant::now() < ends, "it does not come back");
        sleep(Duration::from_millis(20)).await;
    }
    let both = pids(place.path());
    assert_eq!(both.len(), 2);
    running.stop().await;
    for pid in both {
        assert!(test_kill_process(pid).is_err(), "{pid:?} is left");
    }
    assert!(!place.path().join("state/run/compute-driver.sock").exists());
}
