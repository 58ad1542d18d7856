//! The table of what was measured: every sample of the figure that a case is about, beside its median.
//!
//! Invariant: no sample of such a figure is left out, good or bad.

use anyhow::Result;
use openshell_benches::results::{Document, Series};
use openshell_benches::statistics::median;

use crate::cases::ROUND_TRIP;
use crate::system::{LOOPBACK, OURS};

/// Prints the document of `benchmark`, if there is one.
pub(crate) fn print(benchmark: &str) -> Result<()> {
    let Some(document) = Document::read(benchmark, "host")? else { return Ok(()) };
    let host = &document.host;
    println!(
        "{}, {} CPUs, Linux {}, load {}.\n",
        host.cpu.as_deref().unwrap_or("unknown processor"),
        host.cpus,
        host.kernel.as_deref().unwrap_or("unknown"),
        host.load.as_deref().unwrap_or("unknown"),
    );
    for (system, version) in document.systems.iter().filter(|(_, version)| !version.is_empty()) {
        println!("- {system}: {version}");
    }
    println!("\n| case | system | median | every run | ours/its | beside it (medians) |");
    println!("|---|---|---|---|---|---|");
    for series in about(&document) {
        println!(
            "| {} | {} | {} {} | {} | {} | {} |",
            series.case,
            series.system,
            short(median(&series.samples).unwrap_or(f64::NAN)),
            series.unit,
            series.samples.iter().map(|sample| short(*sample)).collect::<Vec<_>>().join(" "),
            ratio(&document, series),
            others(&document, series),
        );
    }
    for (system, added) in added_round_trips(&document) {
        println!("\nRound trip that {system} adds to the host's loopback: {} us.", short(added));
    }
    Ok(())
}

/// The series of the figure that each case is about, for each system.
fn about(document: &Document) -> impl Iterator<Item = &Series> {
    document.series.iter().filter(|series| {
        let first = document.series.iter().find(|it| it.case == series.case);
        first.is_some_and(|first| first.figure == series.figure)
    })
}

/// The other figures of the same case and system.
fn others(document: &Document, main: &Series) -> String {
    let same =
        |it: &&Series| it.case == main.case && it.system == main.system && it.figure != main.figure;
    let each = document.series.iter().filter(same).map(|it| {
        let median = median(&it.samples).unwrap_or(f64::NAN);
        format!("{} {} {}", it.figure, short(median), it.unit)
    });
    each.collect::<Vec<_>>().join("; ")
}

fn ratio(document: &Document, series: &Series) -> String {
    if series.system == OURS {
        return String::new();
    }
    let found = document.ratios.iter().find(|ratio| {
        (&ratio.case, &ratio.figure, &ratio.to) == (&series.case, &series.figure, &series.system)
    });
    found.map_or_else(String::new, |ratio| format!("{:.2}", ratio.of_medians))
}

/// Systems, and how much longer a round trip takes through each than on the host: the median of the differences turn by turn.
fn added_round_trips(document: &Document) -> Vec<(&str, f64)> {
    let all: Vec<&Series> = document.of_figure(ROUND_TRIP).collect();
    let Some(bare) = all.iter().find(|series| series.system == LOOPBACK) else {
        return Vec::new();
    };
    let added = |series: &Series| {
        let pairs = series.samples.iter().zip(&bare.samples);
        median(&pairs.map(|(through, bare)| through - bare).collect::<Vec<_>>())
    };
    let through = all.iter().filter(|series| series.system != LOOPBACK);
    through.filter_map(|series| Some((series.system.as_str(), added(series)?))).collect()
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 0.095 => format!("{value:.2}"),
        zero if zero < 1e-6 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}
