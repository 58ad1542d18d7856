//! The stacks that are compared, and how each is put between a host and a guest.
//!
//! Invariant: every stack gets the same namespaces, the same processors and the same tap queue; what differs is its command line and
//! the address by which its guest reaches the host's loopback.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use openshell_tests::netns::Namespace;

use crate::rig::{CONNECTED, HOST_GATEWAY, NOWHERE, TAP};

/// Name of our stack in results.
pub(crate) const OURS: &str = "openshell-vmm";
/// Name of our stack when frames are as they would be on a wire.
pub(crate) const PLAIN: &str = "openshell-vmm, no offloads";
/// Name of what has no stack in between.
pub(crate) const LOOPBACK: &str = "host loopback";

/// A stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `openshell-vmm net`.
    Ours {
        program: PathBuf,
        offloads: bool,
    },
    /// passt in its mode for namespaces.
    Pasta(PathBuf),
    Slirp(PathBuf),
    /// Nothing: the client is on the host.
    Loopback,
}

impl System {
    pub(crate) fn ours(program: &Path, offloads: bool) -> Self {
        let name = if offloads { OURS } else { PLAIN };
        Self { name: name.to_owned(), kind: Kind::Ours { program: program.to_owned(), offloads } }
    }

    pub(crate) fn loopback() -> Self {
        Self { name: LOOPBACK.to_owned(), kind: Kind::Loopback }
    }

    /// What the name begins with says what it is.
    pub(crate) fn peer(name: &str, path: &Path) -> Result<Self> {
        let kind = if name.starts_with("pasta") {
            Kind::Pasta(path.to_owned())
        } else if name.starts_with("slirp4netns") {
            Kind::Slirp(path.to_owned())
        } else if name.starts_with(OURS) && name != OURS && name != PLAIN {
            Kind::Ours { program: path.to_owned(), offloads: true }
        } else {
            bail!("a peer's name begins with pasta, slirp4netns or openshell-vmm: {name}");
        };
        Ok(Self { name: name.to_owned(), kind })
    }

    /// Peers that are installed here.
    pub(crate) fn installed() -> Vec<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let find = |program: &str| {
            std::env::split_paths(&path).map(|at| at.join(program)).find(|at| at.is_file())
        };
        ["pasta", "slirp4netns"]
            .into_iter()
            .filter_map(|name| Self::peer(name, &find(name)?).ok())
            .collect()
    }

    /// Whether this is a build of ours.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Ours { .. })
    }

    /// What its guest calls the host's loopback.
    pub(crate) fn host_address(&self) -> Ipv4Addr {
        match self.kind {
            Kind::Ours { .. } => Ipv4Addr::new(192, 168, 127, 254),
            Kind::Pasta(_) => HOST_GATEWAY,
            Kind::Slirp(_) => Ipv4Addr::new(10, 0, 2, 2),
            Kind::Loopback => Ipv4Addr::LOCALHOST,
        }
    }

    /// The command that runs it in `host` for `guest`; `None` when there is none.
    pub(crate) fn command(
        &self,
        host: &Namespace,
        guest: &Namespace,
        mtu: u16,
        cpus: Option<&str>,
        scratch: &Path,
    ) -> Option<Command> {
        let (program, words): (&Path, Vec<String>) = match &self.kind {
            Kind::Ours { program, offloads } => {
                let mut words = vec!["net", "--tap", TAP, "--allow", "host"];
                words.extend(["--allow", CONNECTED, "--allow", NOWHERE]);
                if !offloads {
                    words.push("--no-offloads");
                }
                let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
                words.extend(["--netns".into(), text(&guest.path())]);
                words.extend(["--mtu".into(), mtu.to_string()]);
                words.extend(["--resolv-conf".into(), text(&scratch.join("resolv.conf"))]);
                (program, words)
            }
            Kind::Pasta(program) => {
                let words =
                    "--config-net --no-netns-quit -f -q -t none -u none -T none -U none --runas 0";
                let mut words: Vec<String> = words.split(' ').map(str::to_owned).collect();
                words.extend(["-I".into(), TAP.into(), "-m".into(), mtu.to_string()]);
                words.extend(["--netns".into(), text(&guest.path())]);
                (program, words)
            }
            Kind::Slirp(program) => {
                let mut words = vec!["--configure".into(), "--netns-type=path".into()];
                words.push(format!("--mtu={mtu}"));
                words.extend([text(&guest.path()), TAP.into()]);
                (program, words)
            }
            Kind::Loopback => return None,
        };
        let mut command = match cpus {
            Some(cpus) => {
                let mut command = host.command("taskset");
                command.args(["-c", cpus]).arg(program);
                command
            }
            None => host.command(&text(program)),
        };
        command.args(words);
        Some(command)
    }

    /// Which version it is, as far as it or its package says.
    pub(crate) fn version(&self) -> String {
        let path = match &self.kind {
            Kind::Ours { program, .. } => program,
            Kind::Pasta(path) | Kind::Slirp(path) => path,
            Kind::Loopback => return String::new(),
        };
        let first = |command: &mut Command| {
            let output = command.output().ok().filter(|output| output.status.success())?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().next().filter(|line| !line.is_empty()).map(str::to_owned)
        };
        let package = if matches!(self.kind, Kind::Pasta(_)) { "passt" } else { "slirp4netns" };
        let packaged = path.starts_with("/usr/bin").then(|| {
            first(Command::new("dpkg-query").args(["-W", "-f", "${Package} ${Version}", package]))
        });
        let own = if self.is_ours() { "version" } else { "--version" };
        packaged.flatten().or_else(|| first(Command::new(path).arg(own))).unwrap_or_default()
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
