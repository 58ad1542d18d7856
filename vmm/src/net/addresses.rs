//! The addresses that the host has, kept current: a guest that names one of them means the host.
//!
//! Invariant: an address is in the set from when the kernel told of it until the kernel told that it went.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::watch::{self, Told};

/// Addresses that are kept at most; a host with more is told of by its first ones.
const MAX_ADDRESSES: usize = 65_536;

/// The addresses of the host.
#[derive(Debug)]
pub(super) struct Addresses {
    netlink: OwnedFd,
    known: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Asks for all addresses; they are told by the descriptor.
    pub(super) fn open() -> io::Result<Self> {
        let netlink = watch::addresses()?;
        watch::ask_addresses(netlink.as_fd())?;
        Ok(Self { netlink, known: BTreeSet::new() })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.known.iter().copied()
    }

    /// Reads what was told. True when something changed.
    pub(super) fn read(&mut self) -> bool {
        let mut told = Told::default();
        loop {
            match watch::read_addresses(self.netlink.as_fd(), &mut told) {
                Ok(true) => {}
                Ok(false) => break,
                // Something was lost: all is asked for again, and none is forgotten until then.
                Err(_) => {
                    watch::ask_addresses(self.netlink.as_fd()).ok();
                    break;
                }
            }
        }
        let before = self.known.len();
        let mut changed = false;
        for address in &told.gone {
            changed |= self.known.remove(address);
        }
        self.known.extend(told.have.iter().take(MAX_ADDRESSES.saturating_sub(self.known.len())));
        changed || self.known.len() != before
    }
}

impl AsFd for Addresses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }
}
