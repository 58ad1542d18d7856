//! TCP without a guest's kernel and without a tap: a driver on the card's queues that moves frames of 64 KiB.
//!
//! What is left is the stack, the host's sockets and one copy each way: a ceiling for what a guest can have. Invariant: the driver keeps
//! to the window that it is told and acknowledges what it gets, and both are the stack's own words.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use openshell_tests::netns::Namespace;
use openshell_usernet::wire::{
    EthernetHeader, Headers, Ipv4Header, Mac, Macs, Part, TcpFlags, TcpHeader, ethertype,
};
use openshell_vmm::config::net::MacAddress;

use crate::card::{Driver, HEAD_BYTES, VNET_BYTES};
use crate::process;
use crate::rig::PATIENCE;
use crate::streams::{Ran, WARM_UP, Way};

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 254);
const GATEWAY_MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd];
const GUEST_PORT: u16 = 40_000;
const MTU: &str = "1500";
const MSS: u16 = 1460;
/// Payload of a frame: as many segments as fit in 64 KiB.
const FRAME_BYTES: u32 = 44 * MSS as u32;
/// By how much our windows are shifted, and the field of each.
const SCALE: u8 = 7;
const WINDOW: u16 = u16::MAX;
const BLOCK_BYTES: usize = 128 << 10;

/// Moves bytes for `window` between a driver and a socket on the loopback of `host`.
pub(crate) fn run(host: &Namespace, way: Way, window: Duration) -> Result<Ran> {
    host.inside(|| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut guest = Guest::new(listener.local_addr()?.port())?;
        guest.connect()?;
        let (far, _) = listener.accept()?;
        let (ended, received) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            match way {
                Way::Out => scope.spawn(|| receive(&far, &received)),
                Way::In => scope.spawn(|| send(&far, &ended)),
            };
            let ran = guest.serve(way, &received, window);
            ended.store(true, Ordering::Relaxed);
            far.shutdown(Shutdown::Both).ok();
            ran
        })
    })
}

fn send(mut far: &TcpStream, ended: &AtomicBool) {
    let block = vec![0x5a; BLOCK_BYTES];
    while !ended.load(Ordering::Relaxed) && far.write_all(&block).is_ok() {}
}

