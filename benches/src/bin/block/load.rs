//! What is asked of a disk, and what a turn of it came to.
//!
//! Invariant: ours and the host's load take their operations from the same generator with the same seed, so that turn for turn both do
//! the same work.

use std::time::{Duration, Instant};

/// Direction of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Io {
    pub(crate) kind: Kind,
    /// First byte; 0 for a flush.
    pub(crate) offset: u64,
}

/// The shape of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Bytes of one read or write.
    pub(crate) len_bytes: u32,
    pub(crate) random: bool,
    /// Every second operation is a flush.
    pub(crate) flushes: bool,
    /// Operations in flight.
    pub(crate) depth: usize,
    /// Past the page cache.
    pub(crate) direct: bool,
}

impl Shape {
    /// The name of the case in results.
    pub(crate) fn case(&self) -> String {
        let cache = if self.direct { "direct" } else { "cached" };
        format!("{}, depth {}, {cache}", self.name, self.depth)
    }
}

/// Every case, in order.
pub(crate) fn shapes() -> Vec<Shape> {
    const SMALL: u32 = 4096;
    const LARGE: u32 = 128 << 10;
    let patterns = [
        ("4 KiB random read", Kind::Read, SMALL, true),
        ("4 KiB random write", Kind::Write, SMALL, true),
        ("128 KiB sequential read", Kind::Read, LARGE, false),
        ("128 KiB sequential write", Kind::Write, LARGE, false),
    ];
    let mut shapes = Vec::new();
    for (name, kind, len_bytes, random) in patterns {
        for direct in [false, true] {
            for depth in [1, 64] {
                shapes.push(Shape { name, kind, len_bytes, random, flushes: false, depth, direct });
            }
        }
    }
    let name = "4 KiB random write and flush";
    for depth in [1, 64] {
        shapes.push(Shape {
            name,
            kind: Kind::Write,
            len_bytes: SMALL,
            random: true,
            flushes: true,
            depth,
            direct: false,
        });
    }
    shapes
}

/// An endless row of operations.
#[derive(Debug)]
pub(crate) struct Load {
    shape: Shape,
    places: u64,
    state: u64,
    next: u64,
    flush: bool,
}

impl Load {
    /// On a disk of `disk_bytes`.
    pub(crate) fn new(shape: Shape, disk_bytes: u64, seed: u64) -> Self {
        let places = disk_bytes / u64::from(shape.len_bytes);
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { shape, places, state, next: state % places, flush: false }
    }

    pub(crate) fn next(&mut self) -> Io {
        let flush = self.flush;
        self.flush = self.shape.flushes && !flush;
        if flush {
            return Io { kind: Kind::Flush, offset: 0 };
        }
        if self.shape.random {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.next = self.state % self.places;
        } else {
            self.next = (self.next + 1) % self.places;
        }
        Io { kind: self.shape.kind, offset: self.next * u64::from(self.shape.len_bytes) }
    }
}

/// What one turn came to.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) operations: u64,
    pub(crate) wall: Duration,
    /// Time that the thread doing the I/O was on a processor.
    pub(crate) cpu: Duration,
    /// Nanoseconds from start to end of each operation; operations that start or end together share a reading of the clock.
    pub(crate) latencies_ns: Vec<u32>,
    /// Doorbells and interrupts, where there are any.
    pub(crate) signals: Option<[u64; 2]>,
}

/// Keeps a number of slots busy until a deadline and notes how long each operation took.
#[derive(Debug)]
pub(crate) struct Pace {
    began: Instant,
    deadline: Instant,
    now: Instant,
    started: Vec<Instant>,
    latencies_ns: Vec<u32>,
}

impl Pace {
    pub(crate) fn new(depth: usize, span: Duration) -> Self {
        let now = Instant::now();
        Self {
            began: now,
            deadline: now + span,
            now,
            started: vec![now; depth],
            latencies_ns: Vec::with_capacity(1 << 20),
        }
    }

    /// Reads the clock; true while operations are to be started.
    pub(crate) fn tick(&mut self) -> bool {
        self.now = Instant::now();
        self.now < self.deadline
    }

    pub(crate) fn start(&mut self, slot: usize) {
        self.started[slot] = self.now;
    }

    pub(crate) fn end(&mut self, slot: usize) {
        let took = self.now.duration_since(self.started[slot]).as_nanos();
        self.latencies_ns.push(u32::try_from(took).unwrap_or(u32::MAX));
    }

    pub(crate) fn turn(self, cpu: Duration, signals: Option<[u64; 2]>) -> Turn {
        Turn {
            operations: self.latencies_ns.len() as u64,
            wall: self.now.duration_since(self.began),
            cpu,
            latencies_ns: self.latencies_ns,
            signals,
        }
    }
}
