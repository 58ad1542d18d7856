//! The host's resolvers, as its file names them.
//!
//! Invariant: nothing is opened but that file and, for the number of an interface that it names, one below /sys/class/net.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;

use openshell_usernet::resolv::ResolvConf;

/// The resolvers that the file at `path` names, in the order in which they are asked.
///
/// # Errors
/// Why it cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<SocketAddr>> {
    let servers = conf(path)?.servers;
    Ok(servers.iter().filter_map(|server| server.socket_addr(interface_index)).collect())
}

/// The domains that the file at `path` wants unqualified names looked up in; none when it cannot be read.
#[must_use]
pub fn search(path: &Path) -> Vec<String> {
    conf(path).map(|conf| conf.search).unwrap_or_default()
}

fn conf(path: &Path) -> io::Result<ResolvConf> {
    let mut text = Vec::new();
    File::open(path)?.take(ResolvConf::MAX_LEN as u64).read_to_end(&mut text)?;
    Ok(ResolvConf::parse(&text))
}

fn interface_index(name: &str) -> Option<u32> {
    let mut parts = Path::new(name).components();
    let (Some(_), None) = (parts.next(), parts.next()) else { return None };
    let path = Path::new("/sys/class/net").join(name).join("ifindex");
    fs::read_to_string(path).ok()?.trim().parse().ok()
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
        assert!(search(&path).is_empty());
        let shown: Vec<String> = read(&path).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.1:53".to_owned(), format!("[fe80::1%{index}]:53")]);
    }
}
