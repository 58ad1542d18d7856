//! Rules as text: `[PROTOCOL:]TARGET[:PORTS]`.
//!
//! Invariant: what a rule is shown as reads back as the same rule. Pure. The grammar is in docs/networking.md.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::address::{Group, never};
use super::cidr::Cidr;
use super::pattern::{NamePattern, PatternError};
use super::rule::{Action, Ports, Protocol, Rule, Target};
use crate::dns::FIXED_NAMES;

/// Why a text is no rule, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: `{word}`: {reason}")]
pub struct RuleError {
    /// In characters, counted from 1.
    pub column: usize,
    /// What stands there.
    pub word: String,
    /// What is wrong with it.
    pub reason: RuleFault,
}

/// What is wrong with a word of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RuleFault {
    /// Nothing stands there.
    #[error("something is missing here")]
    Missing,
    /// Not `allow` or `deny`.
    #[error("a rule begins with `allow` or `deny`")]
    Action,
    /// Not a target.
    #[error(
        "neither an address, a range as 10.0.0.0/8, a name as example.org, nor one of any, public, private, link-local, \
         metadata, host, special"
    )]
    Target,
    /// A word close to one that is known.
    #[error("not known here; did you mean `{0}`?")]
    Near(&'static str),
    /// Looks like a range and is none.
    #[error("not a range of addresses, as 10.0.0.0/8 or [fd00::]/8")]
    Range,
    /// Bits below the prefix are set.
    #[error("bits below the prefix are set; the range is {0}")]
    HostBits(Cidr),
    /// A bracket without its end.
    #[error("an IPv6 address ends with `]`")]
    Bracket,
    /// Not a name.
    #[error("{0}")]
    Name(PatternError),
    /// One of the names of the host.
    #[error("the host's own name; write `host`")]
    HostName,
    /// Not a port.
    #[error("not a port from 1 to 65535 or a range of ports as 8000-8100")]
    Port,
    /// The last port is before the first.
    #[error("a range of ports ends where it begins or later")]
    PortOrder,
    /// More ranges than [`Ports::MAX_RANGES`].
    #[error("a rule has at most {} ranges of ports", Ports::MAX_RANGES)]
    TooManyPorts,
    /// Ports of a protocol that has none.
    #[error("{0} has no ports")]
    NoPorts(&'static str),
    /// A lookup of something that is no name.
    #[error("after `dns:` stands a name, `*` or `any`")]
    NotAName,
    /// An address that is always denied.
    #[error("always denied; the host's loopback is `host`")]
    Loopback,
    /// The same, where the loopback is not meant.
    #[error("always denied")]
    Never,
}

impl Rule {
    /// Reads what follows `allow` or `deny`.
    ///
    /// # Errors
    /// Which word is wrong, and where.
    pub fn parse(action: Action, text: &str) -> Result<Self, RuleError> {
        Reader { text, at: 0 }.rule(action)
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    /// Reads `allow ...` or `deny ...`.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let reader = Reader { text, at: 0 };
        let word = text.split(' ').next().unwrap_or_default();
        let action = match word {
            "allow" => Action::Allow,
            "deny" => Action::Deny,
            _ => return Err(reader.fault(word, RuleFault::Action)),
        };
        let rest = text[word.len()..].trim_start_matches(' ');
        Reader { text, at: text.len() - rest.len() }.rule(action)
    }
}

/// A text, and how far it was read.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rule(mut self, action: Action) -> Result<Rule, RuleError> {
        let protocol = self.protocol();
        let (target, word) = self.target()?;
        let at = self.at;
        let ports = self.ports()?;
        if let Some(of @ (Protocol::Icmp | Protocol::Dns)) = protocol
            && !ports.is_all()
        {
            return Err(self.fault(&self.text[at + 1..], RuleFault::NoPorts(of.name())));
        }
        if protocol == Some(Protocol::Dns) && !matches!(target, Target::Any | Target::Name(_)) {
            return Err(self.fault(word, RuleFault::NotAName));
        }
        if action == Action::Allow {
            let never = match &target {
                Target::Range(range) => never(*range),
                Target::Group(Group::Multicast) => Some(super::Never::Multicast),
                _ => None,
            };
            match never {
                None => {}
                Some(super::Never::Loopback | super::Never::Unspecified) => {
                    return Err(self.fault(word, RuleFault::Loopback));
                }
                Some(_) => return Err(self.fault(word, RuleFault::Never)),
            }
        }
        Ok(Rule { action, protocol, target, ports })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let (word, _) = self.rest().split_once(':')?;
        let known = Protocol::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word))?;
        self.at += word.len() + 1;
        Some(known.1)
    }

    /// The target, and its word.
    fn target(&mut self) -> Result<(Target, &'a str), RuleError> {
        let rest = self.rest();
        if let Some(name) = strip_word(rest, "name:") {
            self.at += rest.len() - name.len();
            let word = self.word();
            return Ok((Target::Name(self.name(word)?), word));
        }
        // An IPv6 address without brackets is the whole rest: its last group would read as a port.
        if rest
            .split('/')
            .next()
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
        {
            self.at = self.text.len();
            return Ok((Target::Range(self.range(rest, rest)?), rest));
        }
        if rest.starts_with('[') {
            return self.bracketed();
        }
        let word = self.word();
        if word.eq_ignore_ascii_case("any") {
            return Ok((Target::Any, word));
        }
        if let Some((_, group)) =
            Group::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word))
        {
            return Ok((Target::Group(*group), word));
        }
        if word.is_empty() {
            return Err(self.fault(word, RuleFault::Missing));
        }
        let numeric = word.bytes().all(|byte| byte.is_ascii_digit() || b"./".contains(&byte));
        if numeric || word.contains('/') {
            return Ok((Target::Range(self.range(word, word)?), word));
        }
        if word.contains('.') || word == "*" {
            return Ok((Target::Name(self.name(word)?), word));
        }
        Err(self.fault(word, nearest(word).map_or(RuleFault::Target, RuleFault::Near)))
    }

    /// `[ADDRESS]` or `[ADDRESS]/LEN`, or `[ADDRESS/LEN]`.
    fn bracketed(&mut self) -> Result<(Target, &'a str), RuleError> {
        let rest = self.rest();
        let Some((inside, after)) = rest[1..].split_once(']') else {
            return Err(self.fault(rest, RuleFault::Bracket));
        };
        let len_len =
            if after.starts_with('/') { after.find(':').unwrap_or(after.len()) } else { 0 };
        let word = &rest[..inside.len() + 2 + len_len];
        self.at += word.len();
        let range = self.range(word, &format!("{inside}{}", &after[..len_len]))?;
        Ok((Target::Range(range), word))
    }

    /// Up to the next colon, or the end.
    fn word(&mut self) -> &'a str {
        let word = self.rest().split(':').next().unwrap_or_default();
        self.at += word.len();
        word
    }

    fn name(&self, word: &str) -> Result<NamePattern, RuleError> {
        if FIXED_NAMES.iter().any(|(name, _)| name.eq_ignore_ascii_case(word)) {
            return Err(self.fault(word, RuleFault::HostName));
        }
        if word.is_empty() {
            return Err(self.fault(word, RuleFault::Missing));
        }
        NamePattern::new(word).map_err(|error| self.fault(word, RuleFault::Name(error)))
    }

    fn range(&self, word: &str, range: &str) -> Result<Cidr, RuleError> {
        let fault = |reason| self.fault(word, reason);
        let (address, len) = match range.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (range, None),
        };
        let address: IpAddr = address.parse().map_err(|_| fault(RuleFault::Range))?;
        let Some(len) = len else { return Ok(Cidr::single(address)) };
        let digits = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
        let len = len.parse().ok().filter(|_| digits).ok_or_else(|| fault(RuleFault::Range))?;
        let range = Cidr::new(address, len).ok_or_else(|| fault(RuleFault::Range))?;
        if range.address() == address.to_canonical() {
            Ok(range)
        } else {
            Err(fault(RuleFault::HostBits(range)))
        }
    }

    fn ports(&mut self) -> Result<Ports, RuleError> {
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(Ports::default());
        }
        let Some(list) = rest.strip_prefix(':') else {
            return Err(self.fault(rest, RuleFault::Target));
        };
        let mut ranges = Vec::new();
        for word in list.split(',') {
            let port = |text: &str| {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse()
                    .ok()
                    .filter(|&port: &u16| digits && port != 0)
                    .ok_or_else(|| self.fault(word, RuleFault::Port))
            };
            if word.is_empty() {
                return Err(self.fault(word, RuleFault::Missing));
            }
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            let range = (port(first)?, port(last)?);
            if range.0 > range.1 {
                return Err(self.fault(word, RuleFault::PortOrder));
            }
            ranges.push(range);
        }
        self.at = self.text.len();
        Ports::new(ranges).ok_or_else(|| self.fault(list, RuleFault::TooManyPorts))
    }

    /// `word` is a piece of the text, or stands for its end.
    fn fault(&self, word: &str, reason: RuleFault) -> RuleError {
        let start = (word.as_ptr().addr()).wrapping_sub(self.text.as_ptr().addr());
        let before = self.text.get(..start).unwrap_or(self.text);
        // What a user wrote may be long or hold control characters; a message is a line.
        let word = word.chars().take(80).flat_map(char::escape_debug).collect();
        RuleError { column: before.chars().count() + 1, word, reason }
    }
}

fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(word.len())?;
    head.eq_ignore_ascii_case(word).then_some(rest)
}

/// The known word that has the same letters but for one, or in another order.
fn nearest(word: &str) -> Option<&'static str> {
    let known = Group::NAMES.iter().map(|(name, _)| *name).chain(["any"]);
    let known = known.chain(Protocol::NAMES.iter().map(|(name, _)| *name));
    let word = word.to_ascii_lowercase();
    known.filter(|name| word.len() > 2 && is_close(&word, name)).min()
}

/// Whether one letter was added, dropped or changed, or letters were exchanged.
fn is_close(word: &str, name: &str) -> bool {
    let (a, b) = (word.as_bytes(), name.as_bytes());
    let front = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[front..], &b[front..]);
    let back = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[..a.len() - back], &b[..b.len() - back]);
    match (a, b) {
        ([a, b], [c, d]) => (a, b) == (d, c),
        _ => a.len() <= 1 && b.len() <= 1,
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.action {
            Action::Allow => "allow ",
            Action::Deny => "deny ",
        })?;
        if let Some(protocol) = self.protocol {
            write!(f, "{}:", protocol.name())?;
        }
        match &self.target {
            Target::Any => f.write_str("any")?,
            Target::Group(group) => write!(f, "{group}")?,
            Target::Range(range) if range.address().is_ipv4() => write!(f, "{range}")?,
            Target::Range(range) => write!(f, "[{range}]")?,
            Target::Name(pattern) => write!(f, "name:{pattern}")?,
        }
        for (place, &(first, last)) in self.ports.ranges().iter().enumerate() {
            f.write_str(if place == 0 { ":" } else { "," })?;
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
        }
        Ok(())
    }
}
