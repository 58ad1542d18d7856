//! Which process a machine is.
//!
//! Invariant: a process is taken for a machine's only when its number, the moment it started and the host's boot are those that the
//! machine wrote down itself: a number that was given again is never mistaken for it. Any thread.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::sys::process::Process;

/// A process, for as long as the host runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the host did.
    pub start_ticks: u64,
    /// The host's boot.
    pub boot_id: String,
}

impl Identity {
    /// This process.
    ///
    /// # Errors
    /// When /proc does not say.
    pub fn of_process() -> io::Result<Self> {
        let boot_id = boot_id()?;
        let (pid, start_ticks, _) = look("self")?;
        Ok(Self { pid, start_ticks, boot_id })
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn lives(&self) -> bool {
        let same = |(pid, ticks, dead): (u32, u64, bool)| {
            pid == self.pid && ticks == self.start_ticks && !dead
        };
        look(&self.pid.to_string()).is_ok_and(same)
            && boot_id().is_ok_and(|boot_id| boot_id == self.boot_id)
    }

    /// The process, held so that nobody else gets its number, if it still runs.
    #[must_use]
    pub fn hold(&self) -> Option<Process> {
        let held = Process::open(self.pid).ok()?;
        // Looked at after it is held: what lives now is what is held.
        self.lives().then_some(held)
    }
}

fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim_end().to_owned())
}

/// Number, start and whether it has ended already, of a process that /proc knows by this name.
fn look(name: &str) -> io::Result<(u32, u64, bool)> {
    let stat = fs::read_to_string(format!("/proc/{name}/stat"))?;
    parse(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse(stat: &str) -> Option<(u32, u64, bool)> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let ticks = fields.nth(18)?.parse().ok()?;
    Some((pid, ticks, matches!(state, "Z" | "X" | "x")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_one_with_the_same_number() {
        let own = Identity::of_process().unwrap();
        assert!(own.lives() && own.hold().is_some());
        assert_eq!(own.pid, std::process::id());
        for other in [
            Identity { start_ticks: own.start_ticks + 1, ..own.clone() },
            Identity { boot_id: "other".to_owned(), ..own.clone() },
            Identity { pid: u32::MAX, ..own.clone() },
        ] {
            assert!(!other.lives() && other.hold().is_none(), "{other:?}");
        }
    }

    #[test]
    fn one_that_has_ended_and_waits_for_its_parent_does_not_live() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let (pid, start_ticks, _) = look(&child.id().to_string()).unwrap();
        let identity = Identity { pid, start_ticks, boot_id: boot_id().unwrap() };
        while identity.lives() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!identity.lives());
    }

    #[test]
    fn a_name_with_anything_in_it_is_read_over() {
        let zeros = "0 ".repeat(18);
        let stat = format!("17 (a) Z 1) S {zeros}4242 9 9");
        assert_eq!(parse(&stat), Some((17, 4242, false)));
        assert_eq!(parse(&stat.replace(") S", ") Z")), Some((17, 4242, true)));
        for broken in ["", "17", "17 (a) S 1", "x (a) S 0"] {
            assert_eq!(parse(broken), None);
        }
    }
}
