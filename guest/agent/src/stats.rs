//! What the guest uses, read from the files of its kernel.
//!
//! Invariant: a number that is not there is 0; what the files hold is parsed without a bound on nothing but their size.

use std::fs::File;
use std::io::Read as _;

use openshell_agent_proto::Stats;

/// What is read of one file, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Of /proc/stat, per second: what programs are told, whatever the kernel's own rate is.
const TICKS_PER_SECOND: u64 = 100;
const SECTOR: u64 = 512;

/// Looks at everything once.
#[must_use]
pub fn read() -> Stats {
    let mut stats = Stats::default();
    uptime(&text("/proc/uptime"), &mut stats);
    memory(&text("/proc/meminfo"), &mut stats);
    processors(&text("/proc/stat"), &mut stats);
    tasks(&text("/proc/loadavg"), &mut stats);
    stats.oom_kills = field(&text("/proc/vmstat"), "oom_kill").unwrap_or(0);
    disks(&text("/proc/diskstats"), &mut stats);
    network(&text("/proc/net/dev"), &mut stats);
    if let Ok(root) = rustix::fs::statvfs("/") {
        stats.disk_total_bytes = root.f_blocks.saturating_mul(root.f_frsize);
        stats.disk_available_bytes = root.f_bavail.saturating_mul(root.f_frsize);
        (stats.disk_inodes, stats.disk_inodes_free) = (root.f_files, root.f_favail);
    }
    stats
}

fn text(path: &str) -> String {
    let mut bytes = Vec::new();
    // What cannot be read counts as nothing.
    drop(File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes)));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The number behind `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

fn uptime(text: &str, stats: &mut Stats) {
    let first = text.split_ascii_whitespace().next().unwrap_or_default();
    let (seconds, hundredths) = first.split_once('.').unwrap_or((first, "0"));
    let number = |digits: &str| digits.parse::<u64>().unwrap_or(0);
    stats.uptime_ms =
        number(seconds).saturating_mul(1000).saturating_add(number(hundredths).saturating_mul(10));
}

fn memory(text: &str, stats: &mut Stats) {
    let bytes = |name| field(text, name).unwrap_or(0).saturating_mul(1024);
    stats.memory_total_bytes = bytes("MemTotal:");
    stats.memory_available_bytes = bytes("MemAvailable:");
    stats.memory_cached_bytes = bytes("Cached:");
}

fn processors(text: &str, stats: &mut Stats) {
    let is_one = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stats.cpus = text.lines().filter(is_one).count() as u64;
    let Some(all) = text.lines().find_map(|line| line.strip_prefix("cpu ")) else { return };
    let ticks: Vec<u64> =
        all.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
    let time = |columns: &[usize]| {
        let sum = columns
            .iter()
            .filter_map(|at| ticks.get(*at))
            .fold(0, |sum: u64, n| sum.saturating_add(*n));
        sum.saturating_mul(1_000_000 / TICKS_PER_SECOND)
    };
    // user nice system idle iowait irq softirq
    stats.cpu_user_us = time(&[0, 1]);
    stats.cpu_system_us = time(&[2, 5, 6]);
    stats.cpu_idle_us = time(&[3, 4]);
}

fn tasks(text: &str, stats: &mut Stats) {
    let counts = text.split_ascii_whitespace().nth(3).and_then(|word| word.split_once('/'));
    stats.tasks = counts.and_then(|(_, all)| all.parse().ok()).unwrap_or(0);
}

fn disks(text: &str, stats: &mut Stats) {
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // Whole disks only: what a partition did, its disk did.
        let is_disk =
            |name: &&str| name.starts_with("vd") && !name.ends_with(|c: char| c.is_ascii_digit());
        if !words.get(2).is_some_and(is_disk) {
            continue;
        }
        let sectors = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0_u64);
        let add = |sum: u64, at| sum.saturating_add(sectors(at).saturating_mul(SECTOR));
        stats.disk_read_bytes = add(stats.disk_read_bytes, 5);
        stats.disk_written_bytes = add(stats.disk_written_bytes, 9);
    }
}

fn network(text: &str, stats: &mut Stats) {
    for line in text.lines() {
        let Some((name, counts)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let counts: Vec<u64> =
            counts.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
        let count = |at: usize| counts.get(at).copied().unwrap_or(0);
        stats.network_received_bytes = stats.network_received_bytes.saturating_add(count(0));
        stats.network_sent_bytes = stats.network_sent_bytes.saturating_add(count(8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let mut stats = Stats::default();
        uptime("12.34 5.0\n", &mut stats);
        memory(
            "MemTotal:  100 kB\nMemAvailable: 50 kB\nSwapCached: 9 kB\nCached: 7 kB\n",
            &mut stats,
        );
        processors("cpu  1 2 3 4 5 6 7 8\ncpu0 1\ncpu1 2\nctxt 5\n", &mut stats);
        tasks("0.00 0.01 0.05 1/77 300\n", &mut stats);
        disks(
            " 254 0 vda 9 0 10 0 8 0 20 0 0\n 254 1 vda1 9 0 10 0 8 0 20\n 7 0 loop0 1 1 1 1 1 1 1\n",
            &mut stats,
        );
        network(
            "Inter-|\n face |bytes\n  lo: 1 2 3 4 5 6 7 8 9\neth0: 11 0 0 0 0 0 0 0 22 0\n",
            &mut stats,
        );
        let expected = Stats {
            uptime_ms: 12_340,
            memory_total_bytes: 102_400,
            memory_available_bytes: 51_200,
            memory_cached_bytes: 7168,
            cpu_user_us: 30_000,
            cpu_system_us: 160_000,
            cpu_idle_us: 90_000,
            cpus: 2,
            tasks: 77,
            disk_read_bytes: 5120,
            disk_written_bytes: 10_240,
            network_received_bytes: 11,
            network_sent_bytes: 22,
            ..Stats::default()
        };
        assert_eq!(stats, expected);
    }

    #[test]
    fn this_machine_has_memory_and_a_processor() {
        let stats = read();
        assert!(stats.memory_total_bytes > stats.memory_available_bytes && stats.cpus > 0);
        assert!(stats.tasks > 0 && stats.disk_total_bytes > 0 && stats.uptime_ms > 0);
    }
}
