//! What there is: `ps`, `inspect`, `port`, `df`, `prune`.
//!
//! Invariant: what is printed of a machine that runs comes from its process and its socket, not from what was written before.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use openshell_vmm::config::units::{format_size, parse_duration};
use openshell_vmm::control::client::Client;
use openshell_vmm::control::protocol::Request;
use openshell_vmm::logbook::now_unix_ms;
use openshell_vmm::machines::journal::{Event, Journal};
use openshell_vmm::machines::{Machine, Status, names};
use openshell_vmm::report::json;
use serde::Serialize;
use serde_json::{Value, json};

use super::failure::Failure;
use super::moment;
use super::targets::{Form, has_label, of_store, open_store};

/// How long a machine is waited for that is looked at.
const ANSWER: Duration = Duration::from_millis(500);

/// List machines
#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// Only machines of which this is so: name=, id=, image=, status= or label=
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<Filter>,
    /// How they are printed
    #[arg(short, long, value_enum, default_value_t = Form::Table, value_name = "FORM")]
    output: Form,
}

/// What a machine must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Filter {
    Name(String),
    Id(String),
    Image(String),
    Status(String),
    Label(String),
}

fn filter(text: &str) -> Result<Filter, String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let value = value.to_owned();
    Ok(match key {
        "name" => Filter::Name(value),
        "id" => Filter::Id(value),
        "image" => Filter::Image(value),
        "status" => Filter::Status(value),
        "label" => Filter::Label(value),
        _ => return Err("a filter is one of name=, id=, image=, status=, label=".to_owned()),
    })
}

impl Filter {
    fn holds(&self, machine: &Machine, state: &State) -> bool {
        let record = &machine.record;
        match self {
            Self::Name(part) => record.name.contains(part.as_str()),
            Self::Id(start) => record.id.starts_with(start.as_str()),
            Self::Image(part) => {
                record.image.as_ref().is_some_and(|image| image.reference.contains(part.as_str()))
            }
            Self::Status(name) => state.name == *name,
            Self::Label(label) => has_label(record, label),
        }
    }
}

/// What a machine does, in words.
#[derive(Debug)]
struct State {
    name: String,
    shown: String,
    pid: Option<u32>,
    started_unix_ms: Option<u64>,
    booted: Option<bool>,
}

