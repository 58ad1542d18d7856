//! The one schema of benchmark results: series of raw samples with their summaries, and ratios between systems.
//!
//! Invariant: everything that is derived here is derived from the samples in the same document. Keys are only ever added while `schema`
//! stays the same.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::host::Fingerprint;
use crate::statistics::{Summary, median};

/// Names the directory for results.
const DIRECTORY: &str = "OPENSHELL_VMM_RESULTS";
const SCHEMA: u32 = 1;

/// Samples of one figure of one system doing one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// What was done.
    pub case: String,
    /// Who did it.
    pub system: String,
    /// What was measured.
    pub figure: String,
    /// In which unit.
    pub unit: String,
    /// As taken, in order.
    pub samples: Vec<f64>,
    /// What they come to.
    pub summary: Option<Summary>,
}

/// How the first system compares with another one in the same figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// What was done.
    pub case: String,
    /// What was measured.
    pub figure: String,
    /// The system that is compared.
    pub system: String,
    /// The system it is compared with.
    pub to: String,
    /// Quotient of the medians.
    pub of_medians: f64,
    /// Median of the quotients of samples taken in one turn; `None` where samples were not taken in turns.
    pub paired: Option<f64>,
}

/// One part of a benchmark, run at one place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    schema: u32,
    /// The benchmark's name.
    pub benchmark: String,
    /// Where it ran: `host` or `lab`.
    pub place: String,
    /// Seconds since 1970, by the clock of the place.
    pub unix_time: u64,
    /// The machine.
    pub host: Fingerprint,
    /// Version of each system, as far as it is known.
    #[serde(default)]
    pub systems: BTreeMap<String, String>,
    /// All samples.
    pub series: Vec<Series>,
    /// How the first system compares.
    pub ratios: Vec<Ratio>,
}

/// Heads the rows of [`Document::table_rows`], in Markdown.
pub const TABLE_HEAD: &str = "| case | figure | system | median | p99 | min | max | n | ours/its |\n|---|---|---|---|---|---|---|---|---|";

impl Document {
    /// An empty document of this machine as it is now.
    #[must_use]
    pub fn new(benchmark: &str, place: &str) -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            schema: SCHEMA,
            benchmark: benchmark.to_owned(),
            place: place.to_owned(),
            unix_time: since.map_or(0, |time| time.as_secs()),
            host: Fingerprint::take(),
            systems: BTreeMap::new(),
            series: Vec::new(),
            ratios: Vec::new(),
        }
    }

    /// Adds one sample to a series, which begins with it if need be.
    pub fn sample(&mut self, case: &str, system: &str, figure: &str, unit: &str, value: f64) {
        let known = self
            .series
            .iter_mut()
            .find(|it| it.case == case && it.system == system && it.figure == figure);
        match known {
            Some(series) => series.samples.push(value),
            None => self.series.push(Series {
                case: case.to_owned(),
                system: system.to_owned(),
                figure: figure.to_owned(),
                unit: unit.to_owned(),
                samples: vec![value],
                summary: None,
            }),
        }
    }

    /// Computes summaries, and how `system` compares with each other system.
    pub fn complete(&mut self, system: &str) {
        for series in &mut self.series {
            series.summary = Summary::of(&series.samples);
        }
        self.ratios = self
            .series
            .iter()
            .filter(|series| series.system == system)
            .flat_map(|ours| self.series.iter().filter_map(|theirs| ratio(ours, theirs)))
            .collect();
    }

    /// The series of `figure`.
    pub fn of_figure<'a>(&'a self, figure: &'a str) -> impl Iterator<Item = &'a Series> {
        self.series.iter().filter(move |series| series.figure == figure)
    }

    /// Writes the document to the directory that the environment names.
    ///
    /// # Errors
    /// When no directory is named or the file cannot be written.
    pub fn write(&self) -> Result<()> {
        let path = path(&self.benchmark, &self.place)?;
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads what [`Self::write`] wrote; `None` when that part was not run.
    ///
    /// # Errors
    /// When no directory is named or the file is not such a document.
    pub fn read(benchmark: &str, place: &str) -> Result<Option<Self>> {
        let path = path(benchmark, place)?;
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_str(&text)
            .with_context(|| format!("{} holds no results", path.display()))
            .map(Some)
    }

    /// The series as rows under [`TABLE_HEAD`], those without a summary left out.
    pub fn table_rows(&self) -> impl Iterator<Item = String> {
        self.series.iter().filter_map(|series| {
            let summary = series.summary.as_ref()?;
            let ratio = self.ratios.iter().find(|ratio| {
                (&ratio.case, &ratio.figure, &ratio.to)
                    == (&series.case, &series.figure, &series.system)
            });
            Some(format!(
                "| {} | {} ({}) | {} | {:.3} | {:.3} | {:.3} | {:.3} | {} | {} |",
                series.case,
                series.figure,
                series.unit,
                series.system,
                summary.median,
                summary.p99,
                summary.min,
                summary.max,
                summary.count,
                ratio.map_or_else(String::new, |ratio| format!("{:.3}", ratio.of_medians)),
            ))
        })
    }
}

