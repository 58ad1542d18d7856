//! `resolv.conf`, read as the host's own programs read it.
//!
//! Invariant: what is not understood is passed over, as resolv.conf(5) wants it, and what is kept is bounded. Pure; the caller reads
//! the file, and reads it again when it changes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use crate::dns;

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// Resolvers in the order in which they are asked: those on the host itself first, since only they know of names that a VPN or
    /// another network has servers of its own for.
    pub servers: Vec<Nameserver>,
    /// Names are tried below these, in this order.
    pub search: Vec<String>,
    /// Names with fewer dots are tried below [`Self::search`] first.
    pub ndots: u8,
    /// For one try at one resolver.
    pub timeout: Duration,
    /// Tries at each.
    pub attempts: u8,
}

/// A resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nameserver {
    /// Its address.
    pub address: IpAddr,
    /// The interface of a link-local IPv6 address, by name or number.
    pub scope: Option<String>,
}

impl Nameserver {
    /// Where it is asked; `index_of` knows the number of an interface. `None`: there is no such interface.
    #[must_use]
    pub fn socket_addr(&self, index_of: impl FnOnce(&str) -> Option<u32>) -> Option<SocketAddr> {
        let (IpAddr::V6(address), Some(scope)) = (self.address, &self.scope) else {
            return Some(SocketAddr::new(self.address, dns::PORT));
        };
        let index = scope.parse().ok().or_else(|| index_of(scope))?;
        Some(SocketAddrV6::new(address, dns::PORT, 0, index).into())
    }
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        }
    }
}

impl ResolvConf {
    /// The most resolvers that are kept.
    pub const MAX_SERVERS: usize = 8;
    /// The most names to search below.
    pub const MAX_SEARCH: usize = 32;
    /// More bytes than these are not looked at.
    pub const MAX_LEN: usize = 64 << 10;

    /// Reads the text of the file. Without a `nameserver` there is none.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let text = text.get(..Self::MAX_LEN).unwrap_or(text);
        let mut conf = Self::default();
        for line in text.split(|&byte| byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            if line.starts_with(['#', ';']) {
                continue;
            }
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => conf.servers.extend(words.next().and_then(nameserver)),
                // The last of both lines counts.
                Some("search") => conf.search = search(words),
                Some("domain") => conf.search = search(words.take(1)),
                Some("options") => words.for_each(|word| conf.option(word)),
                _ => {}
            }
            conf.servers.truncate(Self::MAX_SERVERS);
        }
        conf.servers.sort_by_key(|server| !server.address.is_loopback());
        conf
    }

    fn option(&mut self, word: &str) {
        let Some((name, value)) = word.split_once(':') else { return };
        let Ok(value) = value.parse::<u32>() else { return };
        let bounded = |least: u32, most: u32| value.clamp(least, most);
        match name {
            "ndots" => self.ndots = u8::try_from(bounded(0, 15)).unwrap_or(15),
            "timeout" => self.timeout = Duration::from_secs(bounded(1, 30).into()),
            "attempts" => self.attempts = u8::try_from(bounded(1, 5)).unwrap_or(5),
            _ => {}
        }
    }
}

fn nameserver(word: &str) -> Option<Nameserver> {
    let (address, scope) = match word.split_once('%') {
        Some((address, scope)) => (address, Some(scope)),
        None => (word, None),
    };
    let address = match address.parse().ok()? {
        // To dial it is to dial this host.
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        address => address,
    };
    // An interface's name has at most 15 bytes.
    let scope = scope.filter(|scope| address.is_ipv6() && (1..16).contains(&scope.len()));
    Some(Nameserver { address, scope: scope.map(str::to_owned) })
}

fn search<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let names = words.map(|word| word.trim_end_matches('.').to_ascii_lowercase());
    let names = names.filter(|name| !name.is_empty() && dns::Name::from_text(name).is_some());
    names.take(ResolvConf::MAX_SEARCH).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn servers(text: &str) -> Vec<String> {
        let conf = ResolvConf::parse(text.as_bytes());
        let index = |name: &str| (name == "eth0").then_some(7);
        let servers = conf.servers.iter().map(|server| server.socket_addr(index));
        servers.map(|server| server.map_or("none".into(), |server| server.to_string())).collect()
    }

    #[test]
    fn resolvers_are_read_in_order_and_the_hosts_own_first() {
        for (text, expected) in [
            (
                "nameserver 192.0.2.1\nnameserver\t192.0.2.2 # no\n",
                &["192.0.2.1:53", "192.0.2.2:53"][..],
            ),
            ("# nameserver 192.0.2.1\n;nameserver 192.0.2.1\n", &[]),
            ("nameserver 192.0.2.1\nnameserver 127.0.0.53", &["127.0.0.53:53", "192.0.2.1:53"]),
            ("  nameserver 2001:db8::1\r\n", &["[2001:db8::1]:53"]),
            ("nameserver fe80::1%eth0", &["[fe80::1%7]:53"]),
            ("nameserver fe80::1%3", &["[fe80::1%3]:53"]),
            ("nameserver fe80::1%eth9", &["none"]),
            ("nameserver 192.0.2.1%eth0", &["192.0.2.1:53"]),
            ("nameserver 0.0.0.0", &["127.0.0.1:53"]),
            (
                "nameserver\nnameserver example.org\nnameservers 192.0.2.1\nnameserver 192.0.2\n",
                &[],
            ),
            ("", &[]),
        ] {
            assert_eq!(servers(text), expected, "{text}");
        }
        let many: String = (0..20).map(|n| format!("nameserver 192.0.2.{n}\n")).collect();
        assert_eq!(servers(&many).len(), ResolvConf::MAX_SERVERS);
    }

    #[test]
    fn names_to_search_and_options_are_read() {
        let text = "domain a.example\nsearch B.example c.example. .. \n\
                    options ndots:99 timeout:0 attempts:9 edns0 rotate ndots:x\n";
        let conf = ResolvConf::parse(text.as_bytes());
        assert_eq!(conf.search, ["b.example", "c.example"]);
        assert_eq!((conf.ndots, conf.timeout, conf.attempts), (15, Duration::from_secs(1), 5));
        let conf = ResolvConf::parse(b"search a.example\ndomain b.example c.example\n");
        assert_eq!((conf.search, conf.ndots), (vec!["b.example".to_owned()], 1));
    }

    proptest! {
        #[test]
        fn any_file_is_read_within_bounds(text in "((nameserver|search|options) [a-z0-9:.% \n]{0,40}){0,40}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for text in [text.as_bytes(), &bytes] {
                let conf = ResolvConf::parse(text);
                prop_assert!(conf.servers.len() <= ResolvConf::MAX_SERVERS);
                prop_assert!(conf.search.len() <= ResolvConf::MAX_SEARCH);
            }
        }
    }
}
