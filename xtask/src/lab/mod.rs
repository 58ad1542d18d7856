//! The lab: a machine under software emulation whose processor has SVM, so that its /dev/kvm is an
//! ordinary hardware-style KVM wherever this runs.
//!
//! [`Spec`] says what a run wants, [`Spec::run`] starts the machine, runs one command in it and
//! returns its exit code and output. Each run has its own directory and shares nothing that can be
//! written with another, so any number of labs run at once.

mod channel;
mod console;
pub(crate) mod cpio;
mod initramfs;
mod kernel;
mod machine;
pub(crate) mod modules;
mod qemu;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{cmd, setup};

/// Programs of the host that a lab is made and run with.
const PROGRAMS: [&str; 5] = ["qemu-system-x86_64", "busybox", "mke2fs", "depmod", "setpriv"];

/// What a run of the lab wants.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Memory of the lab in MiB; only what is touched is taken from the host.
    pub(crate) memory_mib: u64,
    /// Processors, each emulated on a thread of its own; the instruction clock always has one.
    pub(crate) cpus: u32,
    /// What the lab's time counts.
    pub(crate) clock: Clock,
    /// Files and directories that are put into the lab's memory at boot.
    pub(crate) files: Vec<FileIn>,
    /// Directories of the host that are mounted in the lab.
    pub(crate) shares: Vec<Share>,
    /// Size of a fresh ext4 disk on `/scratch`, in MiB, gone with the lab.
    pub(crate) scratch_mib: Option<u64>,
    /// Kernel modules to load besides those for KVM and the lab's own devices.
    pub(crate) modules: Vec<String>,
    /// Environment of the command.
    pub(crate) env: Vec<(String, String)>,
    /// Program and arguments, run in `/root`.
    pub(crate) command: Vec<String>,
    /// Whether the command has the developer's terminal; it then has no stream of its own.
    pub(crate) terminal: bool,
    /// What the command reads.
    pub(crate) input: Input,
    /// Where the command's output goes.
    pub(crate) output: Output,
    /// How long the run may take, boot included.
    pub(crate) timeout: Duration,
}

/// What the lab's time counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The time of the host; processors run in parallel.
    Wall,
    /// Executed instructions, 1 ns each, on one processor: the same work takes the same time on any
    /// host, within half a percent. The first machine started after boot pays for idle waits: drop
    /// its figures.
    Instructions,
}

/// What the lab's command reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing.
    Empty,
    /// The stdin of this process.
    Inherit,
}

/// Where the lab's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// To stdout and stderr of this process, byte for byte and as it comes.
    Inherit,
    /// Into [`Outcome`].
    Capture,
}

/// A file or directory of the host and its place in the lab.
#[derive(Debug, Clone)]
pub(crate) struct FileIn {
    /// The file on the host.
    pub(crate) host: PathBuf,
    /// Its path in the lab.
    pub(crate) lab: String,
    /// Permission bits; those of the host's file where there are none.
    pub(crate) mode: Option<u32>,
}

/// A directory of the host that the lab mounts.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    /// The directory on the host.
    pub(crate) host: PathBuf,
    /// The mount point in the lab; no blanks.
    pub(crate) lab: String,
    /// Whether the lab may write into it. A directory that it may only read must not change.
    pub(crate) writable: bool,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Exit code of the command, 128 + N after signal N.
    pub(crate) code: u8,
    /// What the command wrote to stdout, when captured.
    pub(crate) stdout: Vec<u8>,
    /// What the command wrote to stderr, when captured.
    pub(crate) stderr: Vec<u8>,
    /// Wall time until the command started.
    pub(crate) boot: Duration,
    /// Wall time of the whole run.
    pub(crate) total: Duration,
}

/// The run was cut off at its deadline.
#[derive(Debug)]
pub(crate) struct TimedOut(Duration);

impl std::fmt::Display for TimedOut {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "not done within its deadline of {:?}", self.0)
    }
}

impl std::error::Error for TimedOut {}

