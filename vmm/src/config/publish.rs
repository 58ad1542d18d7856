//! Published ports: the sockets that listen on the host, opened before anything is confined.
//!
//! Invariant: a port that is in use is never shared, and the message names who has it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::lock::Holder;
use super::net::{PublishSpec, Transport};
use crate::explain::Explain;
use crate::sys::inet::{self, Kind, NumberOption};

/// Connections that wait to be taken.
const BACKLOG: u16 = 1024;
/// Published ports of one machine.
pub const MAX_PORTS: usize = 256;
/// Bytes of a UDP socket's receive buffer.
const DATAGRAM_BUFFER_BYTES: i32 = 1 << 20;

/// A published port, listening.
#[derive(Debug)]
pub struct PublishedPort {
    /// As it was asked for.
    pub spec: PublishSpec,
    /// The socket, non-blocking.
    pub socket: OwnedFd,
}

/// Why a port is not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Somebody listens there.
    #[error(
        "port {} of {} is in use{}", .spec.host.port(), .spec.host.ip(),
        .holder.as_ref().map_or_else(|| " by another process".to_owned(), |holder| format!(" {holder}"))
    )]
    InUse {
        /// As it was asked for.
        spec: PublishSpec,
        /// Who, when the host tells.
        holder: Option<Holder>,
    },
    /// One port twice.
    #[error("port {} of {} is published twice", .0.host.port(), .0.host.ip())]
    Twice(PublishSpec),
    /// More than a machine has room for.
    #[error("{0} ports are published: a machine has at most {MAX_PORTS}")]
    TooMany(usize),
    /// The host said no, for a reason of its own.
    #[error("cannot listen on port {} of {}", .spec.host.port(), .spec.host.ip())]
    Listen {
        /// As it was asked for.
        spec: PublishSpec,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl Explain for PublishError {
    fn fix(&self) -> Option<String> {
        Some(match self {
            Self::InUse { holder: Some(holder), .. } => {
                format!("stop process {}, or publish another port", holder.pid)
            }
            Self::InUse { .. } => "publish another port".to_owned(),
            Self::Twice(_) | Self::TooMany(_) => "drop one of them".to_owned(),
            Self::Listen { spec, source } => match source.raw_os_error() {
                Some(libc::EACCES) => "ports below 1024 are for root: publish another".to_owned(),
                Some(libc::EADDRNOTAVAIL) => {
                    format!(
                        "give an address that this host has: `ip address` lists them, {} is none",
                        spec.host.ip()
                    )
                }
                _ => "publish another port".to_owned(),
            },
        })
    }
}

/// Listens on every port of `specs`, in their order.
///
/// # Errors
/// [`PublishError`]; nothing listens then.
pub fn publish(specs: &[PublishSpec]) -> Result<Vec<PublishedPort>, PublishError> {
    if specs.len() > MAX_PORTS {
        return Err(PublishError::TooMany(specs.len()));
    }
    specs
        .iter()
        .enumerate()
        .map(|(at, spec)| {
            let same =
                |other: &PublishSpec| other.host == spec.host && other.transport == spec.transport;
            if specs[..at].iter().any(same) {
                return Err(PublishError::Twice(*spec));
            }
            publish_one(*spec)
        })
        .collect()
}

/// Listens on one port.
///
/// # Errors
/// [`PublishError`].
pub fn publish_one(spec: PublishSpec) -> Result<PublishedPort, PublishError> {
    listen(&spec).map(|socket| PublishedPort { spec, socket }).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            PublishError::InUse { spec, holder: holder_of(&spec) }
        } else {
            PublishError::Listen { spec, source }
        }
    })
}

fn listen(spec: &PublishSpec) -> io::Result<OwnedFd> {
    let ip = spec.host.ip();
    let kind = match spec.transport {
        Transport::Tcp => Kind::Stream,
        Transport::Udp => Kind::Datagram,
    };
    let socket = inet::open(ip, kind)?;
    let fd = socket.as_fd();
    if ip.is_ipv6() {
        NumberOption::IPV6_ONLY.set(fd, 1)?;
    }
    match spec.transport {
        Transport::Tcp => {
            // Connections of a machine before this one may still be ending.
            NumberOption::REUSE_ADDRESS.set(fd, 1)?;
            inet::bind(fd, spec.host)?;
            inet::listen(fd, BACKLOG)?;
        }
        Transport::Udp => {
            inet::bind(fd, spec.host)?;
            // After the binding, so that nobody else's port is shared: senders get a socket each at this address.
            NumberOption::REUSE_PORT.set(fd, 1)?;
            NumberOption::tell_destination(ip).set(fd, 1)?;
            NumberOption::RECEIVE_BUFFER.set(fd, DATAGRAM_BUFFER_BYTES).ok();
        }
    }
    Ok(socket)
}

