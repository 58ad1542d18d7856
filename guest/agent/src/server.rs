//! Accepts the host's connections, each into a thread of its own.
//!
//! Invariant: only the host is served, and at most [`SESSIONS_MAX`] sessions at a time. A process of the guest can reach its own
//! vsock ports; it would get whatever user it asks for.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;
use std::time::Duration;

use openshell_agent_proto::PORT;
use openshell_init::sys::vsock;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::session::{self, Guest};

/// Sessions at a time.
const SESSIONS_MAX: usize = 256;
/// Room for what a session puts on its stack.
const STACK_BYTES: usize = 256 << 10;
/// How long to wait for descriptors or memory that there are not.
const SHORTAGE: Duration = Duration::from_millis(50);
/// The agent is the last to be ended when memory runs out.
const OOM_SCORE: &str = "-900";

/// Serves until the machine ends.
///
/// # Errors
/// When the port cannot be listened on.
pub fn run(guest: Guest) -> io::Result<Infallible> {
    // Without this the agent is one process among others.
    drop(fs::write("/proc/self/oom_score_adj", OOM_SCORE));
    let listener = vsock::listen_on(PORT)?;
    let guest = Arc::new(guest);
    let sessions = Arc::new(AtomicUsize::new(0));
    loop {
        match vsock::accept(&listener) {
            Ok((socket, vsock::HOST)) => start(socket, &guest, &sessions),
            Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(Errno::AGAIN) => _ = poll(&mut [PollFd::new(&listener, PollFlags::IN)], None),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                std::thread::sleep(SHORTAGE);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn start(socket: OwnedFd, guest: &Arc<Guest>, sessions: &Arc<AtomicUsize>) {
    if sessions.fetch_add(1, Ordering::Relaxed) >= SESSIONS_MAX {
        sessions.fetch_sub(1, Ordering::Relaxed);
        return session::turn_away(socket);
    }
    let (guest, counted) = (Arc::clone(guest), Arc::clone(sessions));
    let thread = Builder::new().name("session".to_owned()).stack_size(STACK_BYTES);
    let spawned = thread.spawn(move || {
        session::serve(socket, &guest);
        counted.fetch_sub(1, Ordering::Relaxed);
    });
    if spawned.is_err() {
        sessions.fetch_sub(1, Ordering::Relaxed);
    }
}
