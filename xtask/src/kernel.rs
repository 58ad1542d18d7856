//! Builds the guest kernels of `kernel/` from the distribution's source package.
//! A cache entry is named by everything that can change the result, is verified before it is published, and is
//! published by one rename; the lock of the cache keeps two builds apart.

mod config;
mod elf;
mod source;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::setup::{self, Purpose, cache_dir, data_dir, output_of, step};
use config::Config;
use source::Source;

/// Part of the cache key: raise it when the steps below change what they produce.
const RECIPE: u32 = 1;
/// What a build makes; all there or the entry does not count.
const FILES: [&str; 3] = ["vmlinux", "config", "kernel.json"];

/// `cargo xtask kernel`: build the guest kernels, or find them in the cache.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which kernel.
    #[arg(long, value_enum, default_value = "all")]
    profile: Choice,
    /// Print the path of each kernel image on standard output.
    #[arg(long)]
    print_path: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Choice {
    Tiny,
    Sandbox,
    All,
}

/// A kernel configuration with a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Profile {
    /// Benchmarks: the least that boots an ext4 root.
    Tiny,
    /// Everything that a container workload expects.
    Sandbox,
}

/// How the kernel learns of processors, interrupts and devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tables {
    /// MPTable, and devices on the command line.
    Mptable,
    /// ACPI with reduced hardware.
    Acpi,
}

/// `kernel.json`: what an image is and what it was made from. Hashes are lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) profile: Profile,
    pub(crate) tables: Tables,
    pub(crate) source_version: String,
    pub(crate) source_sha256: String,
    pub(crate) config_sha256: String,
    pub(crate) build_id: String,
    pub(crate) vmlinux_sha256: String,
}

/// A verified kernel, installed where `openshell-vmm run` looks.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// Holds `vmlinux`, `config` and `kernel.json`.
    pub(crate) dir: PathBuf,
    pub(crate) vmlinux: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Profile {
    const ALL: [Self; 2] = [Self::Tiny, Self::Sandbox];

    /// The name in paths, in `kernel.json` and in the image's build salt.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Sandbox => "sandbox",
        }
    }

    fn tables(self) -> Tables {
        match self {
            Self::Tiny => Tables::Mptable,
            Self::Sandbox => Tables::Acpi,
        }
    }

    /// What the image says of itself in its build salt note; the VMM reads it there.
    fn salt(self) -> String {
        let tables = match self.tables() {
            Tables::Mptable => "mptable",
            Tables::Acpi => "acpi",
        };
        format!("openshell-vmm/1 {} {tables}", self.name())
    }

    fn fragments(self) -> [&'static str; 2] {
        match self {
            Self::Tiny => [
                include_str!("../../kernel/config/common.config"),
                include_str!("../../kernel/config/tiny.config"),
            ],
            Self::Sandbox => [
                include_str!("../../kernel/config/common.config"),
                include_str!("../../kernel/config/sandbox.config"),
            ],
        }
    }

    fn required(self) -> &'static str {
        match self {
            Self::Tiny => include_str!("../../kernel/required/tiny.config"),
            Self::Sandbox => include_str!("../../kernel/required/sandbox.config"),
        }
    }

    /// The fragments as one, a later line replacing an earlier one.
    fn wanted(self) -> Result<Config> {
        let mut wanted = Config::default();
        for fragment in self.fragments() {
            wanted.merge(Config::parse(fragment)?);
        }
        Ok(wanted)
    }
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    let profiles: &[Profile] = match args.profile {
        Choice::Tiny => &[Profile::Tiny],
        Choice::Sandbox => &[Profile::Sandbox],
        Choice::All => &Profile::ALL,
    };
    for profile in profiles {
        let built = build(*profile)?;
        writeln!(
            std::io::stderr(),
            "kernel: {} of {}, build id {}, is in {}",
            profile.name(),
            built.manifest.source_version,
            built.manifest.build_id,
            built.dir.display()
        )?;
        if args.print_path {
            writeln!(std::io::stdout(), "{}", built.vmlinux.display())?;
        }
    }
    Ok(())
}

