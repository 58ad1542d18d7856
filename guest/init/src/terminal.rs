//! The user's side of a pseudo-terminal.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Group of terminals, as devpts has it.
const TTY_GROUP: u32 = 5;

/// Makes a terminal: the user's side, which does not block, and the program's, which belongs to `uid`. `size` is columns and rows, as [`resize`] takes them.
///
/// # Errors
/// What the kernel says.
pub fn open((columns, rows): (u16, u16), uid: Option<u32>) -> Result<(OwnedFd, OwnedFd), Errno> {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&user)?;
    unlockpt(&user)?;
    let name = ptsname(&user, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let program = rustix::fs::open(&*name, flags, rustix::fs::Mode::empty())?;
    if let Some(uid) = uid {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(TTY_GROUP));
        rustix::fs::fchown(&program, Some(uid), Some(gid))?;
    }
    rustix::io::ioctl_fionbio(&user, true)?;
    resize(user.as_fd(), (columns, rows))?;
    Ok((user, program))
}

/// Gives it another size, columns and rows; 0 stands for the usual one.
///
/// # Errors
/// What the kernel says.
pub fn resize(terminal: impl AsFd, (columns, rows): (u16, u16)) -> Result<(), Errno> {
    let or = |number, usual| if number == 0 { usual } else { number };
    let (ws_col, ws_row) = (or(columns, 80), or(rows, 24));
    tcsetwinsize(terminal, Winsize { ws_col, ws_row, ws_xpixel: 0, ws_ypixel: 0 })
}