fn receive(mut far: &TcpStream, received: &AtomicU64) {
    let mut block = vec![0; BLOCK_BYTES];
    while let Ok(count @ 1..) = far.read(&mut block) {
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// A guest with one connection.
struct Guest {
    driver: Driver,
    port: u16,
    /// What it sends next, and what the other side has.
    next: u32,
    acknowledged: u32,
    /// What it may send, in bytes from `acknowledged` on.
    window: u32,
    scale: u8,
    /// What it expects next.
    expected: u32,
    established: bool,
    ack_due: bool,
    lost: bool,
    bytes_in: u64,
}

impl Guest {
    fn new(port: u16) -> Result<Self> {
        Ok(Self {
            driver: Driver::new(MTU)?,
            port,
            next: 1000,
            acknowledged: 1000,
            window: 0,
            scale: 0,
            expected: 0,
            established: false,
            ack_due: false,
            lost: false,
            bytes_in: 0,
        })
    }

    fn connect(&mut self) -> Result<()> {
        self.put(TcpFlags::SYN, 0)?;
        self.next += 1;
        self.driver.publish()?;
        let deadline = Instant::now() + PATIENCE;
        while !self.established {
            ensure!(Instant::now() < deadline, "the stack does not answer");
            self.driver.wait()?;
            self.take()?;
        }
        self.put(TcpFlags::ACK, 0)?;
        self.driver.publish()
    }

    /// The warm-up, and the window after it.
    fn serve(&mut self, way: Way, received: &AtomicU64, window: Duration) -> Result<Ran> {
        let tid = self.driver.thread();
        self.run_until(way, Instant::now() + WARM_UP)?;
        let count = |guest: &Self| match way {
            Way::Out => received.load(Ordering::Relaxed),
            Way::In => guest.bytes_in,
        };
        let (begin, cpu, before) = (Instant::now(), process::thread_time(tid)?, count(self));
        self.run_until(way, begin + window)?;
        let (bytes, wall) = (count(self) - before, begin.elapsed());
        let cpu = process::thread_time(tid)?.saturating_sub(cpu);
        Ok(Ran { bytes, wall, cpu, retransmits: 0 })
    }

    fn run_until(&mut self, way: Way, end: Instant) -> Result<()> {
        while Instant::now() < end {
            self.take()?;
            ensure!(!self.lost, "the stack has reset the connection");
            let mut idle = true;
            if self.ack_due && self.put(TcpFlags::ACK, 0)? {
                (self.ack_due, idle) = (false, false);
            }
            while way == Way::Out
                && let Some(payload) = self.may_send()
            {
                self.put(TcpFlags::ACK, payload)?;
                self.next = self.next.wrapping_add(payload);
                idle = false;
            }
            self.driver.publish()?;
            if idle {
                self.driver.wait().with_context(|| {
                    let under_way = self.next.wrapping_sub(self.acknowledged);
                    format!("{under_way} bytes under way, a window of {}", self.window)
                })?;
            }
        }
        Ok(())
    }

    /// How much the next frame carries: as much as can be, or what there is room for when nothing is under way.
    fn may_send(&self) -> Option<u32> {
        let under_way = self.next.wrapping_sub(self.acknowledged);
        let room = self.window.saturating_sub(under_way) / u32::from(MSS) * u32::from(MSS);
        let payload = room.min(FRAME_BYTES);
        let worth = payload == FRAME_BYTES || (under_way == 0 && payload > 0);
        (worth && self.driver.has_room()).then_some(payload)
    }

    /// Puts a segment with `payload` bytes. False when there is no room.
    fn put(&mut self, flags: TcpFlags, payload: u32) -> Result<bool> {
        let syn = flags.has(TcpFlags::SYN);
        let header = TcpHeader {
            source: GUEST_PORT,
            destination: self.port,
            sequence: self.next,
            acknowledgment: self.expected,
            flags,
            window: WINDOW,
            mss: syn.then_some(MSS),
            window_scale: syn.then_some(SCALE),
        };
        let len = header.built_len() + usize::try_from(payload)?;
        // Built as if it went to the guest: the addresses change places.
        let macs = Macs { guest: Mac(GATEWAY_MAC), gateway: Mac(MacAddress::GUEST.0) };
        let ip = Ipv4Header::new(GUEST, HOST, 6);
        let mut headers = Headers::ipv4(macs, &ip, len);
        headers.push(&header.build(0)[..header.built_len()]);
        let head = headers.as_bytes();
        let mut bytes = [0; HEAD_BYTES];
        // The checksum is left to whoever needs it.
        bytes[0] = 1;
        bytes[6..8].copy_from_slice(&34_u16.to_le_bytes());
        bytes[8..10].copy_from_slice(&16_u16.to_le_bytes());
        if payload > u32::from(MSS) {
            bytes[1] = 1;
            bytes[2..4].copy_from_slice(&u16::try_from(head.len())?.to_le_bytes());
            bytes[4..6].copy_from_slice(&MSS.to_le_bytes());
        }
        let end = VNET_BYTES + head.len();
        bytes[VNET_BYTES..end].copy_from_slice(head);
        self.driver.put(&bytes[..end], payload)
    }

    fn take(&mut self) -> Result<()> {
        let mut segments = Vec::new();
        self.driver.take(|head, len| segments.push(parse(head, len)))?;
        for segment in segments {
            if let Some((header, payload)) = segment? {
                self.segment(&header, payload)?;
            }
        }
        Ok(())
    }

    fn segment(&mut self, header: &TcpHeader, payload: u32) -> Result<()> {
        if header.flags.has(TcpFlags::RST) {
            self.lost = true;
            return Ok(());
        }
        if header.flags.has(TcpFlags::SYN) {
            self.expected = header.sequence.wrapping_add(1);
            self.scale = header.window_scale.unwrap_or(0);
            self.established = true;
            (self.acknowledged, self.window) = (header.acknowledgment, header.window.into());
            return Ok(());
        }
        self.window = u32::from(header.window) << self.scale;
        self.acknowledged = header.acknowledgment;
        if payload > 0 {
            if header.sequence != self.expected {
                bail!(
                    "a link that loses nothing brought {} for {}",
                    header.sequence,
                    self.expected
                );
            }
            self.expected = self.expected.wrapping_add(payload);
            self.bytes_in += u64::from(payload);
            self.ack_due = true;
        }
        Ok(())
    }
}

/// A segment from the head of a frame of `len` bytes, and how much it carries; `None` when it is not TCP.
fn parse(head: &[u8], len: usize) -> Result<Option<(TcpHeader, u32)>> {
    let frame = head.get(VNET_BYTES..).context("a frame is longer than its vnet header")?;
    let (ethernet, rest) = EthernetHeader::parse(Part::frame(frame, len - VNET_BYTES))?;
    if ethernet.ethertype != ethertype::IPV4 {
        return Ok(None);
    }
    let (_, rest) = Ipv4Header::parse(rest)?;
    let (tcp, payload) = TcpHeader::parse(rest)?;
    Ok(Some((tcp, u32::try_from(payload.len())?)))
}
