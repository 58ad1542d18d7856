//! `run`: boots a machine and ends with what it came to.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use openshell_vmm::config::failure::SpecError;
use openshell_vmm::config::kernel::KernelPlaces;
use openshell_vmm::config::net::{CardFeature, NetSpec, RingSize};
use openshell_vmm::config::plan::{Plan, runtime_directory};
use openshell_vmm::config::spec::{
    ConsoleSpec, DiskSpec, MemorySize, Spec, TablesSpec, TimeLimit, TraceFormat, VsockSpec,
};
use openshell_vmm::config::{open, toml_file};
use openshell_vmm::explain::Explain;
use openshell_vmm::report::json::{self, Document, ResultFile, Trace};
use openshell_vmm::report::{BootTrace, CODE_VMM, Outcome, Phase, Verdict, text};

use super::failure::Failure;
use super::image_args::ImageArgs;
use super::image_run;
use super::net_args::NetArgs;

/// Run a command in a machine of an image, or boot a machine from a disk
///
/// With an image, its command or the one given runs as the machine's main process. Without a name the machine goes away, with all that it
/// wrote, when it ends. With --disk and no image the guest boots as it is, and its console is on standard input and output. Everything that
/// openshell-vmm itself says is on standard error.
///
/// Exit codes: the guest's own; 124 when --timeout ran out; 125 when there is no guest status (bad arguments, a host that
/// cannot, a guest kernel that panicked); 128+N when signal N ended the run. A guest may use these numbers itself:
/// scripts read --result.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,
    /// Raw disk image or block device; the first is the root disk, /dev/vda
    ///
    /// It is opened read-write in place, and locked. `ro` makes it read-only; `overlay=F` keeps what the guest writes in
    /// F and leaves the image alone; `iops=N` and `bw=SIZE` limit operations and bytes per second.
    #[arg(
        long = "disk",
        value_name = "FILE[,ro][,overlay=F][,iops=N][,bw=SIZE]",
        help_heading = "Machine"
    )]
    disks: Vec<OsString>,
    /// Guest kernel: an uncompressed ELF or a bzImage [default: the installed one, see `kernel path`]
    #[arg(long, value_name = "FILE", alias = "kernel-image", help_heading = "Machine")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    initrd: Option<PathBuf>,
    /// Add to the kernel command line
    #[arg(
        long,
        value_name = "TEXT",
        alias = "kernel-args",
        allow_hyphen_values = true,
        help_heading = "Machine"
    )]
    append: Option<String>,
    /// Number of CPUs, 1 to 32 [default: 1]
    #[arg(short, long, value_name = "N", alias = "cpu", help_heading = "Machine")]
    cpus: Option<String>,
    /// Memory: 512M, 4Gi, or a bare number of MiB; rounded up to 2 MiB [default: 512M]
    #[arg(short, long, value_name = "SIZE", alias = "mem", help_heading = "Machine")]
    memory: Option<String>,
    /// Serve virtio-vsock at this socket; port N of the guest is at PATH_N
    #[arg(long, value_name = "PATH[,cid=N]", help_heading = "Machine")]
    vsock: Option<OsString>,
    /// How the guest's network card is served: by the stack in this process, or not at all [default: user]
    #[arg(long, value_name = "user|none", help_heading = "Network")]
    net: Option<OsString>,
    #[command(flatten)]
    network: NetArgs,
    /// Do not offer these features of the card: csum, guest_tso4, mrg_rxbuf and the others of VIRTIO, to find out what a guest
    /// stumbles over
    #[arg(long, value_name = "FEATURE[,FEATURE]", help_heading = "Network")]
    net_without: Option<String>,
    /// Descriptors of the card's rings: 256, 512 or 1024 [default: 256]
    #[arg(long, value_name = "N", help_heading = "Network")]
    net_ring: Option<String>,
    /// How the guest finds its devices; auto goes by the kernel
    #[arg(
        long,
        value_name = "HOW",
        value_parser = clap::builder::PossibleValuesParser::new(TablesSpec::NAMES),
        help_heading = "Machine"
    )]
    tables: Option<String>,
    /// Where the guest's serial console goes [default: stdio]
    #[arg(long, value_name = "stdio|file=F|none", help_heading = "Run")]
    console: Option<OsString>,
    /// Stop the machine after this time: 30s, 5m, or a bare number of seconds
    #[arg(long, value_name = "TIME", help_heading = "Run")]
    timeout: Option<String>,
    /// Print how long each phase of the boot took, as a table or as one line of JSON
    #[arg(
        long,
        value_name = "text|json",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "text",
        value_parser = ["text", "json"],
        hide_possible_values = true,
        help_heading = "Run"
    )]
    boot_trace: Option<String>,
    /// Write how the run ended to FILE, as JSON
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    result: Option<PathBuf>,
    /// Read what is not given here from a TOML file; it takes the long names of these flags
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    config: Option<PathBuf>,
    /// Leave threads unconfined, to debug
    #[arg(long, help_heading = "Run")]
    no_seccomp: bool,
}

