//! Fragments of several datagrams in any order: what comes out is what fragments that touch and nowhere overlap make, as a model that
//! keeps them all finds it; what is kept stays within its limits.
#![no_main]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use openshell_fuzz::Script;
use openshell_usernet::fragments::{DatagramKey, Fragments, Limits};
use openshell_usernet::wire::{FragmentPlace, protocol};
use openshell_usernet::{Instant, Payload};

struct Bytes<'a>(&'a [u8]);

impl Payload for Bytes<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn skip(&mut self, count: usize) {
        self.0 = self.0.get(count..).unwrap_or_default();
    }

    fn truncate(&mut self, count: usize) {
        self.0 = self.0.get(..count).unwrap_or(self.0);
    }

    fn copy_to(&self, out: &mut [u8]) -> usize {
        let len = out.len().min(self.0.len());
        out[..len].copy_from_slice(&self.0[..len]);
        len
    }
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script(data);
    let limits = Limits { datagrams: 4, bytes: 40_000, ..Limits::default() };
    let mut fragments = Fragments::new(limits);
    let mut model: BTreeMap<u32, BTreeMap<usize, Vec<u8>>> = BTreeMap::new();
    let mut now = Instant::from_nanos(0);
    while script.goes_on() {
        let kind = script.byte();
        now = now + Duration::from_millis(u64::from(kind >> 4) * 200);
        let (number, more) = (u32::from(kind & 7), kind & 8 != 0);
        let start = usize::from(script.byte()) * if kind & 1 == 0 { 8 } else { 64 };
        // The bytes are made of one, so that short scripts make long datagrams.
        let (len, first) = (usize::from(script.byte()), script.byte());
        let len = if more { len * 8 } else { len };
        let bytes: Vec<u8> = (0..len).map(|at| first.wrapping_add((at % 251) as u8)).collect();
        let key = DatagramKey {
            source: IpAddr::V4(Ipv4Addr::new(192, 168, 127, 2)),
            destination: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
            protocol: if number == 7 { protocol::TCP } else { protocol::UDP },
            identification: number,
        };
        let offset = start as u32;
        let place = FragmentPlace { identification: number, offset, more };
        match fragments.add(now, key, place, &Bytes(&bytes)) {
            Err(_) => {}
            Ok(complete) => {
                assert!(number != 7, "fragments of TCP are dropped");
                let pieces = model.entry(number).or_default();
                // Of a datagram that was forgotten, pieces are here that came before; they give way.
                pieces.insert(start, bytes);
                if let Some(complete) = complete {
                    let mut at = 0;
                    while at < complete.len() {
                        let piece = &pieces[&at];
                        assert_eq!(complete[at..at + piece.len()], piece[..]);
                        at += piece.len();
                    }
                    assert_eq!(at, complete.len());
                    pieces.clear();
                }
            }
        }
        let (datagrams, kept) = fragments.kept();
        assert!(datagrams <= limits.datagrams && kept <= limits.bytes);
    }
    fragments.expire(now + limits.age);
    assert_eq!(fragments.kept(), (0, 0));
});
