//! Overlay disks against a model, damaged files, and every crash that a power cut could leave behind.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;

const DISK_BYTES: usize = 12 * 4096 + 1536;

fn base_bytes() -> Vec<u8> {
    (0..DISK_BYTES).map(|i| u8::try_from((i / 512 + i) % 249 + 1).unwrap()).collect()
}

fn file_with(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn open(base: &File, delta: &File) -> std::result::Result<Overlay, OverlayError> {
    let base = Arc::new(base.try_clone().unwrap());
    let len = base.metadata().unwrap().len();
    Overlay::open(&base, delta.try_clone().unwrap(), len)
}

fn read<D: Disk>(disk: &mut Overlay<D>, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // Two buffers, so that cutting them is tested as well.
    let (one, two) = bytes.split_at_mut(len / 3);
    let bufs = [IoBuf::staging(one), IoBuf::staging(two)];
    disk.perform(Op::Read, offset, &bufs).unwrap();
    bytes
}

fn write<D: Disk>(disk: &mut Overlay<D>, offset: u64, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let op = Op::Write { durable: false };
    disk.perform(op, offset, &[IoBuf::staging(&mut bytes)]).unwrap();
}

/// What a test does to a disk: sectors of 512 bytes.
#[derive(Debug, Clone)]
enum Act {
    Write { sector: usize, sectors: usize, fill: u8 },
    Zero { sector: usize, sectors: usize, unmap: bool },
    Discard { sector: usize, sectors: usize },
    Flush,
    Reopen,
}

fn acts(reopen: bool) -> impl Strategy<Value = Vec<Act>> {
    let sectors = DISK_BYTES / 512;
    let range =
        move || (0..sectors).prop_flat_map(move |at| (Just(at), 1..=(sectors - at).min(40)));
    let act = prop_oneof![
        6 => (range(), 1_u8..=255)
            .prop_map(|((sector, sectors), fill)| Act::Write { sector, sectors, fill }),
        2 => (range(), any::<bool>())
            .prop_map(|((sector, sectors), unmap)| Act::Zero { sector, sectors, unmap }),
        1 => range().prop_map(|(sector, sectors)| Act::Discard { sector, sectors }),
        2 => Just(Act::Flush),
        u32::from(reopen) => Just(Act::Reopen),
    ];
    prop::collection::vec(act, 1..16)
}

fn act_on<D: Disk>(disk: &mut Overlay<D>, model: &mut [u8], act: &Act) {
    match *act {
        Act::Write { sector, sectors, fill } => {
            let bytes: Vec<u8> =
                (0..sectors * 512).map(|i| fill ^ u8::try_from(i / 512).unwrap()).collect();
            write(disk, sector as u64 * 512, &bytes);
            model[sector * 512..][..bytes.len()].copy_from_slice(&bytes);
        }
        Act::Zero { sector, sectors, unmap } => {
            let op = Op::Zero { len_bytes: sectors as u64 * 512, unmap };
            disk.perform(op, sector as u64 * 512, &[]).unwrap();
            model[sector * 512..][..sectors * 512].fill(0);
        }
        Act::Discard { sector, sectors } => {
            let op = Op::Discard { len_bytes: sectors as u64 * 512 };
            disk.perform(op, sector as u64 * 512, &[]).unwrap();
            // What a discarded range holds is the device's choice: the model follows it.
            let now = read(disk, sector as u64 * 512, sectors * 512);
            model[sector * 512..][..sectors * 512].copy_from_slice(&now);
        }
        Act::Flush => disk.perform(Op::Flush, 0, &[]).unwrap(),
        Act::Reopen => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_overlay_is_a_disk_and_its_base_is_never_touched(acts in acts(true)) {
        let mut model = base_bytes();
        let base = file_with(&model);
        let delta = tempfile::tempfile().unwrap();
        let mut disk = open(&base, &delta).unwrap();
        for act in &acts {
            if matches!(act, Act::Reopen) {
                disk.perform(Op::Flush, 0, &[]).unwrap();
                disk = open(&base, &delta).unwrap();
            }
            act_on(&mut disk, &mut model, act);
            prop_assert!(read(&mut disk, 0, DISK_BYTES) == model, "after {:?}", act);
        }
        let mut now = vec![0; DISK_BYTES];
        base.read_exact_at(&mut now, 0).unwrap();
        prop_assert!(now == base_bytes());
    }

    #[test]
    fn after_any_crash_flushed_content_is_there(acts in acts(false), seed in any::<u64>()) {
        let mut model = base_bytes();
        let base = file_with(&model);
        let delta = tempfile::tempfile().unwrap();
        drop(open(&base, &delta).unwrap());
        let start = contents(&delta);
        let layout = Layout::new(DISK_BYTES as u64).unwrap();
        let map = format::open(&base, &delta, layout).unwrap();
        let recorder = Recorder { file: Arc::new(delta), log: Vec::new() };
        let raw = Raw::new(Arc::new(base.try_clone().unwrap()));
        let mut disk = Overlay::new(raw, recorder, layout, map);

        // Each crash is checked against what each sector held at the last flush and every value it took since.
        let mut history = vec![model.clone()];
        let mut checked = 0;
        for act in &acts {
            act_on(&mut disk, &mut model, act);
            history.push(model.clone());
            for upto in checked..=disk.delta.log.len() {
                let image = crash(&start, &disk.delta.log[..upto], seed);
                let found = open(&base, &file_with(&image)).unwrap_or_else(|e| panic!("{e}"));
                check_crash(found, &history)?;
            }
            checked = disk.delta.log.len();
            if matches!(act, Act::Flush) {
                history = vec![model.clone()];
                // From here on the flush has returned.
                let image = crash(&start, &disk.delta.log, seed);
                check_crash(open(&base, &file_with(&image)).unwrap(), &history)?;
            }
        }
    }
}

/// Every sector must hold what it held at the last flush, or a value it took since.
fn check_crash(mut disk: Overlay, history: &[Vec<u8>]) -> std::result::Result<(), TestCaseError> {
    let found = read(&mut disk, 0, DISK_BYTES);
    for sector in 0..DISK_BYTES / 512 {
        let range = sector * 512..(sector + 1) * 512;
        let known = history.iter().any(|then| then[range.clone()] == found[range.clone()]);
        prop_assert!(known, "sector {} holds what it never held", sector);
    }
    Ok(())
}

/// What reached the delta, in order.
#[derive(Debug, Clone)]
enum Reached {
    Bytes { offset: u64, bytes: Vec<u8> },
    Sync,
}

/// A delta that remembers.
#[derive(Debug)]
struct Recorder {
    file: Arc<File>,
    log: Vec<Reached>,
}

impl Disk for Recorder {
    fn perform(&mut self, op: Op, offset: u64, bufs: &[IoBuf]) -> Result<()> {
        Raw::new(Arc::clone(&self.file)).perform(op, offset, bufs)?;
        let len = match op {
            Op::Read => return Ok(()),
            Op::Flush => {
                self.log.push(Reached::Sync);
                return Ok(());
            }
            Op::Write { .. } => total(bufs),
            Op::Discard { len_bytes } | Op::Zero { len_bytes, .. } => len_bytes,
        };
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.file.read_exact_at(&mut bytes, offset)?;
        self.log.push(Reached::Bytes { offset, bytes });
        Ok(())
    }
}

/// The file after a power cut: all that a sync covered, and of the rest a random choice, sector by sector.
fn crash(start: &[u8], log: &[Reached], seed: u64) -> Vec<u8> {
    let mut image = start.to_vec();
    let synced = log.iter().rposition(|step| matches!(step, Reached::Sync)).unwrap_or(0);
    let mut random = seed | 1;
    for (at, step) in log.iter().enumerate() {
        let Reached::Bytes { offset, bytes } = step else { continue };
        for (index, sector) in bytes.chunks(512).enumerate() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if at < synced || random.is_multiple_of(2) {
                let to = usize::try_from(*offset).unwrap() + index * 512;
                image[to..to + sector.len()].copy_from_slice(sector);
            }
        }
    }
    image
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_new_delta_is_sparse_and_grows_by_what_is_written() {
    use std::os::unix::fs::MetadataExt;
    let base = tempfile::tempfile().unwrap();
    base.set_len(4 << 30).unwrap();
    let delta = tempfile::tempfile().unwrap();
    let mut disk = open(&base, &delta).unwrap();
    write(&mut disk, 3 << 30, &[7; 65536]);
    disk.perform(Op::Flush, 0, &[]).unwrap();
    let used = delta.metadata().unwrap().blocks() * 512;
    assert!((65536..128 << 10).contains(&used), "{used}");
    assert_eq!(read(&mut disk, (3 << 30) - 1, 3), [0, 7, 7]);
}

#[test]
fn a_damaged_or_foreign_delta_is_refused_with_its_reason() {
    let base = file_with(&base_bytes());
    let delta = tempfile::tempfile().unwrap();
    drop(open(&base, &delta).unwrap());
    let good = contents(&delta);
    assert!(open(&base, &file_with(&good)).is_ok());
    let patched = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= byte;
        bytes
    };
    let version_2 = patched(8, 3);
    for (name, bytes, want) in [
        ("not a delta", b"hello".repeat(2000), "the file is not an overlay"),
        ("short and not a delta", b"hello".to_vec(), "the file is not an overlay"),
        ("cut in the header", good[..100].to_vec(), "the overlay is damaged: it is cut off"),
        ("cut later", good[..good.len() - 1].to_vec(), "its length is not what its header says"),
        ("version", version_2, "the overlay has version 2, this program knows version 1"),
        ("a flipped bit", patched(33, 1), "its header's checksum is wrong"),
        ("bytes after the header", patched(4000, 1), "its header does not fit version 1"),
        ("a bit past the end", patched(4096 + 5, 2), "names blocks past the end"),
        ("the last page's end", patched(8191, 128), "names blocks past the end"),
    ] {
        let error = open(&base, &file_with(&bytes)).unwrap_err().to_string();
        assert!(error.contains(want), "{name}: {error}");
    }
}

#[test]
fn another_base_is_refused() {
    let base = file_with(&base_bytes());
    let delta = tempfile::tempfile().unwrap();
    drop(open(&base, &delta).unwrap());
    let copy = file_with(&base_bytes());
    assert!(open(&copy, &delta).is_ok(), "a copy of the base is the same base");
    for at in [0, 1100, DISK_BYTES - 1] {
        let mut changed = base_bytes();
        changed[at] ^= 1;
        assert!(matches!(open(&file_with(&changed), &delta), Err(OverlayError::OtherBase)), "{at}");
    }
    let longer = [base_bytes(), vec![0; 512]].concat();
    assert!(open(&file_with(&longer), &delta).is_err());
}

#[test]
fn a_write_through_write_needs_no_flush() {
    let base = file_with(&base_bytes());
    let delta = tempfile::tempfile().unwrap();
    let mut disk = open(&base, &delta).unwrap();
    let mut bytes = [9; 512];
    let op = Op::Write { durable: true };
    disk.perform(op, 1024, &[IoBuf::staging(&mut bytes)]).unwrap();
    drop(disk);
    assert_eq!(read(&mut open(&base, &delta).unwrap(), 1024, 512), [9; 512]);
}
