//! The machine that a benchmark runs on, as far as it decides the figures.
//!
//! Invariant: what cannot be read is left out, never guessed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What decides the figures.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Model name of the processors.
    pub cpu: Option<String>,
    /// Number of processors online.
    pub cpus: usize,
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// Module that drives /dev/kvm: `kvm_intel`, `kvm_amd`, `kvm_pvm`.
    pub kvm: Option<String>,
    /// Parameters of KVM that change its speed.
    pub kvm_parameters: BTreeMap<String, String>,
    /// Total memory in KiB.
    pub memory_kib: Option<u64>,
    /// The three load averages when the benchmark began.
    pub load: Option<String>,
    /// Frequency governor of the first processor.
    pub governor: Option<String>,
    /// Setting of transparent huge pages.
    pub huge_pages: Option<String>,
    /// State of each processor vulnerability.
    pub mitigations: BTreeMap<String, String>,
}

impl Fingerprint {
    /// Of this machine, now.
    #[must_use]
    pub fn take() -> Self {
        let cpuinfo = line("/proc/cpuinfo", "model name");
        let memory = line("/proc/meminfo", "MemTotal");
        Self {
            cpu: cpuinfo,
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: text("/proc/sys/kernel/osrelease"),
            kvm: ["kvm_pvm", "kvm_intel", "kvm_amd"]
                .into_iter()
                .find(|module| Path::new("/sys/module").join(module).exists())
                .map(str::to_owned),
            kvm_parameters: parameters(),
            memory_kib: memory.and_then(|kib| kib.split(' ').next()?.parse().ok()),
            load: text("/proc/loadavg")
                .map(|load| load.split(' ').take(3).collect::<Vec<_>>().join(" ")),
            governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            huge_pages: text("/sys/kernel/mm/transparent_hugepage/enabled"),
            mitigations: directory("/sys/devices/system/cpu/vulnerabilities"),
        }
    }
}

fn parameters() -> BTreeMap<String, String> {
    let mut all = directory("/sys/module/kvm/parameters");
    for module in ["kvm_pvm", "kvm_intel", "kvm_amd"] {
        all.extend(directory(&format!("/sys/module/{module}/parameters")));
    }
    let kept = ["halt_poll_ns", "nx_huge_pages", "tdp_mmu", "ept", "npt", "nested", "avic"];
    all.retain(|name, _| kept.contains(&name.as_str()));
    all
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The value after `key` and a colon on the first such line.
fn line(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

/// Every readable file of a directory and its text.
fn directory(path: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let value = fs::read_to_string(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), value.trim().to_owned()))
        })
        .collect()
}
