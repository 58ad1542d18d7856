//! The lab's serial port: what its kernel printed last, and what it answers when it misses its deadline.
//!
//! QEMU multiplexes its monitor onto the same socket. A lab that stands still is asked from the
//! outside first (registers and interrupt controllers, which changes nothing in it), then by breaks
//! on its serial port, which wake it and make its kernel list processors, timers and blocked tasks.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::machine::thread;

/// Name of the socket in the run's directory.
pub(crate) const SOCKET: &str = "console";

const KEPT_BYTES: usize = 1 << 20;
const LINES: usize = 40;
/// QEMU's escape character, then: the monitor or the port gets what follows.
const SWITCH: &[u8] = b"\x01c";
const BREAK: &[u8] = b"\x01b";
/// How long the monitor, or an emulated kernel that prints hundreds of lines, is given.
const PATIENCE: Duration = Duration::from_secs(3);

/// The host's side of the port.
pub(crate) struct Console {
    tail: Arc<Mutex<VecDeque<u8>>>,
    reader: JoinHandle<()>,
    port: Receiver<UnixStream>,
    path: PathBuf,
}

impl Console {
    /// Listens for the emulator of the run whose directory is `work`.
    pub(crate) fn open(work: &Path) -> Result<Self> {
        let path = work.join(SOCKET);
        let listener = UnixListener::bind(&path).context("cannot open the console")?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&tail);
        let (connected, port) = channel();
        let reader = thread("lab-console", move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _run_is_over = stream.try_clone().map(|port| connected.send(port));
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&buffer[..count]);
                let surplus = kept.len().saturating_sub(KEPT_BYTES);
                kept.drain(..surplus);
            }
        })?;
        Ok(Self { tail, reader, port, path })
    }

    /// Asks a lab that does not go on what it is doing; the answers join what it printed.
    pub(crate) fn interrogate(&self) {
        let Ok(mut port) = self.port.try_recv() else { return };
        let questions: [(&[u8], &[u8]); 6] = [
            (SWITCH, b"info registers -a\n"),
            (b"", b"info lapic\n"),
            (SWITCH, b""),
            // The level at which the answers of the others are printed.
            (BREAK, b"8"),
            (BREAK, b"q"),
            (BREAK, b"w"),
        ];
        for (prefix, question) in questions {
            if port.write_all(prefix).and_then(|()| port.write_all(question)).is_err() {
                return;
            }
            std::thread::sleep(PATIENCE);
        }
    }

    /// What was printed last: `all` that is kept, or a screen of it. The emulator has ended.
    pub(crate) fn close(self, all: bool) -> String {
        // A thread that never saw the emulator connect still waits for somebody.
        let _woken = UnixStream::connect(&self.path);
        let _ended = self.reader.join();
        let kept = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let first = if all { 0 } else { lines.len().saturating_sub(LINES) };
        lines[first..].join("\n")
    }
}
