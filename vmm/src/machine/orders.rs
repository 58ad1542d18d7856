//! What the event loop does when somebody outside wants something of the machine.
//!
//! Invariant: a machine that was asked to end does so at the latest when its time is over, whatever its guest does; a second request only
//! ever shortens that time. Only the event loop's thread uses it.

use std::time::{Duration, Instant};

use crate::config::plan::ControlPlan;
use crate::control::{Ask, News, Order, State};
use crate::report::End;

use super::{Machine, Timers};

/// How long processors take to leave the guest: one may be inside a device.
const HOLD_PATIENCE: Duration = Duration::from_secs(2);
/// The least time that a guest has to answer a request.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// What a guest that has agreed to end may take beyond its time: it ends every process, and writes its disks.
const LAST_STEPS: Duration = Duration::from_secs(5);

/// How a guest is asked to end.
#[derive(Debug, Default)]
pub(super) struct Manner {
    signal: i32,
    grace: Duration,
    /// When the time of one that was asked is over.
    ends: Option<Instant>,
    agreed: bool,
}

impl Manner {
    pub(super) fn of(plan: &ControlPlan) -> Self {
        Self { signal: plan.stop_signal, grace: plan.grace, ends: None, agreed: false }
    }
}

impl Machine {
    /// A signal to this process. The first one is the guest's to hear where it can be asked; the next one ends the machine.
    pub(super) fn signalled(&mut self, signal: i32, timers: &mut Timers) -> Option<End> {
        if self.control.is_none() || self.manner.ends.is_some() {
            return Some(End::Signal(signal));
        }
        // As at a terminal: who presses Ctrl-C means the program.
        let heard = if signal == libc::SIGTERM { self.manner.signal } else { signal };
        self.ask_to_end(heard, self.manner.grace, timers);
        None
    }

    /// Obeys all orders that wait; the end, if one of them is that.
    pub(super) fn obey(&mut self, timers: &mut Timers) -> Option<End> {
        while let Some(order) = self.control.as_ref().and_then(crate::control::Link::next) {
            match order {
                Order::Kill => return Some(End::Signal(libc::SIGKILL)),
                Order::Stop { signal, grace } => {
                    let signal = signal.unwrap_or(self.manner.signal);
                    self.ask_to_end(signal, grace.unwrap_or(self.manner.grace), timers);
                }
                Order::Agreed => self.agreed(timers),
                Order::Pause(client) => {
                    let result = self.pause();
                    self.tell(News::Done { client, result });
                }
                Order::Resume(client) => {
                    let result = self.resume();
                    self.tell(News::Done { client, result });
                }
            }
        }
        None
    }

    fn tell(&self, news: News) {
        if let Some(control) = &self.control {
            control.tell(news);
        }
    }

    fn pause(&mut self) -> Result<(), String> {
        if self.manner.ends.is_some() {
            return Err("the machine is stopping".to_owned());
        }
        if self.paused {
            return Err("the machine is paused already".to_owned());
        }
        self.link.pause.want();
        for handle in &self.handles {
            handle.kick();
        }
        if !self.link.pause.holds(self.handles.len(), HOLD_PATIENCE) {
            self.link.pause.release();
            return Err("a processor did not leave the guest".to_owned());
        }
        self.paused = true;
        self.tell(News::State(State::Paused));
        Ok(())
    }

    fn resume(&mut self) -> Result<(), String> {
        if !self.paused {
            return Err("the machine is not paused".to_owned());
        }
        self.link.pause.release();
        self.paused = false;
        self.tell(News::State(State::Running));
        Ok(())
    }

    fn ask_to_end(&mut self, signal: i32, grace: Duration, timers: &mut Timers) {
        // A guest that is held hears nothing.
        if self.paused {
            self.link.pause.release();
            self.paused = false;
        }
        let again = self.manner.ends.is_some();
        let patience = if self.manner.agreed {
            grace.saturating_add(LAST_STEPS)
        } else {
            grace.max(ANSWER_PATIENCE)
        };
        self.ends_by(Instant::now() + patience, timers);
        if !again {
            self.manner.grace = grace;
            self.tell(News::State(State::Stopping));
            self.tell(News::Ask(Ask::Stop { signal, grace }));
        }
    }

    fn agreed(&mut self, timers: &mut Timers) {
        if !std::mem::replace(&mut self.manner.agreed, true) {
            // From now on it is the guest that keeps the time; it is ended if it does not.
            let later = self.manner.grace.saturating_add(LAST_STEPS);
            self.manner.ends = None;
            self.ends_by(Instant::now() + later, timers);
        }
    }

    fn ends_by(&mut self, ends: Instant, timers: &mut Timers) {
        let ends = self.manner.ends.map_or(ends, |known| known.min(ends));
        self.manner.ends = Some(ends);
        // A timer that is set to nothing would never ring.
        let left = ends.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        timers.stop.reset(left, None).ok();
    }
}
