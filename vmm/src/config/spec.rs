//! What the user wrote: flags and file alike, before anything was opened or compared with the host.
//!
//! Invariant: a [`Spec`] is syntactically right and nothing more; `None` means "not said", so that flags win over the file
//! and defaults come last. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use super::failure::SpecError;
use super::net::NetSpec;
use super::plan::Tables;
use super::units::{parse_duration, parse_size};

/// One machine and what to report about it, as asked for.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Disks in order; the first is the root disk.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskSpec>,
    /// Kernel image.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Added to the kernel command line.
    pub append: Option<String>,
    /// Number of vCPUs.
    pub cpus: Option<u64>,
    /// Guest RAM.
    pub memory: Option<MemorySize>,
    /// virtio-vsock.
    pub vsock: Option<VsockSpec>,
    /// The network.
    #[serde(default)]
    pub net: NetSpec,
    /// Where the serial console goes.
    pub console: Option<ConsoleSpec>,
    /// The machine is stopped after this time.
    pub timeout: Option<TimeLimit>,
    /// How the guest finds its devices.
    pub tables: Option<TablesSpec>,
    /// `false` leaves threads unconfined.
    pub seccomp: Option<bool>,
    /// Print the boot phases.
    pub boot_trace: Option<TraceFormat>,
    /// Write the outcome here, as JSON.
    pub result: Option<PathBuf>,
}

impl Spec {
    /// Reads a number of CPUs.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse_cpus(text: &str) -> Result<u64, SpecError> {
        text.parse()
            .map_err(|_| SpecError::value("--cpus", text.as_ref(), "not a whole number".to_owned()))
    }

    /// This specification with `file` filling in what it does not say. Disks are taken from one side as a whole, because the
    /// order decides which one is the root disk.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            disks: if self.disks.is_empty() { file.disks } else { self.disks },
            kernel: self.kernel.or(file.kernel),
            initrd: self.initrd.or(file.initrd),
            append: self.append.or(file.append),
            cpus: self.cpus.or(file.cpus),
            memory: self.memory.or(file.memory),
            vsock: self.vsock.or(file.vsock),
            net: self.net.or(file.net),
            console: self.console.or(file.console),
            timeout: self.timeout.or(file.timeout),
            tables: self.tables.or(file.tables),
            seccomp: self.seccomp.or(file.seccomp),
            boot_trace: self.boot_trace.or(file.boot_trace),
            result: self.result.or(file.result),
        }
    }
}

/// One disk.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Raw image or block device.
    pub path: PathBuf,
    /// Read-only for the guest.
    #[serde(default)]
    pub ro: bool,
    /// Writes go to this file, and the image is left alone.
    pub overlay: Option<PathBuf>,
    /// Operations per second.
    pub iops: Option<u64>,
    /// Bytes per second.
    pub bw: Option<Bandwidth>,
}

impl DiskSpec {
    /// Reads `FILE[,ro][,overlay=F][,iops=N][,bw=SIZE]`. A path that holds a comma can be given in a file only.
    ///
    /// # Errors
    /// [`SpecError::Value`] names what was not understood.
    pub fn parse(text: &OsStr) -> Result<Self, SpecError> {
        let refuse = |reason: String| SpecError::value("--disk", text, reason);
        let mut parts = text.as_bytes().split(|&byte| byte == b',');
        let path = PathBuf::from(OsStr::from_bytes(parts.next().unwrap_or_default()));
        if path.as_os_str().is_empty() {
            return Err(refuse("the file name is empty".to_owned()));
        }
        let mut disk = Self { path, ..Self::default() };
        for part in parts {
            let (key, value) = split_pair(part);
            let shown = || String::from_utf8_lossy(part).into_owned();
            let number = || value.and_then(|value| std::str::from_utf8(value).ok());
            let again = match key {
                b"ro" if value.is_none() => std::mem::replace(&mut disk.ro, true),
                b"overlay" => {
                    let path = value
                        .filter(|value| !value.is_empty())
                        .ok_or_else(|| refuse("overlay needs a file: overlay=FILE".to_owned()))?;
                    disk.overlay.replace(PathBuf::from(OsStr::from_bytes(path))).is_some()
                }
                b"iops" => {
                    let iops = number().and_then(|text| text.parse().ok()).ok_or_else(|| {
                        refuse(format!("{}: iops needs a whole number: iops=5000", shown()))
                    })?;
                    disk.iops.replace(iops).is_some()
                }
                b"bw" => {
                    let bw =
                        number().ok_or_else(|| refuse("bw needs a size: bw=100M".to_owned()))?;
                    let bw = Bandwidth::parse(bw)
                        .map_err(|reason| refuse(format!("{}: {reason}", shown())))?;
                    disk.bw.replace(bw).is_some()
                }
                _ => {
                    return Err(refuse(format!(
                        "{:?} is none of ro, overlay=FILE, iops=N, bw=SIZE",
                        shown()
                    )));
                }
            };
            if again {
                return Err(refuse(format!("{:?} is given twice", String::from_utf8_lossy(key))));
            }
        }
        Ok(disk)
    }
}

