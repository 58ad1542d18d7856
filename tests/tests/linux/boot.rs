//! From the start of the process to user space.

use std::time::Instant;

use serde_json::Value;

use crate::guest::{self, Guest};

#[test]
fn every_number_of_cpus_reaches_init() {
    for cpus in [1, 2, 4] {
        let told =
            Guest::running("echo cpus=$(nproc) online=$(cat /sys/devices/system/cpu/online)")
                .option("--cpus", cpus.to_string())
                .finish()
                .text();
        let online = if cpus == 1 { "0".to_owned() } else { format!("0-{}", cpus - 1) };
        assert!(told.contains(&format!("cpus={cpus} online={online}\r")), "{told}");
    }
}

#[test]
fn the_tiny_kernel_reaches_init() {
    let told = Guest::running("echo up: $(uname -r) cpus=$(nproc)")
        .kernel("vmlinux-tiny")
        .option("--cpus", "2")
        .finish()
        .text();
    assert!(told.contains("up: 6.") && told.contains("cpus=2"), "{told}");
}

#[test]
fn the_smallest_memory_reaches_init() {
    let told = Guest::running("grep MemTotal /proc/meminfo").option("--memory", "32Mi");
    assert!(told.finish().text().contains("MemTotal:"));
}

#[test]
fn memory_goes_on_past_the_hole() {
    // A file in memory larger than what is below 4 GiB free of it would not fit the lab: the kernel hands out high pages first.
    let script = "grep MemTotal /proc/meminfo
        grep 'System RAM' /proc/iomem
        guest-probe write /tmp/data 67108864 1
        guest-probe verify /tmp/data 67108864 1";
    let told = Guest::running(script).option("--memory", "6Gi").finish().text();
    assert!(told.contains("100000000-1bfffffff : System RAM"), "{told}");
    let total: u64 = told
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .expect("the guest tells its memory");
    assert!((5_800_000..6 << 20).contains(&total), "{total} KiB");
}

#[test]
fn the_boot_trace_sums_to_the_wall_time() {
    let guest = Guest::running("guest-probe mark-init").flag("--boot-trace=json");
    let (run, _directory) = guest.prepare();
    let begin = Instant::now();
    let finished = run.finish().expect_code(0);
    let wall_us = begin.elapsed().as_secs_f64() * 1e6;
    let trace: Value = serde_json::from_str(&finished.stderr).expect("one line of JSON");
    let phases: Vec<(&str, f64)> = trace["phases"]
        .as_array()
        .expect("phases")
        .iter()
        .map(|step| (step["phase"].as_str().unwrap(), step["us"].as_f64().unwrap()))
        .collect();
    let names: Vec<&str> = phases.iter().map(|(name, _)| *name).collect();
    for name in ["process_start", "kvm_open", "memory", "kernel_load", "first_run", "init", "exit"]
    {
        assert!(names.contains(&name), "no {name} in {finished}");
    }
    let sum: f64 = phases.iter().map(|(_, us)| us).sum();
    let total = trace["total_us"].as_f64().expect("a total");
    assert!((sum - total).abs() <= 0.02 * total, "{sum} {total}: {finished}");
    // The wall time was taken around process creation and the reading of its streams as well.
    assert!((sum - wall_us).abs() <= 0.02 * wall_us + 50_000.0, "{sum} {wall_us}: {finished}");
    let init = phases.iter().find(|(name, _)| *name == "init").map(|(_, us)| *us);
    assert!(init.is_some_and(|us| us > 0.0), "{finished}");
}

#[test]
fn console_output_is_complete_and_in_order() {
    // A mebibyte; in the lab, where each byte is an exit, what exceeds the port's buffer.
    let lines = if guest::in_lab() { 1 << 10 } else { 1 << 14 };
    let told = Guest::running(&format!("guest-probe lines {lines}")).finish().text();
    let mut seen = told.lines().filter(|line| line.ends_with("=="));
    for number in 0..lines {
        let expected = format!("{number:08} {}", "=".repeat(54));
        assert_eq!(seen.next(), Some(expected.as_str()));
    }
    assert_eq!(seen.next(), None);
}
