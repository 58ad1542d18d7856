//! What a user, or the host's administrator, sets for all machines of images: a TOML file and environment variables.
//!
//! Invariant: the flag wins over the variable, the variable over the file, the file over the default; a key that is not known is an error that
//! names a close one. The working directory is never looked at. Pure but for [`UserConfig::of_process`].

use std::env;
use std::path::{Path, PathBuf};

use super::failure::SpecError;
use super::net::parse_mode;
use super::spec::{MemorySize, Spec, TimeLimit};
use super::toml_file::closest;
use super::units::parse_size;
use crate::sys::user;

/// The version of the file.
const VERSION: i64 = 1;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This program.
    Default,
    /// The file.
    File(PathBuf),
    /// The environment variable of this name.
    Environment(&'static str),
}

/// A value that can be set.
#[derive(Debug)]
struct Setting {
    key: &'static str,
    variable: &'static str,
    /// Empty: nothing is set.
    default: &'static str,
    check: fn(&str) -> Result<(), String>,
}

const SETTINGS: [Setting; 9] = [
    Setting {
        key: "defaults.cpus",
        variable: "OPENSHELL_VMM_CPUS",
        default: "1",
        check: |text| told(Spec::parse_cpus(text)),
    },
    Setting {
        key: "defaults.memory",
        variable: "OPENSHELL_VMM_MEMORY",
        default: "512M",
        check: |text| told(MemorySize::parse(text)),
    },
    Setting {
        key: "defaults.kernel",
        variable: super::kernel::KERNEL_ENV,
        default: "",
        check: |_| Ok(()),
    },
    Setting {
        key: "defaults.net",
        variable: "OPENSHELL_VMM_NET",
        default: "user",
        check: |text| told(parse_mode(text.as_ref())),
    },
    Setting {
        key: "defaults.pull",
        variable: "OPENSHELL_VMM_PULL",
        default: "missing",
        check: |text| match text {
            "missing" | "always" | "never" => Ok(()),
            _ => Err("none of missing, always, never".to_owned()),
        },
    },
    Setting {
        key: "defaults.stop_timeout",
        variable: "OPENSHELL_VMM_STOP_TIMEOUT",
        default: "10s",
        check: |text| told(TimeLimit::parse(text)),
    },
    Setting {
        key: "images.cache",
        variable: "OPENSHELL_ROOTFS_CACHE",
        default: "",
        check: |_| Ok(()),
    },
    Setting {
        key: "images.hosts",
        variable: "OPENSHELL_ROOTFS_HOSTS",
        default: "",
        check: |_| Ok(()),
    },
    Setting {
        key: "logs.max_size",
        variable: "OPENSHELL_VMM_LOG_MAX_SIZE",
        default: "8M",
        check: |text| parse_size(text, None).map(drop).map_err(str::to_owned),
    },
];

fn told<T>(read: Result<T, SpecError>) -> Result<(), String> {
    read.map(drop).map_err(|error| match error {
        SpecError::Value { reason, .. } => reason,
        other => other.to_string(),
    })
}

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// `SECTION.KEY`.
    pub key: &'static str,
    /// As text; empty when nothing is set.
    pub value: String,
    /// Who set it.
    pub origin: Origin,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserConfig {
    values: Vec<Value>,
}

impl UserConfig {
    /// What file and environment of this process say.
    ///
    /// # Errors
    /// [`SpecError`] says where.
    pub fn of_process() -> Result<Self, SpecError> {
        let path = path();
        let text = match path.as_deref().map(std::fs::read_to_string) {
            None => None,
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => None,
            Some(read) => {
                let path = path.clone().unwrap_or_default();
                Some(read.map_err(|source| SpecError::Read { path, source })?)
            }
        };
        let file = text.as_deref().zip(path.as_deref());
        Self::of(file, &|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// What `file`, its text and path, and `variables` say.
    ///
    /// # Errors
    /// As [`Self::of_process`].
    pub fn of(
        file: Option<(&str, &Path)>,
        variables: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, SpecError> {
        let written = file.map_or(Ok(Vec::new()), |(text, path)| read(text, path))?;
        let mut values = Vec::with_capacity(SETTINGS.len());
        for Setting { key, variable, default, check } in &SETTINGS {
            let from_file = written.iter().find(|(found, _)| found == key);
            let (value, origin) = match (variables(variable), from_file, file) {
                (Some(value), ..) => {
                    check(&value)
                        .map_err(|reason| SpecError::value(variable, value.as_ref(), reason))?;
                    (value, Origin::Environment(variable))
                }
                (None, Some((_, value)), Some((_, path))) => {
                    check(value).map_err(|reason| refused(path, format!("{key}: {reason}")))?;
                    (value.clone(), Origin::File(path.to_owned()))
                }
                _ => ((*default).to_owned(), Origin::Default),
            };
            values.push(Value { key, value, origin });
        }
        Ok(Self { values })
    }

    /// All values, in their order.
    #[must_use]
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// A value that somebody has set, by its key.
    #[must_use]
    pub fn set(&self, key: &str) -> Option<&str> {
        let found = self.values.iter().find(|value| value.key == key)?;
        let set = found.origin != Origin::Default && !found.value.is_empty();
        set.then_some(found.value.as_str())
    }
}

/// The file: `openshell-vmm/config.toml` in `$XDG_CONFIG_HOME`, for root in `/etc`, or in `~/.config`.
#[must_use]
pub fn path() -> Option<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let system = || (user::effective_id() == 0).then(|| PathBuf::from("/etc"));
    let home = || Some(set("HOME")?.join(".config"));
    let base = set("XDG_CONFIG_HOME").or_else(system).or_else(home)?;
    Some(base.join("openshell-vmm/config.toml"))
}

/// Keys and values of the file.
fn read(text: &str, path: &Path) -> Result<Vec<(String, String)>, SpecError> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(text.len(), |span| span.start);
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        at_byte(path, text, at, message, None)
    })?;
    let mut version = None;
    let mut found = Vec::new();
    for (section, value) in &table {
        match value {
            toml::Value::Integer(number) if section == "version" => version = Some(*number),
            toml::Value::Table(inside) => {
                for (name, value) in inside {
                    let key = format!("{section}.{name}");
                    let known = SETTINGS.iter().any(|setting| setting.key == key);
                    if !known {
                        return Err(unknown(path, text, name, &key));
                    }
                    let value = plain(value).ok_or_else(|| {
                        refused(path, format!("{key} is neither a text nor a number"))
                    })?;
                    found.push((key, value));
                }
            }
            _ => return Err(unknown(path, text, section, section)),
        }
    }
    match version {
        Some(VERSION) => Ok(found),
        Some(other) => Err(refused(path, format!("version {other} is not {VERSION}"))),
        None => Err(refused(path, format!("version is missing: begin with `version = {VERSION}`"))),
    }
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