/// virtio-vsock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockSpec {
    /// The host socket.
    pub path: PathBuf,
    /// The guest's context id.
    pub cid: Option<u64>,
}

impl VsockSpec {
    /// Reads `PATH[,cid=N]`.
    ///
    /// # Errors
    /// [`SpecError::Value`] names what was not understood.
    pub fn parse(text: &OsStr) -> Result<Self, SpecError> {
        let refuse = |reason: &str| SpecError::value("--vsock", text, reason.to_owned());
        let (path, option) = match text.as_bytes().iter().position(|&byte| byte == b',') {
            Some(at) => (&text.as_bytes()[..at], Some(&text.as_bytes()[at + 1..])),
            None => (text.as_bytes(), None),
        };
        if path.is_empty() {
            return Err(refuse("the socket path is empty"));
        }
        let cid = match option.map(split_pair) {
            None => None,
            Some((b"cid", Some(value))) => Some(
                std::str::from_utf8(value)
                    .ok()
                    .and_then(|value| value.parse().ok())
                    .ok_or_else(|| refuse("cid needs a whole number: cid=3"))?,
            ),
            Some(_) => return Err(refuse("only cid=N may follow the path")),
        };
        Ok(Self { path: PathBuf::from(OsStr::from_bytes(path)), cid })
    }
}

/// Where the serial console goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleSpec {
    /// Standard input and output.
    Stdio,
    /// Output to this file.
    File(PathBuf),
    /// Nowhere.
    None,
}

impl ConsoleSpec {
    /// Reads `stdio`, `none` or `file=F`.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse(text: &OsStr) -> Result<Self, SpecError> {
        match split_pair(text.as_bytes()) {
            (b"stdio", None) => Ok(Self::Stdio),
            (b"none", None) => Ok(Self::None),
            (b"file", Some(path)) if !path.is_empty() => {
                Ok(Self::File(PathBuf::from(OsStr::from_bytes(path))))
            }
            _ => Err(SpecError::value("--console", text, "none of stdio, file=FILE, none".into())),
        }
    }
}

/// Guest RAM in bytes. A bare number is MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize(pub u64);

impl MemorySize {
    /// Reads `512M`, `4Gi`, or a bare number of MiB.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        parse_size(text, Some(1 << 20))
            .map(Self)
            .map_err(|reason| SpecError::value("--memory", text.as_ref(), reason.to_owned()))
    }
}

/// Bytes per second. A unit is required: a bare number would be read as bytes by some and as MiB by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth(pub u64);

impl Bandwidth {
    fn parse(text: &str) -> Result<Self, &'static str> {
        parse_size(text, None).map(Self)
    }
}

/// How long the machine may run. A bare number is seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimit(pub Duration);

impl TimeLimit {
    /// Reads `30s`, `5m`, `250ms`, `1h`, or a bare number of seconds.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        parse_duration(text)
            .map(Self)
            .map_err(|reason| SpecError::value("--timeout", text.as_ref(), reason.to_owned()))
    }
}

/// How the guest finds its devices, as in [`Tables`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TablesSpec {
    /// By the kernel image.
    Auto,
    /// MultiProcessor table.
    Mptable,
    /// ACPI.
    Acpi,
}

impl TablesSpec {
    /// What `--tables` takes.
    pub const NAMES: [&'static str; 3] = ["auto", "mptable", "acpi"];

    /// The value named `name`, one of [`Self::NAMES`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "mptable" => Some(Self::Mptable),
            "acpi" => Some(Self::Acpi),
            _ => None,
        }
    }
}

impl From<TablesSpec> for Tables {
    fn from(tables: TablesSpec) -> Self {
        match tables {
            TablesSpec::Auto => Self::Auto,
            TablesSpec::Mptable => Self::MpTable,
            TablesSpec::Acpi => Self::Acpi,
        }
    }
}

/// How boot phases are printed on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceFormat {
    /// A table.
    Text,
    /// One line of JSON.
    Json,
}

fn split_pair(part: &[u8]) -> (&[u8], Option<&[u8]>) {
    match part.iter().position(|&byte| byte == b'=') {
        Some(at) => (&part[..at], Some(&part[at + 1..])),
        None => (part, None),
    }
}

/// A value that a file may hold as a number or as text.
struct NumberOrText<T> {
    expecting: &'static str,
    number: fn(u64) -> Option<T>,
    text: fn(&str) -> Result<T, String>,
}

