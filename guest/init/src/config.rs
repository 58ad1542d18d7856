//! `/config.json` of the config disk: what this boot shall be.
//!
//! Invariant: what [`parse`] returns keeps the bounds below, and every name, path and number in it can be used as it is.
//! Keys that are not known are refused, so that a misspelt one is found. `docs/guest.md` has the table.

use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::tools::Tool;

/// The longest file, in bytes.
pub const BYTES_MAX: usize = 1 << 20;
const WORDS_MAX: usize = 4096;
const LISTED_MAX: usize = 64;
const DIRECTORIES_MAX: usize = 256;
const HOSTNAME_MAX: usize = 64;
const INTERFACE_MAX: usize = 15;

/// The whole of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    version: u32,
    /// The host's name, if it shall have one.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The clock is not before this, in milliseconds since 1970.
    #[serde(default)]
    pub clock_unix_ms: u64,
    /// The network.
    #[serde(default)]
    pub network: Network,
    /// Further lines of `/etc/hosts`.
    #[serde(default)]
    pub hosts: Vec<Host>,
    /// Directories that shall be there.
    #[serde(default)]
    pub directories: Vec<Directory>,
    /// Commands to run before the main process.
    #[serde(default)]
    pub hooks: Vec<Vec<String>>,
    /// Programs of ours that are put where the image has none.
    #[serde(default)]
    pub programs: Vec<Tool>,
    /// Whether the host's agent runs beside the main process.
    #[serde(default)]
    pub agent: bool,
    /// Whether what is written on the read-write disk goes with the machine.
    #[serde(default)]
    pub volatile: bool,
    /// The main process.
    pub process: Process,
}

/// How addresses are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// From this file.
    Static,
    /// From a DHCP server.
    Dhcp,
    /// Not at all.
    None,
}

/// The network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    #[serde(default)]
    interface: Option<String>,
    #[serde(default)]
    mode: Option<Mode>,
    /// The interface's address and prefix.
    #[serde(default)]
    pub address: Option<Prefix>,
    /// The router.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// The link's MTU in bytes.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Resolvers.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Domains for unqualified names.
    #[serde(default)]
    pub search: Vec<String>,
}

impl Network {
    /// The interface's name.
    #[must_use]
    pub fn interface(&self) -> &str {
        self.interface.as_deref().unwrap_or("eth0")
    }

    /// How addresses are found: as the file says, else by whether it has one.
    #[must_use]
    pub fn mode(&self) -> Mode {
        let by_address = if self.address.is_some() { Mode::Static } else { Mode::Dhcp };
        self.mode.unwrap_or(by_address)
    }

    /// Whether a machine without the interface is an error.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.mode.is_some_and(|mode| mode != Mode::None)
    }
}

/// An address in its subnet, `192.168.127.2/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the subnet, at most 32.
    pub len: u8,
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no ADDRESS/BITS")))
    }
}

impl Prefix {
    /// Reads `ADDRESS/BITS`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, len) = text.split_once('/')?;
        let len = len.parse().ok().filter(|len| *len <= 32)?;
        Some(Self { address: address.parse().ok()?, len })
    }
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The address.
    pub address: IpAddr,
    /// Its names.
    pub names: Vec<String>,
}

/// A directory that shall be there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Where.
    pub path: String,
    /// Whose, as [`Process::user`].
    #[serde(default)]
    pub owner: String,
    /// Its mode, octal digits.
    mode: String,
}

impl Directory {
    /// Its mode.
    #[must_use]
    pub fn mode(&self) -> u32 {
        octal(&self.mode).expect("it was checked when it was read")
    }
}

/// The main process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Program and arguments; at least the program.
    pub args: Vec<String>,
    /// Its environment, `NAME=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    #[serde(default)]
    cwd: Option<String>,
    /// Whose it is, as in an image's configuration; root when empty.
    #[serde(default)]
    pub user: String,
    /// Supplementary groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Whether it has a terminal: the console, or one of its own when the host carries its streams.
    #[serde(default)]
    pub tty: bool,
    /// Whether the host carries its streams.
    #[serde(default)]
    pub streams: Option<Streams>,
    /// Whether it takes the place of PID 1.
    #[serde(default)]
    pub pid1: bool,
}

/// Streams of the main process that the host carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Streams {
    /// Whether it has an input.
    #[serde(default)]
    pub input: bool,
    /// The first size of its terminal; 0 is the usual one.
    #[serde(default)]
    pub columns: u16,
    /// As `columns`.
    #[serde(default)]
    pub rows: u16,
}

