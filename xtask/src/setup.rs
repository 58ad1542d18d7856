//! What each purpose needs on a Debian host: one table, checked before work starts and installed where we may.
//! Kernel image packages are never installed, which would touch the host's boot: they are downloaded and unpacked
//! into the cache, one directory per version.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

/// `cargo xtask setup`: install what the purposes need, or print the command that does.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to set up; everything when not given.
    #[arg(value_enum)]
    purposes: Vec<Purpose>,
}

/// A reason to need programs that the Rust toolchain does not bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Purpose {
    /// Building the guest kernels.
    Kernel,
    /// The emulated machine that brings its own KVM.
    Lab,
    /// End-to-end tests.
    Tests,
    /// Tests of the network stack.
    Net,
    /// The stacks that `bench net` runs beside ours.
    NetPeers,
    /// Lint and license checks.
    Lint,
}

/// The packages of one purpose.
#[derive(Debug)]
struct Needs {
    purpose: Purpose,
    /// Debian packages to install.
    debian: &'static [&'static str],
    /// Debian packages whose files we read from the cache and never install.
    unpacked: &'static [&'static str],
    /// Programs that cargo installs, with their pinned versions.
    cargo: &'static [(&'static str, &'static str)],
}

const TABLE: &[Needs] = &[
    Needs {
        purpose: Purpose::Kernel,
        debian: &[
            "linux-source-6.1",
            "flex",
            "bison",
            "bc",
            "libelf-dev",
            "libssl-dev",
            "make",
            "gcc",
            "cpio",
            "kmod",
            "xz-utils",
            "zstd",
            "rsync",
        ],
        unpacked: &[],
        cargo: &[],
    },
    Needs {
        purpose: Purpose::Lab,
        debian: &["qemu-system-x86", "busybox-static", "cpio", "e2fsprogs", "kmod"],
        unpacked: &["linux-image-amd64"],
        cargo: &[],
    },
    Needs {
        purpose: Purpose::Tests,
        debian: &[
            "e2fsprogs",
            "e2fsck-static",
            "socat",
            "strace",
            "fio",
            "docker-registry",
            "skopeo",
            "umoci",
            "podman",
            "crun",
            "mmdebstrap",
            "attr",
            "libcap2-bin",
            "zstd",
            "openssl",
            "postgresql",
        ],
        unpacked: &["linux-image-cloud-amd64"],
        cargo: &[],
    },
    Needs {
        purpose: Purpose::Net,
        debian: &[
            "busybox-static",
            "curl",
            "dnsutils",
            "iperf3",
            "iproute2",
            "iputils-ping",
            "nghttp2-server",
            "openssh-client",
            "openssh-server",
            "procps",
            "tshark",
            "util-linux",
        ],
        unpacked: &[],
        cargo: &[],
    },
    Needs {
        purpose: Purpose::NetPeers,
        debian: &["iproute2", "passt", "procps", "slirp4netns", "util-linux"],
        unpacked: &[],
        cargo: &[],
    },
    Needs {
        purpose: Purpose::Lint,
        debian: &[],
        unpacked: &[],
        cargo: &[("cargo-deny", "0.20.2")],
    },
];

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    for needs in TABLE {
        if args.purposes.is_empty() || args.purposes.contains(&needs.purpose) {
            ensure(needs.purpose)?;
        }
    }
    Ok(())
}

/// Makes sure that everything `purpose` needs is there.
///
/// # Errors
/// Something is missing and could not be installed; without root the message is the command to run.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    let needs = TABLE
        .iter()
        .find(|needs| needs.purpose == purpose)
        .with_context(|| format!("{purpose:?} is not in the table of needs"))?;
    let missing = missing_packages(needs.debian)?;
    if !missing.is_empty() {
        install(&missing)?;
    }
    for package in needs.unpacked {
        unpacked(package)?;
    }
    for (name, version) in needs.cargo {
        install_program(name, version)?;
    }
    Ok(())
}

