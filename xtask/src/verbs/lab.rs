//! `cargo xtask lab [-- COMMAND]`: a shell or one command on the emulated machine.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::lab::{Clock, FileIn, Input, Share, Spec};
use crate::{cmd, say};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Put a file or directory into the lab: HOST[:LAB[:MODE]]; LAB is /root/NAME unless given
    #[arg(long, value_name = "HOST[:LAB[:MODE]]")]
    file: Vec<String>,
    /// Put a program of this host into the lab, with its libraries
    #[arg(long, value_name = "PROGRAM")]
    tool: Vec<String>,
    /// Mount a directory of this host: HOST:LAB[:rw]
    #[arg(long, value_name = "HOST:LAB[:rw]")]
    share: Vec<String>,
    /// A fresh ext4 disk of this size on /scratch
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    scratch: Option<u64>,
    /// Memory of the lab
    #[arg(short, long, value_name = "SIZE", default_value = "3G", value_parser = mebibytes)]
    memory: u64,
    /// Processors of the lab
    #[arg(long, value_name = "N", default_value_t = 2)]
    smp: u32,
    /// What the lab's time counts
    #[arg(long, value_enum, default_value_t = ClockName::Wall)]
    clock: ClockName,
    /// Load a further kernel module (tun, overlay, loop, vhost_vsock)
    #[arg(long, value_name = "NAME")]
    module: Vec<String>,
    /// Environment of the command
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give the command the terminal instead of streams of its own
    #[arg(short, long)]
    terminal: bool,
    /// Seconds until the lab is stopped [default: 300, none for a shell]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Program and arguments; a shell without one
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ClockName {
    /// The time of this host
    Wall,
    /// Executed instructions, 1 ns each, on one processor
    Instructions,
}

/// Runs the verb; the exit code is the command's own.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let spec = spec(arguments)?;
    if spec.terminal {
        say::line("starting the lab; Ctrl-A x ends it");
    }
    let outcome = spec.run()?;
    say::line(format_args!(
        "lab: up after {:.1} s, exit code {}, {:.1} s in all",
        outcome.boot.as_secs_f64(),
        outcome.code,
        outcome.total.as_secs_f64()
    ));
    Ok(ExitCode::from(outcome.code))
}

fn spec(arguments: Arguments) -> Result<Spec> {
    let on_terminal = std::io::stdin().is_terminal();
    let shell = arguments.command.is_empty();
    if shell && !on_terminal {
        bail!("no command and no terminal for a shell: cargo xtask lab -- COMMAND");
    }
    let long = if shell { Duration::from_hours(24) } else { Duration::from_mins(5) };
    let mut spec = Spec {
        memory_mib: arguments.memory,
        cpus: arguments.smp,
        clock: match arguments.clock {
            ClockName::Wall => Clock::Wall,
            ClockName::Instructions => Clock::Instructions,
        },
        scratch_mib: arguments.scratch,
        modules: arguments.module,
        terminal: shell || arguments.terminal,
        input: if on_terminal { Input::Empty } else { Input::Inherit },
        timeout: arguments.timeout.map_or(long, Duration::from_secs),
        ..Spec::default()
    };
    spec.files = arguments.file.iter().map(|text| file(text)).collect::<Result<_>>()?;
    spec.shares = arguments.share.iter().map(|text| share(text)).collect::<Result<_>>()?;
    for name in &arguments.tool {
        let program = if name.contains('/') { Some(PathBuf::from(name)) } else { cmd::find(name) };
        spec.add_tool(&program.with_context(|| format!("no program `{name}` on this host"))?)?;
    }
    for pair in &arguments.env {
        let (name, value) = pair.split_once('=').with_context(|| format!("`{pair}` has no `=`"))?;
        spec.env.push((name.to_owned(), value.to_owned()));
    }
    spec.command = if shell { vec!["sh".into(), "-l".into()] } else { arguments.command };
    Ok(spec)
}

fn file(text: &str) -> Result<FileIn> {
    let mut parts = text.splitn(3, ':');
    let host = Path::new(parts.next().unwrap_or_default()).to_owned();
    let name = host.file_name().with_context(|| format!("`{text}` names no file"))?;
    let lab = match parts.next() {
        Some(lab) => lab.to_owned(),
        None => format!("/root/{}", name.to_string_lossy()),
    };
    let mode = parts
        .next()
        .map(|mode| u32::from_str_radix(mode, 8).with_context(|| format!("`{mode}` is no mode")))
        .transpose()?;
    Ok(FileIn { host, lab, mode })
}

fn share(text: &str) -> Result<Share> {
    let parts: Vec<&str> = text.split(':').collect();
    let (host, lab, writable) = match parts[..] {
        [host, lab] => (host, lab, false),
        [host, lab, "rw"] => (host, lab, true),
        _ => bail!("`{text}` is not HOST:LAB[:rw]"),
    };
    if lab.is_empty() || lab.contains(char::is_whitespace) {
        bail!("`{lab}` cannot be a mount point");
    }
    let host = std::fs::canonicalize(host).with_context(|| format!("cannot share {host}"))?;
    Ok(Share { host, lab: lab.to_owned(), writable })
}

/// `512M`, `3G`, or a number of MiB.
fn mebibytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let number: u64 = digits.parse().map_err(|_error| format!("`{text}` is no size like 512M"))?;
    number.checked_mul(unit).filter(|&size| size != 0).ok_or_else(|| format!("`{text}` cannot be"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [("512M", Some(512)), ("3G", Some(3072)), ("64", Some(64))] {
            assert_eq!(mebibytes(text).ok(), expected, "{text}");
        }
        for text in ["", "0", "G", "-1", "1T", "99999999999999999999G", "18446744073709551615G"] {
            assert!(mebibytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_and_shares() {
        let plain = file("a/b").unwrap();
        assert_eq!((plain.lab.as_str(), plain.mode), ("/root/b", None));
        let full = file("a/b:/c/d:755").unwrap();
        assert_eq!((full.lab.as_str(), full.mode), ("/c/d", Some(0o755)));
        assert!(file("a:/b:9").is_err());
        assert!(share("/:/x:rw").unwrap().writable);
        assert!(!share("/:/x").unwrap().writable);
        for wrong in ["/", "/:/x:ro", "/:", "/:/a b", "/nonexistent-path:/x"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
