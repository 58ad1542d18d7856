//! A delta file that anybody may have written, opened over a base: it is refused, or it is a disk that keeps what is written to it.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use openshell_fuzz::{Script, file};
use openshell_vmm::disk::{Disk, Op, Overlay};
use openshell_vmm::memory::IoBuf;

/// Ends inside a block of the delta.
const DISK_BYTES: usize = 9 * 4096 + 512;
const SECTORS: u64 = DISK_BYTES as u64 / 512;

static BASE: LazyLock<Arc<File>> = LazyLock::new(|| {
    let contents: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512 + at) as u8).collect();
    let base = file();
    base.write_all_at(&contents, 0).expect("a small file");
    Arc::new(base)
});

fuzz_target!(|data: &[u8]| {
    let mut script = Script(data);
    let delta = file();
    if script.byte() & 1 == 0 {
        // A real one, with some of its bytes changed and its end moved.
        let mut disk = open(&delta).expect("an empty delta becomes a new one");
        write(&mut disk, u64::from(script.byte()), script.byte());
        disk.perform(Op::Flush, 0, &[]).expect("a small file");
        for _ in 0..script.byte() % 8 {
            let at = u64::from(script.u16());
            delta.write_all_at(&[script.byte()], at).expect("a small file");
        }
        let grown = i64::from(script.byte() as i8);
        let len = delta.metadata().expect("a file").len();
        delta.set_len(len.saturating_add_signed(grown)).expect("a small file");
    } else {
        delta.write_all_at(script.0, 0).expect("a small file");
    }
    let Some(mut disk) = open(&delta) else { return };
    let mut wanted = read(&mut disk);
    for _ in 0..4 {
        let (sector, value) = (u64::from(script.byte()), script.byte());
        let at = write(&mut disk, sector, value);
        wanted[at..at + 512].fill(value);
    }
    assert!(read(&mut disk) == wanted, "what was written is read");
    disk.perform(Op::Flush, 0, &[]).expect("a small file");
    let mut again = open(&delta).expect("what was opened and flushed is opened again");
    assert!(read(&mut again) == wanted, "what was flushed is read after opening");
});

fn open(delta: &File) -> Option<Overlay> {
    let delta = delta.try_clone().expect("a descriptor");
    Overlay::open(&BASE, delta, DISK_BYTES as u64).ok()
}

fn write(disk: &mut Overlay, sector: u64, value: u8) -> usize {
    let at = sector % SECTORS * 512;
    let mut bytes = [value; 512];
    let bufs = [IoBuf::staging(&mut bytes)];
    disk.perform(Op::Write { durable: false }, at, &bufs).expect("a small file");
    at as usize
}

fn read(disk: &mut Overlay) -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES];
    let bufs = [IoBuf::staging(&mut bytes)];
    disk.perform(Op::Read, 0, &bufs).expect("a small file");
    bytes
}
