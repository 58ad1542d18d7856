//! `cargo xtask bench run`: what machines of images cost beside a machine of a disk, and many machines beside one.
//!
//! In the lab, by its instruction clock: a warm `run IMAGE -- echo hi` and `run --disk` with the same kernel, in turns, once with an init of
//! a few instructions and once with the image's program; then commands and copies in a machine that runs. On the host, where no ordinary
//! kernel need run: many bare-metal machines that start at once, and what memory each holds when it is idle. Nothing here passes or fails by
//! its figures; only work that was not done is an error.

#![expect(
    clippy::print_stderr,
    reason = "a turn takes long in the lab: people want to see that it goes on"
)]

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use openshell_benches::call::{self, Word};
use openshell_benches::process::Process;
use openshell_benches::results::{self, Document};
use openshell_benches::trace::{Trace, millis};
use openshell_benches::{guest, vmm::MEMORY_MIB};
use openshell_tests::image::{ARCHITECTURE, Registry, write_layout};
use openshell_tests::memory::memory_beside_guest_kib;
use serde_json::json;

const BENCHMARK: &str = "run";
const MANY: &str = "many bare guests at once";
const ECHO: &str = "run IMAGE -- echo hi, warm";
const EXEC: &str = "exec MACHINE -- true";
const COPY_IN: &str = "cp FILE MACHINE:, 16 MiB";
const COPY_OUT: &str = "cp MACHINE:FILE, 16 MiB";
const COPIED: usize = 16 << 20;
/// Commands of a turn.
const EXECS: usize = 5;
/// The machine that commands run in.
const NAME: &str = "bench";
/// The systems of a comparison, ours in three ways.
const OF_IMAGE: &str = "run IMAGE";
/// A disk with nothing but an init that prints a line and ends.
const OF_DISK: &str = "run --disk";
/// A disk with the program that the image runs.
const OF_SAME: &str = "run --disk, the image's program";
/// The first process on a disk of [`OF_SAME`].
const SAME_INIT: &str = "#!/bin/busybox sh\necho hi\nexec /bin/busybox poweroff -f\n";
/// Many times what a verb takes by the lab's clock, whose emulator now and then has a guest stand still: docs/lab.md.
const LIMIT: Duration = Duration::from_secs(3);
/// Guests in a row that may stand still before it is not the emulator's doing.
const STILL_MAX: usize = 3;
/// How long a machine is given to come to rest before its memory is read: it gives back what its start needed after a quarter of a second.
const SETTLE: Duration = Duration::from_secs(2);

/// Measures machines of images, and many machines.
#[derive(Debug, Parser)]
struct Arguments {
    word: Word,
    /// Machines that start at once on the host
    #[arg(long, default_value_t = 50)]
    machines: usize,
    /// Turns on the host
    #[arg(long, default_value_t = 5)]
    turns: u32,
    /// Turns in the lab, after one that is dropped
    #[arg(long, default_value_t = 5)]
    lab_turns: u32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.word {
        Word::Host => host(&arguments),
        Word::Lab => lab(&arguments),
        Word::Report => results::print(BENCHMARK),
    }
}

