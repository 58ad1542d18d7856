//! Where the driver listens, and whom it listens to.
//!
//! Invariant: on a Unix socket nobody but this user is heard, and with an expected process nobody but that process. TCP has
//! no such check, and is served only when the operator says that it may be.

mod uds;

use std::net::SocketAddr;
use std::path::PathBuf;

use rustix::process::geteuid;
use tokio::net::unix::UCred;

pub use uds::{Incoming, Socket, SocketError};

/// Who may speak to the driver over a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// One process of this user.
    Process(i32),
    /// Every process of this user.
    SameUser,
}

/// Where the driver listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// On a Unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Who is heard.
        peer: Peer,
    },
    /// On a TCP port, without any check of who speaks.
    Tcp(SocketAddr),
}

/// What the operator said about listening.
#[derive(Debug, Clone, Default)]
pub struct ListenArgs {
    /// `--bind-socket`.
    pub socket: Option<PathBuf>,
    /// `--expected-peer-pid`.
    pub expected_pid: Option<i32>,
    /// `--allow-same-uid-peer`.
    pub same_user: bool,
    /// `--bind-address`.
    pub address: Option<SocketAddr>,
    /// `--allow-unauthenticated-tcp`.
    pub unauthenticated_tcp: bool,
}

/// Why the driver would not know whom it listens to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// Nothing was named.
    #[error("nowhere to listen; name a socket with --bind-socket")]
    Nowhere,
    /// Two things were named.
    #[error("--bind-socket and --bind-address exclude each other")]
    Both,
    /// A socket without a rule who may connect.
    #[error("--bind-socket needs --expected-peer-pid PID, or --allow-same-uid-peer")]
    NoPeer,
    /// No process has such a number.
    #[error("--expected-peer-pid {0}: a process id is more than 0")]
    Pid(i32),
    /// TCP without consent.
    #[error("TCP is not authenticated; use --bind-socket, or add --allow-unauthenticated-tcp")]
    Tcp,
    /// A rule for a socket without one.
    #[error("--expected-peer-pid and --allow-same-uid-peer go with --bind-socket")]
    PeerOfTcp,
}

impl ListenArgs {
    /// Where to listen.
    ///
    /// # Errors
    ///
    /// When nobody or anybody would be heard without the operator having said so.
    pub fn mode(self) -> Result<Listen, ListenError> {
        if let Some(pid) = self.expected_pid.filter(|pid| *pid <= 0) {
            return Err(ListenError::Pid(pid));
        }
        match (self.socket, self.address) {
            (None, None) => Err(ListenError::Nowhere),
            (Some(_), Some(_)) => Err(ListenError::Both),
            (Some(path), None) => {
                // The stricter of the two counts: the laxer may come from an inherited environment.
                let peer = match self.expected_pid {
                    Some(pid) => Peer::Process(pid),
                    None if self.same_user => Peer::SameUser,
                    None => return Err(ListenError::NoPeer),
                };
                Ok(Listen::Unix { path, peer })
            }
            (None, Some(_)) if self.expected_pid.is_some() => Err(ListenError::PeerOfTcp),
            (None, Some(_)) if !self.unauthenticated_tcp => Err(ListenError::Tcp),
            (None, Some(address)) => Ok(Listen::Tcp(address)),
        }
    }
}

/// Why a peer is not heard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// Another user's process.
    #[error("user {0} is not this user")]
    User(u32),
    /// Another process of this user.
    #[error("process {found:?} is not process {expected}")]
    Process {
        /// Who speaks, if the kernel says.
        found: Option<i32>,
        /// Who may.
        expected: i32,
    },
}

impl Peer {
    /// Judges a peer by what the kernel says of it.
    ///
    /// # Errors
    ///
    /// When it is not to be heard.
    pub fn authorize(self, credentials: &UCred) -> Result<(), Stranger> {
        self.judge(credentials.uid(), credentials.pid(), geteuid().as_raw())
    }

