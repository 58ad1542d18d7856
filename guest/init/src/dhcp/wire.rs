//! DHCP messages: what a client sends, and what it reads of an answer (RFC 2131, 2132, 3397, 4039).
//!
//! Invariant: any bytes are read without a panic, and what is kept of them is bounded by the length of a datagram. Options in
//! the server name and boot file fields are not read: nobody who answers these machines overloads them.

use std::net::Ipv4Addr;

/// Where clients listen.
pub const CLIENT_PORT: u16 = 68;
/// Where servers listen.
pub const SERVER_PORT: u16 = 67;

const FIXED_LEN: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// What some servers and relays insist on.
const MIN_LEN: usize = 300;
const LISTED_MAX: usize = 8;

mod option {
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const HOSTNAME: u8 = 12;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const ADDRESS: u8 = 50;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const ASKED: u8 = 55;
    pub(super) const RAPID_COMMIT: u8 = 80;
    pub(super) const SEARCH: u8 = 119;
    pub(super) const END: u8 = 255;
}

/// Kinds of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Offer,
    Ack,
    Nak,
}

/// What a client sends: DISCOVER without a server, REQUEST with one.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) mac: [u8; 6],
    pub(super) transaction: u32,
    pub(super) seconds: u16,
    pub(super) hostname: Option<&'a str>,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) server: Option<Ipv4Addr>,
}

impl Request<'_> {
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_LEN];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(&self.transaction.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.seconds.to_be_bytes());
        // An answer to an address that is not configured yet would be dropped: it has to be a broadcast.
        bytes[10] = 0x80;
        bytes[28..34].copy_from_slice(&self.mac);
        bytes.extend(COOKIE);
        let kind = if self.server.is_some() { 3 } else { 1 };
        put(&mut bytes, option::KIND, &[kind]);
        if let Some(address) = self.address {
            put(&mut bytes, option::ADDRESS, &address.octets());
        }
        match self.server {
            Some(server) => put(&mut bytes, option::SERVER, &server.octets()),
            None => put(&mut bytes, option::RAPID_COMMIT, &[]),
        }
        if let Some(name) = self.hostname {
            put(&mut bytes, option::HOSTNAME, name.as_bytes());
        }
        let asked = [
            option::MASK,
            option::ROUTER,
            option::DNS,
            option::DOMAIN,
            option::MTU,
            option::SEARCH,
        ];
        put(&mut bytes, option::ASKED, &asked);
        bytes.push(option::END);
        bytes.resize(bytes.len().max(MIN_LEN), 0);
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, code: u8, value: &[u8]) {
    let value = &value[..value.len().min(255)];
    bytes.push(code);
    bytes.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
    bytes.extend(value);
}

/// What is read of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) server: Option<Ipv4Addr>,
    pub(super) prefix_len: Option<u8>,
    pub(super) router: Option<Ipv4Addr>,
    pub(super) mtu: Option<u16>,
    pub(super) dns: Vec<Ipv4Addr>,
    pub(super) search: Vec<String>,
    pub(super) rapid_commit: bool,
}

impl Message {
    /// Reads an answer to the client with this hardware address and transaction.
    pub(super) fn parse(bytes: &[u8], mac: [u8; 6], transaction: u32) -> Option<Self> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_LEN>()?;
        let options = rest.strip_prefix(&COOKIE)?;
        let ours = fixed[4..8] == transaction.to_be_bytes() && fixed[28..34] == mac;
        if fixed[..3] != [2, 1, 6] || !ours {
            return None;
        }
        let kind = match single(options, option::KIND)?.as_slice() {
            [2] => Kind::Offer,
            [5] => Kind::Ack,
            [6] => Kind::Nak,
            _ => return None,
        };
        let given = address(&fixed[16..20]).filter(|given| !given.is_unspecified());
        let first = |code| single(options, code).and_then(|value| address(value.get(..4)?));
        let mask = single(options, option::MASK).and_then(|value| address(&value));
        let mtu = single(options, option::MTU).and_then(|value| value.try_into().ok());
        let domain = single(options, option::DOMAIN).and_then(|value| name(&value));
        let mut search = single(options, option::SEARCH).map(|value| names(&value));
        if search.as_ref().is_none_or(Vec::is_empty) {
            search = domain.map(|domain| vec![domain]);
        }
        let dns = single(options, option::DNS).unwrap_or_default();
        Some(Self {
            kind,
            address: given,
            server: first(option::SERVER),
            prefix_len: mask.and_then(prefix_len),
            router: first(option::ROUTER),
            mtu: mtu.map(u16::from_be_bytes),
            dns: dns.chunks_exact(4).filter_map(address).take(LISTED_MAX).collect(),
            search: search.unwrap_or_default(),
            rapid_commit: single(options, option::RAPID_COMMIT).is_some(),
        })
    }
}

