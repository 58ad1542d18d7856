//! Messages of a DHCP client, of either version: what is answered is well-formed, gives the one lease and nothing else, and fits.
#![no_main]

use std::net::{Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use openshell_fuzz::Script;
use openshell_usernet::dhcp::{self, Lease, v6};
use openshell_usernet::wire::Mac;

const CLIENT: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]);
const SERVER: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]);

fuzz_target!(|data: &[u8]| {
    let mut script = Script(data);
    let kind = script.byte();
    let search = (0..script.byte() % 4).map(|_| {
        let len = usize::from(script.byte());
        String::from_utf8_lossy(script.bytes(len)).into_owned()
    });
    let search: Vec<String> = search.collect();
    if kind & 1 == 0 { four(kind, search, script.0) } else { six(&search, script.0) }
});

fn four(kind: u8, search: Vec<String>, message: &[u8]) {
    let address = Ipv4Addr::new(192, 168, 127, 2);
    let router = Ipv4Addr::new(192, 168, 127, 1);
    let lease = Lease {
        address,
        prefix_len: kind >> 1,
        router,
        resolver: router,
        search,
        mtu: 1_500,
        seconds: 86_400,
    };
    let Ok(reply) = dhcp::answer(message, CLIENT, &lease) else { return };
    let bytes = reply.as_bytes();
    assert!((300..=dhcp::MAX_LEN).contains(&bytes.len()));
    assert_eq!(bytes[..3], [2, 1, 6]);
    assert_eq!(bytes[4..8], message[4..8], "the transaction is the client's");
    assert_eq!(bytes[28..44], message[28..44], "the hardware address is the client's");
    let given = &bytes[16..20];
    assert!(given == address.octets() || given == [0; 4]);
    let to_all = reply.destination == Ipv4Addr::BROADCAST;
    assert!(to_all || reply.destination == address);
    assert_eq!(reply.mac, if to_all { Mac::BROADCAST } else { CLIENT });
    let mut rest = &bytes[240..];
    let mut kinds = 0;
    loop {
        match rest {
            [255, padding @ ..] => {
                assert!(padding.iter().all(|byte| *byte == 0));
                break;
            }
            [code, len, after @ ..] => {
                let (value, after) = after.split_at(usize::from(*len));
                match code {
                    53 => {
                        assert!(matches!(value, [2 | 5 | 6]));
                        assert!(value != [6] || given == [0; 4], "a refusal gives nothing");
                        kinds += 1;
                    }
                    54 => assert_eq!(value, router.octets()),
                    _ => {}
                }
                rest = after;
            }
            _ => panic!("options without an end"),
        }
    }
    assert_eq!(kinds, 1);
}

fn six(search: &[String], message: &[u8]) {
    let resolver = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    let Some(reply) = v6::answer(message, SERVER, resolver, search) else { return };
    assert!(reply.len() <= 1_232, "it fits in any packet");
    assert_eq!((reply[0], &reply[1..4]), (7, &message[1..4]));
    let mut rest = &reply[4..];
    while let [_, _, high, low, after @ ..] = rest {
        rest = &after[usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    assert!(rest.is_empty());
}