impl RunArgs {
    /// What the flags say, completed by the file they name.
    pub(super) fn into_spec(self) -> Result<Spec, SpecError> {
        let flags = Spec {
            disks: self.disks.iter().map(|disk| DiskSpec::parse(disk)).collect::<Result<_, _>>()?,
            kernel: self.kernel,
            initrd: self.initrd,
            append: self.append,
            cpus: self.cpus.as_deref().map(Spec::parse_cpus).transpose()?,
            memory: self.memory.as_deref().map(MemorySize::parse).transpose()?,
            vsock: self.vsock.as_deref().map(VsockSpec::parse).transpose()?,
            net: NetSpec {
                without: self
                    .net_without
                    .as_deref()
                    .map_or(Ok(Vec::new()), CardFeature::parse_list)?,
                ring_size: self.net_ring.as_deref().map(RingSize::parse).transpose()?,
                ..self.network.into_spec(self.net.as_deref())?
            },
            console: self.console.as_deref().map(ConsoleSpec::parse).transpose()?,
            timeout: self.timeout.as_deref().map(TimeLimit::parse).transpose()?,
            tables: self.tables.as_deref().and_then(TablesSpec::named),
            seccomp: self.no_seccomp.then_some(false),
            boot_trace: self.boot_trace.map(|format| match format.as_str() {
                "json" => TraceFormat::Json,
                _ => TraceFormat::Text,
            }),
            result: self.result,
        };
        match self.config {
            Some(path) => Ok(flags.or(toml_file::read(&path)?)),
            None => Ok(flags),
        }
    }
}

/// Runs `machine` on what `args` ask for, and tells how it ended. Returns the exit code.
pub(super) fn run<E: Explain>(
    args: RunArgs,
    machine: impl FnOnce(Plan, BootTrace) -> Result<Outcome, E>,
) -> Result<u8, Failure> {
    let mut trace = BootTrace::of_process();
    if args.image.source.is_some() {
        return image_run::run(args, trace, machine);
    }
    let named = args.result.clone();
    let spec = args.into_spec().map_err(|error| {
        // The arguments are what must be told.
        let record = named.as_deref().and_then(|path| Record::open(path).ok());
        not_started(&error, record)
    })?;
    let record = spec.result.as_deref().map(Record::open).transpose()?;
    // A kernel that is named is not looked for.
    let places = spec.kernel.is_none().then(KernelPlaces::of_process).unwrap_or_default();
    let plan = match open::open(&spec, &places) {
        Ok(plan) => Plan { runtime_dir: runtime_directory(), ..plan },
        Err(error) => return Err(not_started(&error, record)),
    };
    trace.mark(Phase::ProcessStart);
    let mut outcome = match machine(plan, trace) {
        Ok(outcome) => outcome,
        Err(error) => return Err(not_started(&error, record)),
    };
    let verdict = Verdict::of(&outcome);
    super::say(&text::ending(&outcome, &verdict));
    say_trace(&mut outcome, spec.boot_trace);
    if let Some(record) = record {
        record.finish(&Document::of(&outcome, &verdict))?;
    }
    Ok(verdict.code)
}

/// Says how long each phase took, if that was asked for.
pub(super) fn say_trace(outcome: &mut Outcome, format: Option<TraceFormat>) {
    outcome.trace.mark(Phase::Exit);
    match format {
        None => {}
        Some(TraceFormat::Text) => {
            super::say(&text::boot_trace(&outcome.trace));
            super::say(&text::network(&outcome.network));
        }
        Some(TraceFormat::Json) => super::say(&json::line(&Trace::of(&outcome.trace))),
    }
}

/// Leaves a record of a run that came to no outcome, for scripts that read the result and not the exit code.
pub(super) fn not_started(error: &impl Explain, record: Option<Record>) -> Failure {
    let failure = Failure::of(error, CODE_VMM);
    if let Some(record) = record {
        // The failure itself is what must be told.
        drop(record.finish(&Document::of_failure(&failure.verdict())));
    }
    failure
}

/// The result file with its name. It is opened here, before anything else, because the machine's end finds this thread
/// confined, where no file is opened.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    file: ResultFile,
}

impl Record {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let file = open::result(path).map_err(|error| Failure::of(&error, CODE_VMM))?;
        let file = ResultFile::start(file).map_err(|error| cannot_write(path, &error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(super) fn finish(self, document: &Document) -> Result<(), Failure> {
        self.file.finish(document).map_err(|error| cannot_write(&self.path, &error))
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure {
        what: format!("cannot write the result file {}", path.display()),
        why: Some(error.to_string()),
        fix: Some("check that its disk has room".to_owned()),
        code: CODE_VMM,
    }
}
