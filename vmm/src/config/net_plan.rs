//! The host's side of a network: rules read, ports listening, files open.
//!
//! Invariant: as of any plan: nothing below looks at what the user wrote again, and a refusal names the rule, the port or the file.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use openshell_usernet::config::Bounds;
use openshell_usernet::policy::{Action, Fallback, Policy, PolicyError, RefuseBy, Rule, RuleError};
use serde::Deserialize;
use toml::Spanned;

use super::net::{Mtu, NetSpec};
use super::net_limits::NetLimit;
use super::publish::{PublishError, PublishedPort, publish};
use crate::explain::Explain;

/// What every link with IPv6 takes, in bytes (RFC 8200 section 5).
const IPV6_LEAST_MTU: u16 = 1280;

/// The host's side of a network.
#[derive(Debug)]
pub struct HostPlan {
    /// What the guest may reach.
    pub policy: Arc<Policy>,
    /// Where that was read.
    pub rules: RuleSource,
    /// Where refusals are written.
    pub log: Option<File>,
    /// Published ports, listening.
    pub ports: Vec<PublishedPort>,
    /// Resolvers to ask.
    pub resolvers: Resolvers,
    /// Whether the guest has IPv6 too.
    pub ipv6: bool,
    /// What the stack keeps at most.
    pub bounds: Bounds,
    /// Where frames are written.
    pub capture: Option<CaptureFiles>,
    /// Each way.
    pub bytes_per_second: Option<u64>,
    /// Each way.
    pub packets_per_second: Option<u64>,
}

/// Rules of flags, and the file of more of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleSource {
    deny: Vec<String>,
    allow: Vec<String>,
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// What the file is not asked for.
    refuse: Option<RefuseBy>,
}

/// Resolvers to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolvers {
    /// These, in this order.
    These(Vec<SocketAddr>),
    /// Those that this file names at the time, usually /etc/resolv.conf.
    Of(PathBuf),
}

/// Where hosts name their resolvers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The two files of a capture, which take turns: the newest frames are always in one of them.
#[derive(Debug)]
pub struct CaptureFiles {
    /// As the user wrote it.
    pub first: File,
    /// The same name with `.1` behind it.
    pub second: File,
}

/// Why there is no such network.
#[derive(Debug, thiserror::Error)]
pub enum NetPlanError {
    /// A rule that is none.
    #[error("{place}: rule `{rule}`, {source}")]
    Rule {
        /// The flag, or file and line.
        place: String,
        /// As the user wrote it.
        rule: String,
        /// What is wrong.
        #[source]
        source: RuleError,
    },
    /// Rules that make no policy.
    #[error("{place}: {source}")]
    Policy {
        /// The flag, or file and line.
        place: String,
        /// What is wrong.
        #[source]
        source: PolicyError,
    },
    /// The policy file could not be read.
    #[error("cannot read the policy file {}", path.display())]
    Read {
        /// As the user wrote it.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The policy file is not right.
    #[error("{}:{line}:{column}: {message}", path.display())]
    File {
        /// As the user wrote it.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// IPv6 on a link that is too narrow for it.
    #[error("an MTU of {mtu} is too small for IPv6")]
    NarrowForIpv6 {
        /// In bytes.
        mtu: u16,
    },
    /// A port.
    #[error(transparent)]
    Publish(PublishError),
    /// The log of refusals.
    #[error("cannot write the log {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A file of the capture.
    #[error("cannot write the capture {}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl Explain for NetPlanError {
    fn why(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } | Self::Capture { source, .. } | Self::Log { source, .. } => {
                Some(source.to_string())
            }
            Self::Publish(error) => error.why(),
            Self::Rule { .. }
            | Self::Policy { .. }
            | Self::File { .. }
            | Self::NarrowForIpv6 { .. } => None,
        }
    }

    fn fix(&self) -> Option<String> {
        Some(match self {
            Self::Rule { .. } => "a rule is [PROTOCOL:]TARGET[:PORTS], such as tcp:private:5432".to_owned(),
            Self::Policy { source: PolicyError::TooMany { .. }, .. } => {
                "name ranges instead of single addresses".to_owned()
            }
            Self::Policy { .. } => "drop that rule, or put it before the other".to_owned(),
            Self::Read { .. } => "check the path given to --net-policy".to_owned(),
            Self::File { .. } => {
                "the file has `rules`, a list of texts, and may have `default`, \"public\" or \"nothing\", and `refuse`, \"reset\", \"icmp\" or \"drop\""
                    .to_owned()
            }
            Self::NarrowForIpv6 { .. } => "give --mtu 1280 or more, or leave --ipv6 out".to_owned(),
            Self::Publish(error) => return error.fix(),
            Self::Capture { path, .. } | Self::Log { path, .. } => format!("check the directory: ls -ld {}", path.display()),
        })
    }
}

