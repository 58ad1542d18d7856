//! Fragments in any order come out as what was cut; whatever comes, the bounds hold.

use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::scripted::Bytes;

fn key(identification: u32) -> DatagramKey {
    DatagramKey {
        source: IpAddr::V4(Ipv4Addr::new(192, 168, 127, 2)),
        destination: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
        protocol: protocol::UDP,
        identification,
    }
}

fn place(identification: u32, offset: u32, more: bool) -> FragmentPlace {
    FragmentPlace { identification, offset, more }
}

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

/// Bytes that differ from their neighbours and from those of other datagrams.
fn pattern(identification: u32, len: usize) -> Vec<u8> {
    stretch(identification, 0, len)
}

fn stretch(identification: u32, start: usize, end: usize) -> Vec<u8> {
    let first = u8::try_from(identification % 251).unwrap();
    (start..end).map(|at| first.wrapping_add(u8::try_from(at % 241).unwrap())).collect()
}

/// One fragment: `(offset, end, more)` of the pattern.
fn add(
    fragments: &mut Fragments,
    now: Instant,
    identification: u32,
    (offset, end, more): (usize, usize, bool),
) -> Result<Option<Vec<u8>>, FragmentError> {
    let bytes = stretch(identification, offset, end);
    let place = place(identification, u32::try_from(offset).unwrap(), more);
    fragments.add(now, key(identification), place, &Bytes(bytes))
}

#[test]
fn fragments_in_any_order_make_the_datagram() {
    let pieces = [(0, 1480, true), (1480, 2960, true), (2960, 3001, false)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut fragments = Fragments::new(Limits::default());
        for (count, piece) in order.into_iter().enumerate() {
            let complete = add(&mut fragments, at(1), 7, pieces[piece]).unwrap();
            let expected = (count == 2).then(|| pattern(7, 3001));
            assert_eq!(complete, expected, "{order:?}");
        }
        assert_eq!(fragments.kept(), (0, 0));
    }
}

#[test]
fn an_overlap_discards_the_datagram() {
    for (second, third) in [
        ((8, 32, true), (24, 40, false)),
        ((0, 16, true), (16, 40, false)),
        ((24, 40, false), (40, 48, false)),
        ((24, 40, false), (40, 48, true)),
        ((24, 32, true), (16, 24, false)),
    ] {
        let mut fragments = Fragments::new(Limits::default());
        assert_eq!(add(&mut fragments, at(1), 7, (0, 16, true)), Ok(None));
        let added = [second, third].map(|piece| add(&mut fragments, at(1), 7, piece)).into_iter();
        assert!(added.clone().all(|complete| complete != Ok(Some(pattern(7, 40)))));
        assert!(added.last() == Some(Err(FragmentError::Overlap)), "{second:?} {third:?}");
        // What follows of it is not the beginning of another one.
        let rest = [(0, 16, true), (16, 40, false)];
        for piece in rest {
            assert_eq!(add(&mut fragments, at(2), 7, piece), Err(FragmentError::Overlap));
        }
        assert_eq!(fragments.kept(), (1, 0));
        for (piece, complete) in rest.into_iter().zip([None, Some(pattern(7, 40))]) {
            assert_eq!(add(&mut fragments, at(6), 7, piece), Ok(complete));
        }
    }
}

#[test]
fn impossible_fragments_are_dropped() {
    let mut fragments = Fragments::new(Limits::default());
    for (piece, expected) in [
        ((0, 0, true), FragmentError::Length),
        ((0, 12, true), FragmentError::Length),
        ((65_512, 65_516, false), FragmentError::Length),
        ((65_528, 70_000, false), FragmentError::Length),
    ] {
        assert_eq!(add(&mut fragments, at(1), 7, piece), Err(expected), "{piece:?}");
    }
    let tcp = DatagramKey { protocol: protocol::TCP, ..key(7) };
    let fragment = fragments.add(at(1), tcp, place(7, 0, true), &Bytes(vec![0; 8]));
    assert_eq!(fragment, Err(FragmentError::Tcp));
    assert_eq!(fragments.kept(), (0, 0));
    assert_eq!(add(&mut fragments, at(1), 7, (65_512, 65_515, false)), Ok(None));
}

#[test]
fn a_datagram_is_given_up_after_its_time() {
    let mut fragments = Fragments::new(Limits::default());
    fragments.expire(at(0));
    assert_eq!(fragments.next_deadline(), None);
    assert_eq!(add(&mut fragments, at(10), 7, (0, 8, true)), Ok(None));
    assert_eq!(add(&mut fragments, at(12), 8, (0, 8, true)), Ok(None));
    for (now, next) in [(14, 15), (15, 17)] {
        fragments.expire(at(now));
        assert_eq!(fragments.next_deadline(), Some(at(next)));
    }
    assert_eq!((fragments.kept(), fragments.lost()), ((1, 8), (1, 0)));
    // The rest of the first one does not complete it any more; it does complete the second one.
    assert_eq!(add(&mut fragments, at(16), 7, (8, 16, false)), Ok(None));
    assert_eq!(add(&mut fragments, at(16), 8, (8, 16, false)), Ok(Some(pattern(8, 16))));
}