/// Builds the kernel of `profile` unless the cache has it, verifies it and installs it.
///
/// # Errors
/// The source package is missing or not one we accept, the build fails, or the result lacks what it must have.
pub(crate) fn build(profile: Profile) -> Result<Built> {
    setup::ensure(Purpose::Kernel)?;
    let root = cache_dir()?.join("kernel");
    fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
    let _lock = lock(&root)?;
    let source = Source::find()?;
    let wanted = profile.wanted()?;
    let entry = root.join(cache_key(&source.sha256, &wanted, &compiler()?));
    if !FILES.iter().all(|file| entry.join(file).is_file()) {
        let name = profile.name();
        let what = format!("kernel: building {name} from {} {}", source.package, source.version);
        step(&what, || make_entry(profile, &source, &wanted, &root, &entry))?;
    }
    let manifest = verify(profile, &entry)
        .with_context(|| format!("remove {} to build it again", entry.display()))?;
    let dir = data_dir()?.join("kernels").join(profile.name());
    install(&entry, &dir)?;
    Ok(Built { vmlinux: dir.join("vmlinux"), dir, manifest })
}

/// Checks the three files of a finished build against each other and against what the profile promises.
fn verify(profile: Profile, dir: &Path) -> Result<Manifest> {
    let text = read_text(&dir.join("config"))?;
    let built = Config::parse(&text)?;
    built.must_have(&Config::parse(profile.required())?).with_context(|| {
        format!("the {0} config breaks a promise of kernel/required/{0}.config", profile.name())
    })?;
    built.must_have(&profile.wanted()?).with_context(|| {
        format!("a line of the {} fragments had no effect: is a dependency off?", profile.name())
    })?;
    let manifest: Manifest = serde_json::from_str(&read_text(&dir.join("kernel.json"))?)
        .with_context(|| format!("reading {}", dir.join("kernel.json").display()))?;
    let image = read_bytes(&dir.join("vmlinux"))?;
    let notes = elf::check(&image).context("the built vmlinux")?;
    ensure!(notes.salt == profile.salt(), "vmlinux says it is {:?}", notes.salt);
    ensure!(notes.pvh, "vmlinux has no PVH entry");
    ensure!(
        manifest.profile == profile && manifest.tables == profile.tables(),
        "kernel.json is of another profile"
    );
    ensure!(manifest.build_id == notes.build_id, "kernel.json names another build id");
    ensure!(manifest.config_sha256 == sha256(text.as_bytes()), "config differs from kernel.json");
    ensure!(manifest.vmlinux_sha256 == sha256(&image), "vmlinux differs from kernel.json");
    Ok(manifest)
}

/// Configures, compiles and strips in a scratch directory, then renames the result to `entry`.
fn make_entry(
    profile: Profile,
    source: &Source,
    wanted: &Config,
    root: &Path,
    entry: &Path,
) -> Result<()> {
    let scratch = root.join("scratch");
    // We hold the lock: what is there was left by a build that died.
    remove_dir(&scratch)?;
    remove_dir(entry)?;
    let objects = scratch.join("objects");
    let result = scratch.join("result");
    for dir in [&objects, &result] {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let tree = source.unpack(&scratch)?;
    let fragment = scratch.join("all.config");
    write(&fragment, wanted.to_string().as_bytes())?;
    let mut configure = make(&tree, &objects);
    configure.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &fragment);
    logged(&mut configure, root)?;
    let config = read_text(&objects.join(".config"))?;
    // Fail in seconds rather than after the build.
    Config::parse(&config)?.must_have(wanted).context("a fragment line had no effect")?;
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    logged(make(&tree, &objects).arg(format!("-j{jobs}")).arg("vmlinux"), root)?;
    let vmlinux = result.join("vmlinux");
    output_of(
        Command::new("strip").arg("-s").arg("-o").arg(&vmlinux).arg(objects.join("vmlinux")),
    )?;
    let image = read_bytes(&vmlinux)?;
    let manifest = Manifest {
        profile,
        tables: profile.tables(),
        source_version: source.version.clone(),
        source_sha256: source.sha256.clone(),
        config_sha256: sha256(config.as_bytes()),
        build_id: elf::check(&image).context("the built vmlinux")?.build_id,
        vmlinux_sha256: sha256(&image),
    };
    write(&result.join("config"), config.as_bytes())?;
    write(&result.join("kernel.json"), &serde_json::to_vec_pretty(&manifest)?)?;
    verify(profile, &result)?;
    for file in FILES {
        seal(&result.join(file))?;
    }
    fs::rename(&result, entry).with_context(|| format!("publishing {}", entry.display()))?;
    remove_dir(&scratch)
}

