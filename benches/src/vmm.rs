//! VMMs and their command lines for the same work: one virtual CPU, the same memory, kernel, disk and boot words.
//!
//! Invariant: a peer gets what its own documentation recommends for a quick boot, and no device that ours does not have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::guest::QEMU_EXIT_PORT;

/// Memory of every machine in MiB.
pub const MEMORY_MIB: u32 = 128;

/// A program that runs machines.
#[derive(Debug, Clone)]
pub struct System {
    /// For tables.
    pub name: String,
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    OpenshellVmm,
    QemuMicrovm,
    Firecracker,
    CloudHypervisor,
}

/// What a Linux guest does with its serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serial {
    /// A console with `quiet`: what goes wrong, and what init says.
    Quiet,
    /// The whole kernel log.
    Log,
    /// There is no port.
    None,
}

/// How a Linux kernel finds its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// The MultiProcessor table and the command line.
    Mp,
    /// ACPI.
    Acpi,
}

/// A Linux guest.
#[derive(Debug, Clone, Copy)]
pub struct Linux<'a> {
    /// The kernel.
    pub kernel: &'a Path,
    /// The root disk, writable.
    pub disk: &'a Path,
    /// What its serial port is for.
    pub serial: Serial,
    /// How the kernel finds its devices.
    pub tables: Tables,
}

impl System {
    /// Ours.
    #[must_use]
    pub fn ours(path: PathBuf) -> Self {
        Self { name: "openshell-vmm".to_owned(), path, kind: Kind::OpenshellVmm }
    }

    /// QEMU's microvm machine, when QEMU is installed.
    #[must_use]
    pub fn qemu() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
        places.push("/usr/bin".into());
        let path =
            places.iter().map(|place| place.join("qemu-system-x86_64")).find(|it| it.is_file())?;
        Some(Self { name: "qemu-microvm".to_owned(), path, kind: Kind::QemuMicrovm })
    }

    /// A peer that the user named; the name says what it is.
    ///
    /// # Errors
    /// When the name is of no VMM that is known here.
    pub fn peer(name: &str, path: &Path) -> Result<Self> {
        let kind = match name {
            name if name.starts_with("firecracker") => Kind::Firecracker,
            name if name.starts_with("cloud-hypervisor") => Kind::CloudHypervisor,
            name if name.starts_with("qemu") => Kind::QemuMicrovm,
            name if name.starts_with("openshell-vmm") => Kind::OpenshellVmm,
            _ => bail!(
                "no peer `{name}`: a name begins with firecracker, cloud-hypervisor, qemu or openshell-vmm"
            ),
        };
        Ok(Self { name: name.to_owned(), path: path.to_owned(), kind })
    }

    /// Whether it writes a boot trace.
    #[must_use]
    pub fn traces(&self) -> bool {
        self.kind == Kind::OpenshellVmm
    }

    /// Exit code of a guest that ends by itself; the first of its ways to end that this VMM knows.
    #[must_use]
    pub fn bare_exit_code(&self) -> i32 {
        if self.kind == Kind::QemuMicrovm { crate::guest::QEMU_EXIT_CODE } else { 0 }
    }

    /// Runs a bare-metal image without any device. `scratch` is for files that the VMM wants to read.
    ///
    /// # Errors
    /// When such a file cannot be written.
    pub fn bare(&self, image: &Path, scratch: &Path) -> Result<Command> {
        let mut command = self.command();
        match self.kind {
            Kind::OpenshellVmm => {
                let initrd = scratch.join("initrd");
                fs::write(&initrd, "a machine has a disk or an initial RAM disk")?;
                command.args(["run", "--console", "none", "--memory", &MEMORY_MIB.to_string()]);
                command.arg("--kernel").arg(image).arg("--initrd").arg(initrd);
            }
            Kind::QemuMicrovm => {
                qemu(&mut command, Serial::None, Tables::Mp);
                command.args(["-device", &format!("isa-debug-exit,iobase={QEMU_EXIT_PORT:#x}")]);
                command.arg("-kernel").arg(image);
            }
            Kind::Firecracker => firecracker(&mut command, scratch, image, "", None)?,
            Kind::CloudHypervisor => {
                cloud_hypervisor(&mut command, Serial::None);
                command.arg("--kernel").arg(image);
            }
        }
        Ok(command)
    }

    /// Takes the network card from a machine of [`Self::bare`]: the peers have none.
    pub fn without_network(&self, command: &mut Command) {
        if self.kind == Kind::OpenshellVmm {
            command.args(["--net", "none"]);
        }
    }

    /// Runs a Linux guest whose console, if any, is standard output, and without a network card.
    ///
    /// # Errors
    /// When a file that the VMM wants to read cannot be written.
    pub fn linux(&self, guest: &Linux<'_>, scratch: &Path) -> Result<Command> {
        let mut command = self.command();
        let words = self.words(guest);
        match self.kind {
            Kind::OpenshellVmm => {
                command.args(["run", "--memory", &MEMORY_MIB.to_string()]);
                self.without_network(&mut command);
                if guest.serial == Serial::None {
                    command.args(["--console", "none"]);
                }
                if guest.serial == Serial::Log {
                    command.args(["--append", LOG]);
                }
                command.arg("--kernel").arg(guest.kernel).arg("--disk").arg(guest.disk);
            }
            Kind::QemuMicrovm => {
                qemu(&mut command, guest.serial, guest.tables);
                command.args(["-append", &words]).arg("-kernel").arg(guest.kernel);
                let disk = guest.disk.to_str().context("the disk's path is text")?;
                let drive = format!("id=root,if=none,format=raw,file={}", disk.replace(',', ",,"));
                command.args(["-drive", &drive, "-device", "virtio-blk-device,drive=root"]);
            }
            Kind::Firecracker => {
                firecracker(&mut command, scratch, guest.kernel, &words, Some(guest.disk))?;
            }
            Kind::CloudHypervisor => {
                cloud_hypervisor(&mut command, guest.serial);
                command.args(["--cmdline", &words]).arg("--kernel").arg(guest.kernel);
                let disk = guest.disk.to_str().context("the disk's path is text")?;
                command.args(["--disk", &format!("path={disk}")]);
            }
        }
        Ok(command)
    }

    /// The words that our command passes by itself, for VMMs that pass none; each resets as its VMM is told quickest.
    fn words(&self, guest: &Linux<'_>) -> String {
        let console = match guest.serial {
            Serial::Quiet | Serial::Log => "console=ttyS0",
            Serial::None => "8250.nr_uarts=0",
        };
        let reboot = if self.kind == Kind::QemuMicrovm { "t" } else { "k" };
        let nomodule = if guest.tables == Tables::Mp { " nomodule" } else { "" };
        let log = if guest.serial == Serial::Log { LOG } else { "" };
        format!(
            "{console} quiet reboot={reboot} panic=-1 pci=off{nomodule} i8042.noaux i8042.nopnp percpu_alloc=page root=/dev/vda rw {log}"
        )
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.stdin(Stdio::null());
        command
    }
}