#[test]
fn the_oldest_datagram_gives_way_to_too_many() {
    let mut fragments = Fragments::new(Limits::default());
    for identification in 0..65 {
        assert_eq!(add(&mut fragments, at(1), identification, (0, 8, true)), Ok(None));
    }
    assert_eq!((fragments.kept(), fragments.lost()), ((64, 64 * 8), (0, 1)));
    for identification in 1..65 {
        let complete = add(&mut fragments, at(2), identification, (8, 9, false));
        assert_eq!(complete, Ok(Some(pattern(identification, 9))));
    }
}

#[test]
fn the_oldest_datagrams_give_way_to_too_many_bytes() {
    let mut fragments = Fragments::new(Limits::default());
    for identification in 0..17 {
        assert_eq!(add(&mut fragments, at(1), identification, (65_504, 65_512, true)), Ok(None));
    }
    // 16 of them fit.
    assert_eq!((fragments.kept(), fragments.lost()), ((16, 16 * 65_512), (0, 1)));
    // The oldest one grows: others give way to it.
    assert_eq!(add(&mut fragments, at(1), 1, (65_512, 65_514, false)), Ok(None));
    assert_eq!(fragments.kept().0, 16);
    let tiny = Limits { bytes: 100, ..Limits::default() };
    let mut fragments = Fragments::new(tiny);
    assert_eq!(add(&mut fragments, at(1), 1, (0, 104, true)), Err(FragmentError::NoRoom));
    assert_eq!(fragments.kept(), (0, 0));
    assert_eq!(add(&mut fragments, at(1), 1, (0, 80, true)), Ok(None));
    assert_eq!(add(&mut fragments, at(1), 2, (0, 80, true)), Ok(None));
    assert_eq!((fragments.kept(), fragments.lost()), ((1, 80), (0, 2)));
}

#[test]
fn scattered_fragments_are_given_up() {
    let mut fragments = Fragments::new(Limits::default());
    for count in 0..MAX_STRETCHES {
        assert_eq!(add(&mut fragments, at(1), 7, (16 * count, 16 * count + 8, true)), Ok(None));
    }
    let one_more = (16 * MAX_STRETCHES, 16 * MAX_STRETCHES + 8, true);
    assert_eq!(add(&mut fragments, at(1), 7, one_more), Err(FragmentError::Scattered));
    assert_eq!(fragments.kept(), (1, 0));
}

proptest! {
    #[test]
    fn what_was_cut_comes_out_again(
        lens in vec(9_usize..20_000, 1..5), sizes in vec(1_usize..400, 1..8),
        order in any::<prop::sample::Index>(), seed: u64,
    ) {
        let mut pieces = Vec::new();
        for (identification, len) in (0_u32..).zip(&lens) {
            let mut start = 0;
            for size in sizes.iter().cycle() {
                let end = (start + size * 8).min(*len);
                pieces.push((identification, (start, end, end < *len)));
                start = end;
                if start == *len {
                    break;
                }
            }
        }
        pieces.retain(|(_, (start, _, more))| *start > 0 || *more);
        // Nearly in order, as several queues deliver.
        let window = order.index(48) + 1;
        let mut state = seed;
        for chunk in pieces.chunks_mut(window) {
            chunk.sort_by_cached_key(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state >> 32
            });
        }
        let mut fragments = Fragments::new(Limits::default());
        let mut complete = 0;
        for (identification, piece) in &pieces {
            if let Some(bytes) = add(&mut fragments, at(1), *identification, *piece).unwrap() {
                prop_assert_eq!(&bytes, &pattern(*identification, lens[*identification as usize]));
                complete += 1;
            }
        }
        let whole = (0_u32..).zip(&lens).filter(|(identification, _)| {
            pieces.iter().any(|(other, _)| other == identification)
        });
        prop_assert_eq!(complete, whole.count());
        prop_assert_eq!(fragments.kept(), (0, 0));
    }

    #[test]
    fn bounds_hold_whatever_comes(
        steps in vec((0_u32..12, 0_u32..8192, 0_usize..2000, any::<bool>(), 0_u64..3), 0..200),
    ) {
        let limits = Limits { datagrams: 4, bytes: 100_000, ..Limits::default() };
        let mut fragments = Fragments::new(limits);
        let mut now = 0;
        for (identification, offset, len, more, pause) in steps {
            now += pause;
            let place = place(identification, offset * 8, more);
            let payload = Bytes(pattern(identification, len));
            if let Ok(Some(bytes)) = fragments.add(at(now), key(identification), place, &payload) {
                prop_assert!(bytes.len() <= MAX_LEN);
            }
            let (datagrams, bytes) = fragments.kept();
            prop_assert!(datagrams <= limits.datagrams && bytes <= limits.bytes);
            let stored: usize = fragments.partials.iter().map(|partial| partial.bytes.len()).sum();
            prop_assert_eq!(bytes, stored);
        }
        fragments.expire(at(now + 5));
        prop_assert_eq!(fragments.next_deadline(), None);
        prop_assert_eq!(fragments.kept(), (0, 0));
    }
}
