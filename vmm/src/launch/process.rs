//! What runs in a machine: what its image says, changed by what the user says; and that, as the guest's first process reads it.
//!
//! Pure. The format of the configuration is that of docs/guest.md.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::explain::Explain;
use crate::machines::record::{ImageProcess, Process};

/// How long a main process may take to end unless the user says otherwise.
pub const STOP_GRACE_MS: u64 = 10_000;
/// The most bytes that a guest reads.
const MAX_BYTES: usize = 1 << 20;

/// What the user says of the process.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Wishes {
    /// Instead of the image's arguments.
    pub command: Vec<String>,
    /// Instead of the image's program; what it is empty, there is none.
    pub entrypoint: Option<String>,
    /// Besides the image's variables.
    pub env: Vec<String>,
    /// Instead of the image's directory.
    pub workdir: Option<String>,
    /// Instead of the image's user.
    pub user: Option<String>,
    /// It has a terminal.
    pub tty: bool,
    /// Instead of the image's signal.
    pub stop_signal: Option<String>,
    /// Instead of [`STOP_GRACE_MS`].
    pub stop_grace_ms: Option<u64>,
}

/// Why there is no process.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProcessError {
    /// Neither says what to run.
    #[error("the image does not say what to run in it")]
    NoCommand,
    /// Not a signal.
    #[error("{0:?} is no signal")]
    Signal(String),
    /// Not a directory's path.
    #[error("{0:?} cannot be the directory of the main process")]
    Workdir(String),
    /// A NUL in a word.
    #[error("{0:?} holds a NUL")]
    Nul(String),
    /// More than a guest reads.
    #[error("command and environment have {0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
}

impl Explain for ProcessError {
    fn fix(&self) -> Option<String> {
        Some(
            match self {
                Self::NoCommand => "say it: openshell-vmm run IMAGE -- COMMAND",
                Self::Signal(_) => "write it as SIGTERM, TERM or 15",
                Self::Workdir(_) => "give an absolute path without `..`",
                Self::Nul(_) => "leave it out",
                Self::TooLarge(_) => "put what is large into a file of the guest's",
            }
            .to_owned(),
        )
    }
}

/// What runs, of an image that says `image`.
///
/// # Errors
/// [`ProcessError`].
pub fn process(image: &ImageProcess, wishes: &Wishes) -> Result<Process, ProcessError> {
    let mut args: Vec<String> = match &wishes.entrypoint {
        Some(entrypoint) => {
            Some(entrypoint.clone()).filter(|it| !it.is_empty()).into_iter().collect()
        }
        None => image.entrypoint.clone(),
    };
    // As with docker: another entry point goes without the image's arguments.
    let given = !wishes.command.is_empty() || wishes.entrypoint.is_some();
    args.extend(if given { &wishes.command } else { &image.cmd }.iter().cloned());
    if args.first().is_none_or(String::is_empty) {
        return Err(ProcessError::NoCommand);
    }
    let env: Vec<String> = image.env.iter().chain(&wishes.env).cloned().collect();
    let cwd = wishes.workdir.as_deref().unwrap_or(&image.working_dir);
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    if !cwd.starts_with('/') || cwd.split('/').any(|part| part == "..") {
        return Err(ProcessError::Workdir(cwd.to_owned()));
    }
    if let Some(word) = args.iter().chain(&env).find(|word| word.contains('\0')) {
        return Err(ProcessError::Nul(word.clone()));
    }
    let named = wishes.stop_signal.as_deref().unwrap_or(&image.stop_signal);
    let named = if named.is_empty() { "SIGTERM" } else { named };
    Ok(Process {
        // A variable without a value cannot be one: images have such now and then.
        env: env.into_iter().filter(|one| one.find('=').is_some_and(|at| at > 0)).collect(),
        args,
        cwd: cwd.to_owned(),
        user: wishes.user.clone().unwrap_or_else(|| image.user.clone()),
        tty: wishes.tty,
        stop_signal: signal(named).ok_or_else(|| ProcessError::Signal(named.to_owned()))?,
        stop_grace_ms: wishes.stop_grace_ms.unwrap_or(STOP_GRACE_MS),
    })
}