/// `make` with everything fixed that would otherwise enter the image.
fn make(tree: &Path, objects: &Path) -> Command {
    let mut make = Command::new("make");
    make.current_dir(tree)
        .arg("--silent")
        .arg(format!("O={}", objects.display()))
        .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
        .env("KBUILD_BUILD_USER", "openshell")
        .env("KBUILD_BUILD_HOST", "vmm")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("SOURCE_DATE_EPOCH", "0")
        .env("LC_ALL", "C");
    // Variables that kbuild would take from the environment of whoever runs us.
    for variable in [
        "ARCH",
        "CROSS_COMPILE",
        "CC",
        "LD",
        "KCFLAGS",
        "LOCALVERSION",
        "MAKEFLAGS",
        "KCONFIG_CONFIG",
    ] {
        make.env_remove(variable);
    }
    make
}

/// Runs a command with its output in `build.log`; on failure the error ends with the log's last lines.
fn logged(command: &mut Command, root: &Path) -> Result<()> {
    let path = root.join("build.log");
    let log = fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("sharing the build log")?)
        .stderr(log)
        .status()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    if status.success() {
        return Ok(());
    }
    let bytes = read_bytes(&path)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(40)..].join("\n");
    bail!("the kernel build failed ({status}), whole log in {}:\n{tail}", path.display())
}

/// Puts the files where `openshell-vmm run` looks, the manifest last; a kernel in use keeps its old file.
fn install(entry: &Path, dir: &Path) -> Result<()> {
    if fs::read(entry.join("kernel.json")).ok() == fs::read(dir.join("kernel.json")).ok()
        && FILES.iter().all(|file| dir.join(file).is_file())
    {
        return Ok(());
    }
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    for file in FILES {
        let (from, to) = (entry.join(file), dir.join(file));
        let new = dir.join(format!(".{file}.new"));
        if new.exists() {
            fs::remove_file(&new).with_context(|| format!("removing {}", new.display()))?;
        }
        if fs::hard_link(&from, &new).is_err() {
            fs::copy(&from, &new).with_context(|| format!("copying {}", from.display()))?;
            seal(&new)?;
        }
        fs::rename(&new, &to).with_context(|| format!("installing {}", to.display()))?;
    }
    Ok(())
}

/// Names a result by everything that it depends on.
fn cache_key(source_sha256: &str, wanted: &Config, compiler: &str) -> String {
    let mut hash = Sha256::new();
    let recipe = RECIPE.to_string();
    for part in [recipe.as_str(), source_sha256, &wanted.to_string(), compiler] {
        hash.update(part.len().to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize())
}

/// The first lines of what compiler and linker say of themselves.
fn compiler() -> Result<String> {
    let mut versions = String::new();
    for program in ["gcc", "ld"] {
        let output = output_of(Command::new(program).arg("--version").env("LC_ALL", "C"))?;
        versions.push_str(output.lines().next().unwrap_or_default());
        versions.push('\n');
    }
    Ok(versions)
}

fn lock(root: &Path) -> Result<fs::File> {
    let path = root.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    if file.try_lock().is_err() {
        step("kernel: waiting for another build", || {
            file.lock().with_context(|| format!("locking {}", path.display()))
        })?;
    }
    Ok(file)
}

/// Makes a finished file read-only and durable.
fn seal(path: &Path) -> Result<()> {
    let file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.set_permissions(fs::Permissions::from_mode(0o444))
        .with_context(|| format!("making {} read-only", path.display()))?;
    file.sync_all().with_context(|| format!("syncing {}", path.display()))
}

/// Removes a directory that may be absent.
fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