impl Process {
    /// Where it starts.
    #[must_use]
    pub fn cwd(&self) -> &str {
        self.cwd.as_deref().unwrap_or("/")
    }
}

/// Reads and checks the file.
///
/// # Errors
/// With what is wrong, and where.
pub fn parse(bytes: &[u8]) -> Result<Config, String> {
    if bytes.len() > BYTES_MAX {
        return Err(format!("larger than {BYTES_MAX} bytes"));
    }
    let config: Config = serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        let message = text.split(" at line ").next().unwrap_or(&text);
        format!("line {} column {}: {message}", error.line(), error.column())
    })?;
    config.check()?;
    Ok(config)
}

impl Config {
    fn check(&self) -> Result<(), String> {
        if self.version != 1 {
            return Err(format!("version {} is not 1", self.version));
        }
        if let Some(name) = &self.hostname {
            let long = name.is_empty() || name.len() > HOSTNAME_MAX;
            require(!long && name.bytes().all(is_name), "hostname", name)?;
        }
        self.network.check()?;
        bound(self.hosts.len(), LISTED_MAX, "hosts")?;
        for host in &self.hosts {
            bound(host.names.len(), LISTED_MAX, "names of a host")?;
            for name in &host.names {
                require(!name.is_empty() && name.bytes().all(is_name), "hosts", name)?;
            }
        }
        bound(self.directories.len(), DIRECTORIES_MAX, "directories")?;
        for directory in &self.directories {
            require(is_path(&directory.path), "path of a directory", &directory.path)?;
            require(octal(&directory.mode).is_some(), "mode of a directory", &directory.mode)?;
        }
        bound(self.hooks.len(), LISTED_MAX, "hooks")?;
        for hook in &self.hooks {
            command(hook, "hook")?;
        }
        bound(self.programs.len(), LISTED_MAX, "programs")?;
        if self.agent && self.process.pid1 {
            return Err("agent needs a first process: process.pid1 cannot be true".to_owned());
        }
        if self.process.streams.is_some() && !self.agent {
            return Err("process.streams need agent to be true".to_owned());
        }
        self.process.check()
    }
}

impl Network {
    fn check(&self) -> Result<(), String> {
        let name = self.interface();
        let fits = !name.is_empty() && name.len() <= INTERFACE_MAX;
        let plain = name.bytes().all(|byte| is_name(byte) || byte == b'_') && name != "..";
        require(fits && plain && name != ".", "network.interface", name)?;
        if self.mode() == Mode::Static && self.address.is_none() {
            return Err("network.mode is static without an address".to_owned());
        }
        if self.mtu.is_some_and(|mtu| mtu < 68) {
            return Err("network.mtu is less than 68".to_owned());
        }
        bound(self.dns.len(), LISTED_MAX, "network.dns")?;
        bound(self.search.len(), LISTED_MAX, "network.search")?;
        for domain in &self.search {
            require(!domain.is_empty() && domain.bytes().all(is_name), "network.search", domain)?;
        }
        Ok(())
    }
}

impl Process {
    fn check(&self) -> Result<(), String> {
        command(&self.args, "process.args")?;
        bound(self.env.len(), WORDS_MAX, "process.env")?;
        for variable in &self.env {
            let name = variable.split_once('=').map_or("", |(name, _)| name);
            let shown = variable.split('=').next().unwrap_or_default();
            require(!name.is_empty() && !variable.contains('\0'), "process.env", shown)?;
        }
        require(is_path(self.cwd()), "process.cwd", self.cwd())?;
        bound(self.groups.len(), LISTED_MAX, "process.groups")
    }
}

fn command(args: &[String], key: &str) -> Result<(), String> {
    bound(args.len(), WORDS_MAX, key)?;
    require(args.first().is_some_and(|program| !program.is_empty()), key, "nothing")?;
    for arg in args {
        require(!arg.contains('\0'), key, arg)?;
    }
    Ok(())
}

fn require(holds: bool, key: &str, value: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{key} cannot be {value:?}")) }
}

fn bound(len: usize, max: usize, key: &str) -> Result<(), String> {
    if len > max { Err(format!("{key}: {len} are more than {max}")) } else { Ok(()) }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_'
}

/// Whether it is absolute, without a NUL and without `..`.
fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() < 4096
        && !path.contains('\0')
        && !path.split('/').any(|part| part == "..")
}

fn octal(digits: &str) -> Option<u32> {
    let short = !digits.is_empty() && digits.len() <= 5;
    let value = u32::from_str_radix(digits, 8).ok().filter(|value| *value <= 0o7777)?;
    (short && !digits.starts_with('+')).then_some(value)
}

#[cfg(test)]
mod tests;
