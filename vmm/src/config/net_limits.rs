//! Bounds of the network stack by their names: `--net-limit NAME=VALUE`.
//!
//! Invariant: a [`NetLimit`] is within a range in which the stack works and its memory stays within what the range says; a bound that
//! is not named keeps its default. Pure.

use std::time::Duration;

use openshell_usernet::config::Bounds;

use super::failure::SpecError;
use super::units::parse_size;

/// One bound, with a value of the user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetLimit {
    /// In [`BOUNDS`].
    place: usize,
    value: u64,
}

/// A bound that has a name.
struct Bound {
    name: &'static str,
    range: (u64, u64),
    set: fn(&mut Bounds, u64),
}

const fn bound(name: &'static str, range: (u64, u64), set: fn(&mut Bounds, u64)) -> Bound {
    Bound { name, range, set }
}

/// The longest time, in seconds.
const WEEK: u64 = 7 * 24 * 3600;

/// Numbers, bytes and seconds. The largest numbers of flows fit together into the places that sockets have.
const BOUNDS: [Bound; 21] = [
    bound("tcp-flows", (1, 65_536), |bounds, value| bounds.tcp_flows = small(value)),
    bound("tcp-pending", (1, 65_536), |bounds, value| bounds.pending = count(value)),
    bound("tcp-pending-per-address", (1, 65_536), |bounds, value| {
        bounds.pending_per_destination = count(value);
    }),
    bound("tcp-pending-seconds", (1, 600), |bounds, value| bounds.pending_time = seconds(value)),
    bound("tcp-evict-seconds", (1, WEEK), |bounds, value| bounds.evict_after = seconds(value)),
    bound("tcp-window-bytes", (64 << 10, 16 << 20), |bounds, value| {
        bounds.max_window = small(value);
    }),
    bound("tcp-ring-bytes", (1 << 20, 1 << 30), |bounds, value| bounds.ring_bytes = count(value)),
    bound("tcp-ring-bytes-per-flow", (128 << 10, 16 << 20), |bounds, value| {
        bounds.ring_bytes_per_flow = count(value);
    }),
    bound("tcp-parked-per-flow", (1, 512), |bounds, value| bounds.parked_per_flow = count(value)),
    bound("tcp-out-of-order", (1, 512), |bounds, value| bounds.out_of_order = count(value)),
    bound("tcp-quantum-bytes", (2 << 10, 1 << 20), |bounds, value| bounds.quantum = count(value)),
    bound("udp-flows", (1, 32_768), |bounds, value| bounds.datagrams.udp.flows = small(value)),
    bound("udp-dns-flows", (1, 4_096), |bounds, value| {
        bounds.datagrams.udp.dns_flows = small(value);
    }),
    bound("udp-unanswered-seconds", (1, WEEK), |bounds, value| {
        bounds.datagrams.udp.unanswered = seconds(value);
    }),
    bound("udp-answered-seconds", (1, WEEK), |bounds, value| {
        bounds.datagrams.udp.answered = seconds(value);
    }),
    bound("udp-dns-answered-seconds", (1, WEEK), |bounds, value| {
        bounds.datagrams.udp.dns_answered = seconds(value);
    }),
    bound("echo-flows", (1, 4_096), |bounds, value| {
        bounds.datagrams.echo.identifiers = small(value);
    }),
    bound("echo-per-second", (1, 100_000), |bounds, value| {
        bounds.datagrams.echo.per_second = small(value);
    }),
    bound("fragmented-datagrams", (1, 1_024), |bounds, value| {
        bounds.datagrams.fragments.datagrams = count(value);
    }),
    bound("fragment-bytes", (64 << 10, 64 << 20), |bounds, value| {
        bounds.datagrams.fragments.bytes = count(value);
    }),
    bound("fragment-seconds", (1, 60), |bounds, value| {
        bounds.datagrams.fragments.age = seconds(value);
    }),
];

/// Ranges end far below what these could not hold.
fn small(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn count(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

const fn seconds(value: u64) -> Duration {
    Duration::from_secs(value)
}

impl NetLimit {
    /// Reads `NAME=VALUE`.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        Self::read(text).map_err(|reason| SpecError::value("--net-limit", text.as_ref(), reason))
    }

    pub(super) fn read(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("a limit is NAME=VALUE")?;
        let place = BOUNDS.iter().position(|bound| bound.name == name).ok_or_else(|| {
            let names: Vec<_> = BOUNDS.iter().map(|bound| bound.name).collect();
            format!("limits are {}", names.join(", "))
        })?;
        let value = parse_size(value, Some(1))?;
        let (least, most) = BOUNDS[place].range;
        if !(least..=most).contains(&value) {
            return Err(format!("from {least} to {most}"));
        }
        Ok(Self { place, value })
    }

    /// Puts it in its place.
    pub fn apply(self, bounds: &mut Bounds) {
        if let Some(bound) = BOUNDS.get(self.place) {
            (bound.set)(bounds, self.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_sets_one_bound_and_the_default_is_within_its_range() {
        let defaults = Bounds::default();
        for (place, bound) in BOUNDS.iter().enumerate() {
            let (least, most) = bound.range;
            let set = |value: u64| {
                let mut bounds = defaults.clone();
                NetLimit::parse(&format!("{}={value}", bound.name)).unwrap().apply(&mut bounds);
                bounds
            };
            assert_ne!(set(least), set(most), "{}", bound.name);
            // Only the same name can change it back.
            let mut bounds = set(most);
            for other in BOUNDS.iter().filter(|other| other.name != bound.name) {
                (other.set)(&mut bounds, other.range.0);
            }
            let mut want = defaults.clone();
            for other in &BOUNDS {
                (other.set)(&mut want, other.range.0);
            }
            assert_ne!(bounds, want, "{}", bound.name);
            assert!(BOUNDS[..place].iter().all(|other| other.name != bound.name));
        }
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for (text, want) in [
            ("tcp-flows", "a limit is NAME=VALUE"),
            ("flows=3", "limits are tcp-flows, tcp-pending, "),
            ("tcp-flows=0", "from 1 to 65536"),
            ("tcp-flows=65537", "from 1 to 65536"),
            ("tcp-flows=many", "a size is a whole number"),
            ("tcp-flows=", "a size is a whole number"),
        ] {
            let shown = NetLimit::parse(text).unwrap_err().to_string();
            assert!(shown.contains(want), "{shown}");
        }
        assert_eq!(NetLimit::read("tcp-ring-bytes=4M"), NetLimit::read("tcp-ring-bytes=4194304"));
    }
}
