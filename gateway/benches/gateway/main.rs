//! What the control plane costs: the gateway's program, the driver with machines that are stubs, and the supervisor's session and SSH.
//!
//! `host` measures and leaves one document, `report` prints it. A machine's own boot is no part of any figure: `bench boot` has it.
//!
//! Invariant: nothing is measured that has not been checked to have happened.

#[path = "../../../benches/src/host.rs"]
#[expect(unreachable_pub, reason = "a part of the package at benches/")]
mod host;
#[path = "../../../benches/src/results.rs"]
#[expect(unreachable_pub, dead_code, unused_imports, reason = "a part of the package at benches/")]
mod results;
#[path = "../../tests/whole/rig.rs"]
#[expect(dead_code, clippy::unwrap_used, clippy::print_stderr, reason = "what tests use of it")]
mod rig;
#[path = "../../../benches/src/statistics.rs"]
#[expect(unreachable_pub, unused_imports, reason = "a part of the package at benches/")]
mod statistics;
#[path = "../../tests/whole/supervisor.rs"]
#[expect(clippy::unwrap_used, reason = "as in tests")]
mod supervisor;

mod many;
mod one;

use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use results::Document;

const NAME: &str = "gateway";
const SYSTEM: &str = "openshell-gateway";

fn main() -> Result<()> {
    // `cargo bench` adds a word of its own.
    let word = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    match word.as_deref() {
        Some("host") => {
            rig::QUIET.store(true, std::sync::atomic::Ordering::Relaxed);
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let mut document = Document::new(NAME, "host");
            document.systems.insert(SYSTEM.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
            runtime.block_on(async {
                one::run(&mut document).await?;
                many::run(&mut document).await
            })?;
            document.complete(SYSTEM);
            document.write()?;
            runtime.shutdown_background();
            Ok(())
        }
        Some("report") => {
            let document = Document::read(NAME, "host")?.context("nothing was measured")?;
            report(&document)
        }
        Some("lab") => Ok(()),
        _ => bail!("host or report"),
    }
}

fn report(document: &Document) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:28} {:34} {:>10} {:>10} {:>6}", "case", "figure", "median", "p99", "runs")?;
    for series in &document.series {
        let Some(summary) = series.summary else { continue };
        let figure = format!("{}, {}", series.figure, series.unit);
        let (median, p99, count) = (summary.median, summary.p99, summary.count);
        writeln!(out, "{:28} {figure:34} {median:10.2} {p99:10.2} {count:6}", series.case)?;
    }
    Ok(())
}

fn database(place: &std::path::Path) -> (String, Box<dyn std::any::Any + Send>) {
    rig::Rig::in_a_file(place)
}

/// Milliseconds since then.
fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
