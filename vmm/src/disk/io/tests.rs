//! Both engines on one file, without a device.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::disk::Raw;

use super::*;

fn engines(file: &File) -> [(Engine<u32>, EventFd, EventFd); 2] {
    let file = Arc::new(file.try_clone().unwrap());
    let signals = || {
        let signals =
            Signals { doorbell: EventFd::new(0).unwrap(), mailbox: EventFd::new(0).unwrap() };
        let copies = (signals.doorbell.try_clone().unwrap(), signals.mailbox.try_clone().unwrap());
        (signals, copies)
    };
    let (ring_signals, ring_copies) = signals();
    let ring = Uring::new(Arc::clone(&file), ring_signals).expect("this host allows io_uring");
    let (blocking_signals, blocking_copies) = signals();
    let blocking = Blocking::new(Box::new(Raw::new(file)), blocking_signals);
    [
        (Engine::Uring(Box::new(ring)), ring_copies.0, ring_copies.1),
        (Engine::Blocking(blocking), blocking_copies.0, blocking_copies.1),
    ]
}

fn run(engine: &mut Engine<u32>, op: Op, offset: u64, bufs: &[IoBuf]) -> io::Result<()> {
    engine.submit(op, offset, bufs, 7);
    let mut done = Vec::new();
    while done.is_empty() {
        engine.wait(None, &mut done).unwrap();
    }
    assert_eq!((done.len(), done[0].payload, engine.in_flight()), (1, 7, 0));
    done.pop().unwrap().result
}

#[test]
fn both_engines_do_the_same() {
    let file = tempfile::tempfile().unwrap();
    for (mut engine, _, _) in engines(&file) {
        file.set_len(0).unwrap();
        file.set_len(1 << 20).unwrap();
        engine.start().unwrap();
        let (mut one, mut two) = (vec![1; 5000], vec![2; 3192]);
        let bufs = [IoBuf::staging(&mut one), IoBuf::staging(&mut two)];
        run(&mut engine, Op::Write { durable: false }, 4096, &bufs).unwrap();
        run(&mut engine, Op::Write { durable: true }, 65536, &bufs[..1]).unwrap();
        run(&mut engine, Op::Flush, 0, &[]).unwrap();
        run(&mut engine, Op::Zero { len_bytes: 1000, unmap: false }, 4096, &[]).unwrap();
        run(&mut engine, Op::Zero { len_bytes: 1000, unmap: true }, 5096, &[]).unwrap();
        run(&mut engine, Op::Discard { len_bytes: 4096 }, 65536, &[]).unwrap();
        let mut back = vec![9; 9000];
        run(&mut engine, Op::Read, 4096, &[IoBuf::staging(&mut back)]).unwrap();
        let want = [vec![0; 2000], vec![1; 3000], vec![2; 3192], vec![0; 808]].concat();
        assert!(back == want, "{engine:?}");
        let mut found = vec![0; 9000];
        file.read_exact_at(&mut found, 4096).unwrap();
        assert!(found == want, "{engine:?}");

        let error = run(&mut engine, Op::Read, (1 << 20) - 100, &[IoBuf::staging(&mut back)]);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        run(&mut engine, Op::Read, 0, &[]).unwrap();
    }
}

#[test]
fn a_write_to_a_read_only_descriptor_fails() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    for (mut engine, _, _) in engines(&File::open(&path).unwrap()) {
        engine.start().unwrap();
        let mut bytes = [1; 512];
        let bufs = [IoBuf::staging(&mut bytes)];
        for op in [
            Op::Write { durable: false },
            Op::Discard { len_bytes: 512 },
            Op::Zero { len_bytes: 512, unmap: true },
        ] {
            let error = run(&mut engine, op, 0, &bufs).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{op:?}");
        }
    }
}

