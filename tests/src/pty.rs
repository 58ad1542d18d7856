//! A pseudo-terminal: the window that a user would sit at.

#![expect(unsafe_code, reason = "the standard library knows no terminals")]

use std::fs::File;
use std::io::{self, Error, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crate::process::terminal;

/// The user's side; what is shown is read by a thread that ends with the last program on the other side.
#[derive(Debug)]
pub struct Window {
    keyboard: File,
    program_side: File,
    shown: Arc<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    text: Mutex<Vec<u8>>,
    more: Condvar,
}

/// How the terminal treats what is typed, as far as programs change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    input: libc::tcflag_t,
    output: libc::tcflag_t,
    control: libc::tcflag_t,
    local: libc::tcflag_t,
    characters: [libc::cc_t; libc::NCCS],
}

impl Modes {
    /// Whether lines are edited, echoed and searched for Ctrl-C here rather than by the program.
    #[must_use]
    pub fn is_cooked(&self) -> bool {
        let cooked = libc::ICANON | libc::ECHO | libc::ISIG;
        self.local & cooked == cooked
    }
}

impl Window {
    /// A new window with the usual modes.
    ///
    /// # Errors
    /// What the host said.
    pub fn open() -> io::Result<Self> {
        let (keyboard, program_side) = terminal()?;
        let shown = Arc::new(Shown::default());
        let (mut screen, seen) = (keyboard.try_clone()?, Arc::clone(&shown));
        Builder::new().name("window".to_owned()).spawn(move || {
            let mut chunk = [0; 4096];
            // Reading fails with EIO when nobody has the other side open any more.
            while let Ok(len) = screen.read(&mut chunk)
                && len > 0
            {
                seen.text.lock().unwrap_or_else(PoisonError::into_inner).extend(&chunk[..len]);
                seen.more.notify_all();
            }
        })?;
        Ok(Self { keyboard, program_side, shown })
    }

    /// The side for a program's standard streams.
    ///
    /// # Errors
    /// What the host said.
    pub fn program_side(&self) -> io::Result<File> {
        self.program_side.try_clone()
    }

    /// Gives the window another size. Programs that do not have it as their controlling terminal get no signal.
    ///
    /// # Errors
    /// What the host said.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the size lives across the call, which reads it.
        let done = unsafe {
            libc::ioctl(self.program_side.as_raw_fd(), libc::TIOCSWINSZ, &raw const size)
        };
        if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
    }

    /// Waits until a program takes keys as they come.
    ///
    /// # Errors
    /// When that does not happen `within` the time.
    pub fn wait_until_raw(&self, within: Duration) -> io::Result<()> {
        let ends = Instant::now() + within;
        while self.modes()?.is_cooked() {
            if Instant::now() >= ends {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Types `keys`.
    ///
    /// # Errors
    /// What the host said.
    pub fn type_keys(&mut self, keys: &[u8]) -> io::Result<()> {
        self.keyboard.write_all(keys)
    }

    /// Waits until `text` is shown after the first `after` bytes; returns how many bytes were shown up to its end.
    ///
    /// # Errors
    /// All that was shown, when that does not happen `within` the time.
    pub fn wait_for(&self, text: &str, after: usize, within: Duration) -> Result<usize, String> {
        let ends = Instant::now() + within;
        let mut shown = self.shown.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let new = shown.get(after..).unwrap_or_default();
            if let Some(at) = new.windows(text.len()).position(|part| part == text.as_bytes()) {
                return Ok(after + at + text.len());
            }
            let left = ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let all = String::from_utf8_lossy(&shown).into_owned();
                return Err(format!("no {text:?} after byte {after} of the window:\n{all}"));
            }
            let waited = self.shown.more.wait_timeout(shown, left);
            shown = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything shown so far.
    #[must_use]
    pub fn text(&self) -> String {
        let shown = self.shown.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// The modes now.
    ///
    /// # Errors
    /// What the host said.
    pub fn modes(&self) -> io::Result<Modes> {
        let mut termios = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: `termios` is written.
        if unsafe { libc::tcgetattr(self.program_side.as_raw_fd(), termios.as_mut_ptr()) } != 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: tcgetattr succeeded, so that all of it was written.
        let termios = unsafe { termios.assume_init() };
        Ok(Modes {
            input: termios.c_iflag,
            output: termios.c_oflag,
            control: termios.c_cflag,
            local: termios.c_lflag,
            characters: termios.c_cc,
        })
    }
}
