//! `stats`: what machines that run use, by their guests' own account.

use std::path::{Path, PathBuf};

use clap::Args;
use openshell_vmm::agent::{self, Stats};
use openshell_vmm::machines::{Machine, Status};
use openshell_vmm::report::json;
use serde_json::{Value, json};

use super::failure::Failure;
use super::list::table;
use super::reach;
use super::targets::{Form, of_store, open_store};

const HEAD: [&str; 9] =
    ["NAME", "UPTIME", "CPU TIME", "MEMORY", "OF", "DISK", "DISK R/W", "NET IN/OUT", "TASKS"];

/// Show what running machines use: processors, memory, disk, network
#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// How they are printed
    #[arg(short, long, value_enum, default_value_t = Form::Table, value_name = "FORM")]
    output: Form,
    /// The vsock socket of a machine that has no name
    #[arg(long, value_name = "PATH")]
    vsock: Option<PathBuf>,
    /// Names, ids or beginnings of ids [default: all that run]
    #[arg(value_name = "NAME", conflicts_with = "vsock")]
    names: Vec<String>,
}

pub(super) fn stats(args: &StatsArgs) -> Result<u8, Failure> {
    let mut told = Vec::new();
    let mut code = 0;
    match &args.vsock {
        Some(path) => told.push((path.display().to_string(), of(path)?)),
        None => {
            for name in names(args)? {
                match reach::named(name.as_ref(), None).and_then(|path| of(&path)) {
                    Ok(stats) => told.push((name, stats)),
                    Err(failure) => {
                        failure.print();
                        code = failure.code;
                    }
                }
            }
        }
    }
    let text = match args.output {
        Form::Json => {
            json::line(&told.iter().map(|(name, stats)| values(name, stats)).collect::<Vec<_>>())
        }
        Form::Table => {
            let head = HEAD.map(str::to_owned).to_vec();
            let rows = told.iter().map(|(name, stats)| row(name, stats));
            table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
        }
    };
    super::print(text.as_bytes())?;
    Ok(code)
}

fn of(path: &Path) -> Result<Stats, Failure> {
    agent::stats(path).map_err(|error| Failure::of(&error, 1))
}

fn names(args: &StatsArgs) -> Result<Vec<String>, Failure> {
    let store = open_store()?;
    if args.names.is_empty() {
        let running = |machine: &Machine| matches!(machine.status(), Status::Running(_));
        let machines = store.list().into_iter().filter(running);
        return Ok(machines.map(|machine| machine.record.name).collect());
    }
    let find = |name: &String| store.find(name).map(|machine| machine.record.name);
    args.names.iter().map(find).collect::<Result<_, _>>().map_err(|error| of_store(&error))
}

fn values(name: &str, stats: &Stats) -> Value {
    let mut value = json!({ "schema": "v1", "name": name });
    for (key, number) in stats.values() {
        value[key] = number.into();
    }
    value
}

fn row(name: &str, stats: &Stats) -> Vec<String> {
    let seconds = |us: u64| format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000);
    let mib = |bytes: u64| format!("{:.1}M", bytes as f64 / f64::from(1 << 20));
    let both = |a: u64, b: u64| format!("{} / {}", mib(a), mib(b));
    vec![
        name.to_owned(),
        seconds(stats.uptime_ms.saturating_mul(1000)),
        seconds(stats.cpu_user_us.saturating_add(stats.cpu_system_us)),
        mib(stats.memory_total_bytes.saturating_sub(stats.memory_available_bytes)),
        mib(stats.memory_total_bytes),
        mib(stats.disk_total_bytes.saturating_sub(stats.disk_available_bytes)),
        both(stats.disk_read_bytes, stats.disk_written_bytes),
        both(stats.network_received_bytes, stats.network_sent_bytes),
        stats.tasks.to_string(),
    ]
}