fn host(arguments: &Arguments) -> Result<()> {
    let vmm = call::fixture("openshell-vmm")?;
    let scratch = tempfile::tempdir()?;
    let files = [("end.elf", guest::ends_at_once()), ("sleep.elf", guest::sleeps())];
    for (name, image) in &files {
        fs::write(scratch.path().join(name), image)?;
    }
    let initrd = scratch.path().join("initrd");
    fs::write(&initrd, "a machine has a disk or an initial RAM disk")?;
    let start = |count: usize, image: &str| -> Result<Vec<Process>> {
        let machine = |_| {
            let mut command = Command::new(&vmm);
            command.args(["run", "--console", "none", "--memory"]).arg(MEMORY_MIB.to_string());
            command.arg("--kernel").arg(scratch.path().join(image)).arg("--initrd").arg(&initrd);
            Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
        };
        (0..count).map(machine).collect()
    };
    let mut document = Document::new(BENCHMARK, "host");
    for turn in 0..=arguments.turns {
        for count in [1, arguments.machines] {
            let case = format!("{MANY}: {count}");
            let begin = Instant::now();
            for machine in start(count, "end.elf")? {
                let code = machine.wait()?.code;
                ensure!(code == 0, "a machine ended with {code}");
            }
            let wall = begin.elapsed();
            let machines = start(count, "sleep.elf")?;
            thread::sleep(SETTLE);
            let kib: Result<Vec<u64>> =
                machines.iter().map(|it| memory_beside_guest_kib(it.id())).collect();
            for machine in machines {
                machine.end()?;
            }
            let kib = kib?;
            if turn == 0 {
                continue;
            }
            document.sample(
                &case,
                OF_DISK,
                "from the first start to the last end",
                "ms",
                millis(wall),
            );
            #[expect(clippy::cast_precision_loss, reason = "machines are smaller than 2^52 KiB")]
            let each = kib.iter().sum::<u64>() as f64 / count as f64;
            document.sample(&case, OF_DISK, "memory of each, idle", "KiB", each);
        }
    }
    document.complete(OF_DISK);
    document.write()
}

fn lab(arguments: &Arguments) -> Result<()> {
    let rig = Rig::new()?;
    let mut document = Document::new(BENCHMARK, "lab");
    for turn in 0..=arguments.lab_turns {
        eprintln!("turn {turn}");
        for system in [OF_IMAGE, OF_DISK, OF_SAME] {
            let (wall, trace) = match system {
                OF_IMAGE => rig.image()?,
                OF_DISK => rig.disk(&rig.pristine, guest::INIT_SAYS)?,
                _ => rig.disk(&rig.same, "hi\n")?,
            };
            if turn == 0 {
                continue;
            }
            // The lab's clock counts an instruction as a nanosecond.
            let mut take = |figure: &str, ms: f64| {
                document.sample(ECHO, system, figure, "million", ms);
            };
            take("instructions", millis(wall));
            for (phase, took) in trace.phases() {
                take(&format!("phase {phase}"), *took);
            }
        }
        document.complete(OF_IMAGE);
        document.write()?;
    }
    within(&rig, arguments.lab_turns, &mut document)
}

/// Commands and copies in a machine that runs.
fn within(rig: &Rig, turns: u32, document: &mut Document) -> Result<()> {
    let file = rig.path("file");
    fs::write(&file, vec![0x5a; COPIED])?;
    let file = file.to_str().context("a path is text")?;
    let (there, back) = (format!("{NAME}:/file"), rig.path("back"));
    let back = back.to_str().context("a path is text")?;
    let image = rig.reference();
    let kernel = rig.kernel.to_str().context("a path is text")?;
    rig.verb(&["run", "--kernel", kernel, "-d", "--name", NAME, &image, "--", "sleep", "1000000"])?;
    for turn in 0..=turns {
        eprintln!("turn {turn} in the machine");
        for (case, words) in std::iter::repeat_n((EXEC, &["exec", NAME, "true"]), EXECS)
            .chain([(COPY_IN, &["cp", file, &there]), (COPY_OUT, &["cp", &there, back])])
        {
            let wall = rig.verb(words)?;
            eprintln!("{case}: {} million", millis(wall));
            if turn > 0 {
                document.sample(case, OF_IMAGE, "instructions", "million", millis(wall));
            }
        }
        ensure!(fs::read(back)? == fs::read(file)?, "the copy is not what was copied");
        fs::remove_file(back)?;
    }
    rig.verb(&["rm", "-f", NAME])?;
    document.write()
}

/// A user with a home, an image in a registry of this host, and a disk.
struct Rig {
    vmm: PathBuf,
    kernel: PathBuf,
    pristine: PathBuf,
    same: PathBuf,
    registry: Registry,
    scratch: tempfile::TempDir,
}

