//! How large a machine is made: what the sandbox asks for, within what the host has.
//!
//! Invariant: a machine never gets more processors or memory than the host has, and never less than a guest needs. The host
//! is looked at once, when the driver starts.

use std::fs;
use std::thread;

use crate::quantity::{Quantity, QuantityError};

/// The most processors that a machine can have.
const MAX_CPUS: u32 = 32;
/// The least memory in which a guest and its supervisor run, in MiB.
const MIN_MEMORY_MIB: u64 = 128;
/// The most memory that a machine can have, in MiB.
const MAX_MEMORY_MIB: u64 = 256 << 10;

/// What the host has for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Processors that this process may use.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl Host {
    /// Looks at this host. What it does not tell is no limit.
    pub fn probe() -> Self {
        let cpus = thread::available_parallelism()
            .map_or(MAX_CPUS, |cpus| u32::try_from(cpus.get()).unwrap_or(MAX_CPUS));
        let memory = fs::read_to_string("/proc/meminfo").ok();
        let memory_mib = memory.as_deref().and_then(total_mib).unwrap_or(MAX_MEMORY_MIB);
        Self { cpus, memory_mib }
    }
}

/// `MemTotal` of `/proc/meminfo`.
fn total_mib(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

/// The size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// What a sandbox asks for; an empty text asks for nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asked<'a> {
    pub(crate) cpu_request: &'a str,
    pub(crate) cpu_limit: &'a str,
    pub(crate) memory_request: &'a str,
    pub(crate) memory_limit: &'a str,
}

/// Why a request for resources makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskedError {
    /// A field is no amount.
    #[error("{field}: {source}")]
    Quantity {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        source: QuantityError,
    },
    /// More is requested than allowed.
    #[error("{field}_request is more than {field}_limit")]
    AboveLimit {
        /// `cpu` or `memory`.
        field: &'static str,
    },
}

/// The size of a sandbox's machine, and a line for each thing that is not as asked.
pub(crate) fn size(
    asked: &Asked<'_>,
    default: Size,
    host: Host,
) -> Result<(Size, Vec<String>), AskedError> {
    let cpu = pair("cpu", asked.cpu_request, asked.cpu_limit)?;
    let memory = pair("memory", asked.memory_request, asked.memory_limit)?;
    let mut notes = Vec::new();
    let wanted = cpu.map_or(u64::from(default.vcpus), Quantity::ceil);
    let most = host.cpus.clamp(1, MAX_CPUS);
    let vcpus = u32::try_from(wanted).unwrap_or(u32::MAX).clamp(1, most);
    if u64::from(vcpus) < wanted {
        notes.push(format!("{vcpus} CPUs instead of {wanted}: the host has no more"));
    }
    let wanted = memory.map_or(default.memory_mib, |memory| memory.ceil_of(1 << 20));
    let most = host.memory_mib.clamp(MIN_MEMORY_MIB, MAX_MEMORY_MIB);
    let memory_mib = wanted.clamp(MIN_MEMORY_MIB, most);
    if memory_mib < wanted {
        notes.push(format!("{memory_mib} MiB instead of {wanted} MiB: the host has no more"));
    } else if memory_mib > wanted {
        notes.push(format!("{memory_mib} MiB instead of {wanted} MiB: a guest needs as much"));
    }
    Ok((Size { vcpus, memory_mib }, notes))
}

/// The limit, or else the request.
fn pair(field: &'static str, request: &str, limit: &str) -> Result<Option<Quantity>, AskedError> {
    let names = match field {
        "cpu" => ["cpu_request", "cpu_limit"],
        _ => ["memory_request", "memory_limit"],
    };
    let read = |field, text: &str| match text.trim() {
        "" => Ok(None),
        text => {
            let read = Quantity::parse(text).map(Some);
            read.map_err(|source| AskedError::Quantity { field, source })
        }
    };
    let (request, limit) = (read(names[0], request)?, read(names[1], limit)?);
    if let (Some(request), Some(limit)) = (request, limit)
        && request > limit
    {
        return Err(AskedError::AboveLimit { field });
    }
    Ok(limit.or(request))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Size = Size { vcpus: 2, memory_mib: 2048 };
    const HOST: Host = Host { cpus: 8, memory_mib: 16_384 };

    fn check(cpu: [&str; 2], memory: [&str; 2], vcpus: u32, memory_mib: u64, notes: usize) {
        let asked = Asked {
            cpu_request: cpu[0],
            cpu_limit: cpu[1],
            memory_request: memory[0],
            memory_limit: memory[1],
        };
        let (size, said) = size(&asked, DEFAULT, HOST).expect("an answer");
        assert_eq!(size, Size { vcpus, memory_mib }, "{asked:?}");
        assert_eq!(said.len(), notes, "{said:?}");
    }

    #[test]
    fn a_sandbox_gets_what_it_asks_for_within_the_host() {
        check(["", ""], ["", ""], 2, 2048, 0);
        check(["500m", ""], ["512Mi", ""], 1, 512, 0);
        check(["1", "3500m"], ["1Gi", "3Gi"], 4, 3072, 0);
        check(["", "64"], ["", "1Ti"], 8, 16_384, 2);
        check(["", ""], ["16Mi", ""], 2, 128, 1);
        check([" 1 ", ""], ["", "1e9"], 1, 954, 0);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let error = |cpu_request, cpu_limit, memory_limit| {
            let asked = Asked { cpu_request, cpu_limit, memory_limit, ..Asked::default() };
            size(&asked, DEFAULT, HOST).expect_err("refused").to_string()
        };
        assert!(error("x", "", "").starts_with("cpu_request: \"x\""));
        assert!(error("", "", "-1Gi").starts_with("memory_limit: \"-1Gi\" must be more"));
        assert_eq!(error("2", "1", ""), "cpu_request is more than cpu_limit");
    }

    #[test]
    fn a_small_host_never_asks_for_less_than_a_guest_needs() {
        let host = Host { cpus: 1, memory_mib: 64 };
        let (size, _) = size(&Asked::default(), DEFAULT, host).expect("an answer");
        assert_eq!(size, Size { vcpus: 1, memory_mib: 128 });
    }

    #[test]
    fn the_host_tells_what_it_has() {
        assert_eq!(total_mib("MemFree: 1 kB\nMemTotal:       16318276 kB\n"), Some(15_935));
        assert_eq!(total_mib("MemTotal: many\n"), None);
        let host = Host::probe();
        assert!(host.cpus > 0 && host.memory_mib > 0);
    }
}