/// The files of a Debian package, unpacked in the cache, for example `boot/vmlinuz-*` and `lib/modules/*` of
/// `linux-image-cloud-amd64`. A package that only points to the current version stands for the one it points to.
///
/// # Errors
/// The package is unknown here or cannot be downloaded.
pub(crate) fn unpacked(package: &str) -> Result<PathBuf> {
    let target = match concrete(package) {
        Ok(target) => target,
        Err(_) => {
            update_package_lists()?;
            concrete(package)?
        }
    };
    let root = cache_dir()?.join("packages");
    let dir = root.join(&target);
    if dir.is_dir() {
        return Ok(dir);
    }
    fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
    step(&format!("setup: downloading and unpacking {target}"), || {
        let scratch = root.join(format!(".{target}.{}", std::process::id()));
        let files = scratch.join("files");
        fs::create_dir_all(&files).with_context(|| format!("creating {}", files.display()))?;
        download(&target, &scratch)?;
        let archive = only_archive(&scratch)?;
        checked(Command::new("dpkg").arg("-x").arg(&archive).arg(&files))?;
        match fs::rename(&files, &dir) {
            // Another run published the same version first.
            Err(_) if dir.is_dir() => {}
            other => other.with_context(|| format!("publishing {}", dir.display()))?,
        }
        fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
    })?;
    Ok(dir)
}

/// Where results that can be made again are kept: `$XDG_CACHE_HOME/openshell-vmm`.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    xdg("XDG_CACHE_HOME", ".cache")
}

/// Where `openshell-vmm` looks for what belongs to it: `$XDG_DATA_HOME/openshell-vmm`.
pub(crate) fn data_dir() -> Result<PathBuf> {
    xdg("XDG_DATA_HOME", ".local/share")
}

/// Does `work`, saying on standard error what it is and how long it took.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut err = std::io::stderr();
    writeln!(err, "{what} ...")?;
    let start = Instant::now();
    let result = work()?;
    writeln!(err, "{what}: done in {:.1} s", start.elapsed().as_secs_f64())?;
    Ok(result)
}

/// Standard output of a command that must succeed.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            command.get_program().display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("reading the output of {}", command.get_program().display()))
}

fn xdg(variable: &str, below_home: &str) -> Result<PathBuf> {
    let base = match std::env::var_os(variable).map(PathBuf::from) {
        // The XDG specification: a relative path is to be ignored.
        Some(path) if path.is_absolute() => path,
        _ => std::env::home_dir().context("no home directory")?.join(below_home),
    };
    Ok(base.join("openshell-vmm"))
}

fn checked(command: &mut Command) -> Result<()> {
    output_of(command).map(drop)
}

fn missing_packages<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    // dpkg-query fails when one of the packages is unknown and still lists the others.
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .stdin(Stdio::null())
        .output()
        .context("starting dpkg-query; other than Debian hosts need these packages by hand: see kernel/README.md")?;
    Ok(not_installed(packages, &String::from_utf8_lossy(&output.stdout)))
}

/// The packages that a `dpkg-query` listing of names and states does not show as installed.
fn not_installed<'a>(packages: &[&'a str], listing: &str) -> Vec<&'a str> {
    let installed: Vec<&str> =
        listing.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    packages.iter().copied().filter(|package| !installed.contains(package)).collect()
}

fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !is_root()? {
        bail!("missing packages; run: sudo apt-get install --no-install-recommends {list}");
    }
    step(&format!("setup: installing {list}"), || {
        // The lists may be absent or name versions that the mirror has dropped.
        newest(packages).or_else(|_| update_package_lists().and_then(|()| newest(packages)))
    })
}

/// Brings `package`, which is installed, to the newest version of the distribution: a machine's lists may be as old as its image.
///
/// # Errors
/// This user may not, with the command to run, or what apt-get said.
pub(crate) fn upgrade(package: &str) -> Result<()> {
    if !is_root()? {
        bail!("{package} is too old; run: sudo apt-get update && sudo apt-get install {package}");
    }
    update_package_lists()?;
    step(&format!("setup: upgrading {package}"), || newest(&[package]))
}