#[test]
fn each_signal_wakes_and_is_told_once() {
    let file = tempfile::tempfile().unwrap();
    for (mut engine, doorbell, mailbox) in engines(&file) {
        engine.start().unwrap();
        let mut done = Vec::new();
        let mut wait = |limit| engine.wait(limit, &mut done).unwrap();
        doorbell.write(3).unwrap();
        assert_eq!(wait(None), Wake { doorbell: true, mailbox: false });
        mailbox.write(1).unwrap();
        assert_eq!(wait(None), Wake { doorbell: false, mailbox: true });
        let start = Instant::now();
        assert_eq!(wait(Some(Duration::from_millis(20))), Wake::default());
        assert!(start.elapsed() >= Duration::from_millis(20));
        let bell = doorbell.try_clone().unwrap();
        let ringer = std::thread::Builder::new().spawn(move || bell.write(1).unwrap()).unwrap();
        assert!(wait(None).doorbell);
        ringer.join().unwrap();
    }
}

#[test]
fn dropping_an_engine_ends_its_operations_first() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 << 20).unwrap();
    for _ in 0..20 {
        for (mut engine, _, _) in engines(&file) {
            engine.start().unwrap();
            let ram = Arc::new(
                GuestRam::anonymous(&[(crate::memory::GuestAddress(0), 8 << 20)]).unwrap(),
            );
            engine.hold(Arc::clone(&ram));
            for index in 0..16 {
                let at = index * (256 << 10);
                let buf = ram.io_buf(crate::memory::GuestAddress(at), 256 << 10).unwrap();
                engine.submit(Op::Read, at, &[buf], 0);
            }
            let mut done = Vec::new();
            engine.wait(Some(Duration::ZERO), &mut done).unwrap();
            drop(engine);
            assert_eq!(Arc::strong_count(&ram), 1, "the memory is let go of");
        }
    }
}

#[test]
fn a_restricted_ring_refuses_what_it_was_not_made_for() {
    let file = tempfile::tempfile().unwrap();
    let [(mut engine, _, _), _] = engines(&file);
    engine.start().unwrap();
    let Engine::Uring(ring) = &mut engine else { panic!("the first engine is the ring") };
    assert_eq!(ring.try_foreign_entries(), [-libc::EACCES; 2]);
}

#[test]
fn writes_of_a_batch_end_whichever_way_they_are_made() {
    let dir = tempfile::tempdir().unwrap();
    // A filesystem on a disk, and one in memory: writes through their caches differ in whether they can be made without waiting.
    for path in [dir.path(), std::path::Path::new("/dev/shm")] {
        let file = tempfile::tempfile_in(path).unwrap();
        for (mut engine, _, _) in engines(&file) {
            file.set_len(0).unwrap();
            file.set_len(1 << 20).unwrap();
            engine.start().unwrap();
            let mut data: Vec<Vec<u8>> = (1..=15).map(|byte| vec![byte; 4096]).collect();
            let mut back = vec![9; 4096];
            let (mut done, mut ended) = (Vec::new(), 0);
            for round in 0..3_u64 {
                for (at, bytes) in (0_u64..).zip(&mut data) {
                    let offset = (round * 15 + at) * 4096;
                    let op = Op::Write { durable: at == 7 };
                    engine.submit(op, offset, &[IoBuf::staging(bytes)], 1);
                }
                engine.submit(Op::Read, 512 << 10, &[IoBuf::staging(&mut back)], 0);
                while engine.in_flight() > 0 {
                    engine.wait(None, &mut done).unwrap();
                    for Done { payload, result } in done.drain(..) {
                        result.unwrap();
                        ended += payload;
                    }
                }
                assert_eq!(back, [0; 4096]);
            }
            assert_eq!(ended, 3 * 15);
            drop(engine);
            let mut found = vec![0; 3 * 15 * 4096];
            file.read_exact_at(&mut found, 0).unwrap();
            let want: Vec<u8> = data.concat().repeat(3);
            assert!(found == want, "{path:?}");
        }
    }
}

#[test]
fn an_engine_that_is_dropped_leaves_no_write_behind_its_memory() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    for (mut engine, _, _) in engines(&file) {
        engine.start().unwrap();
        let mut bytes = vec![5; 4096];
        for at in 0..8 {
            let bufs = [IoBuf::staging(&mut bytes)];
            engine.submit(Op::Write { durable: false }, at * 4096, &bufs, 0);
        }
        drop(engine);
        bytes.fill(6);
        let mut found = vec![0; 8 * 4096];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found.iter().all(|&byte| byte == 5));
    }
}
