use proptest::prelude::*;

use super::QueueError as E;
use super::*;
use crate::virtio::chain::Segment;
use crate::virtio::test_driver::{TestDriver, descriptor_bytes};

const ALL: u64 = F_EVENT_IDX | F_INDIRECT_DESC;
const DATA: u64 = 0x10_0000;

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::anonymous(&[(GuestAddress(0), 4 << 20)]).unwrap())
}

fn pair(size: u16, features: u64) -> (TestDriver, Queue) {
    let ram = ram();
    let driver = TestDriver::new(&ram, 0x1000, size, features);
    let queue = Queue::new(&ram, driver.queue_config(), features).unwrap();
    (driver, queue)
}

fn segment(addr: u64, len_bytes: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len_bytes }
}

#[test]
fn a_chain_comes_out_as_it_went_in_and_goes_back_once() {
    for indirect in [false, true] {
        let (mut driver, mut queue) = pair(8, ALL);
        for _ in 0..70_000_u32 / 8 {
            let buffers = [(DATA, 16, false), (DATA + 0x1000, 512, true), (DATA + 0x2000, 1, true)];
            let head = if indirect { driver.add_indirect(&buffers) } else { driver.add(&buffers) };
            let chain = queue.pop().unwrap().unwrap();
            assert_eq!(chain.readable(), [segment(DATA, 16)]);
            assert_eq!(chain.writable(), [segment(DATA + 0x1000, 512), segment(DATA + 0x2000, 1)]);
            assert!(queue.pop().unwrap().is_none());
            queue.complete(chain.complete(600));
            assert_eq!(driver.used(), [(u32::from(head), 513)]);
        }
    }
}

