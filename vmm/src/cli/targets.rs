//! Which machines a verb is for, and what is told of each.
//!
//! Invariant: all that were named are tried; the exit code is 0 when all of it was done, that of the failures when they agree, 1 otherwise.

use clap::Args;
use openshell_vmm::machines::record::Record;
use openshell_vmm::machines::{Machine, Store, StoreError};
use openshell_vmm::report::json;
use serde::Serialize;

use super::failure::Failure;

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Machines, by name, by label or all.
#[derive(Debug, Args)]
pub(super) struct Targets {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "labels"])]
    names: Vec<String>,
    /// All machines for which it makes sense
    #[arg(short, long, conflicts_with = "names")]
    all: bool,
    /// Machines with this label
    #[arg(short, long = "label", value_name = "KEY[=VALUE]", conflicts_with = "names")]
    labels: Vec<String>,
    /// How results are printed
    #[arg(short, long, value_enum, default_value_t = Form::Table, value_name = "FORM")]
    output: Form,
}

#[derive(Debug, Serialize)]
struct Told {
    schema: &'static str,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What came of one machine: what to print instead of its name, and an exit code to tell.
pub(super) type Done = Result<Option<u8>, Failure>;

impl Targets {
    /// Does `act` to each of them; of those that are not named, to those that `suit`.
    pub(super) fn each(
        &self,
        suits: impl Fn(&Machine) -> bool,
        act: impl Fn(&Store, Machine) -> Done,
    ) -> Result<u8, Failure> {
        let store = open_store()?;
        let mut told = Vec::new();
        let mut codes = Vec::new();
        for (name, found) in self.select(&store, suits) {
            let id = found.as_ref().ok().map(|machine| machine.record.id.clone());
            let done = found.map_err(|error| of_store(&error)).and_then(|one| act(&store, one));
            let (code, error) = match done {
                Ok(code) => (code, None),
                Err(failure) => {
                    codes.push(failure.code);
                    if self.output == Form::Table {
                        failure.print();
                    }
                    (None, Some(failure.what))
                }
            };
            if self.output == Form::Table && error.is_none() {
                let line = code.map_or_else(|| name.clone(), |code| code.to_string());
                super::print(format!("{line}\n").as_bytes())?;
            }
            told.push(Told { schema: "v1", name, id, ok: error.is_none(), code, error });
        }
        if self.output == Form::Json {
            super::print(json::line(&told).as_bytes())?;
        }
        codes.dedup();
        Ok(match codes[..] {
            [] => 0,
            [code] => code,
            _ => 1,
        })
    }

    fn select(
        &self,
        store: &Store,
        suits: impl Fn(&Machine) -> bool,
    ) -> Vec<(String, Result<Machine, StoreError>)> {
        if !self.names.is_empty() {
            let find = |name: &String| (name.clone(), store.find(name));
            return self.names.iter().map(find).collect();
        }
        let mut machines = store.list();
        machines.retain(|machine| {
            self.labels.iter().all(|label| has_label(&machine.record, label)) && suits(machine)
        });
        machines.into_iter().map(|machine| (machine.record.name.clone(), Ok(machine))).collect()
    }
}

/// Whether a machine has the label `KEY`, or `KEY` with this value.
pub(super) fn has_label(record: &Record, label: &str) -> bool {
    match label.split_once('=') {
        Some((key, value)) => record.labels.get(key).is_some_and(|found| found == value),
        None => record.labels.contains_key(label),
    }
}

/// The store, with what should have gone by itself gone.
pub(super) fn open_store() -> Result<Store, Failure> {
    let store = Store::of_process().map_err(|error| of_store(&error))?;
    store.sweep();
    Ok(store)
}

/// An error of the store, with its own exit code.
pub(super) fn of_store(error: &StoreError) -> Failure {
    Failure::of(error, error.code())
}