/// Opens what `spec` names.
///
/// # Errors
/// [`NetPlanError`].
pub fn open(spec: &NetSpec) -> Result<HostPlan, NetPlanError> {
    let rules = RuleSource {
        deny: spec.deny.clone(),
        allow: spec.allow.clone(),
        file: spec.policy.clone(),
        refuse: spec.refuse,
    };
    let policy = Arc::new(rules.read()?);
    let mtu = spec.mtu.unwrap_or(Mtu::ETHERNET).bytes();
    if spec.ipv6 && mtu < IPV6_LEAST_MTU {
        return Err(NetPlanError::NarrowForIpv6 { mtu });
    }
    let ports = publish(&spec.publish).map_err(NetPlanError::Publish)?;
    Ok(HostPlan {
        policy,
        rules,
        log: spec.log.as_deref().map(log).transpose()?,
        ports,
        resolvers: if spec.dns.is_empty() {
            let path = spec.resolv_conf.as_deref().unwrap_or(Path::new(RESOLV_CONF));
            Resolvers::Of(path.to_owned())
        } else {
            Resolvers::These(spec.dns.clone())
        },
        ipv6: spec.ipv6,
        bounds: bounds(&spec.limits),
        capture: spec.pcap.as_deref().map(capture).transpose()?,
        bytes_per_second: spec.bw.map(|rate| rate.0),
        packets_per_second: spec.pps,
    })
}

fn bounds(limits: &[NetLimit]) -> Bounds {
    let mut bounds = Bounds::default();
    limits.iter().for_each(|limit| limit.apply(&mut bounds));
    bounds
}

/// A rule and where it stands.
type Placed = (Rule, String);

impl RuleSource {
    /// Reads all of them. Rules of flags have no order of their own: the most specific comes first. Those of the file come after them,
    /// in theirs.
    ///
    /// # Errors
    /// [`NetPlanError`].
    pub fn read(&self) -> Result<Policy, NetPlanError> {
        let mut rules: Vec<Placed> = Vec::new();
        for (flag, action, texts) in
            [("--deny", Action::Deny, &self.deny), ("--allow", Action::Allow, &self.allow)]
        {
            for text in texts {
                let rule = Rule::parse(action, text).map_err(|source| NetPlanError::Rule {
                    place: flag.to_owned(),
                    rule: text.clone(),
                    source,
                })?;
                rules.push((rule, flag.to_owned()));
            }
        }
        rules.sort_by(|(one, _), (other, _)| one.by_specificity(other));
        let (mut fallback, mut refuse) = (Fallback::default(), self.refuse);
        if let Some(path) = &self.file {
            let text = fs::read_to_string(path)
                .map_err(|source| NetPlanError::Read { path: path.clone(), source })?;
            let file = policy_file(path, &text)?;
            rules.extend(file.rules);
            fallback = file.fallback;
            refuse = refuse.or(file.refuse);
        }
        let (rules, places): (Vec<_>, Vec<_>) = rules.into_iter().unzip();
        let policy = Policy::new(rules, fallback).map_err(|source| {
            let index = match &source {
                PolicyError::TooMany { .. } => Policy::MAX_RULES,
                PolicyError::Unreachable { index, .. } => *index,
            };
            NetPlanError::Policy { place: places.get(index).cloned().unwrap_or_default(), source }
        })?;
        Ok(policy.refusing(refuse.unwrap_or_default()))
    }
}

/// A policy file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    #[serde(default)]
    default: Default,
    refuse: Option<Refuse>,
    #[serde(default)]
    rules: Vec<Spanned<String>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Refuse {
    Reset,
    Icmp,
    Drop,
}

/// What a policy file says.
#[derive(Debug)]
struct FromFile {
    rules: Vec<Placed>,
    fallback: Fallback,
    refuse: Option<RefuseBy>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Default {
    #[default]
    Public,
    Nothing,
}

fn policy_file(path: &Path, text: &str) -> Result<FromFile, NetPlanError> {
    let file: PolicyFile = toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(text.len(), |span| span.start));
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        NetPlanError::File { path: path.to_owned(), line, column, message }
    })?;
    let rules = file.rules.iter().map(|spanned| {
        let (line, column) = position(text, spanned.span().start);
        let place = format!("{}:{line}:{column}", path.display());
        match Rule::from_str(spanned.get_ref()) {
            Ok(rule) => Ok((rule, place)),
            Err(source) => {
                Err(NetPlanError::Rule { place, rule: spanned.get_ref().clone(), source })
            }
        }
    });
    let fallback = match file.default {
        Default::Public => Fallback::Public,
        Default::Nothing => Fallback::Nothing,
    };
    let refuse = file.refuse.map(|refuse| match refuse {
        Refuse::Reset => RefuseBy::Reset,
        Refuse::Icmp => RefuseBy::Icmp,
        Refuse::Drop => RefuseBy::Silence,
    });
    Ok(FromFile { rules: rules.collect::<Result<_, _>>()?, fallback, refuse })
}