    fn judge(self, uid: u32, pid: Option<i32>, own: u32) -> Result<(), Stranger> {
        if uid != own {
            return Err(Stranger::User(uid));
        }
        match self {
            Self::Process(expected) if pid != Some(expected) => {
                Err(Stranger::Process { found: pid, expected })
            }
            Self::Process(_) | Self::SameUser => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> ListenArgs {
        ListenArgs { socket: Some("/run/s".into()), ..ListenArgs::default() }
    }

    fn tcp() -> ListenArgs {
        let address = "127.0.0.1:1".parse().ok();
        ListenArgs { address, ..ListenArgs::default() }
    }

    fn unix(peer: Peer) -> Result<Listen, ListenError> {
        Ok(Listen::Unix { path: "/run/s".into(), peer })
    }

    #[test]
    fn listen_mode_needs_a_place() {
        assert_eq!(ListenArgs::default().mode(), Err(ListenError::Nowhere));
    }

    #[test]
    fn listen_mode_takes_one_place() {
        let args = ListenArgs { address: tcp().address, same_user: true, ..socket() };
        assert_eq!(args.mode(), Err(ListenError::Both));
    }

    #[test]
    fn listen_mode_rejects_socket_without_peer() {
        assert_eq!(socket().mode(), Err(ListenError::NoPeer));
    }

    #[test]
    fn listen_mode_takes_expected_pid() {
        let args = ListenArgs { expected_pid: Some(7), ..socket() };
        assert_eq!(args.mode(), unix(Peer::Process(7)));
        let args = ListenArgs { expected_pid: Some(0), ..socket() };
        assert_eq!(args.mode(), Err(ListenError::Pid(0)));
    }

    #[test]
    fn listen_mode_takes_same_user() {
        let args = ListenArgs { same_user: true, ..socket() };
        assert_eq!(args.mode(), unix(Peer::SameUser));
    }

    #[test]
    fn listen_mode_prefers_the_stricter_peer() {
        let args = ListenArgs { expected_pid: Some(7), same_user: true, ..socket() };
        assert_eq!(args.mode(), unix(Peer::Process(7)));
    }

    #[test]
    fn listen_mode_rejects_tcp_by_default() {
        assert_eq!(tcp().mode(), Err(ListenError::Tcp));
        let args = ListenArgs { expected_pid: Some(7), unauthenticated_tcp: true, ..tcp() };
        assert_eq!(args.mode(), Err(ListenError::PeerOfTcp));
        let args = ListenArgs { unauthenticated_tcp: true, ..tcp() };
        assert_eq!(args.mode(), Ok(Listen::Tcp("127.0.0.1:1".parse().expect("an address"))));
    }

    #[test]
    fn peer_authorization_accepts_expected_process() {
        assert_eq!(Peer::Process(7).judge(1000, Some(7), 1000), Ok(()));
    }

    #[test]
    fn peer_authorization_rejects_other_process() {
        let stranger = Stranger::Process { found: Some(8), expected: 7 };
        assert_eq!(Peer::Process(7).judge(1000, Some(8), 1000), Err(stranger));
    }

    #[test]
    fn peer_authorization_rejects_unknown_process() {
        let stranger = Stranger::Process { found: None, expected: 7 };
        assert_eq!(Peer::Process(7).judge(1000, None, 1000), Err(stranger));
    }

    #[test]
    fn peer_authorization_rejects_other_user() {
        for peer in [Peer::Process(7), Peer::SameUser] {
            assert_eq!(peer.judge(0, Some(7), 1000), Err(Stranger::User(0)));
        }
    }

    #[test]
    fn peer_authorization_accepts_same_user() {
        assert_eq!(Peer::SameUser.judge(1000, Some(9), 1000), Ok(()));
        assert_eq!(Peer::SameUser.judge(1000, None, 1000), Ok(()));
    }
}