/// Installs or upgrades `packages` to what the lists have.
fn newest(packages: &[&str]) -> Result<()> {
    checked(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(packages),
    )
}

fn update_package_lists() -> Result<()> {
    if !is_root()? {
        bail!("the package lists are absent or old; run: sudo apt-get update");
    }
    step("setup: updating the package lists", || {
        checked(Command::new("apt-get").args(["update", "--quiet"]))
    })
}

/// Whether this program runs as root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(output_of(Command::new("id").arg("-u"))?.trim() == "0")
}

/// `NAME=VERSION` of the package that `package` stands for.
fn concrete(package: &str) -> Result<String> {
    let depends = output_of(Command::new("apt-cache").args(["depends", package]))?;
    let name = image_dependency(&depends).unwrap_or(package);
    let show = output_of(Command::new("apt-cache").args(["show", "--no-all-versions", name]))?;
    let version = show
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .with_context(|| format!("no version of {name} in the package lists"))?;
    Ok(format!("{name}={version}"))
}

/// The versioned image that a package such as `linux-image-amd64` depends on, from `apt-cache depends`.
fn image_dependency(depends: &str) -> Option<&str> {
    depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).find(|name| {
        name.starts_with("linux-image-") && name.contains(|c: char| c.is_ascii_digit())
    })
}

fn download(target: &str, into: &Path) -> Result<()> {
    let once =
        || checked(Command::new("apt-get").args(["download", "--quiet", target]).current_dir(into));
    once().or_else(|_| update_package_lists().and_then(|()| once()))
}

fn only_archive(dir: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    bail!("no package archive arrived in {}", dir.display())
}

fn install_program(name: &str, version: &str) -> Result<()> {
    let found = Command::new(name).arg("--version").stdin(Stdio::null()).output();
    if found.is_ok_and(|output| reports_version(&String::from_utf8_lossy(&output.stdout), version))
    {
        return Ok(());
    }
    step(&format!("setup: cargo install {name} {version}"), || {
        checked(Command::new("cargo").args(["install", "--locked", "--version", version, name]))
    })
}

/// Whether `--version` output such as `cargo-deny 0.18.3` names exactly `version`.
fn reports_version(output: &str, version: &str) -> bool {
    output.split_whitespace().nth(1) == Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_purpose_is_in_the_table_once() {
        for purpose in Purpose::value_variants() {
            assert_eq!(TABLE.iter().filter(|needs| needs.purpose == *purpose).count(), 1);
        }
    }

    #[test]
    fn no_kernel_image_is_ever_installed() {
        for package in TABLE.iter().flat_map(|needs| needs.debian) {
            assert!(!package.starts_with("linux-image"), "{package}");
        }
    }

    #[test]
    fn a_package_counts_only_when_fully_installed() {
        let listing = "flex installed\nbison config-files\nbc half-configured\n";
        assert_eq!(
            not_installed(&["flex", "bison", "bc", "make"], listing),
            ["bison", "bc", "make"]
        );
        assert!(not_installed(&["flex"], listing).is_empty());
    }

    #[test]
    fn a_meta_package_stands_for_the_image_it_depends_on() {
        let meta = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        assert_eq!(image_dependency(meta), Some("linux-image-6.1.0-56-amd64"));
        let concrete = "linux-image-6.1.0-56-amd64\n  Depends: kmod\n  Recommends: apparmor\n";
        assert_eq!(image_dependency(concrete), None);
    }

    #[test]
    fn a_program_counts_only_in_the_pinned_version() {
        assert!(reports_version("cargo-deny 0.18.3\n", "0.18.3"));
        assert!(!reports_version("cargo-deny 0.18.30\n", "0.18.3"));
        assert!(!reports_version("", "0.18.3"));
    }
}
