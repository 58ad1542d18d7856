//! Stateless DHCPv6 (RFC 8415 section 18.3.5): the resolver and the domains, for a guest that made its address itself.

use std::net::Ipv6Addr;

use super::options::encode_domain;
use crate::wire::Mac;

/// The port that servers listen at.
pub const SERVER_PORT: u16 = 547;
/// The port that clients listen at.
pub const CLIENT_PORT: u16 = 546;
/// All servers and relays of the link.
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

const REPLY: u8 = 7;
const INFORMATION_REQUEST: u8 = 11;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_TA: u16 = 4;
const DNS_SERVERS: u16 = 23;
const DOMAINS: u16 = 24;
const IA_PD: u16 = 25;

/// The longest identifier of a client (RFC 8415 section 11.1).
const MAX_IDENTIFIER: usize = 130;
/// Bytes of domains at most.
const MAX_SEARCH: usize = 512;

/// Answers the message `bytes`; `None` where it is no request for information, is for another server, or asks for an address.
#[must_use]
pub fn answer(bytes: &[u8], server: Mac, resolver: Ipv6Addr, search: &[String]) -> Option<Vec<u8>> {
    let [INFORMATION_REQUEST, a, b, c, options @ ..] = bytes else { return None };
    let [m0, m1, m2, m3, m4, m5] = server.0;
    // By hardware address: type 3, Ethernet.
    let identifier = [0, 3, 0, 1, m0, m1, m2, m3, m4, m5];
    let mut client = None;
    let mut rest = options;
    while let [k0, k1, l0, l1, after @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        let (value, after) = after.split_at_checked(len)?;
        match u16::from_be_bytes([*k0, *k1]) {
            CLIENT_ID if value.len() <= MAX_IDENTIFIER => client = Some(value),
            SERVER_ID if value == identifier => {}
            CLIENT_ID | SERVER_ID | IA_NA | IA_TA | IA_PD => return None,
            _ => {}
        }
        rest = after;
    }
    if !rest.is_empty() {
        return None;
    }
    let mut reply = vec![REPLY, *a, *b, *c];
    put(&mut reply, SERVER_ID, &identifier);
    if let Some(client) = client {
        put(&mut reply, CLIENT_ID, client);
    }
    put(&mut reply, DNS_SERVERS, &resolver.octets());
    let mut domains = Vec::new();
    for domain in search {
        let Some(name) = encode_domain(domain) else { continue };
        if domains.len() + name.len() > MAX_SEARCH {
            break;
        }
        domains.extend(name);
    }
    if !domains.is_empty() {
        put(&mut reply, DOMAINS, &domains);
    }
    Some(reply)
}

fn put(reply: &mut Vec<u8>, code: u16, value: &[u8]) {
    let Ok(len) = u16::try_from(value.len()) else { return };
    reply.extend(code.to_be_bytes());
    reply.extend(len.to_be_bytes());
    reply.extend(value);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]);
    const RESOLVER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

    fn ask(kind: u8, options: &[(u16, &[u8])]) -> Option<Vec<u8>> {
        let mut message = vec![kind, 1, 2, 3];
        for (code, value) in options {
            put(&mut message, *code, value);
        }
        answer(&message, MAC, RESOLVER, &["corp.example".to_owned()])
    }

    #[test]
    fn a_guest_learns_resolver_and_domains() {
        let own = [0, 3, 0, 1, 0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd];
        let reply = ask(11, &[(1, b"client"), (6, &[0, 23, 0, 24]), (8, &[0, 0])]).unwrap();
        let mut expected = vec![7, 1, 2, 3];
        put(&mut expected, 2, &own);
        put(&mut expected, 1, b"client");
        put(&mut expected, 23, &RESOLVER.octets());
        put(&mut expected, 24, b"\x04corp\x07example\0");
        assert_eq!(reply, expected);
        assert!(ask(11, &[(2, &own)]).is_some());
    }

    #[test]
    fn what_is_not_for_this_server_is_ignored() {
        for (kind, options) in [
            (1, &[][..]),
            (11, &[(2, &b"another"[..])]),
            (11, &[(3, &[0; 12])]),
            (11, &[(25, &[0; 12])]),
            (11, &[(1, &[0; 131])]),
        ] {
            assert_eq!(ask(kind, options), None, "{kind} {options:?}");
        }
        assert_eq!(answer(&[11, 0, 0, 0, 0, 1, 0, 9, 1], MAC, RESOLVER, &[]), None);
        assert_eq!(answer(&[11, 0, 0, 0, 0, 1], MAC, RESOLVER, &[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_within_bounds_or_not(mut bytes in vec(any::<u8>(), 0..300)) {
            if let Some(kind) = bytes.first_mut() {
                *kind = INFORMATION_REQUEST;
            }
            if let Some(reply) = answer(&bytes, MAC, RESOLVER, &[]) {
                prop_assert!(reply.len() <= 4 + 14 + 134 + 20);
                prop_assert_eq!(&reply[1..4], &bytes[1..4]);
            }
        }
    }
}