/// Names of signals by their numbers, from 1.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of a signal: `SIGTERM`, `term`, `15`, `RTMIN+3`.
#[must_use]
pub fn signal(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = name.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let more = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse::<i32>().ok()? };
        return RTMIN.checked_add(more).filter(|number| (RTMIN..=RTMAX).contains(number));
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let less = if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse::<i32>().ok()? };
        return RTMAX.checked_sub(less).filter(|number| (RTMIN..=RTMAX).contains(number));
    }
    let at = SIGNALS.iter().position(|&known| known == name)?;
    i32::try_from(at).ok().map(|at| at + 1)
}

/// What else a guest is told.
#[derive(Debug, Clone)]
pub struct GuestFacts<'a> {
    /// The machine's name.
    pub hostname: &'a str,
    /// Now, in milliseconds since 1970.
    pub clock_unix_ms: u64,
    /// Whether there is a network card.
    pub network: bool,
    /// Largest packet, if it is not the usual one.
    pub mtu: Option<u16>,
    /// Whether what it writes goes with it.
    pub volatile: bool,
    /// The main process's streams.
    pub streams: Streams,
}

/// Streams of the main process, which the guest brings to its machine's process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Streams {
    /// There is an input.
    pub input: bool,
    /// Columns and rows that its terminal begins with.
    pub size: Option<(u16, u16)>,
}

/// The configuration of the guest's first process.
///
/// # Errors
/// [`ProcessError::TooLarge`].
pub fn guest_config(process: &Process, facts: &GuestFacts<'_>) -> Result<Vec<u8>, ProcessError> {
    let (columns, rows) = facts.streams.size.unwrap_or_default();
    let mut config = json!({
        "version": 1,
        "hostname": hostname(facts.hostname),
        "clock_unix_ms": facts.clock_unix_ms,
        "network": network(facts),
        "agent": true,
        "volatile": facts.volatile,
        "process": {
            "args": process.args,
            "env": process.env,
            "cwd": process.cwd,
            "user": process.user,
            "tty": process.tty,
            "streams": { "input": facts.streams.input, "columns": columns, "rows": rows },
        },
    });
    if facts.network {
        let host: IpAddr = [192, 168, 127, 254].into();
        let gateway: IpAddr = [192, 168, 127, 1].into();
        config["hosts"] = json!([
            { "address": host, "names": [
                "host.openshell.internal", "host.containers.internal", "host.docker.internal",
            ]},
            { "address": gateway, "names": ["gateway.containers.internal"] },
        ]);
    }
    let text = config.to_string().into_bytes();
    if text.len() > MAX_BYTES { Err(ProcessError::TooLarge(text.len())) } else { Ok(text) }
}

fn network(facts: &GuestFacts<'_>) -> Value {
    if !facts.network {
        return json!({ "mode": "none" });
    }
    let mut network = json!({
        "interface": "eth0",
        "mode": "static",
        "address": "192.168.127.2/24",
        "gateway": "192.168.127.1",
        "dns": ["192.168.127.1"],
    });
    if let Some(mtu) = facts.mtu {
        network["mtu"] = mtu.into();
    }
    network
}