impl<T> de::Visitor<'_> for NumberOrText<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        u64::try_from(value)
            .ok()
            .and_then(self.number)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Signed(value), &self.expecting))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        (self.text)(value).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText {
            expecting: "a size such as \"512M\", or a number of MiB",
            number: |mib| mib.checked_mul(1 << 20).map(Self),
            text: |text| parse_size(text, Some(1 << 20)).map(Self).map_err(str::to_owned),
        })
    }
}

impl<'de> Deserialize<'de> for TimeLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText {
            expecting: "a time such as \"30s\", or a number of seconds",
            number: |seconds| Some(Self(Duration::from_secs(seconds))),
            text: |text| parse_duration(text).map(Self).map_err(str::to_owned),
        })
    }
}

impl<'de> Deserialize<'de> for Bandwidth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for ConsoleSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = OsString::from(String::deserialize(deserializer)?);
        Self::parse(&text).map_err(|error| de::Error::custom(error.reason()))
    }
}

impl<'de> Deserialize<'de> for VsockSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = OsString::from(String::deserialize(deserializer)?);
        Self::parse(&text).map_err(|error| de::Error::custom(error.reason()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_as_flags() {
        let full = DiskSpec {
            path: "a b.img".into(),
            ro: true,
            overlay: Some("o=1".into()),
            iops: Some(5),
            bw: Some(Bandwidth(2 << 10)),
        };
        for (text, want) in [
            ("d.img", DiskSpec { path: "d.img".into(), ..DiskSpec::default() }),
            ("a b.img,ro,overlay=o=1,iops=5,bw=2K", full),
        ] {
            assert_eq!(DiskSpec::parse(text.as_ref()).unwrap(), want);
        }
        let not_utf8 = OsStr::from_bytes(b"d\xff,overlay=\xfe");
        let disk = DiskSpec::parse(not_utf8).unwrap();
        assert_eq!(disk.overlay.unwrap().as_os_str().as_bytes(), b"\xfe");
    }

    #[test]
    fn flag_values_that_are_not_right_are_refused() {
        let size = "a size is a whole number and K, M, G or T, such as 512M or 4Gi";
        let time = "a time is a whole number and ms, s, m or h, such as 30s or 5m";
        for (error, want) in [
            (DiskSpec::parse("".as_ref()).unwrap_err(), "--disk : the file name is empty"),
            (DiskSpec::parse(",ro".as_ref()).unwrap_err(), "--disk ,ro: the file name is empty"),
            (
                DiskSpec::parse("d,rw".as_ref()).unwrap_err(),
                "--disk d,rw: \"rw\" is none of ro, overlay=FILE, iops=N, bw=SIZE",
            ),
            (
                DiskSpec::parse("d,ro=1".as_ref()).unwrap_err(),
                "--disk d,ro=1: \"ro=1\" is none of ro, overlay=FILE, iops=N, bw=SIZE",
            ),
            (
                DiskSpec::parse("d,".as_ref()).unwrap_err(),
                "--disk d,: \"\" is none of ro, overlay=FILE, iops=N, bw=SIZE",
            ),
            (
                DiskSpec::parse("d,ro,ro".as_ref()).unwrap_err(),
                "--disk d,ro,ro: \"ro\" is given twice",
            ),
            (
                DiskSpec::parse("d,overlay=".as_ref()).unwrap_err(),
                "--disk d,overlay=: overlay needs a file: overlay=FILE",
            ),
            (
                DiskSpec::parse("d,iops=x".as_ref()).unwrap_err(),
                "--disk d,iops=x: iops=x: iops needs a whole number: iops=5000",
            ),
            (
                DiskSpec::parse("d,bw=100".as_ref()).unwrap_err(),
                "--disk d,bw=100: bw=100: a unit is needed: K, M, G or T",
            ),
            (VsockSpec::parse("".as_ref()).unwrap_err(), "--vsock : the socket path is empty"),
            (
                VsockSpec::parse("v,x=1".as_ref()).unwrap_err(),
                "--vsock v,x=1: only cid=N may follow the path",
            ),
            (
                VsockSpec::parse("v,cid=x".as_ref()).unwrap_err(),
                "--vsock v,cid=x: cid needs a whole number: cid=3",
            ),
            (
                ConsoleSpec::parse("file=".as_ref()).unwrap_err(),
                "--console file=: none of stdio, file=FILE, none",
            ),
            (
                ConsoleSpec::parse("stdio=1".as_ref()).unwrap_err(),
                "--console stdio=1: none of stdio, file=FILE, none",
            ),
            (MemorySize::parse("1.5G").unwrap_err(), &format!("--memory 1.5G: {size}")),
            (
                MemorySize::parse("99999999T").unwrap_err(),
                "--memory 99999999T: the size does not fit in 64 bits",
            ),
            (TimeLimit::parse("soon").unwrap_err(), &format!("--timeout soon: {time}")),
            (Spec::parse_cpus("-1").unwrap_err(), "--cpus -1: not a whole number"),
        ] {
            assert_eq!(error.to_string(), want);
        }
    }
}
