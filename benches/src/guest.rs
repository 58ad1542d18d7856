//! Guests whose whole work is to start: a bare-metal one of a few instructions, and the init of a Linux one.
//!
//! Invariant: every VMM runs the same bytes. Each way to end that a VMM may offer is tried in turn; the ports of the others are empty.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use openshell_tests::bare;

/// Exit code of QEMU's `isa-debug-exit` after a write of 0.
pub const QEMU_EXIT_CODE: i32 = 1;
/// Port of QEMU's `isa-debug-exit`.
pub const QEMU_EXIT_PORT: u16 = 0x501;

const EVENT_MARK_PORT: u16 = 0x680;
const KEYBOARD_PORT: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
const CLOUD_HYPERVISOR_POWER_PORT: u16 = 0x600;
const CLOUD_HYPERVISOR_POWER_OFF: u8 = 0x34;

const MOV_AL: u8 = 0xb0;
const OUT_DX_AL: u8 = 0xee;
const HLT: u8 = 0xf4;
/// `jmp` to the byte before itself.
const JMP_BACK_3: [u8; 2] = [0xeb, 0xfd];

/// An ELF image that ends the machine with its first instructions. They mean the same in 32-bit and in 64-bit mode.
#[must_use]
pub fn ends_at_once() -> Vec<u8> {
    let mut code = Vec::new();
    for (port, value) in [
        (bare::EXIT_PORT, 0),
        (QEMU_EXIT_PORT, 0),
        (KEYBOARD_PORT, KEYBOARD_RESET),
        (CLOUD_HYPERVISOR_POWER_PORT, CLOUD_HYPERVISOR_POWER_OFF),
    ] {
        code.extend(out(port, value));
    }
    code.push(HLT);
    code.extend(JMP_BACK_3);
    bare::elf(&code)
}

/// An ELF image that sleeps for ever, with interrupts as it found them: off.
#[must_use]
pub fn sleeps() -> Vec<u8> {
    let mut code = vec![HLT];
    code.extend(JMP_BACK_3);
    bare::elf(&code)
}

/// `mov dx, port; mov al, value; out dx, al`.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, MOV_AL, value, OUT_DX_AL]
}

/// What the init of a guest prints when it runs.
pub const INIT_SAYS: &str = "#init#\n";

/// A static Linux program: prints [`INIT_SAYS`], asks for port access, marks that user space runs, and reboots.
fn init() -> Vec<u8> {
    const WRITE: u32 = 1;
    const IOPL: u32 = 172;
    const REBOOT: u32 = 169;
    const EDI: u8 = 0xbf;
    const ESI: u8 = 0xbe;
    const EDX: u8 = 0xba;
    let text_len = u8::try_from(INIT_SAYS.len()).expect("a short text");
    let text_addr = u32::try_from(bare::LOAD_ADDR).expect("a low address") + 2;
    let mut code = vec![0xeb, text_len]; // jmp over the text
    code.extend(INIT_SAYS.as_bytes());
    for (number, arguments) in [
        (WRITE, vec![(EDI, 1), (ESI, text_addr), (EDX, u32::from(text_len))]),
        (IOPL, vec![(EDI, 3)]),
    ] {
        code.extend(system_call(number, &arguments));
    }
    code.extend(out(EVENT_MARK_PORT, 1));
    let magic = [(EDI, 0xfee1_dead), (ESI, 0x2812_1969), (EDX, 0x0123_4567)];
    code.extend(system_call(REBOOT, &magic));
    code.extend([0xeb, 0xfe]); // jmp to itself
    bare::elf(&code)
}

/// `mov REGISTER, value` for each argument, `mov eax, number; syscall`.
fn system_call(number: u32, arguments: &[(u8, u32)]) -> Vec<u8> {
    let mut code = Vec::new();
    for (register, value) in arguments {
        code.push(*register);
        code.extend(value.to_le_bytes());
    }
    code.push(0xb8);
    code.extend(number.to_le_bytes());
    code.extend([0x0f, 0x05]);
    code
}

/// Makes an ext4 image at `image` whose /sbin/init marks that user space runs and reboots.
///
/// # Errors
/// When mke2fs is not there or fails.
pub fn make_disk(image: &Path) -> Result<()> {
    make_disk_with(&init(), &[], image)
}

/// Makes an ext4 disk at `image` whose init is `init`, and with these programs, each by its path from the root and where it is now.
///
/// # Errors
/// As [`make_disk`], or when a program cannot be copied.
pub fn make_disk_with(init: &[u8], programs: &[(&str, &Path)], image: &Path) -> Result<()> {
    const BYTES: u64 = 16 << 20;
    let tree = tempfile::tempdir()?;
    for directory in ["dev", "proc", "sys", "sbin", "bin"] {
        fs::create_dir(tree.path().join(directory))?;
    }
    let path = tree.path().join("sbin/init");
    fs::write(&path, init)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    for (to, from) in programs {
        fs::copy(from, tree.path().join(to))?;
    }
    File::create(image)?.set_len(BYTES)?;
    // Not by name: the lab has a program of the same name that cannot fill an image.
    let mke2fs = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].into_iter().find(|it| Path::new(it).exists());
    let status = Command::new(mke2fs.context("no mke2fs (package e2fsprogs)")?)
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-E", "root_owner=0:0", "-d"])
        .args([tree.path(), image])
        .stdin(Stdio::null())
        .status()
        .context("cannot start mke2fs")?;
    ensure!(status.success(), "mke2fs ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts a program where it can be run. Copied by another process: were this one to write it, a child forked meanwhile by another
    /// test would hold it open.
    fn install(directory: &Path, image: &[u8]) -> std::path::PathBuf {
        let (from, to) = (directory.join("image"), directory.join("program"));
        fs::write(&from, image).unwrap();
        let copied = Command::new("install").args(["-m", "755"]).args([&from, &to]).status();
        assert!(copied.unwrap().success());
        to
    }

    #[test]
    fn the_host_loads_and_runs_such_images() {
        let directory = tempfile::tempdir().unwrap();
        let exit = system_call(231, &[(0xbf, 7)]);
        let program = install(directory.path(), &bare::elf(&exit));
        assert_eq!(Command::new(program).status().unwrap().code(), Some(7));
    }

    #[test]
    fn init_says_that_it_runs() {
        let directory = tempfile::tempdir().unwrap();
        let mut image = init();
        // Asking for port access becomes exit_group: a test has no ports and must not reboot its host.
        let iopl = [0xb8, 172, 0, 0, 0, 0x0f, 0x05];
        let at = image.windows(iopl.len()).position(|bytes| bytes == iopl).unwrap();
        image[at + 1] = 231;
        let output = Command::new(install(directory.path(), &image)).output().unwrap();
        assert_eq!(output.stdout, INIT_SAYS.as_bytes());
        assert_eq!(output.status.code(), Some(3));
    }
}