fn unknown(path: &Path, text: &str, name: &str, key: &str) -> SpecError {
    let at = text.find(name).unwrap_or(0);
    let known = SETTINGS.iter().map(|setting| setting.key).chain(["version"]);
    at_byte(path, text, at, format!("unknown key `{key}`"), closest(key, known))
}

fn refused(path: &Path, message: String) -> SpecError {
    at_byte(path, "", 0, message, None)
}

fn at_byte(
    path: &Path,
    text: &str,
    at: usize,
    message: String,
    nearest: Option<String>,
) -> SpecError {
    let before = text.get(..at).unwrap_or(text);
    SpecError::File {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
        message,
        nearest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Explain;

    fn read(text: &str, variables: &[(&str, &str)]) -> Result<UserConfig, SpecError> {
        let look = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        UserConfig::of(Some((text, Path::new("c.toml"))), &look)
    }

    #[test]
    fn variables_win_over_the_file_and_the_file_over_defaults() {
        let text = "version = 1\n[defaults]\ncpus = 4\nmemory = '1G'\n[logs]\nmax_size = '1M'\n";
        let config = read(text, &[("OPENSHELL_VMM_MEMORY", "2G")]).unwrap();
        assert_eq!(config.set("defaults.cpus"), Some("4"));
        assert_eq!(config.set("defaults.memory"), Some("2G"));
        assert_eq!(config.set("logs.max_size"), Some("1M"));
        assert_eq!(config.set("defaults.pull"), None, "a default is nobody's wish");
        let origin =
            |key| config.values().iter().find(|one| one.key == key).unwrap().origin.clone();
        assert_eq!(origin("defaults.cpus"), Origin::File("c.toml".into()));
        assert_eq!(origin("defaults.memory"), Origin::Environment("OPENSHELL_VMM_MEMORY"));
        assert_eq!(origin("defaults.net"), Origin::Default);
        assert!(UserConfig::of(None, &|_| None).unwrap().set("defaults.cpus").is_none());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, message, fix) in [
            (
                "version = 1\n[defaults]\ncpu = 2\n",
                "c.toml:3:1: unknown key `defaults.cpu`",
                "`defaults.cpus`",
            ),
            (
                "version = 1\n[default]\ncpus = 2\n",
                "c.toml:3:1: unknown key `default.cpus`",
                "`defaults.cpus`",
            ),
            ("version = 2\n", "c.toml:1:1: version 2 is not 1", ""),
            ("[defaults]\ncpus = 2\n", "c.toml:1:1: version is missing", ""),
            ("version = 1\nx = 1\n", "c.toml:2:1: unknown key `x`", ""),
            (
                "version = 1\n[defaults]\ncpus = 'two'\n",
                "c.toml:1:1: defaults.cpus: not a whole",
                "",
            ),
            ("version = 1\n[defaults]\npull = 'often'\n", "c.toml:1:1: defaults.pull: none of", ""),
            ("version = 1\n[defaults]\ncpus = [1]\n", "c.toml:1:1: defaults.cpus is neither", ""),
            ("version =", "c.toml:1:10: ", ""),
        ] {
            let error = read(text, &[]).unwrap_err();
            assert!(error.to_string().starts_with(message), "{error}");
            assert!(error.fix().unwrap_or_default().contains(fix), "{:?}", error.fix());
        }
        let error = read("version = 1\n", &[("OPENSHELL_VMM_CPUS", "x")]).unwrap_err();
        assert_eq!(error.to_string(), "OPENSHELL_VMM_CPUS x: not a whole number");
    }
}
