//! What is measured: a table of cases, and what one run of each gives.
//!
//! Invariant: a case is the same work for every system; the figures of a run are of that run alone.

use std::time::Duration;

use anyhow::Result;

use crate::rig::Rig;
use crate::streams::{self, To, Way};
use crate::system::{Kind, OURS, PLAIN, System};
use crate::{ceiling, datagrams, exchanges};

/// Figure, unit, value. The first one of a run is what its case is about.
pub(crate) type Sample = (&'static str, &'static str, f64);

/// The figure of round trips that P6 is about.
pub(crate) const ROUND_TRIP: &str = "round trip, median";

/// Bytes of a datagram.
const DATAGRAM_BYTES: usize = 1400;
/// Datagrams a second, where it is not as many as there can be: 0.56 Gb/s.
const PACED: u32 = 50_000;
const BLACK_HOLES: u16 = 1000;
const IDLE_FLOWS: u32 = 1000;

const RENO: Congestion = Congestion { guest: "reno", host: "reno" };

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) mtu: u16,
    load: Load,
}

#[derive(Debug, Clone, Copy)]
enum Load {
    Streams(Streams),
    Datagrams { way: Way, per_second: Option<u32> },
    RoundTrips,
    Connections,
    BlackHoles,
    Idle,
    Ceiling(Way),
}

#[derive(Debug, Clone, Copy)]
struct Streams {
    way: Way,
    to: To,
    count: usize,
    congestion: Congestion,
}

/// How senders find their rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Congestion {
    guest: &'static str,
    host: &'static str,
}

/// Every case, those of one MTU in a row.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |mtu, name: String, load| cases.push(Case { name, mtu, load });
    for mtu in [1500, 9000, 65520] {
        for count in [1, 8] {
            for way in [Way::Out, Way::In] {
                let plural = if count == 1 { "stream" } else { "streams" };
                let name = format!("TCP {}, MTU {mtu}, {count} {plural}", words(way));
                let streams = Streams { way, to: To::Host, count, congestion: RENO };
                add(mtu, name, Load::Streams(streams));
            }
        }
        if mtu == 1500 {
            add_small(&mut add);
        }
    }
    let streams = Streams { way: Way::Out, to: To::World, count: 1, congestion: RENO };
    add(65520, "TCP guest to a veth peer, MTU 65520, 1 stream".into(), Load::Streams(streams));
    cases
}

