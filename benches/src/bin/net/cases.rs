//! What is measured: a table of cases, and what one run of each gives.
//!
//! Invariant: a case is the same work for every system; the figures of a run are of that run alone.

use std::time::Duration;

use anyhow::Result;

use crate::rig::Rig;
use crate::streams::{self, To, Way};
use crate::system::{Kind, PLAIN, System};

/// Figure, unit, value.
pub(crate) type Sample = (&'static str, &'static str, f64);

/// The figure that a case is about is the first of its run.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) mtu: u16,
    load: Load,
}

#[derive(Debug, Clone, Copy)]
enum Load {
    Streams { way: Way, to: To, count: usize, congestion: (&'static str, &'static str) },
}

const RENO: (&str, &str) = ("reno", "reno");

/// Every case, those of one MTU in a row.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for mtu in [1500, 9000, 65520] {
        for count in [1, 8] {
            for way in [Way::Out, Way::In] {
                let plural = if count == 1 { "stream" } else { "streams" };
                let name = format!("TCP {}, MTU {mtu}, {count} {plural}", words(way));
                let load = Load::Streams { way, to: To::Host, count, congestion: RENO };
                cases.push(Case { name, mtu, load });
            }
        }
    }
    cases
}

fn words(way: Way) -> &'static str {
    match way {
        Way::Out => "guest to host",
        Way::In => "host to guest",
    }
}

impl Case {
    /// Whether the case says something about `system`.
    pub(crate) fn is_for(&self, system: &System) -> bool {
        match self.load {
            // Without offloads a guest with a large MTU is a guest with a large MTU.
            Load::Streams { congestion, .. } => {
                let plain = system.name != PLAIN || (self.mtu == 1500 && congestion == RENO);
                plain && system.kind != Kind::Loopback
            }
        }
    }

    /// Runs it once.
    pub(crate) fn run(&self, rig: &Rig, span: Duration) -> Result<Vec<Sample>> {
        match self.load {
            Load::Streams { way, to, count, congestion } => {
                rig.set_congestion(congestion.0, congestion.1)?;
                let drops = rig.tap_drops()?;
                let ran = streams::run(rig, way, to, count, span)?;
                let drops = rig.tap_drops()?.saturating_sub(drops);
                let gigabytes = number(ran.bytes) / 1e9;
                let mut samples = vec![
                    ("rate", "Gb/s", gigabytes * 8.0 / ran.wall.as_secs_f64()),
                    ("retransmits", "segments", f64::from(ran.retransmits)),
                    ("tap drops", "frames", number(drops)),
                ];
                if ran.bytes > 0 {
                    let cpu = ran.cpu.as_secs_f64() / gigabytes;
                    samples.push(("processor time", "s/GB", cpu));
                }
                Ok(samples)
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run are smaller than 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}
