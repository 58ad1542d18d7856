//! A kernel image on its way into a small machine: parsed, loaded, started; the last eight bytes say which machine.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use openshell_fuzz::{Script, file, ram};
use openshell_vmm::boot::{self, CommandLine, CpuEntry, Entry, Kernel, KernelError, Setup};
use openshell_vmm::config::plan::{InputFile, Tables};
use openshell_vmm::layout::mmio_slot;
use openshell_vmm::memory::{GuestAddress, GuestRam};

/// Less than a machine may have, little, and the least that one may have.
const RAM_BYTES: [u64; 4] = [64 << 10, 2 << 20, 16 << 20, 32 << 20];
const TABLES: [Tables; 3] = [Tables::Auto, Tables::MpTable, Tables::Acpi];

static FILE: LazyLock<File> = LazyLock::new(file);

fuzz_target!(|data: &[u8]| {
    let (image, machine) = data.split_last_chunk::<8>().unwrap_or((data, &[0; 8]));
    let mut script = Script(machine);
    FILE.set_len(0).expect("a small file");
    FILE.write_all_at(image, 0).expect("a small file");
    let input = |len_bytes| InputFile {
        path: "image".into(),
        file: FILE.try_clone().expect("a descriptor"),
        len_bytes,
    };
    let image_file = input(image.len() as u64);
    let parsed = Kernel::parse(&image_file);
    compare(&parsed, &Kernel::parse_bytes(image));
    let Ok(mut kernel) = parsed else { return };
    let choice = script.byte();
    if choice & 1 != 0 {
        let Some(other) = kernel.with_pvh_entry() else { return };
        assert!(matches!(other.entry(), Entry::Pvh { .. }));
        kernel = other;
    }
    let ram = ram(RAM_BYTES[usize::from(choice >> 1 & 3)]);
    let loaded = match kernel.load(&image_file, &ram) {
        Ok(loaded) => loaded,
        Err(error @ KernelError::Read { .. }) => panic!("a checked part was not there: {error}"),
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(loaded.end.0 <= ram.len_bytes(), "the kernel lies in RAM");
    let initrd = (choice & 8 != 0).then(|| input(u64::from(script.u16()) << (script.byte() % 16)));
    let cmdline = words(usize::from(script.u16()));
    let slots: Vec<_> = (0..usize::from(script.byte() % 19)).filter_map(mmio_slot).collect();
    let setup = Setup {
        cpus: (choice >> 4) * 2 + 1,
        cmdline: &cmdline,
        initrd: initrd.as_ref(),
        tables: kernel.tables(TABLES[usize::from(script.byte() % 3)]),
        devices: &slots,
        serial: choice & 8 == 0,
        rng_seed: [7; 32],
    };
    match boot::prepare(&ram, &loaded, &setup) {
        Ok(entry) => started(&entry, loaded.entry, &cmdline, &ram),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// A file and the same bytes in memory are one image.
fn compare(file: &Result<Kernel, KernelError>, bytes: &Result<Kernel, KernelError>) {
    match (file, bytes) {
        (Ok(file), Ok(bytes)) => assert_eq!(file, bytes),
        (Err(file), Err(bytes)) => assert_eq!(file.to_string(), bytes.to_string()),
        (file, bytes) => panic!("{file:?} from the file, {bytes:?} from memory"),
    }
}

fn words(len: usize) -> CommandLine {
    let mut line = CommandLine::new();
    line.push(&"w".repeat(len)).expect("no control character");
    line
}

/// The boot processor starts at the entry, and finds the command line where a short one is.
fn started(cpu: &CpuEntry, entry: Entry, cmdline: &CommandLine, ram: &GuestRam) {
    let (Entry::Linux64 { rip } | Entry::Pvh { rip }) = entry;
    let regs = cpu.regs();
    assert_eq!(regs.rip, rip);
    assert!(ram.contains(GuestAddress(regs.rip), 1), "the first instruction lies in RAM");
    let params = if matches!(entry, Entry::Pvh { .. }) { regs.rbx } else { regs.rsi };
    let field = if matches!(entry, Entry::Pvh { .. }) { 24 } else { 0x228 };
    let mut addr = [0; 4];
    ram.read(GuestAddress(params + field), &mut addr).expect("the parameters lie in RAM");
    let mut text = vec![0; cmdline.len() + 1];
    let addr = GuestAddress(u64::from(u32::from_le_bytes(addr)));
    ram.read(addr, &mut text).expect("the command line lies in RAM");
    assert_eq!(text.split_last(), Some((&0, cmdline.as_str().as_bytes())));
}
