//! PID 1's second half: waits for the main process, reaps orphans, passes signals on, ends what is left.
//!
//! Invariant: every child that ends is reaped, and every wait after the main process's end is bounded.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, wait, waitid,
};

use crate::failure::{Failure, Step};
use crate::machine::Outcome;
use crate::stop::{self, Request};
use crate::sys::signals::{self, send};

/// What the main process is told when PID 1 is.
const FORWARDED: [libc::c_int; 7] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];
/// How long the host may take to read what is left when it wants the machine to end.
const AFTER_STOP: Duration = Duration::from_secs(1);
const AFTER_TERM: Duration = Duration::from_secs(1);
const AFTER_KILL: Duration = Duration::from_secs(2);

/// What PID 1 waits on.
#[derive(Debug)]
pub struct Watch {
    signals: OwnedFd,
    requests: Option<OwnedFd>,
    /// The host wants the machine to end.
    stopping: bool,
}

impl Watch {
    /// Diverts signals and listens for requests. To be called before the first child.
    ///
    /// # Errors
    /// When signals cannot be diverted.
    pub fn begin() -> Result<Self, Failure> {
        let mut diverted = FORWARDED.to_vec();
        diverted.push(libc::SIGCHLD);
        let signals = signals::divert(&diverted).map_err(Step::Start.at("signalfd"))?;
        Ok(Self { signals, requests: stop::listen(), stopping: false })
    }

    /// Waits until `main` has ended. Orphans that end meanwhile are reaped.
    #[must_use]
    pub fn until_end_of(&mut self, main: Pid) -> Outcome {
        let mut kill_at = None;
        loop {
            if let Some(outcome) = reap(Some(main)) {
                return outcome;
            }
            if kill_at.is_some_and(|time| time <= Instant::now()) {
                _ = kill_process(main, Signal::KILL);
                kill_at = None;
            }
            for signal in self.wait(kill_at) {
                if let Some(signal) = forwarded(signal) {
                    _ = kill_process(main, signal);
                }
            }
            match self.request() {
                Some(Request::Stop(time, signal)) => {
                    self.stopping = true;
                    send(main, signal);
                    kill_at = Some(Instant::now() + time);
                }
                Some(Request::Signal(signal)) => send(main, signal),
                None => {}
            }
        }
    }

    /// Waits until the agent has ended: it has told the host all that the main process wrote, as fast as the host takes it. A host that
    /// wants the machine to end has to take it at once.
    pub fn until_end_of_agent(&mut self, agent: Pid) {
        let mut ends = None;
        while is_child(agent) {
            if self.stopping && ends.is_none() {
                ends = Some(Instant::now() + AFTER_STOP);
            }
            if ends.is_some_and(|ends| ends <= Instant::now()) {
                return;
            }
            self.wait(ends);
            self.stopping |= matches!(self.request(), Some(Request::Stop(..)));
        }
    }

    /// Ends every other process: asks, then insists.
    pub fn end_the_rest(&mut self) {
        for (signal, patience) in [(Signal::TERM, AFTER_TERM), (Signal::KILL, AFTER_KILL)] {
            let ends = Instant::now() + patience;
            if !has_children() || signals::signal_all(signal.as_raw()).is_err() {
                return;
            }
            loop {
                reap(None);
                if !has_children() {
                    return;
                }
                if ends <= Instant::now() {
                    break;
                }
                self.wait(Some(ends));
            }
        }
    }

    /// Waits for signals, at the latest until `ends`; those that came.
    fn wait(&mut self, ends: Option<Instant>) -> Vec<u32> {
        let left = ends.map(|ends| ends.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut polled = vec![PollFd::new(&self.signals, PollFlags::IN)];
        polled.extend(self.requests.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        // An interruption is as good as an event: everything is looked at again.
        _ = poll(&mut polled, left.as_ref());
        let mut came = Vec::new();
        let mut report = [0_u8; signals::REPORT_LEN];
        while let Ok(signals::REPORT_LEN) = read(self.signals.as_fd(), &mut report[..]) {
            let [a, b, c, d, ..] = report;
            came.push(u32::from_le_bytes([a, b, c, d]));
        }
        came
    }

    fn request(&self) -> Option<Request> {
        stop::hear(self.requests.as_ref()?)
    }
}

fn forwarded(signal: u32) -> Option<Signal> {
    let signal = libc::c_int::try_from(signal).ok()?;
    Signal::from_named_raw(signal).filter(|_| FORWARDED.contains(&signal))
}

/// Reaps whoever has ended; how `main` did, if it was among them.
fn reap(main: Option<Pid>) -> Option<Outcome> {
    let mut outcome = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if Some(pid) == main => {
                outcome = Some(outcome_of(status.exit_status(), status.terminating_signal()));
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return outcome,
        }
    }
}

fn outcome_of(code: Option<i32>, signal: Option<i32>) -> Outcome {
    let byte = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
    match (code, signal) {
        (Some(code), _) => Outcome::Code(byte(code)),
        (None, Some(signal)) => Outcome::Signal(byte(signal)),
        // A stop is not asked for.
        (None, None) => Outcome::Code(u8::MAX),
    }
}

/// Whether any process but this one is left: an orphan's parent is PID 1.
fn has_children() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, options), Err(Errno::CHILD))
}

/// Whether this is a child that has not ended. Others that have are reaped.
fn is_child(pid: Pid) -> bool {
    reap(None);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::Pid(pid), options), Err(Errno::CHILD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_signals_are_passed_on() {
        assert_eq!(forwarded(15), Some(Signal::TERM));
        assert_eq!(forwarded(28), Some(Signal::WINCH));
        for signal in [17, 9, 0, 64, u32::MAX] {
            assert_eq!(forwarded(signal), None);
        }
    }

    #[test]
    fn a_status_becomes_an_outcome() {
        for (code, signal, expected) in [
            (Some(7), None, Outcome::Code(7)),
            (Some(255), None, Outcome::Code(255)),
            (None, Some(9), Outcome::Signal(9)),
            (None, None, Outcome::Code(255)),
        ] {
            assert_eq!(outcome_of(code, signal), expected);
        }
    }
}