/// The value of an option, its parts joined (RFC 3396); nothing when there is none or the options are cut off before it.
fn single(options: &[u8], wanted: u8) -> Option<Vec<u8>> {
    let mut found: Option<Vec<u8>> = None;
    let mut rest = options;
    while let Some((&code, after)) = rest.split_first() {
        rest = after;
        match code {
            0 => continue,
            option::END => break,
            _ => {}
        }
        let (&len, after) = rest.split_first()?;
        let value = after.get(..usize::from(len))?;
        rest = &after[usize::from(len)..];
        if code == wanted {
            found.get_or_insert_default().extend(value);
        }
    }
    found
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

/// Bits of a mask whose ones come first.
fn prefix_len(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let ones = bits.leading_ones();
    (bits.count_ones() == ones).then(|| u8::try_from(ones).unwrap_or(32))
}

/// A domain as text, if it can stand in `/etc/resolv.conf`.
fn name(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches(['.', '\0']);
    let fits = !text.is_empty() && text.len() <= 253;
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    (fits && plain).then(|| text.to_owned())
}

/// A list of domains in the format of DNS, with its compression (RFC 3397). What makes no sense ends the list.
fn names(bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() && found.len() < LISTED_MAX {
        let Some((text, next)) = labels(bytes, at) else { break };
        found.extend(name(text.as_bytes()));
        at = next;
    }
    found
}

/// The domain at `start`, and where the next one begins.
fn labels(bytes: &[u8], start: usize) -> Option<(String, usize)> {
    let mut text = String::new();
    let (mut at, mut after) = (start, None);
    // Each step reads a byte at most; pointers lead back only, so that more steps than bytes are a loop.
    for _ in 0..=bytes.len() {
        let len = usize::from(*bytes.get(at)?);
        match len {
            0 => return Some((text, after.unwrap_or(at + 1))),
            1..=63 => {
                let label = bytes.get(at + 1..at + 1 + len)?;
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(std::str::from_utf8(label).ok()?);
                at += 1 + len;
            }
            192.. => {
                let to = (len & 63) << 8 | usize::from(*bytes.get(at + 1)?);
                after.get_or_insert(at + 2);
                at = Some(to).filter(|to| *to < at)?;
            }
            _ => return None,
        }
        if text.len() > 255 {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn search_lists_are_read_with_their_compression() {
        let two = b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04";
        assert_eq!(names(two), ["eng.apple.com", "marketing.apple.com"]);
        assert_eq!(names(b"\x01a\xc0\x00"), ["a.a"; 0], "a loop");
        assert_eq!(names(b"\x01a\x00\xc0\x09"), ["a"], "a pointer ahead");
        assert_eq!(names(b"\x01a\x00\x05ab"), ["a"], "cut off");
        assert_eq!(names(b"\x01\n\x00"), Vec::<String>::new(), "no name");
    }

    #[test]
    fn masks_become_prefixes() {
        for (mask, expected) in [
            ([255, 255, 255, 0], Some(24)),
            ([255, 255, 255, 255], Some(32)),
            ([0, 0, 0, 0], Some(0)),
            ([255, 0, 255, 0], None),
        ] {
            assert_eq!(prefix_len(mask.into()), expected);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(Message::parse(&bytes, [1; 6], 7));
            drop(names(&bytes));
        }

        #[test]
        fn any_options_are_read(options in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = vec![0; FIXED_LEN];
            bytes[..3].copy_from_slice(&[2, 1, 6]);
            bytes.extend(COOKIE);
            bytes.extend([option::KIND, 1, 5]);
            bytes.extend(&options);
            if let Some(message) = Message::parse(&bytes, [0; 6], 0) {
                prop_assert!(message.dns.len() <= LISTED_MAX && message.search.len() <= LISTED_MAX);
            }
        }
    }
}
