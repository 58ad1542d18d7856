//! The user's side of a pseudo-terminal, read and written without blocking.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;

use crate::sys::ready;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

impl Size {
    /// As a peer says it; nothing that a terminal cannot have.
    #[must_use]
    pub fn new(columns: u32, rows: u32) -> Self {
        let fit = |number: u32, usual| match u16::try_from(number) {
            Ok(0) => usual,
            Ok(number) => number,
            Err(_) => u16::MAX,
        };
        Self { columns: fit(columns, 80), rows: fit(rows, 24) }
    }
}

/// The user's side.
#[derive(Debug)]
pub struct Pty {
    user: AsyncFd<File>,
}

impl Pty {
    /// Makes a terminal of this size; the second part is the program's side, which belongs to `uid` if one is given.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(size: Size, uid: Option<u32>) -> io::Result<(Self, OwnedFd)> {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&user)?;
        unlockpt(&user)?;
        let name = ptsname(&user, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let program = rustix::fs::open(&*name, flags, rustix::fs::Mode::empty())?;
        if let Some(uid) = uid {
            std::os::unix::fs::fchown(&program, Some(uid), None)?;
        }
        rustix::fs::fcntl_setfl(&user, OFlags::RDWR | OFlags::NONBLOCK)?;
        let pty = Self { user: ready::register(File::from(user))? };
        pty.resize(size)?;
        Ok((pty, program))
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        let (ws_col, ws_row) = (size.columns, size.rows);
        Ok(tcsetwinsize(
            self.user.get_ref(),
            Winsize { ws_col, ws_row, ws_xpixel: 0, ws_ypixel: 0 },
        )?)
    }

    /// Reads what programs wrote; 0 when nobody has the terminal open any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.user.readable().await?;
            match ready.try_io(|user| user.get_ref().read(bytes)) {
                Ok(result) => return end(result),
                Err(_would_block) => {}
            }
        }
    }

    /// Reads what is there already; nothing when there is nothing.
    #[must_use]
    pub fn read_now(&self, bytes: &mut [u8]) -> Option<usize> {
        end(self.user.get_ref().read(bytes)).ok().filter(|len| *len > 0)
    }

    /// Writes what a user types.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.user.writable().await?;
            match ready.try_io(|user| user.get_ref().write(bytes)) {
                Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

/// A terminal without a program reads as an I/O error.
fn end(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => Ok(0),
        result => result,
    }
}

/// Another descriptor of the same file.
///
/// # Errors
/// What the kernel says.
pub fn duplicate(fd: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(fd, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_become_usual_ones() {
        assert_eq!(Size::new(0, 0), Size { columns: 80, rows: 24 });
        assert_eq!(Size::new(132, u32::MAX), Size { columns: 132, rows: u16::MAX });
    }

    #[tokio::test]
    async fn what_is_written_on_one_side_is_read_on_the_other() {
        let (pty, program) = Pty::open(Size::new(100, 30), None).unwrap();
        let size = rustix::termios::tcgetwinsize(&program).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (100, 30));
        pty.write_all(b"x\n").await.unwrap();
        let mut bytes = [0; 10];
        let mut program = File::from(program);
        let len = program.read(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"x\n");
        program.write_all(b"y").unwrap();
        drop(program);
        let mut all: Vec<u8> = Vec::new();
        loop {
            let len = pty.read(&mut bytes).await.unwrap();
            if len == 0 {
                break;
            }
            all.extend(&bytes[..len]);
        }
        assert_eq!(all, b"x\r\ny");
    }
}