impl State {
    fn of(machine: &Machine) -> Self {
        let plain = |name: &str| Self {
            name: name.to_owned(),
            shown: name.to_owned(),
            pid: None,
            started_unix_ms: machine.last_run().map(|run| run.started_unix_ms),
            booted: None,
        };
        match machine.status() {
            Status::Created => plain("created"),
            Status::Dead => plain("dead"),
            Status::Exited(ended) => {
                Self { shown: format!("exited ({})", ended.code), ..plain("exited") }
            }
            Status::Running(running) => {
                let reply = machine.socket(names::CONTROL).ok().and_then(|path| {
                    Client::connect(&path).ok()?.ask(&Request::Status, Some(ANSWER)).ok()
                });
                let name = reply.as_ref().and_then(|reply| reply.state.clone());
                // It runs, and has no socket yet, or nobody who answers.
                let name = name.unwrap_or_else(|| "starting".to_owned());
                Self {
                    shown: name.clone(),
                    name,
                    pid: Some(running.process.pid),
                    started_unix_ms: Some(running.started_unix_ms),
                    booted: reply.and_then(|reply| reply.booted),
                }
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    schema: &'static str,
    name: String,
    id: String,
    image: String,
    status: String,
    exit_code: Option<u8>,
    pid: Option<u32>,
    cpus: u64,
    memory_bytes: u64,
    ports: Vec<String>,
    created_unix_ms: u64,
    started_unix_ms: Option<u64>,
}

pub(super) fn ps(args: &PsArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let asks_status = args.filter.iter().any(|filter| matches!(filter, Filter::Status(_)));
    let mut rows = Vec::new();
    let mut shown = Vec::new();
    for machine in store.list() {
        let state = State::of(&machine);
        let wanted = args.all || asks_status || state.pid.is_some();
        if !wanted || !args.filter.iter().all(|filter| filter.holds(&machine, &state)) {
            continue;
        }
        shown.push(state.shown);
        let exit_code = machine.ended().filter(|_| state.name == "exited").map(|ended| ended.code);
        let record = machine.record;
        rows.push(Row {
            schema: "v1",
            name: record.name,
            id: record.id,
            image: record.image.map(|image| image.reference).unwrap_or_default(),
            status: state.name,
            exit_code,
            pid: state.pid,
            cpus: record.cpus,
            memory_bytes: record.memory_bytes,
            ports: record.ports,
            created_unix_ms: record.created_unix_ms,
            started_unix_ms: state.started_unix_ms,
        });
    }
    if args.quiet {
        let ids: String = rows.iter().map(|row| format!("{}\n", row.id)).collect();
        super::print(ids.as_bytes())?;
    } else if args.output == Form::Json {
        super::print(json::line(&rows).as_bytes())?;
    } else {
        let now = now_unix_ms();
        let head = ["NAME", "ID", "IMAGE", "STATUS", "CPUS", "MEMORY", "PORTS", "AGE"];
        let mut lines = vec![head.map(str::to_owned).to_vec()];
        for (row, state) in rows.into_iter().zip(shown) {
            let since = row.started_unix_ms.unwrap_or(row.created_unix_ms);
            lines.push(vec![
                row.name,
                row.id,
                row.image,
                state,
                row.cpus.to_string(),
                format_size(row.memory_bytes),
                row.ports.join(", "),
                moment::age(since, now),
            ]);
        }
        super::print(table(&lines).as_bytes())?;
    }
    Ok(0)
}

/// Columns as wide as they must be, two spaces between them.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| {
        rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<_> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Show all that is known of machines, as JSON
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

pub(super) fn inspect(args: &InspectArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let mut all = Vec::new();
    for name in &args.names {
        let machine = store.find(name).map_err(|error| of_store(&error))?;
        all.push(everything(&machine));
    }
    super::print(format!("{:#}\n", Value::from(all)).as_bytes())?;
    Ok(0)
}

fn everything(machine: &Machine) -> Value {
    let state = State::of(machine);
    let ended = machine.ended().filter(|_| matches!(state.name.as_str(), "exited" | "dead"));
    let ended_unix_ms = machine.ended_unix_ms().filter(|_| state.name == "exited");
    let mut value = json!(machine.record);
    for (key, known) in [
        ("schema", json!("v1")),
        ("status", json!(state.name)),
        ("pid", json!(state.pid)),
        ("booted", json!(state.booted)),
        ("started_unix_ms", json!(state.started_unix_ms)),
        ("ended_unix_ms", json!(ended_unix_ms)),
        ("ended", json!(ended)),
        ("directory", json!(machine.directory)),
        ("disk_bytes", json!(machine.disk_bytes())),
    ] {
        value[key] = known;
    }
    value
}

/// List published ports of machines
#[derive(Debug, Args)]
pub(super) struct PortArgs {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// How they are printed
    #[arg(short, long, value_enum, default_value_t = Form::Table, value_name = "FORM")]
    output: Form,
}

pub(super) fn port(args: &PortArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let mut rows = Vec::new();
    let mut lines = String::new();
    for name in &args.names {
        let record = store.find(name).map_err(|error| of_store(&error))?.record;
        for port in &record.ports {
            let before =
                if args.names.len() > 1 { format!("{}: ", record.name) } else { String::new() };
            lines.push_str(&format!("{before}{port}\n"));
        }
        rows.push(json!({ "schema": "v1", "name": record.name, "ports": record.ports }));
    }
    let text = if args.output == Form::Json { json::line(&rows) } else { lines };
    super::print(text.as_bytes())?;
    Ok(0)
}

/// Show what machines and images take on disk
#[derive(Debug, Args)]
pub(super) struct DfArgs {
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Form::Table, value_name = "FORM")]
    output: Form,
}

pub(super) fn df(args: &DfArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let machines = store.list();
    let runs = |machine: &&Machine| matches!(machine.status(), Status::Running(_));
    let running = machines.iter().filter(runs).count();
    let bytes: u64 = machines.iter().map(Machine::disk_bytes).sum();
    let idle = machines.iter().filter(|machine| !runs(machine));
    let free: u64 = idle.map(Machine::disk_bytes).sum();
    let cache = cache();
    let images = cache.as_deref().map_or(0, |cache| {
        fs::read_dir(cache.join("images")).map_or(0, |entries| entries.flatten().count())
    });
    let image_bytes = cache.as_deref().map_or(0, size_of);
    if args.output == Form::Json {
        let value = json!({
            "schema": "v1",
            "machines": { "count": machines.len(), "running": running, "bytes": bytes, "reclaimable_bytes": free },
            "images": { "count": images, "bytes": image_bytes, "path": cache },
        });
        super::print(json::line(&value).as_bytes())?;
        return Ok(0);
    }
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let words = |words: [&str; 5]| words.map(str::to_owned).to_vec();
    let (total, active, count) =
        (machines.len().to_string(), running.to_string(), images.to_string());
    let rows = [
        words(["WHAT", "COUNT", "RUNNING", "SIZE", "RECLAIMABLE"]),
        words(["machines", &total, &active, &mib(bytes), &mib(free)]),
        words(["images", &count, "", &mib(image_bytes), ""]),
    ];
    super::print(table(&rows).as_bytes())?;
    Ok(0)
}

/// The cache of `openshell-rootfs`.
fn cache() -> Option<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let named = env::var_os("OPENSHELL_ROOTFS_CACHE").map(PathBuf::from);
    let base = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    named.or_else(|| Some(base()?.join("openshell-vmm")))
}