/// Prints the tables of a benchmark, of each place where it was run.
///
/// # Errors
/// When results cannot be read.
#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
pub fn print(benchmark: &str) -> Result<()> {
    for place in ["host", "lab"] {
        let Some(document) = Document::read(benchmark, place)? else { continue };
        let host = &document.host;
        println!(
            "\n{place}: {}, {} CPUs, Linux {}, {}\n",
            host.cpu.as_deref().unwrap_or("unknown processor"),
            host.cpus,
            host.kernel.as_deref().unwrap_or("unknown"),
            host.kvm.as_deref().unwrap_or("no KVM module"),
        );
        println!("{TABLE_HEAD}");
        for row in document.table_rows() {
            println!("{row}");
        }
    }
    Ok(())
}

fn ratio(ours: &Series, theirs: &Series) -> Option<Ratio> {
    let same = ours.case == theirs.case && ours.figure == theirs.figure;
    if !same || ours.system == theirs.system {
        return None;
    }
    // A figure that is zero has no ratio, and JSON no infinity.
    let of_medians = Some(median(&ours.samples)? / median(&theirs.samples)?);
    let of_medians = of_medians.filter(|ratio| ratio.is_finite())?;
    let paired = (ours.samples.len() == theirs.samples.len()).then(|| {
        let pairs = ours.samples.iter().zip(&theirs.samples);
        median(&pairs.map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
    });
    Some(Ratio {
        case: ours.case.clone(),
        figure: ours.figure.clone(),
        system: ours.system.clone(),
        to: theirs.system.clone(),
        of_medians,
        paired: paired.flatten().filter(|ratio| ratio.is_finite()),
    })
}

fn path(benchmark: &str, place: &str) -> Result<PathBuf> {
    let directory =
        env::var_os(DIRECTORY).with_context(|| format!("{DIRECTORY} names no directory"))?;
    Ok(PathBuf::from(directory).join(format!("{benchmark}-{place}.json")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_case_and_figure() {
        let mut document = Document::new("b", "host");
        for (ours, theirs) in [(1.0, 4.0), (2.0, 4.0), (3.0, 12.0)] {
            document.sample("c", "a", "cpu", "ms", ours);
            document.sample("c", "b", "cpu", "ms", theirs);
            document.sample("c", "b", "wall", "ms", 1.0);
            document.sample("d", "b", "cpu", "ms", 1.0);
        }
        document.complete("a");
        let [ratio] = &document.ratios[..] else { panic!("{:?}", document.ratios) };
        assert_eq!((ratio.of_medians, ratio.paired), (0.5, Some(0.25)));
        assert_eq!((ratio.system.as_str(), ratio.to.as_str()), ("a", "b"));
        assert_eq!(document.of_figure("cpu").count(), 3);
    }
}