/// What it is called, what the driver does, the error that follows.
type Row = (&'static str, fn(&mut TestDriver), fn(&QueueError) -> bool);

const BROKEN_RINGS: &[Row] = &[
    ("avail index too far", |d| d.raw_avail_index(9), |e| matches!(e, E::AvailIndex { .. })),
    ("avail index behind", |d| d.raw_avail_index(u16::MAX), |e| matches!(e, E::AvailIndex { .. })),
    (
        "head outside the table",
        |d| d.raw_available(8),
        |e| matches!(e, E::DescriptorIndex { index: 8, len: 8 }),
    ),
    (
        "next outside the table",
        |d| raw(d, (DATA, 1, 1, 8)),
        |e| matches!(e, E::DescriptorIndex { index: 8, len: 8 }),
    ),
    ("loop to itself", |d| raw(d, (DATA, 1, 1, 0)), |e| matches!(e, E::ChainTooLong { head: 0 })),
    ("length 0", |d| raw(d, (DATA, 0, 0, 0)), |e| matches!(e, E::ZeroLength { index: 0 })),
    (
        "past the end of RAM",
        |d| raw(d, ((4 << 20) - 1, 2, 0, 0)),
        |e| matches!(e, E::BufferOutsideRam { .. }),
    ),
    ("address wraps", |d| raw(d, (u64::MAX, 2, 0, 0)), |e| matches!(e, E::BufferOutsideRam { .. })),
    (
        "readable after writable",
        |d| {
            d.raw_descriptor(1, (DATA, 1, 0, 0));
            raw(d, (DATA, 1, 3, 1));
        },
        |e| matches!(e, E::ReadableAfterWritable { index: 1 }),
    ),
];

const BROKEN_TABLES: &[Row] = &[
    (
        "indirect goes on",
        |d| raw(d, (DATA, 16, 5, 1)),
        |e| matches!(e, E::Indirect { index: 0, flags: 5 }),
    ),
    (
        "indirect of length 0",
        |d| raw(d, (DATA, 0, 4, 0)),
        |e| matches!(e, E::IndirectLength { len_bytes: 0 }),
    ),
    (
        "indirect of half an entry",
        |d| raw(d, (DATA, 24, 4, 0)),
        |e| matches!(e, E::IndirectLength { len_bytes: 24 }),
    ),
    (
        "indirect too long",
        |d| raw(d, (DATA, 16 * 1025, 4, 0)),
        |e| matches!(e, E::IndirectLength { .. }),
    ),
    (
        "indirect of almost 4 GiB",
        |d| raw(d, (DATA, 0xffff_fff0, 4, 0)),
        |e| matches!(e, E::IndirectLength { .. }),
    ),
    (
        "indirect outside RAM",
        |d| raw(d, ((4 << 20) - 16, 32, 4, 0)),
        |e| matches!(e, E::IndirectTable(_)),
    ),
    (
        "indirect address wraps",
        |d| raw(d, (u64::MAX - 15, 16, 4, 0)),
        |e| matches!(e, E::IndirectTable(_)),
    ),
    (
        "nested indirect",
        |d| table(d, &[(DATA, 16, 4, 0)]),
        |e| matches!(e, E::Indirect { index: 0, flags: 4 }),
    ),
    (
        "table's next outside",
        |d| table(d, &[(DATA, 16, 1, 2), (DATA, 16, 0, 0)]),
        |e| matches!(e, E::DescriptorIndex { index: 2, len: 2 }),
    ),
    (
        "loop in a table",
        |d| table(d, &[(DATA, 1, 1, 1), (DATA, 1, 1, 0)]),
        |e| matches!(e, E::ChainTooLong { head: 0 }),
    ),
    (
        "length 0 in a table",
        |d| table(d, &[(DATA, 0, 0, 0)]),
        |e| matches!(e, E::ZeroLength { index: 0 }),
    ),
    (
        "readable after writable in a table",
        |d| table(d, &[(DATA, 1, 3, 1), (DATA, 1, 0, 0)]),
        |e| matches!(e, E::ReadableAfterWritable { index: 1 }),
    ),
];

#[test]
fn every_broken_rule_is_an_error_that_names_it() {
    for (name, break_rule, check) in BROKEN_RINGS.iter().chain(BROKEN_TABLES) {
        let (mut driver, mut queue) = pair(8, ALL);
        break_rule(&mut driver);
        for _ in 0..3 {
            let error = queue.pop().expect_err(name);
            assert!(check(&error), "{name}: {error:?}");
        }
    }
}

fn raw(driver: &mut TestDriver, descriptor: (u64, u32, u16, u16)) {
    driver.raw_descriptor(0, descriptor);
    driver.raw_available(0);
}

fn table(driver: &mut TestDriver, entries: &[(u64, u32, u16, u16)]) {
    let table = driver.indirect_table(0);
    for (at, entry) in (0..).zip(entries) {
        driver.raw_memory(table + 16 * at, &descriptor_bytes(*entry));
    }
    let len = 16 * u32::try_from(entries.len()).unwrap();
    raw(driver, (table, len, DESC_F_INDIRECT, 0));
}

#[test]
fn an_indirect_table_needs_the_feature() {
    let (mut driver, mut queue) = pair(8, F_EVENT_IDX);
    driver.add_indirect(&[(DATA, 1, false)]);
    assert!(matches!(queue.pop(), Err(QueueError::Indirect { index: 0, flags: DESC_F_INDIRECT })));
}

#[test]
fn a_table_may_follow_direct_descriptors_and_be_longer_than_the_queue() {
    let (mut driver, mut queue) = pair(4, ALL);
    let tables = driver.indirect_table(0);
    for at in 0..64_u16 {
        let (flags, next) = if at == 63 { (DESC_F_WRITE, 0) } else { (3, at + 1) };
        let entry = descriptor_bytes((DATA + u64::from(at), 1, flags, next));
        driver.raw_memory(tables + 16 * u64::from(at), &entry);
    }
    driver.raw_descriptor(1, (tables, 16 * 64, DESC_F_INDIRECT | DESC_F_WRITE, 0));
    raw(&mut driver, (DATA, 5, DESC_F_NEXT, 1));
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!(chain.readable(), [segment(DATA, 5)]);
    let wanted: Vec<_> = (0..64).map(|at| segment(DATA + at, 1)).collect();
    assert_eq!(chain.writable(), wanted);
    queue.complete(chain.complete(u32::MAX));
    assert_eq!(driver.used(), [(0, 64)]);
}

#[test]
fn rings_outside_ram_misaligned_or_of_a_wrong_size_are_refused() {
    let ram = ram();
    let good = QueueConfig { size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000 };
    let end = 4 << 20;
    assert!(Queue::new(&ram, good, ALL).is_ok());
    for bad in [
        QueueConfig { size: 0, ..good },
        QueueConfig { size: 7, ..good },
        QueueConfig { size: 32769, ..good },
        QueueConfig { size: 65535, ..good },
        QueueConfig { desc: 0x1008, ..good },
        QueueConfig { avail: 0x2001, ..good },
        QueueConfig { used: 0x3002, ..good },
        QueueConfig { desc: end - 16 * 7, ..good },
        QueueConfig { avail: end - 20, ..good },
        QueueConfig { used: end - 68, ..good },
        QueueConfig { desc: u64::MAX - 15, ..good },
        QueueConfig { used: u64::MAX - 3, ..good },
    ] {
        let error = Queue::new(&ram, bad, ALL).expect_err("a bad layout");
        assert!(matches!(error, QueueError::Ring(_) | QueueError::Size(_)), "{bad:?}");
    }
}

#[test]
fn no_more_chains_are_handed_out_than_the_queue_holds() {
    let (mut driver, mut queue) = pair(4, ALL);
    driver.raw_descriptor(0, (DATA, 1, 0, 0));
    let mut held = Vec::new();
    for _ in 0..4 {
        driver.raw_available(0);
        held.push(queue.pop().unwrap().unwrap());
    }
    driver.raw_available(0);
    assert!(matches!(queue.pop(), Err(QueueError::AvailIndex { index: 5, done: 0, size: 4 })));
    queue.complete(held.pop().unwrap().complete(0));
    assert!(queue.pop().unwrap().is_some());
}

#[test]
fn completions_of_a_batch_appear_together_and_ask_for_one_interrupt() {
    let (mut driver, mut queue) = pair(8, ALL);
    let heads: Vec<u16> = (0..5).map(|_| driver.add(&[(DATA, 4, true)])).collect();
    let mut completions = Vec::new();
    while let Some(chain) = queue.pop().unwrap() {
        completions.push(chain.complete(4));
    }
    assert!(driver.used().is_empty());
    assert!(!queue.wants_interrupt());
    queue.complete_all(completions);
    let wanted: Vec<_> = heads.into_iter().map(|head| (u32::from(head), 4)).collect();
    assert!(queue.wants_interrupt());
    assert!(!queue.wants_interrupt());
    assert_eq!(driver.used(), wanted);
}

#[test]
fn interrupts_follow_the_event_index_or_the_flag() {
    let (mut driver, mut queue) = pair(8, F_EVENT_IDX);
    let mut finish = |driver: &mut TestDriver| {
        driver.add(&[(DATA, 4, true)]);
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain.complete(4));
        queue.wants_interrupt()
    };
    driver.set_used_event(2);
    assert_eq!([(); 5].map(|()| finish(&mut driver)), [false, false, true, false, false]);

    let (mut driver, mut queue) = pair(8, 0);
    for wanted in [true, false, true] {
        driver.set_interrupts(wanted);
        driver.add(&[(DATA, 4, true)]);
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain.complete(4));
        assert_eq!(queue.wants_interrupt(), wanted);
        driver.used();
    }
}

