//! The table of what was measured: every sample of the figure that a case is about, beside its median.
//!
//! Invariant: no sample is left out.

use anyhow::Result;
use openshell_benches::results::{Document, Series};

use crate::system::OURS;

/// Prints the document of `benchmark`, if there is one.
pub(crate) fn print(benchmark: &str) -> Result<()> {
    let Some(document) = Document::read(benchmark, "host")? else { return Ok(()) };
    let host = &document.host;
    println!(
        "{}, {} CPUs, Linux {}, load {}\n",
        host.cpu.as_deref().unwrap_or("unknown processor"),
        host.cpus,
        host.kernel.as_deref().unwrap_or("unknown"),
        host.load.as_deref().unwrap_or("unknown"),
    );
    for (system, version) in document.systems.iter().filter(|(_, version)| !version.is_empty()) {
        println!("{system}: {version}  ");
    }
    println!("\n| case | figure | system | median | all | ours/its |\n|---|---|---|---|---|---|");
    for series in &document.series {
        let Some(summary) = &series.summary else { continue };
        println!(
            "| {} | {}, {} | {} | {} | {} | {} |",
            series.case,
            series.figure,
            series.unit,
            series.system,
            short(summary.median),
            series.samples.iter().map(|sample| short(*sample)).collect::<Vec<_>>().join(", "),
            ratio(&document, series),
        );
    }
    Ok(())
}

fn ratio(document: &Document, series: &Series) -> String {
    if series.system == OURS {
        return String::new();
    }
    let found = document.ratios.iter().find(|ratio| {
        (&ratio.case, &ratio.figure, &ratio.to) == (&series.case, &series.figure, &series.system)
    });
    let of_medians = found.map(|ratio| ratio.of_medians).filter(|ratio| ratio.is_finite());
    of_medians.map_or_else(String::new, |ratio| format!("{ratio:.2}"))
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        zero if zero == 0.0 => "0".to_owned(),
        small if small >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
