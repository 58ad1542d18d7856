//! The emulator's command line, a pure function of what a run wants.
//!
//! The processor is emulated (TCG), has SVM and nested paging, and there is no network card: a lab
//! can reach nothing but the directories it is given.

use std::ffi::OsString;
use std::path::Path;

use super::channel::PORTS;
use super::console;
use super::initramfs::kernel_line;
use super::{Clock, Spec};

/// Where the parts of one run lie on the host.
#[derive(Debug)]
pub(crate) struct Paths<'a> {
    /// The uncompressed kernel.
    pub(crate) vmlinux: &'a Path,
    /// The run's own directory: initramfs, sockets, console log, scratch disk.
    pub(crate) work: &'a Path,
}

/// Arguments for `qemu-system-x86_64`.
pub(crate) fn arguments(spec: &Spec, paths: &Paths<'_>) -> Vec<OsString> {
    let mut line = Line(Vec::new());
    line.plain(&["-M", "pc", "-nodefaults", "-no-user-config"]);
    line.plain(&["-display", "none", "-no-reboot"]);
    match spec.clock {
        // Emulated byte by byte, `rep stosb` doubles the time of whatever clears memory.
        Clock::Wall => {
            line.plain(&["-cpu", "max,+svm,+npt,-erms,-fsrm", "-accel", "tcg,thread=multi"]);
        }
        Clock::Instructions => {
            line.plain(&["-cpu", "max,+svm,+npt", "-accel", "tcg,thread=single"]);
            line.pair("-icount", "shift=0,sleep=off");
        }
    }
    let cpus = if spec.clock == Clock::Instructions { 1 } else { spec.cpus };
    line.pair("-smp", &cpus.to_string());
    line.pair("-m", &format!("{}M", spec.memory_mib));
    line.path("-kernel", "", paths.vmlinux, "");
    line.path("-initrd", "", &paths.work.join("initramfs"), "");
    line.pair("-append", &kernel_line(spec.clock));
    if spec.terminal {
        line.pair("-serial", "mon:stdio");
    } else {
        let socket = paths.work.join(console::SOCKET);
        line.path("-chardev", "socket,id=console,mux=on,path=", &socket, "");
        line.plain(&["-serial", "chardev:console", "-mon", "chardev=console"]);
    }
    line.pair("-device", "virtio-serial-pci");
    for port in PORTS {
        let head = format!("socket,id={port},path=");
        line.path("-chardev", &head, &paths.work.join(port), "");
        line.pair("-device", &format!("virtserialport,chardev={port},name={port}"));
    }
    for (index, share) in spec.shares.iter().enumerate() {
        let access = if share.writable { "" } else { ",readonly=on" };
        let head = format!("local,id=share{index},security_model=none,multidevs=remap,path=");
        line.path("-fsdev", &head, &share.host, access);
        let device = format!("virtio-9p-pci,fsdev=share{index},mount_tag=share{index}");
        line.pair("-device", &device);
    }
    if spec.scratch_mib.is_some() {
        let head = "if=none,id=scratch,format=raw,cache=unsafe,discard=unmap,file=";
        line.path("-drive", head, &paths.work.join("scratch"), "");
        line.pair("-device", "virtio-blk-pci,drive=scratch");
    }
    line.0
}

struct Line(Vec<OsString>);

impl Line {
    fn plain(&mut self, arguments: &[&str]) {
        self.0.extend(arguments.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: &str) {
        self.plain(&[option, value]);
    }

    /// An option whose value holds a path; QEMU wants commas in values doubled.
    fn path(&mut self, option: &str, head: &str, path: &Path, tail: &str) {
        let text = path.to_string_lossy();
        let escaped = if head.is_empty() { text.into_owned() } else { text.replace(',', ",,") };
        self.pair(option, &format!("{head}{escaped}{tail}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Share;

    fn line(spec: &Spec) -> String {
        let paths = Paths { vmlinux: Path::new("/k,1"), work: Path::new("/w,1") };
        let words: Vec<String> = arguments(spec, &paths)
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        words.join(" ")
    }

    #[test]
    fn instruction_clock_is_one_processor_on_one_thread() {
        let line = line(&Spec { clock: Clock::Instructions, cpus: 4, ..Spec::default() });
        assert!(line.contains("-icount shift=0,sleep=off"), "{line}");
        assert!(line.contains("thread=single"), "{line}");
        assert!(line.contains("-smp 1 "), "{line}");
    }

    #[test]
    fn commas_in_paths_are_doubled_inside_values_only() {
        let share = Share { host: "/a,b".into(), lab: "/x".into(), writable: false };
        let line = line(&Spec { shares: vec![share], scratch_mib: Some(1), ..Spec::default() });
        assert!(line.contains("-kernel /k,1 "), "{line}");
        assert!(line.contains("path=/a,,b,readonly=on"), "{line}");
        assert!(line.contains("file=/w,,1/scratch"), "{line}");
        assert!(line.contains("path=/w,,1/stdout"), "{line}");
    }

    #[test]
    fn a_terminal_takes_the_console_from_the_log() {
        let with = line(&Spec { terminal: true, ..Spec::default() });
        assert!(with.contains("-serial mon:stdio") && !with.contains("id=console"), "{with}");
    }
}
