//! The stack by itself, on a tap or a Unix stream, without a machine: until a signal ends it.
//!
//! Invariant: everything is opened before the net thread is started; this thread waits for signals and for that thread's end, and prints
//! counters when asked. Main thread.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::config::net::{MacAddress, Mtu, NetSpec};
use crate::config::net_plan::{self, HostPlan, NetPlanError, Resolvers};
use crate::event::Waiter;
use crate::explain::Explain;
use crate::jail::Jail;
use crate::sys::signal::EndingSignals;
use crate::sys::tun;

use super::engine::{End, Report, Setup};
use super::follow::{FileWatch, Followed};
use super::link::PacketLink;
use super::resolvers;
use super::stream::StreamLink;
use super::tap::TapLink;
use super::thread::{Failed, NetThread};

/// What the stack is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// A tap device.
    Tap {
        /// Its name.
        name: String,
        /// The network namespace that it is in, when not this process's.
        netns: Option<PathBuf>,
        /// Frames are as they would be on a wire.
        plain: bool,
    },
    /// A Unix stream: the first who connects to this path.
    Stream(PathBuf),
}

/// Why the stack does not run.
#[derive(Debug, thiserror::Error)]
pub enum AloneError {
    /// What the user wrote.
    #[error(transparent)]
    Plan(NetPlanError),
    /// The tap device.
    #[error("cannot open the tap {name}{}", netns.as_ref().map_or_else(String::new, |path| format!(" in {}", path.display())))]
    Tap {
        /// Its name.
        name: String,
        /// Where.
        netns: Option<PathBuf>,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The Unix stream.
    #[error("cannot listen at {}", path.display())]
    Stream {
        /// As the user wrote it.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Something that every process has.
    #[error("cannot {what}")]
    Host {
        /// What.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It ran, and ended by itself.
    #[error(transparent)]
    Failed(Failed),
}

impl Explain for AloneError {
    fn why(&self) -> Option<String> {
        match self {
            Self::Plan(error) => error.why(),
            _ => std::error::Error::source(self).map(ToString::to_string),
        }
    }

    fn fix(&self) -> Option<String> {
        Some(match self {
            Self::Plan(error) => return error.fix(),
            Self::Tap { name, .. } if name.len() > tun::MAX_NAME_BYTES || name.is_empty() => {
                format!("a name has 1 to {} bytes", tun::MAX_NAME_BYTES)
            }
            Self::Tap { source, netns: Some(path), .. }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                format!("check the path of the namespace: ls -l {}", path.display())
            }
            Self::Tap { source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                "another process has it: stop that one, or give another name".to_owned()
            }
            Self::Tap { name, .. } => {
                format!(
                    "make it for this user: sudo ip tuntap add {name} mode tap vnet_hdr user $USER"
                )
            }
            Self::Stream { .. } => "give another path, or remove that file".to_owned(),
            Self::Host { .. } | Self::Failed(_) => return None,
        })
    }
}

/// What there is to say on the way.
pub trait Say {
    /// One or several lines, complete.
    fn say(&mut self, text: &str);
}

impl<F: FnMut(&str)> Say for F {
    fn say(&mut self, text: &str) {
        self(text);
    }
}

/// Runs the stack on `side` until SIGINT, SIGTERM or SIGHUP, or until the other side of a stream is gone. SIGUSR1 says counters.
///
/// # Errors
/// [`AloneError`].
pub fn run(
    side: &Side,
    spec: &NetSpec,
    seccomp: bool,
    say: &mut impl Say,
) -> Result<(), AloneError> {
    let host = |what| move |source| AloneError::Host { what, source };
    // Before any other thread, which all have them blocked then.
    let signals = EndingSignals::open_with(&[libc::SIGUSR1]).map_err(host("take signals"))?;
    let plan = net_plan::open(spec).map_err(AloneError::Plan)?;
    say_resolvers(&plan, say);
    let mtu = spec.mtu.unwrap_or(Mtu::ETHERNET);
    let end = Arc::new(EventFd::new(libc::EFD_NONBLOCK).map_err(host("make an event"))?);
    let alone = Alone { signals, end, seccomp };
    match side {
        Side::Tap { name, netns, plain } => {
            let opened = TapLink::open(name, netns.as_deref(), mtu.bytes(), !plain)
                .and_then(|link| link.agree_on_address(spec.mac).map(|mac| (link, mac)));
            let (link, mac) = opened.map_err(|source| AloneError::Tap {
                name: name.clone(),
                netns: netns.clone(),
                source,
            })?;
            say.say(&format!("the network stack is on the tap {name}\n"));
            alone.serve(plan, (mac, mtu), link, say)
        }
        Side::Stream(path) => {
            let failed = |source| AloneError::Stream { path: path.clone(), source };
            let Some(stream) = alone.accept(path, say).map_err(failed)? else { return Ok(()) };
            let link = StreamLink::new(stream).map_err(failed)?;
            alone.serve(plan, (spec.mac.unwrap_or(MacAddress::GUEST), mtu), link, say)
        }
    }
}

fn say_resolvers(plan: &HostPlan, say: &mut impl Say) {
    if let Resolvers::Of(path) = &plan.resolvers {
        let why = match resolvers::read(path) {
            Ok(found) if !found.is_empty() => return,
            Ok(_) => "it names none".to_owned(),
            Err(error) => error.to_string(),
        };
        say.say(&format!(
            "warning: no resolver in {}: {why}; names are not resolved until it names one\n",
            path.display()
        ));
    }
}

struct Alone {
    signals: EndingSignals,
    end: Arc<EventFd>,
    seccomp: bool,
}

/// What this thread waits for.
mod token {
    pub(super) const SIGNAL: u64 = 0;
    pub(super) const END: u64 = 1;
    pub(super) const CLIENT: u64 = 2;
}

impl Alone {
    /// Whoever connects to `path` first; `None` when a signal came before.
    fn accept(&self, path: &Path, say: &mut impl Say) -> io::Result<Option<UnixStream>> {
        let listener = UnixListener::bind(path)?;
        say.say(&format!("the network stack waits at {}\n", path.display()));
        let waiter = Waiter::new()?;
        waiter.add_readable(self.signals.as_raw_fd(), token::SIGNAL)?;
        waiter.add_readable(listener.as_raw_fd(), token::CLIENT)?;
        let mut ready = Vec::new();
        let accepted = loop {
            waiter.wait(&mut ready)?;
            if ready.contains(&token::SIGNAL)
                && self.signals.take().is_some_and(|signal| signal != libc::SIGUSR1)
            {
                break None;
            }
            if ready.contains(&token::CLIENT) {
                break Some(listener.accept()?.0);
            }
            ready.clear();
        };
        // One side only; a second one would find nobody here.
        std::fs::remove_file(path).ok();
        Ok(accepted)
    }

    fn serve<L: PacketLink + Send + 'static>(
        &self,
        plan: HostPlan,
        (mac, mtu): (MacAddress, Mtu),
        link: L,
        say: &mut impl Say,
    ) -> Result<(), AloneError> {
        let host = |what| move |source| AloneError::Host { what, source };
        let jail = Jail { seccomp: self.seccomp };
        let followed = Followed::of(&plan);
        let end = Arc::clone(&self.end);
        let thread = NetThread::spawn(jail, Setup::new(plan, mac, mtu), link, move || {
            end.write(1).ok();
        })
        .map_err(host("start the net thread"))?;
        let watch = FileWatch::spawn(jail, followed, thread.commands().clone())
            .map_err(host("watch files"))?;
        self.wait(&thread, say).map_err(host("wait for signals"))?;
        drop(watch);
        let (ended, report) = thread.stop();
        say.say(&counters(&report));
        match ended.map_err(AloneError::Failed)? {
            End::Stopped | End::LinkEnded => Ok(()),
        }
    }

    /// Until a signal that ends, or the thread's own end.
    fn wait(&self, thread: &NetThread, say: &mut impl Say) -> io::Result<()> {
        let waiter = Waiter::new()?;
        waiter.add_readable(self.signals.as_raw_fd(), token::SIGNAL)?;
        waiter.add_readable(self.end.as_raw_fd(), token::END)?;
        let mut ready = Vec::new();
        loop {
            ready.clear();
            waiter.wait(&mut ready)?;
            if ready.contains(&token::END) {
                return Ok(());
            }
            match self.signals.take() {
                Some(libc::SIGUSR1) => {
                    if let Some(report) = thread.commands().report() {
                        say.say(&counters(&report));
                    }
                }
                Some(_) => return Ok(()),
                None => {}
            }
        }
    }
}

/// Counters that are not zero, one a line.
fn counters(report: &Report) -> String {
    let mut text = String::new();
    for (name, count) in report.counts() {
        // A String takes everything.
        writeln!(text, "{name} {count}").ok();
    }
    text
}
