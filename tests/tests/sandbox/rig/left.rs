//! What programs have left on this machine: processes, descriptors, files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Programs whose processes are looked for.
const PROGRAMS: [&str; 3] = ["openshell-vmm", "openshell-rootfs", "openshell-driver-vm"];

/// What there is of what a sandbox takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    /// Processes of machines, of the image pipeline, and of a driver that the gateway has started.
    pub(crate) processes: Vec<String>,
    /// Descriptors of gateway and driver, by what they refer to, without those that name a number.
    pub(crate) descriptors: BTreeMap<String, usize>,
    /// What lies in the directories of sandboxes and of what is being removed.
    pub(crate) files: Vec<PathBuf>,
}

impl Left {
    /// Looks now: at these processes, and below this state directory.
    pub(crate) fn now(servers: &[u32], state: &Path) -> Self {
        let mut descriptors = BTreeMap::new();
        for pid in servers {
            let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            for target in entries.filter_map(|entry| fs::read_link(entry.path()).ok()) {
                let text = target.to_string_lossy().into_owned();
                let kind = text.split_once(":[").map_or(text.as_str(), |(kind, _)| kind);
                *descriptors.entry(format!("{pid} {kind}")).or_default() += 1;
            }
        }
        let mut files = Vec::new();
        for directory in ["sandboxes", "trash"] {
            let entries = fs::read_dir(state.join(directory)).into_iter().flatten().flatten();
            files.extend(entries.map(|entry| entry.path()));
        }
        files.sort();
        Self { processes: processes(servers), descriptors, files }
    }

    /// How many descriptors there are.
    pub(crate) fn count(&self) -> usize {
        self.descriptors.values().sum()
    }
}

/// Command lines of all others of these programs.
fn processes(servers: &[u32]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if pid.is_some_and(|pid| servers.contains(&pid)) {
            continue;
        }
        let Ok(exe) = fs::read_link(entry.path().join("exe")) else { continue };
        let name = exe.file_name().map(|name| name.to_string_lossy().into_owned());
        if name.is_some_and(|name| PROGRAMS.iter().any(|program| name.starts_with(program))) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

/// The process of a sandbox's machine, by the directory that it works in.
pub(crate) fn machine_of(directory: &Path) -> Option<u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let exe = fs::read_link(entry.path().join("exe")).ok()?;
        let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
        let ours = exe.file_name()?.to_string_lossy().starts_with("openshell-vmm");
        (ours && cwd == directory).then_some(pid)
    })
}