impl Default for Spec {
    fn default() -> Self {
        Self {
            memory_mib: 3072,
            cpus: 2,
            clock: Clock::Wall,
            files: Vec::new(),
            shares: Vec::new(),
            scratch_mib: None,
            modules: Vec::new(),
            env: Vec::new(),
            command: vec!["sh".into()],
            terminal: false,
            input: Input::Empty,
            output: Output::Inherit,
            timeout: Duration::from_mins(5),
        }
    }
}

impl Spec {
    /// Starts the lab, runs the command and stops the lab.
    pub(crate) fn run(&self) -> Result<Outcome> {
        // Asking the package manager takes longer than half the boot.
        if PROGRAMS.iter().any(|program| cmd::find(program).is_none()) {
            setup::ensure(setup::Purpose::Lab)?;
        }
        machine::run(self, &initramfs::Base::prepare()?)
    }

    /// Puts a program of the host into the lab at the same path, with the libraries it needs.
    pub(crate) fn add_tool(&mut self, program: &Path) -> Result<()> {
        let listed = cmd::text(Command::new("ldd").arg(program));
        // ldd refuses a static program, which then is all there is to add.
        for library in listed.as_deref().unwrap_or_default().lines().filter_map(library_of) {
            self.add_file(Path::new(library), library);
        }
        let lab = program.to_str().context("the path of a tool is text")?;
        self.add_file(program, lab);
        Ok(())
    }

    /// Puts a file or directory into the lab with the mode it has on the host.
    pub(crate) fn add_file(&mut self, host: &Path, lab: &str) {
        if !self.files.iter().any(|file| file.lab == lab) {
            self.files.push(FileIn { host: host.to_owned(), lab: lab.to_owned(), mode: None });
        }
    }

    /// The shell script that runs the command inside.
    fn script(&self) -> String {
        let mut script = String::from("#!/bin/sh\n");
        for (name, value) in &self.env {
            script.push_str(&format!("export {name}={}\n", quoted(value)));
        }
        if self.terminal
            && let Some((rows, columns)) = terminal_size()
        {
            script.push_str(&format!("stty rows {rows} cols {columns}\n"));
        }
        let words: Vec<String> = self.command.iter().map(|word| quoted(word)).collect();
        script.push_str(&format!("exec {}\n", words.join(" ")));
        script
    }
}

/// A word as the shell must read it to get it back unchanged.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The file that a line of ldd(1) names: `libc.so.6 => /lib/libc.so.6 (0x...)`, `/lib64/ld.so (0x...)`.
fn library_of(line: &str) -> Option<&str> {
    let words = line.split_once("=>").map_or(line, |(_, after)| after);
    words.split_whitespace().next().filter(|path| path.starts_with('/'))
}

/// Rows and columns of the developer's terminal.
fn terminal_size() -> Option<(u16, u16)> {
    let text = cmd::text_of_terminal(Command::new("stty").arg("size"))?;
    let (rows, columns) = text.trim().split_once(' ')?;
    let (rows, columns): (u16, u16) = (rows.parse().ok()?, columns.parse().ok()?);
    (rows != 0 && columns != 0).then_some((rows, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_command_unchanged() {
        let words = ["plain", "two words", "it's", "$HOME `x` \"y\" \\", "", "new\nline"];
        let mut command = vec!["printf".to_owned(), "%s|".to_owned()];
        command.extend(words.map(str::to_owned));
        let env = vec![("V".to_owned(), "a 'b'".to_owned())];
        let script = Spec { command, env, ..Spec::default() }.script();
        let shown = cmd::text(Command::new("sh").arg("-c").arg(&script)).unwrap();
        assert_eq!(shown, format!("{}|", words.join("|")));
        assert!(script.contains(r"export V='a '\''b'\'''"), "{script}");
    }

    #[test]
    fn libraries_from_ldd() {
        for (line, expected) in [
            ("\tlinux-vdso.so.1 (0x00007ffc)", None),
            (
                "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)",
                Some("/lib/x86_64-linux-gnu/libc.so.6"),
            ),
            ("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)", Some("/lib64/ld-linux-x86-64.so.2")),
            ("\tlibmissing.so => not found", None),
            ("\tstatically linked", None),
        ] {
            assert_eq!(library_of(line), expected, "{line}");
        }
    }
}