/// A name of a host, of what may be in a machine's.
fn hostname(name: &str) -> String {
    name.chars().map(|c| if c == '_' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageProcess {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        ImageProcess {
            user: "app".to_owned(),
            env: words(&["PATH=/x", "BROKEN"]),
            entrypoint: words(&["/entry", "-v"]),
            cmd: words(&["serve"]),
            working_dir: "/work".to_owned(),
            stop_signal: "SIGINT".to_owned(),
        }
    }

    fn args(image: &ImageProcess, entrypoint: Option<&str>, command: &[&str]) -> Vec<String> {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let entrypoint = entrypoint.map(str::to_owned);
        let wishes = Wishes { command, entrypoint, ..Wishes::default() };
        process(image, &wishes).map(|process| process.args).unwrap_or_default()
    }

    #[test]
    fn entry_points_and_arguments_go_together_as_with_docker() {
        let image = image();
        let bare = ImageProcess { entrypoint: Vec::new(), ..image.clone() };
        for (image, entrypoint, command, want) in [
            (&image, None, &[][..], &["/entry", "-v", "serve"][..]),
            (&image, None, &["other", "--flag"], &["/entry", "-v", "other", "--flag"]),
            (&image, Some("sh"), &[], &["sh"]),
            (&image, Some("sh"), &["-c", "x"], &["sh", "-c", "x"]),
            (&image, Some(""), &["ls"], &["ls"]),
            (&image, Some(""), &[], &[]),
            (&bare, None, &[], &["serve"]),
            (&bare, None, &["ls"], &["ls"]),
            (&ImageProcess::default(), None, &[], &[]),
        ] {
            assert_eq!(args(image, entrypoint, command), want, "{entrypoint:?} {command:?}");
        }
        assert_eq!(
            process(&ImageProcess::default(), &Wishes::default()),
            Err(ProcessError::NoCommand)
        );
    }

    #[test]
    fn the_user_wins_over_the_image() {
        let image = image();
        let plain = process(&image, &Wishes::default()).unwrap();
        assert_eq!(
            (plain.cwd.as_str(), plain.user.as_str(), plain.stop_signal),
            ("/work", "app", 2)
        );
        assert_eq!(plain.env, ["PATH=/x"]);
        let wishes = Wishes {
            env: vec!["PATH=/y".to_owned()],
            workdir: Some("/tmp".to_owned()),
            user: Some("0:0".to_owned()),
            stop_signal: Some("usr1".to_owned()),
            ..Wishes::default()
        };
        let changed = process(&image, &wishes).unwrap();
        assert_eq!((changed.cwd.as_str(), changed.user.as_str()), ("/tmp", "0:0"));
        assert_eq!((changed.stop_signal, changed.env.len()), (10, 2));
        for (wishes, want) in [
            (Wishes { workdir: Some("rel".to_owned()), ..Wishes::default() }, "\"rel\" cannot be"),
            (Wishes { workdir: Some("/a/../b".to_owned()), ..Wishes::default() }, "\"/a/../b\""),
            (
                Wishes { stop_signal: Some("SIGNONE".to_owned()), ..Wishes::default() },
                "\"SIGNONE\"",
            ),
            (Wishes { command: vec!["a\0b".to_owned()], ..Wishes::default() }, "\"a\\0b\" holds"),
        ] {
            let error = process(&image, &wishes).unwrap_err();
            assert!(error.to_string().starts_with(want), "{error}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("RTMAX-1", Some(63)),
            ("SIGSYS", Some(31)),
            ("0", None),
            ("65", None),
            ("RTMIN+31", None),
            ("RTMIN-1", None),
            ("", None),
            ("SIG", None),
            ("NOPE", None),
        ] {
            assert_eq!(signal(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_guest_is_told_what_it_needs() {
        let process = process(&image(), &Wishes { tty: true, ..Wishes::default() }).unwrap();
        let facts = GuestFacts {
            hostname: "a_b",
            clock_unix_ms: 7,
            network: true,
            mtu: Some(1400),
            streams: Streams { input: true, size: Some((100, 30)) },
            volatile: true,
        };
        let config: Value =
            serde_json::from_slice(&guest_config(&process, &facts).unwrap()).unwrap();
        assert_eq!(config["hostname"], "a-b");
        assert_eq!(config["network"]["mtu"], 1400);
        assert_eq!(config["process"]["tty"], true);
        assert_eq!(config["volatile"], true);
        assert_eq!(config["hosts"][0]["names"][2], "host.docker.internal");
        let alone = GuestFacts { network: false, ..facts.clone() };
        let config: Value =
            serde_json::from_slice(&guest_config(&process, &alone).unwrap()).unwrap();
        assert_eq!(config["network"]["mode"], "none");
        assert!(config.get("hosts").is_none());
        let large = Process { env: vec![format!("A={}", "x".repeat(MAX_BYTES))], ..process };
        assert!(matches!(guest_config(&large, &facts), Err(ProcessError::TooLarge(_))));
    }
}