/// Who listens where `spec` wants to, as far as /proc shows it to this user.
fn holder_of(spec: &PublishSpec) -> Option<Holder> {
    let table = match spec.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    let inodes: Vec<u64> = ["", "6"]
        .iter()
        .filter_map(|family| fs::read_to_string(format!("/proc/net/{table}{family}")).ok())
        .flat_map(|text| text.lines().filter_map(|line| in_the_way(line, spec)).collect::<Vec<_>>())
        .collect();
    let names: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let pid = |entry: fs::DirEntry| -> Option<u32> {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let has = fs::read_dir(entry.path().join("fd")).ok()?.flatten().any(|fd| {
            fs::read_link(fd.path())
                .is_ok_and(|target| names.iter().any(|name| target.as_os_str() == name.as_str()))
        });
        has.then_some(pid)
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(pid).map(Holder::of)
}

/// The inode of the socket in a line of /proc/net, if it stands in the way of `spec`.
fn in_the_way(line: &str, spec: &PublishSpec) -> Option<u64> {
    const LISTENS: &str = "0A";
    // sl local remote state queues timer retransmits uid timeout inode
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let local = local_address(fields.get(1)?)?;
    let listens = spec.transport == Transport::Udp || *fields.get(3)? == LISTENS;
    let any = local.ip().is_unspecified() || spec.host.ip().is_unspecified();
    let same = local.port() == spec.host.port() && (any || local.ip() == spec.host.ip());
    (listens && same).then(|| fields.get(9)?.parse().ok())?
}

/// `0100007F:1F90`: words of the address in the host's order, then the port.
fn local_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    if !matches!(address.len(), 8 | 32) {
        return None;
    }
    let words = address.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        #[expect(clippy::host_endian_bytes, reason = "the kernel prints words of its own order")]
        Some(word.to_ne_bytes())
    });
    let bytes: Vec<u8> = words.collect::<Option<Vec<_>>>()?.concat();
    let ip = match bytes.as_slice() {
        four if four.len() == 4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(four).ok()?)),
        six => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(six).ok()?)).to_canonical(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn spec(host: SocketAddr, transport: Transport) -> PublishSpec {
        PublishSpec { host, guest_port: 1, transport }
    }

    #[test]
    fn a_port_in_use_names_its_holder() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (host, transport) in [
            (tcp.local_addr().unwrap(), Transport::Tcp),
            (udp.local_addr().unwrap(), Transport::Udp),
        ] {
            for host in [host, SocketAddr::from(([0, 0, 0, 0], host.port()))] {
                let error = publish_one(spec(host, transport)).unwrap_err();
                let holder = format!("is in use by process {}", std::process::id());
                assert!(error.to_string().contains(&holder), "{error}");
                assert!(error.fix().unwrap().contains("publish another port"));
            }
        }
    }

    #[test]
    fn a_published_port_is_not_shared() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let wanted = spec(free, transport);
            let _first = publish(&[wanted]).unwrap();
            assert!(matches!(publish_one(wanted), Err(PublishError::InUse { .. })));
            assert!(matches!(publish(&[wanted, wanted]), Err(PublishError::InUse { .. })));
        }
    }

    #[test]
    fn what_cannot_be_published_is_refused() {
        let elsewhere = spec("192.0.2.1:8080".parse().unwrap(), Transport::Tcp);
        let error = publish_one(elsewhere).unwrap_err();
        assert_eq!(error.to_string(), "cannot listen on port 8080 of 192.0.2.1");
        assert!(error.fix().unwrap().contains("192.0.2.1 is none"));
        let error = publish(&vec![elsewhere; MAX_PORTS + 1]).unwrap_err();
        assert_eq!(error.to_string(), "257 ports are published: a machine has at most 256");
    }

    #[test]
    fn addresses_are_read_as_the_kernel_prints_them() {
        for (text, want) in [
            ("0100007F:1F90", Some("127.0.0.1:8080")),
            ("00000000000000000000000001000000:0050", Some("[::1]:80")),
            ("0000000000000000FFFF00000100007F:0050", Some("127.0.0.1:80")),
            ("0100007F", None),
            ("01:50", None),
            ("zz00007F:0050", None),
        ] {
            let read = local_address(text).map(|address| address.to_string());
            assert_eq!(read.as_deref(), want, "{text}");
        }
    }
}