/// The cases of the usual MTU that are not about reno's streams.
fn add_small(add: &mut impl FnMut(u16, String, Load)) {
    for (guest, host, which) in
        [("bbr", "reno", "the guest"), ("reno", "bbr", "the host"), ("bbr", "bbr", "both")]
    {
        let congestion = Congestion { guest, host };
        let streams = Streams { way: Way::Out, to: To::Host, count: 1, congestion };
        add(1500, format!("BBR of {which}, guest to host, MTU 1500"), Load::Streams(streams));
    }
    for (per_second, how) in [(None, "as fast as sent"), (Some(PACED), "50,000 a second")] {
        for way in [Way::Out, Way::In] {
            let name = format!("UDP {}, {DATAGRAM_BYTES} bytes, {how}", words(way));
            add(1500, name, Load::Datagrams { way, per_second });
        }
    }
    add(1500, "round trip of a byte".into(), Load::RoundTrips);
    add(1500, "connect, a byte, close".into(), Load::Connections);
    add(1500, "connect beside 1,000 black holes".into(), Load::BlackHoles);
    add(1500, "memory".into(), Load::Idle);
    for way in [Way::Out, Way::In] {
        add(1500, format!("card's queues, 64 KiB frames, {}", words(way)), Load::Ceiling(way));
    }
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
        let bare = system.kind == Kind::Loopback;
        match self.load {
            // With a large MTU a guest needs no offloads.
            Load::Streams(streams) if system.name == PLAIN => {
                self.mtu == 1500 && streams.congestion == RENO
            }
            Load::RoundTrips | Load::Connections => system.name != PLAIN,
            Load::Streams(_) => !bare,
            Load::Ceiling(_) => system.name == OURS,
            Load::Datagrams { .. } | Load::BlackHoles | Load::Idle => !bare && system.name != PLAIN,
        }
    }

    /// Runs it once.
    pub(crate) fn run(&self, rig: &Rig, span: Duration) -> Result<Vec<Sample>> {
        match self.load {
            Load::Streams(streams) => streams.run(rig, span),
            Load::Datagrams { way, per_second } => {
                let ran = datagrams::run(rig, way, DATAGRAM_BYTES, per_second, span)?;
                Ok(of_datagrams(ran))
            }
            Load::RoundTrips => {
                let mut ran = exchanges::round_trips(rig, span)?;
                let [median, p99] = ran.quantiles();
                Ok(vec![(ROUND_TRIP, "us", median), ("round trip, p99", "us", p99)])
            }
            Load::Connections => {
                let mut ran = exchanges::connections(rig, span)?;
                let count = number(ran.each.len() as u64);
                let [median, p99] = ran.quantiles();
                let rate = ("connections", "1/s", count / ran.wall.as_secs_f64());
                Ok(vec![rate, ("connection, median", "us", median), ("connection, p99", "us", p99)])
            }
            Load::BlackHoles => {
                let mut alone = exchanges::connections(rig, span)?;
                let mut beside = exchanges::beside_black_holes(rig, BLACK_HOLES, span)?;
                let ([_, alone], [median, p99]) = (alone.quantiles(), beside.quantiles());
                Ok(vec![
                    ("connection beside them, p99", "us", p99),
                    ("connection beside them, median", "us", median),
                    ("connection alone, p99", "us", alone),
                ])
            }
            Load::Ceiling(way) => {
                let ran = ceiling::run(&rig.host, way, span)?;
                let gigabytes = number(ran.bytes) / 1e9;
                let cpu = ran.cpu.as_secs_f64() / gigabytes;
                let rate = ("rate", "Gb/s", gigabytes * 8.0 / ran.wall.as_secs_f64());
                Ok(vec![rate, ("processor time", "s/GB", cpu)])
            }
            Load::Idle => {
                // A stack that has done something keeps memory of it.
                let fresh = Rig::open(&rig.system, self.mtu, None)?;
                let rig = &fresh;
                let (before, with) = exchanges::idle(rig, IDLE_FLOWS as usize)?;
                let each = number(with.saturating_sub(before)) / f64::from(IDLE_FLOWS);
                Ok(vec![("resident", "KiB", number(before)), ("each idle flow", "KiB", each)])
            }
        }
    }
}

impl Streams {
    fn run(self, rig: &Rig, span: Duration) -> Result<Vec<Sample>> {
        rig.set_congestion(self.congestion.guest, self.congestion.host)?;
        let drops = rig.tap_drops()?;
        let ran = streams::run(rig, self.way, self.to, self.count, span)?;
        let drops = rig.tap_drops()?.saturating_sub(drops);
        let gigabytes = number(ran.bytes) / 1e9;
        let mut samples = vec![("rate", "Gb/s", gigabytes * 8.0 / ran.wall.as_secs_f64())];
        if ran.bytes > 0 {
            samples.push(("processor time", "s/GB", ran.cpu.as_secs_f64() / gigabytes));
        }
        samples.push(("retransmits", "segments", f64::from(ran.retransmits)));
        samples.push(("tap drops", "frames", number(drops)));
        Ok(samples)
    }
}

fn of_datagrams(ran: datagrams::Ran) -> Vec<Sample> {
    let seconds = ran.wall.as_secs_f64();
    let gigabytes = |count: u64| number(count) * number(DATAGRAM_BYTES as u64) / 1e9;
    let mut samples = vec![
        ("goodput", "Gb/s", gigabytes(ran.received) * 8.0 / seconds),
        ("sent", "Gb/s", gigabytes(ran.sent) * 8.0 / seconds),
    ];
    if ran.sent > 0 {
        // What was under way at the window's ends can make it negative.
        let lost = (1.0 - number(ran.received) / number(ran.sent)).max(0.0);
        samples.push(("lost", "%", 100.0 * lost));
    }
    if ran.received > 0 {
        let cpu = ran.cpu.as_secs_f64() / gigabytes(ran.received);
        samples.push(("processor time", "s/GB", cpu));
    }
    samples
}

impl exchanges::Ran {
    /// Median and p99 in microseconds.
    fn quantiles(&mut self) -> [f64; 2] {
        self.each.sort_unstable();
        let last = self.each.len().saturating_sub(1);
        [500, 990].map(|per_mille| {
            let at = (self.each.len() * per_mille / 1000).min(last);
            self.each.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1e6)
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run are smaller than 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}