/// Line and column of the byte at `at`, counted from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

fn log(path: &Path) -> Result<File, NetPlanError> {
    let opened = File::options().create(true).append(true).open(path);
    opened.map_err(|source| NetPlanError::Log { path: path.to_owned(), source })
}

fn capture(path: &Path) -> Result<CaptureFiles, NetPlanError> {
    let open = |path: PathBuf| {
        // Appended to, so that a file that was cut short is written from its start.
        let opened = File::options().create(true).append(true).open(&path);
        let file = opened.and_then(|file| file.set_len(0).map(|()| file));
        file.map_err(|source| NetPlanError::Capture { path, source })
    };
    let mut second = path.as_os_str().to_owned();
    second.push(".1");
    Ok(CaptureFiles { first: open(path.to_owned())?, second: open(second.into())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(deny: &[&str], allow: &[&str]) -> NetSpec {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        NetSpec { deny: texts(deny), allow: texts(allow), ..NetSpec::default() }
    }

    #[test]
    fn specific_rules_go_first_and_those_of_the_file_last() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        fs::write(&path, "default = \"nothing\"\nrules = [\n  \"allow special:443\",\n]\n")
            .unwrap();
        let flags = spec(&["public", "10.1.0.0/16"], &["tcp:private:5432", "*.example.org:443"]);
        let plan = open(&NetSpec { policy: Some(path), ..flags }).unwrap();
        let shown: Vec<String> = plan.policy.rules().iter().map(ToString::to_string).collect();
        let expected = [
            "deny 10.1.0.0/16",
            "allow name:*.example.org:443",
            "allow tcp:private:5432",
            "deny public",
            "allow special:443",
        ];
        assert_eq!(shown, expected);
        assert_eq!(plan.policy.fallback(), Fallback::Nothing);
        assert_eq!(plan.policy.refuses_by(), RefuseBy::Reset);
    }

    #[test]
    fn how_refusals_are_told_is_said_by_the_flag_or_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        for (flag, file, want) in [
            (None, "", RefuseBy::Reset),
            (None, "refuse = \"drop\"", RefuseBy::Silence),
            (None, "refuse = \"icmp\"", RefuseBy::Icmp),
            (Some("reset"), "refuse = \"icmp\"", RefuseBy::Reset),
            (Some("drop"), "", RefuseBy::Silence),
        ] {
            fs::write(&path, file).unwrap();
            let refuse = flag.map(|flag| NetSpec::parse_refuse(flag).unwrap());
            let spec = NetSpec { policy: Some(path.clone()), refuse, ..NetSpec::default() };
            assert_eq!(open(&spec).unwrap().policy.refuses_by(), want, "{flag:?} {file:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let error = open(&spec(&[], &["10.0.0.0/99"])).unwrap_err();
        let shown = error.to_string();
        assert!(shown.starts_with("--allow: rule `10.0.0.0/99`, column 1: "), "{shown}");
        let error = open(&spec(&["private"], &["private"])).unwrap_err();
        let shown = error.to_string();
        assert!(shown.starts_with("--allow: rule `allow private` can never decide"), "{shown}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p.toml");
        for (text, want) in [
            (
                "rules = [\n\"allow public\",\n\"permit private\"]\n",
                "p.toml:3:1: rule `permit private`, ",
            ),
            ("default = \"all\"", "p.toml:1:11: unknown variant `all`"),
            ("refuse = \"quietly\"", "p.toml:1:10: unknown variant `quietly`"),
            ("\n\nrule = []", "p.toml:3:1: unknown field `rule`"),
        ] {
            fs::write(&path, text).unwrap();
            let spec = NetSpec { policy: Some(path.clone()), ..NetSpec::default() };
            let shown = open(&spec).unwrap_err().to_string();
            assert!(shown.contains(want), "{shown}");
        }
        let spec = NetSpec { policy: Some("/nowhere".into()), ..NetSpec::default() };
        assert_eq!(open(&spec).unwrap_err().to_string(), "cannot read the policy file /nowhere");
        let spec = NetSpec { log: Some("/nowhere/x".into()), ..NetSpec::default() };
        assert_eq!(open(&spec).unwrap_err().to_string(), "cannot write the log /nowhere/x");
        let (ipv6, mtu) = (true, Some(Mtu::parse("1279").unwrap()));
        let shown = open(&NetSpec { ipv6, mtu, ..NetSpec::default() }).unwrap_err().to_string();
        assert_eq!(shown, "an MTU of 1279 is too small for IPv6");
        let spec = NetSpec { pcap: Some("/nowhere/x".into()), ..NetSpec::default() };
        assert_eq!(open(&spec).unwrap_err().to_string(), "cannot write the capture /nowhere/x");
    }
}