#[test]
fn the_doorbell_is_silent_only_between_disable_and_enable() {
    for features in [0, F_EVENT_IDX] {
        let (mut driver, mut queue) = pair(8, features);
        driver.add(&[(DATA, 4, true)]);
        assert!(driver.needs_kick());
        queue.disable_doorbell();
        let chain = queue.pop().unwrap().unwrap();
        driver.add(&[(DATA, 4, true)]);
        assert!(!driver.needs_kick());
        assert!(queue.enable_doorbell().unwrap(), "the chain in between is not forgotten");
        queue.complete(chain.complete(0));
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain.complete(0));
        assert!(!queue.enable_doorbell().unwrap());
        driver.add(&[(DATA, 4, true)]);
        assert!(driver.needs_kick());
    }
}

#[test]
fn a_saved_queue_goes_on_where_it_was() {
    let ram = ram();
    let mut driver = TestDriver::new(&ram, 0x1000, 4, ALL);
    let mut queue = Queue::new(&ram, driver.queue_config(), ALL | 1 << 32).unwrap();
    for round in 0..70_000_u32 / 1000 {
        let head = driver.add(&[(DATA, 4, true)]);
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain.complete(round % 5));
        let state = queue.save();
        queue = Queue::restore(&ram, &state).unwrap();
        assert_eq!(queue.save(), state);
        assert!(queue.wants_interrupt());
        assert_eq!(driver.used(), [(u32::from(head), round % 5)]);
    }
    let state = QueueState { version: 2, ..queue.save() };
    assert!(matches!(Queue::restore(&ram, &state), Err(QueueError::StateVersion(2))));
}