impl Rig {
    fn new() -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let busybox = call::fixture("busybox")?;
        let tree = scratch.path().join("tree");
        fs::create_dir_all(tree.join("bin"))?;
        fs::copy(&busybox, tree.join("bin/busybox"))?;
        for applet in ["echo", "sleep", "true"] {
            symlink("busybox", tree.join("bin").join(applet))?;
        }
        let layout = scratch.path().join("layout");
        let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["echo", "hi"] });
        write_layout(&busybox, &tree, &layout, ARCHITECTURE, &config)?;
        let pristine = scratch.path().join("pristine.ext4");
        guest::make_disk(&pristine)?;
        let same = scratch.path().join("same.ext4");
        guest::make_disk_with(SAME_INIT.as_bytes(), &[("bin/busybox", &busybox)], &same)?;
        Ok(Self {
            vmm: call::fixture("openshell-vmm")?,
            kernel: call::fixture("vmlinux-sandbox")?,
            pristine,
            same,
            registry: Registry::serve(&layout)?,
            scratch,
        })
    }

    /// `run IMAGE -- echo hi`.
    fn image(&self) -> Result<(Duration, Trace)> {
        self.run(&["--quiet", &self.reference(), "--", "echo", "hi"], "hi\n")
    }

    fn reference(&self) -> String {
        format!("{}/team/shell:v1", self.registry.address())
    }

    /// `run --disk` of a fresh copy of a disk whose init says this and ends.
    fn disk(&self, pristine: &Path, says: &str) -> Result<(Duration, Trace)> {
        let copy = self.scratch.path().join("root.ext4");
        fs::copy(pristine, &copy)?;
        self.run(&["--disk", copy.to_str().context("a path is text")?], says)
    }

    /// Runs the command with these words and checks what the guest printed.
    fn run(&self, words: &[&str], says: &str) -> Result<(Duration, Trace)> {
        let kernel = self.kernel.to_str().context("a path is text")?;
        let words = [&["run", "--boot-trace=json", "--kernel", kernel], words].concat();
        let still = |_| {
            let wall = self.attempt(&words).transpose();
            if wall.is_none() {
                eprintln!("a guest stood still: its run is begun anew");
            }
            wall
        };
        let wall = (0..=STILL_MAX).find_map(still);
        let wall = wall.with_context(|| format!("{words:?} stood still every time"))??;
        let [said, errors] = ["stdout", "stderr"].map(|name| fs::read_to_string(self.path(name)));
        let (said, errors) = (said?, errors?);
        ensure!(said.replace('\r', "").contains(says), "{words:?} printed {said}{errors}");
        let trace = errors.lines().find_map(Trace::parse);
        Ok((wall, trace.with_context(|| format!("there is no trace: {errors}"))?))
    }

    /// Runs the command with these words to its good end; how long that took.
    fn verb(&self, words: &[&str]) -> Result<Duration> {
        self.attempt(words)?.with_context(|| format!("{words:?} stood still"))
    }

    /// The same; none when the command has not come to an end within [`LIMIT`].
    fn attempt(&self, words: &[&str]) -> Result<Option<Duration>> {
        let [out, err] = ["stdout", "stderr"].map(|name| self.path(name));
        let mut command = Command::new(&self.vmm);
        command.args(words);
        for (name, directory) in [("HOME", "home"), ("XDG_RUNTIME_DIR", "runtime")] {
            fs::create_dir_all(self.path(directory))?;
            command.env(name, self.path(directory));
        }
        command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
        let Some(spent) = Process::start(&mut command)?.wait_within(LIMIT)? else {
            return Ok(None);
        };
        let errors = fs::read_to_string(&err)?;
        ensure!(spent.code == 0, "{words:?} ended with {}: {errors}", spent.code);
        Ok(Some(spent.wall))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}
