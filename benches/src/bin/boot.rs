//! `cargo xtask bench boot`: what it takes to start a machine.
//!
//! On the host, a bare-metal guest that ends at once, in turns with the peers; in the lab, by its instruction clock, a Linux guest to its
//! init and back. Nothing here passes or fails by its figures; only work that was not done is an error.

#![expect(
    clippy::print_stderr,
    reason = "a case takes minutes in the lab: people want to see that it goes on"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use openshell_benches::call::{self, Word};
use openshell_benches::guest;
use openshell_benches::process::{Process, Spent};
use openshell_benches::results::{self, Document};
use openshell_benches::trace::{Trace, millis};
use openshell_benches::vmm::{Linux, Serial, System, Tables};
use openshell_tests::memory::memory_beside_guest_kib;

const BENCHMARK: &str = "boot";
const BARE: &str = "bare guest";
/// How long a VMM is given to bring its guest to sleep before its memory is read.
const SETTLE: Duration = Duration::from_millis(300);

/// Measures what it takes to start a machine.
#[derive(Debug, Parser)]
struct Arguments {
    word: Word,
    /// Another VMM
    #[arg(long, value_parser = call::peer, value_name = "NAME=PATH")]
    peer: Vec<(String, PathBuf)>,
    /// Turns on the host
    #[arg(long, default_value_t = 100)]
    turns: u32,
    /// Turns in the lab, after one that is dropped
    #[arg(long, default_value_t = 5)]
    lab_turns: u32,
    /// Machines whose memory is read
    #[arg(long, default_value_t = 10)]
    memory_turns: u32,
    /// Only cases in the lab whose name contains this
    #[arg(long, default_value = "")]
    case: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.word {
        Word::Host => Bench::new(&arguments, "host")?.host(&arguments),
        Word::Lab => Bench::new(&arguments, "lab")?.lab(&arguments),
        Word::Report => results::print(BENCHMARK),
    }
}

/// The systems, and what they did so far.
struct Bench {
    systems: Vec<System>,
    document: Document,
    scratch: tempfile::TempDir,
}

impl Bench {
    fn new(arguments: &Arguments, place: &str) -> Result<Self> {
        let mut systems = vec![System::ours(call::fixture("openshell-vmm")?)];
        systems.extend(System::qemu());
        for (name, path) in &arguments.peer {
            systems.push(System::peer(name, path)?);
        }
        let scratch = tempfile::tempdir()?;
        Ok(Self { systems, document: Document::new(BENCHMARK, place), scratch })
    }

    fn host(mut self, arguments: &Arguments) -> Result<()> {
        let image = self.file("bare.elf", &guest::ends_at_once())?;
        for turn in 0..=arguments.turns {
            for index in self.order(turn) {
                let system = self.systems[index].clone();
                let (spent, trace) = self.run_bare(&system, &image)?;
                if turn == 0 {
                    continue;
                }
                let mut take = |figure: &str, value| {
                    self.document.sample(BARE, &system.name, figure, "ms", value);
                };
                take("cpu time", millis(spent.cpu));
                take("wall time", millis(spent.wall));
                if let Some(trace) = trace {
                    take("KVM open to first exit", trace.between("kvm_open", "kernel_entry")?);
                    for (phase, took) in trace.phases() {
                        take(&format!("phase {phase}"), *took);
                    }
                }
            }
        }
        let image = self.file("sleep.elf", &guest::sleeps())?;
        for turn in 0..arguments.memory_turns {
            for index in self.order(turn) {
                let system = self.systems[index].clone();
                let mut command = system.bare(&image, self.scratch.path())?;
                let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
                std::thread::sleep(SETTLE);
                let kib = memory_beside_guest_kib(process.id());
                process.end()?;
                let kib = kib.with_context(|| format!("{} did not run", system.name))?;
                #[expect(clippy::cast_precision_loss, reason = "a VMM is smaller than 2^52 KiB")]
                self.document.sample(BARE, &system.name, "memory", "KiB", kib as f64);
            }
        }
        self.save()
    }