fn descriptors() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let addr = prop_oneof![
        4 => (0..0x400_u64).prop_map(|at| DATA + at),
        1 => (0..64_u64).prop_map(|back| (4 << 20) - back),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![1 => Just(0), 4 => 1..64_u32, 2 => (0..70_u32).prop_map(|n| 16 * n), 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0..4_u16, 1 => 0..8_u16, 1 => any::<u16>()];
    proptest::collection::vec((addr, len, flags, 0..18_u16), 16 + 0x400 / 16)
}

proptest! {
    #[test]
    fn both_queues_agree(script in proptest::collection::vec(any::<u8>(), 0..600)) {
        let outcome = model::run(&script);
        prop_assert!(outcome.completed <= outcome.popped);
    }

    #[test]
    fn any_ring_memory_gives_bounded_chains_inside_ram(
        entries in descriptors(),
        heads in proptest::collection::vec(0..17_u16, 16),
        ahead in 0..18_u16,
    ) {
        let (mut driver, mut queue) = pair(16, ALL);
        for (at, entry) in (0..16).zip(&entries) {
            driver.raw_descriptor(at, *entry);
        }
        // Whatever is indirect and named in RAM finds a table of such entries.
        for (at, entry) in (0_u64..).zip(&entries[16..]) {
            driver.raw_memory(DATA + 16 * at, &descriptor_bytes(*entry));
        }
        for head in heads {
            driver.raw_available(head);
        }
        driver.raw_avail_index(ahead);
        let mut popped = 0;
        while let Ok(Some(chain)) = queue.pop() {
            popped += 1;
            prop_assert!(popped <= 16);
            prop_assert!(chain.readable().len() + chain.writable().len() <= MAX_CHAIN);
            for segment in chain.readable().iter().chain(chain.writable()) {
                let end = segment.addr.0.checked_add(u64::from(segment.len_bytes));
                prop_assert!(segment.len_bytes > 0 && end.is_some_and(|end| end <= 4 << 20));
            }
            let room = chain.writable_len();
            queue.complete(chain.complete(u32::MAX));
            let used = driver.used();
            prop_assert_eq!(used.len(), 1);
            prop_assert!(u64::from(used[0].1) <= room);
        }
    }

    #[test]
    fn a_ring_of_arbitrary_bytes_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0x400)) {
        let ram = ram();
        ram.write(GuestAddress(0x1000), &bytes).unwrap();
        let config = QueueConfig { size: 16, desc: 0x1000, avail: 0x1100, used: 0x1200 };
        let mut queue = Queue::new(&ram, config, ALL).unwrap();
        let mut popped = 0;
        while let Ok(Some(chain)) = queue.pop() {
            queue.complete(chain.complete(1));
            popped += 1;
            prop_assert!(popped <= 16);
        }
        let _wanted: bool = queue.wants_interrupt();
        let _served: bool = queue.enable_doorbell().is_ok();
    }
}

