//! A process from start to end: time by the wall and by its processors, and its memory while it lives.
//!
//! Invariant: figures are the kernel's own for exactly this process (wait4, /proc/PID/smaps); nothing is sampled.

#![expect(
    unsafe_code,
    reason = "wait4 and the kill of a child have no safe wrapper that gives its resource usage"
)]

use std::fs;
use std::io;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// What a process took from start to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// Exit code; 128 + N after signal N.
    pub code: i32,
    /// From before the start until its end was seen.
    pub wall: Duration,
    /// Processor time, user and system, of all its threads.
    pub cpu: Duration,
}

/// A process that runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    begin: Instant,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let begin = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child, begin })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What the host said.
    pub fn wait(self) -> io::Result<Spent> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        let mut status = 0;
        // SAFETY: rusage is plain integers, for which zeroes are valid.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        loop {
            // SAFETY: both pointers are to live values of the right types. The child is ours and nobody else waits for it: `self` is
            // consumed and `Child` does not wait when dropped.
            let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
            if waited == pid {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let wall = self.begin.elapsed();
        let signalled = libc::WIFSIGNALED(status);
        let code = if signalled { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
        Ok(Spent { code, wall, cpu: duration(usage.ru_utime) + duration(usage.ru_stime) })
    }

    /// Ends it.
    ///
    /// # Errors
    /// What the host said.
    pub fn end(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

fn duration(time: libc::timeval) -> Duration {
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
}

/// The memory of process `pid` besides its largest mapping, which in a VMM is the guest's RAM: its proportional share, in KiB.
///
/// # Errors
/// When the process is gone or its maps cannot be read.
pub fn memory_beside_guest_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    besides_largest(&text).with_context(|| format!("{path} has no mapping"))
}

fn besides_largest(smaps: &str) -> Option<u64> {
    let field = |line: &str, name: &str| -> Option<u64> {
        line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()
    };
    let mut mappings: Vec<(u64, u64)> = Vec::new();
    for line in smaps.lines() {
        if let Some(size) = field(line, "Size:") {
            mappings.push((size, 0));
        } else if let (Some(pss), Some(last)) = (field(line, "Pss:"), mappings.last_mut()) {
            last.1 = pss;
        }
    }
    let (_, guest) = mappings.iter().max_by_key(|(size, _)| *size)?;
    Some(mappings.iter().map(|(_, pss)| pss).sum::<u64>() - guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_mapping_is_left_out() {
        let smaps = "\
55-56 r-xp 0 00:00 1 /bin/vmm
Size:               2048 kB
Rss:                 900 kB
Pss:                 500 kB
Pss_Dirty:            10 kB
7f-80 rw-p 0 00:00 0
Size:             131072 kB
Pss:                4096 kB
80-81 rw-p 0 00:00 0
Size:                  8 kB
Pss:                   8 kB
";
        assert_eq!(besides_largest(smaps), Some(508));
        assert_eq!(besides_largest(""), None);
    }

    #[test]
    fn a_process_is_accounted() {
        let spent = Process::start(Command::new("sh").args(["-c", "exit 3"])).unwrap();
        let spent = spent.wait().unwrap();
        assert_eq!(spent.code, 3);
        assert!(spent.wall >= spent.cpu / 4 && spent.wall > Duration::ZERO);
    }
}