const LOG: &str = "loglevel=7";

fn qemu(command: &mut Command, serial: Serial, tables: Tables) {
    let on = |wanted| if wanted { "on" } else { "off" };
    let (acpi, port) = (on(tables == Tables::Acpi), on(serial != Serial::None));
    let machine = format!(
        "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi={acpi},isa-serial={port}"
    );
    // Some hosts say that they have the MSR of this feature and then refuse to set it, which QEMU takes for a bug of its own.
    let cpu = "host,-arch-capabilities";
    command.args(["-M", &machine, "-cpu", cpu, "-smp", "1", "-m", &MEMORY_MIB.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    if serial != Serial::None {
        command.args(["-serial", "stdio"]);
    }
}

fn firecracker(
    command: &mut Command,
    scratch: &Path,
    kernel: &Path,
    words: &str,
    disk: Option<&Path>,
) -> Result<()> {
    let drives: Vec<_> = disk
        .iter()
        .map(|disk| {
            json!({"drive_id": "root", "path_on_host": disk, "is_root_device": false, "is_read_only": false})
        })
        .collect();
    let config = json!({
        "boot-source": {"kernel_image_path": kernel, "boot_args": words},
        "drives": drives,
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
    });
    let file = scratch.join("firecracker.json");
    fs::write(&file, config.to_string())
        .with_context(|| format!("cannot write {}", file.display()))?;
    command.args(["--no-api", "--level", "Error", "--config-file"]).arg(file);
    Ok(())
}

fn cloud_hypervisor(command: &mut Command, serial: Serial) {
    let port = if serial == Serial::None { "off" } else { "tty" };
    command.args(["--cpus", "boot=1", "--memory", &format!("size={MEMORY_MIB}M")]);
    command.args(["--console", "off", "--serial", port]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(command: &Command) -> String {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn a_peer_is_told_what_ours_tells_its_kernel() {
        let scratch = tempfile::tempdir().unwrap();
        let [kernel, disk] = [Path::new("/k"), Path::new("/d,1")];
        for (name, wanted) in [
            ("qemu", "console=ttyS0 quiet reboot=t panic=-1 pci=off nomodule"),
            ("cloud-hypervisor-v50", "console=ttyS0 quiet reboot=k panic=-1"),
            (
                "openshell-vmm-before",
                "run --memory 128 --net none --append loglevel=7 --kernel /k --disk /d,1",
            ),
        ] {
            let system = System::peer(name, Path::new("/bin/x")).unwrap();
            let guest = Linux { kernel, disk, serial: Serial::Log, tables: Tables::Mp };
            let command = system.linux(&guest, scratch.path()).unwrap();
            assert!(text(&command).contains(wanted), "{}", text(&command));
        }
        System::peer("other", Path::new("/bin/x")).unwrap_err();
    }

    #[test]
    fn firecracker_reads_a_file() {
        let scratch = tempfile::tempdir().unwrap();
        let system = System::peer("firecracker", Path::new("/bin/x")).unwrap();
        system.bare(Path::new("/image"), scratch.path()).unwrap();
        let config = fs::read_to_string(scratch.path().join("firecracker.json")).unwrap();
        assert!(config.contains(r#""kernel_image_path":"/image""#), "{config}");
    }
}