/// Bytes on disk below a directory; a file of several names counts for its part.
fn size_of(path: &Path) -> u64 {
    let Ok(found) = fs::symlink_metadata(path) else { return 0 };
    let names = if found.is_dir() { 1 } else { found.nlink().max(1) };
    let own = found.blocks() * 512 / names;
    if !found.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| size_of(&entry.path())).sum::<u64>()
}

/// Remove machines that do not run, and what killed processes left behind
#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Only machines that ended, or were created, longer ago than this: 24h
    #[arg(long, value_name = "TIME", value_parser = |text: &str| parse_duration(text).map_err(str::to_owned))]
    older_than: Option<Duration>,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Form::Table, value_name = "FORM")]
    output: Form,
}

pub(super) fn prune(args: &PruneArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let before = match args.older_than {
        Some(age) => now_unix_ms().saturating_sub(moment::millis(age)),
        None => u64::MAX,
    };
    let events: Vec<_> = store.list().iter().map(|one| Event::now("remove", one)).collect();
    let swept = store.prune(before, args.dry_run).map_err(|error| of_store(&error))?;
    if !args.dry_run {
        let mut journal = Journal::open(&store);
        for event in events.iter().filter(|event| swept.machines.contains(&event.name)) {
            journal.add(event);
        }
    }
    if args.output == Form::Json {
        let value = json!({
            "schema": "v1",
            "machines": swept.machines,
            "leftovers": swept.leftovers,
            "freed_bytes": swept.bytes,
            "dry_run": args.dry_run,
        });
        super::print(json::line(&value).as_bytes())?;
        return Ok(0);
    }
    let mut text: String = swept.machines.iter().map(|name| format!("{name}\n")).collect();
    for path in &swept.leftovers {
        text.push_str(&format!("{}\n", path.display()));
    }
    let verb = if args.dry_run { "would free" } else { "freed" };
    text.push_str(&format!("{verb} {:.1} MiB\n", swept.bytes as f64 / f64::from(1 << 20)));
    super::print(text.as_bytes())?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_have_keys() {
        for (text, want) in [
            ("name=a", Some(Filter::Name("a".into()))),
            ("label=k=v", Some(Filter::Label("k=v".into()))),
            ("status=exited", Some(Filter::Status("exited".into()))),
            ("colour=red", None),
            ("", None),
        ] {
            assert_eq!(filter(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn a_table_is_as_wide_as_it_must_be() {
        let rows = [vec!["A".into(), "LONG".into()], vec!["wide".into(), String::new()]];
        assert_eq!(table(&rows), "A     LONG\nwide\n");
    }
}