    fn lab(mut self, arguments: &Arguments) -> Result<()> {
        let image = self.file("bare.elf", &guest::ends_at_once())?;
        let disk = self.scratch.path().join("pristine.ext4");
        guest::make_disk(&disk)?;
        let tiny = call::fixture("vmlinux-tiny")?;
        let sandbox = call::fixture("vmlinux-sandbox")?;
        for (case, kernel, serial, tables) in [
            ("tiny kernel, quiet", &tiny, Serial::Quiet, Tables::Mp),
            ("tiny kernel, log on the serial port", &tiny, Serial::Log, Tables::Mp),
            ("tiny kernel, no serial port", &tiny, Serial::None, Tables::Mp),
            ("sandbox kernel, quiet", &sandbox, Serial::Quiet, Tables::Acpi),
        ] {
            if !case.contains(&arguments.case) {
                continue;
            }
            eprintln!("{case}");
            for turn in 0..=arguments.lab_turns {
                for index in self.order(turn) {
                    let system = self.systems[index].clone();
                    let copy = self.scratch.path().join("root.ext4");
                    fs::copy(&disk, &copy)?;
                    let guest = Linux { kernel, disk: &copy, serial, tables };
                    let done = self.run_linux(&system, &guest);
                    let (spent, trace) =
                        done.with_context(|| format!("{case}: {}", system.name))?;
                    self.take_lab(turn, case, &system, spent, trace)?;
                }
            }
            self.save()?;
        }
        if BARE.contains(&arguments.case) {
            for turn in 0..=arguments.lab_turns {
                for index in self.order(turn) {
                    let system = self.systems[index].clone();
                    let (spent, trace) = self.run_bare(&system, &image)?;
                    self.take_lab(turn, BARE, &system, spent, trace)?;
                }
            }
        }
        self.save()
    }

    /// Which systems to run in this turn, in which order: each is first equally often.
    fn order(&self, turn: u32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.systems.len()).collect();
        order.rotate_left(turn as usize % self.systems.len());
        order
    }

    fn file(&self, name: &str, data: &[u8]) -> Result<PathBuf> {
        let path = self.scratch.path().join(name);
        fs::write(&path, data)?;
        Ok(path)
    }

    fn take_lab(
        &mut self,
        turn: u32,
        case: &str,
        system: &System,
        spent: Spent,
        trace: Option<Trace>,
    ) -> Result<()> {
        if turn == 0 {
            return Ok(());
        }
        // The lab's clock counts an instruction as a nanosecond.
        let mut take = |figure: &str, ms: f64| {
            self.document.sample(case, &system.name, figure, "million", ms);
        };
        take("instructions", millis(spent.wall));
        if let Some(trace) = trace {
            if case != BARE {
                take("instructions to init", trace.between("process_start", "init")?);
            }
            for (phase, took) in trace.phases() {
                take(&format!("phase {phase}"), *took);
            }
        }
        Ok(())
    }

    fn run_bare(&self, system: &System, image: &Path) -> Result<(Spent, Option<Trace>)> {
        let mut command = system.bare(image, self.scratch.path())?;
        system.without_network(&mut command);
        let (spent, _, trace) = self.run(system, &mut command)?;
        ensure!(
            spent.code == system.bare_exit_code(),
            "{} ended with {}, not {}",
            system.name,
            spent.code,
            system.bare_exit_code()
        );
        Ok((spent, trace))
    }

    /// Runs a Linux guest and checks that its init ran.
    fn run_linux(&self, system: &System, guest: &Linux<'_>) -> Result<(Spent, Option<Trace>)> {
        let mut command = system.linux(guest, self.scratch.path())?;
        let (spent, said, trace) = self.run(system, &mut command)?;
        if guest.serial != Serial::None {
            let text = String::from_utf8_lossy(&said);
            ensure!(text.contains(guest::INIT_SAYS.trim()), "init did not run: {text}");
        }
        if let Some(trace) = &trace {
            trace.between("process_start", "init")?;
        }
        Ok((spent, trace))
    }

    fn run(
        &self,
        system: &System,
        command: &mut Command,
    ) -> Result<(Spent, Vec<u8>, Option<Trace>)> {
        let [out, err] = ["stdout", "stderr"].map(|name| self.scratch.path().join(name));
        if system.traces() {
            command.arg("--boot-trace=json");
        }
        command.stdout(File::create(&out)?).stderr(File::create(&err)?);
        let spent = Process::start(command)?.wait()?;
        let errors = fs::read_to_string(&err)?;
        let trace = if system.traces() {
            let trace = errors.lines().find_map(Trace::parse);
            Some(trace.with_context(|| format!("{} left no trace: {errors}", system.name))?)
        } else {
            None
        };
        Ok((spent, fs::read(&out)?, trace))
    }

    /// Writes what there is; a run that is cut off later keeps it.
    fn save(&mut self) -> Result<()> {
        let ours = self.systems[0].name.clone();
        self.document.complete(&ours);
        self.document.write()
    }
}