#[test]
fn scripts_reach_chains_completions_interrupts_and_refusals() {
    let mut seed = 1_u64;
    let mut sum = model::Outcome::default();
    for _ in 0..200 {
        let mut script = Vec::new();
        for _ in 0..400 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            script.push(seed.to_le_bytes()[7]);
        }
        let outcome = model::run(&script);
        sum.popped += outcome.popped;
        sum.completed += outcome.completed;
        sum.interrupts += outcome.interrupts;
        sum.refused |= outcome.refused;
    }
    assert!(sum.popped > 1000 && sum.completed > 500 && sum.interrupts > 100, "{sum:?}");
    assert!(sum.refused);
}

#[test]
fn a_chain_of_more_than_4_gib_is_refused() {
    let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), 8 << 20)]).unwrap());
    for (entries, accepted) in [(512_u16, true), (513, false)] {
        let mut driver = TestDriver::new(&ram, 0x1000, 8, ALL);
        let mut queue = Queue::new(&ram, driver.queue_config(), ALL).unwrap();
        for at in 0..entries {
            let (flags, next) = if at == entries - 1 { (0, 0) } else { (DESC_F_NEXT, at + 1) };
            let entry = descriptor_bytes((0, 8 << 20, flags, next));
            driver.raw_memory(DATA + 16 * u64::from(at), &entry);
        }
        raw(&mut driver, (DATA, 16 * u32::from(entries), DESC_F_INDIRECT, 0));
        match queue.pop() {
            Ok(Some(chain)) => assert!(accepted && chain.readable_len() == 1 << 32),
            Err(QueueError::TooManyBytes { head: 0 }) => assert!(!accepted),
            other => panic!("{other:?}"),
        }
    }
}

/// Device and driver on two threads, each asleep unless the other wakes it: a lost doorbell or interrupt ends in a time-out.
#[test]
fn no_doorbell_and_no_interrupt_is_lost_between_two_threads() {
    const CHAINS: u32 = 20_000;
    for features in [0, ALL] {
        let (mut driver, mut queue) = pair(8, features);
        let (doorbell, rung) = std::sync::mpsc::channel();
        let (interrupt, raised) = std::sync::mpsc::channel();
        let patience = std::time::Duration::from_secs(20);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut served = 0;
                while served < CHAINS {
                    rung.recv_timeout(patience).expect("a doorbell");
                    loop {
                        queue.disable_doorbell();
                        while let Some(chain) = queue.pop().unwrap() {
                            queue.complete(chain.complete(4));
                            served += 1;
                            if queue.wants_interrupt() {
                                interrupt.send(()).unwrap();
                            }
                        }
                        if !queue.enable_doorbell().unwrap() {
                            break;
                        }
                    }
                }
            });
            let (mut added, mut returned) = (0, 0);
            while returned < CHAINS {
                while added < CHAINS && driver.free_descriptors() > 0 {
                    driver.add(&[(DATA, 4, true)]);
                    added += 1;
                    if driver.needs_kick() {
                        doorbell.send(()).unwrap();
                    }
                }
                raised.recv_timeout(patience).expect("an interrupt");
                // The event index moves and then the ring is looked at again, until nothing is new.
                loop {
                    let used = driver.used();
                    if used.is_empty() {
                        break;
                    }
                    returned += u32::try_from(used.len()).unwrap();
                }
            }
        });
    }
}

#[test]
fn a_buffer_is_taken_exactly_where_ram_holds_all_of_it() {
    let layout = [(GuestAddress(0), 4 << 20), (GuestAddress(1 << 32), 2 << 20)];
    let ram = Arc::new(GuestRam::anonymous(&layout).unwrap());
    for addr in [0, (4 << 20) - 1, 4 << 20, (1 << 32) - 1, 1 << 32, (1 << 32) + (2 << 20) - 1] {
        for len in [1, 2, 2 << 20, (2 << 20) + 1, 4 << 20, u32::MAX] {
            let mut driver = TestDriver::new(&ram, 0x1000, 8, ALL);
            let mut queue = Queue::new(&ram, driver.queue_config(), ALL).unwrap();
            driver.add(&[(addr, len, true)]);
            let inside = ram.contains(GuestAddress(addr), len.into());
            assert_eq!(queue.pop().is_ok(), inside, "{addr:#x} {len:#x}");
        }
    }
}
