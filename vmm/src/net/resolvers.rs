//! The host's resolvers, read again whenever their file changes.
//!
//! Invariant: this thread alone opens a file by name while a guest runs, for reading, and the name is the user's; nothing that it reads
//! comes from a guest. A file that is missing means no resolvers, until there is one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use openshell_usernet::resolv::ResolvConf;
use vmm_sys_util::eventfd::EventFd;

use crate::event::Waiter;
use crate::jail::{Jail, Role};
use crate::sys::watch;

use super::engine::Commands;

/// A file is often written in several steps.
const SETTLE: Duration = Duration::from_millis(20);

mod token {
    pub(super) const STOP: u64 = 0;
    pub(super) const CHANGE: u64 = 1;
}

/// The resolvers that the file at `path` names, in the order in which they are asked.
///
/// # Errors
/// Why it cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<SocketAddr>> {
    let mut text = Vec::new();
    File::open(path)?.take(ResolvConf::MAX_LEN as u64).read_to_end(&mut text)?;
    let conf = ResolvConf::parse(&text);
    Ok(conf.servers.iter().filter_map(|server| server.socket_addr(interface_index)).collect())
}

fn interface_index(name: &str) -> Option<u32> {
    let mut parts = Path::new(name).components();
    let (Some(_), None) = (parts.next(), parts.next()) else { return None };
    let path = Path::new("/sys/class/net").join(name).join("ifindex");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The thread that looks at the file. It ends when this is dropped.
#[derive(Debug)]
pub struct ResolverWatch {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl ResolverWatch {
    /// Tells `commands` what the file at `path` names now, and whenever that changes.
    ///
    /// # Errors
    /// What the host said.
    pub fn spawn(jail: Jail, path: PathBuf, commands: Commands) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let waiter = Waiter::new()?;
        waiter.add_readable(stop.as_raw_fd(), token::STOP)?;
        let watch = watch::directories(std::iter::empty())?;
        waiter.add_readable(watch.as_raw_fd(), token::CHANGE)?;
        let mut follower = Follower { path, watch, told: None, commands };
        follower.look();
        let thread = jail.spawn(Role::Watch, "resolv", move || follower.run(&waiter))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for ResolverWatch {
    fn drop(&mut self) {
        self.stop.write(1).ok();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Follower {
    path: PathBuf,
    watch: OwnedFd,
    told: Option<Vec<SocketAddr>>,
    commands: Commands,
}

impl Follower {
    fn run(mut self, waiter: &Waiter) {
        let mut ready = Vec::new();
        loop {
            ready.clear();
            // A wait that fails for good would spin.
            if waiter.wait(&mut ready).is_err() || ready.contains(&token::STOP) {
                return;
            }
            std::thread::sleep(SETTLE);
            watch::clear(self.watch.as_fd());
            self.look();
        }
    }

    fn look(&mut self) {
        // The file is often a link into a directory of whoever writes it, and the link may lead elsewhere by now.
        let target = fs::canonicalize(&self.path).ok();
        let paths = [Some(self.path.as_path()), target.as_deref()];
        for directory in paths.into_iter().flatten().filter_map(Path::parent) {
            let here = directory.as_os_str() == OsStr::new("");
            watch::add(self.watch.as_fd(), if here { Path::new(".") } else { directory });
        }
        let resolvers = read(&self.path).unwrap_or_default();
        if self.told.as_ref() != Some(&resolvers) {
            self.commands.set_resolvers(resolvers.clone());
            self.told = Some(resolvers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_those_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "nameserver 192.0.2.1\nnameserver fe80::1%lo\nnameserver fe80::1%../lo\n")
            .unwrap();
        let index = interface_index("lo").unwrap();
        let shown: Vec<String> = read(&path).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.1:53".to_owned(), format!("[fe80::1%{index}]:53")]);
    }
}
