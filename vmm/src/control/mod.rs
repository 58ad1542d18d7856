//! The control socket of a machine: who asks, and what the machine's event loop is told.
//!
//! A thread of its own, under a filter of its own, serves the socket; the event loop obeys [`Order`]s and sends [`News`]. Invariant: the
//! event loop never waits for a client, clients and what they may send are bounded, and every request gets one answer or the end of the
//! connection. docs/machines.md has the protocol.

pub mod client;
mod guest;
pub mod protocol;
mod server;

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::config::plan::ControlPlan;
use crate::jail::{Jail, Role};
use crate::trace::Marks;

use protocol::Ending;

/// What the event loop shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Hold all processors, and say so to this client.
    Pause(u64),
    /// Let them go on, and say so to this client.
    Resume(u64),
    /// Ask the guest to end with this signal, and end it after this time.
    Stop {
        /// The signal; the plan's own without one.
        signal: Option<i32>,
        /// How long the guest may take; the plan's own without one.
        grace: Option<Duration>,
    },
    /// End it now.
    Kill,
    /// The guest has agreed to end.
    Agreed,
}

/// What the event loop has to say.
#[derive(Debug)]
pub enum News {
    /// An order was obeyed, or why not.
    Done {
        /// Who wanted it.
        client: u64,
        /// What came of it.
        result: Result<(), String>,
    },
    /// What the machine does now.
    State(State),
    /// The guest shall be asked.
    Ask(Ask),
    /// The machine has come to its end.
    Ended(Ending),
}

/// What a machine does, as its event loop knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its processors run.
    Running,
    /// They are held.
    Paused,
    /// It was asked to end.
    Stopping,
}

impl State {
    /// For programs and people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
        }
    }
}

/// What the guest's first process is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// To end its main process, and then itself.
    Stop {
        /// How.
        signal: i32,
        /// How long it may take.
        grace: Duration,
    },
    /// To send its main process a signal.
    Signal(i32),
}

/// The event loop's end.
#[derive(Debug)]
pub struct Link {
    orders: mpsc::Receiver<Order>,
    bell: EventFd,
    news: mpsc::Sender<News>,
    mailbox: EventFd,
    thread: JoinHandle<()>,
    path: std::path::PathBuf,
}

impl Link {
    /// Starts the thread, confined.
    ///
    /// # Errors
    /// What the host said.
    pub fn start(plan: ControlPlan, marks: Arc<Marks>, jail: Jail) -> io::Result<Self> {
        let (order, orders) = mpsc::channel();
        let (news, inbox) = mpsc::channel();
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let mailbox = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let path = plan.path;
        let outward = server::Outward { orders: order, bell: bell.try_clone()? };
        let inward = server::Inward { news: inbox, mailbox: mailbox.try_clone()? };
        let server = server::Server::new(plan.listener, plan.guest, outward, inward, marks)?;
        let thread = jail.spawn(Role::Control, "control", move || server.run())?;
        Ok(Self { orders, bell, news, mailbox, thread, path })
    }

    /// Readable when there are orders.
    #[must_use]
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// The next order, if there is one; the bell is silent then.
    #[must_use]
    pub fn next(&self) -> Option<Order> {
        let order = self.orders.try_recv().ok();
        if order.is_none() {
            self.bell.read().ok();
            // One that came between both is found.
            return self.orders.try_recv().ok();
        }
        order
    }

    /// Tells the thread.
    pub fn tell(&self, news: News) {
        // It ends before the event loop only by a panic, which ends the process.
        self.news.send(news).ok();
        self.mailbox.write(1).ok();
    }

    /// Tells everybody that the machine has come to its end, and closes the socket.
    pub fn finish(self, ending: Ending) {
        self.tell(News::Ended(ending));
        drop(self.thread.join());
        drop(std::fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests;
