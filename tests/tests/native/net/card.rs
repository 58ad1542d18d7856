//! The network card: what it says of itself, honest and hostile packets, and what a reset leaves.

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::register::{
    CONFIG, DEVICE_FEATURES, DEVICE_FEATURES_SEL, DEVICE_ID, MAGIC_VALUE, QUEUE_NUM_MAX, QUEUE_SEL,
};
use openshell_tests::bare::virtio::{Descriptor, Device, EVENT_IDX, Ring, chained};
use openshell_tests::machine::Input;

use crate::guest::{Guest, eventually};
use crate::places::{BUFFERS, RAM_END, check_guard, guard, ring};

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const CONTROL: u32 = 2;

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const MRG_RXBUF: u64 = 1 << 15;
const CTRL_VQ: u64 = 1 << 17;

/// CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC, GUEST_TSO4/6, HOST_TSO4/6, MRG_RXBUF, STATUS, CTRL_VQ, INDIRECT_DESC, EVENT_IDX.
const LOW_FEATURES: u64 = 0x3003_99af;
/// VERSION_1, GUEST_USO4, GUEST_USO6, HOST_USO.
const HIGH_FEATURES: u64 = 0x01c0_0001;

const HEADER_BYTES: u32 = 12;
const SENT: u64 = BUFFERS;
const RECEIVED: u64 = BUFFERS + 0x10_0000;
const RING: u16 = 64;

/// The card of a machine without disk and vsock.
fn card() -> Device {
    Device::number(1)
}

fn rings() -> [Ring; 3] {
    [ring(0, RING), ring(1, RING), ring(2, RING)]
}

fn features(script: &mut Script, low: u64, high: u64) {
    let card = card();
    script.read(card, DEVICE_ID).expect(1);
    script.write(card, DEVICE_FEATURES_SEL, 0).read(card, DEVICE_FEATURES).expect(low);
    script.write(card, DEVICE_FEATURES_SEL, 1).read(card, DEVICE_FEATURES).expect(high);
}

#[test]
fn the_card_says_what_it_is() {
    let card = card();
    let mut script = Script::new();
    features(&mut script, LOW_FEATURES, HIGH_FEATURES);
    for (queue, size) in [(RECEIVE, 256), (TRANSMIT, 256), (CONTROL, 64), (3, 0)] {
        script.write(card, QUEUE_SEL, queue).read(card, QUEUE_NUM_MAX).expect(size);
    }
    let config = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee, 1, 0, 1, 0, 0xdc, 0x05];
    script.same(card.base + CONFIG, &config);
    let guest = Guest::new(script.exit(0));
    guest.finish(guest.run()).expect_code(0);
}

#[test]
fn the_card_is_what_was_asked_for() {
    let card = card();
    let mut script = Script::new();
    features(&mut script, LOW_FEATURES & !(MRG_RXBUF | EVENT_IDX), HIGH_FEATURES);
    script.write(card, QUEUE_SEL, RECEIVE).read(card, QUEUE_NUM_MAX).expect(1024);
    script.same(card.base + CONFIG, &[2, 0, 0, 0, 0, 9, 1, 0, 1, 0, 0x28, 0x23]);
    let guest = Guest::new(script.exit(0));
    let run = guest.run().args(["--mac", "02:00:00:00:00:09", "--mtu", "9000", "--net-ring"]);
    guest.finish(run.args(["1024", "--net-without", "mrg_rxbuf,event_idx"])).expect_code(0);
}

#[test]
fn a_machine_without_a_network_has_no_card() {
    let guest =
        Guest::new(Script::new().read(card(), MAGIC_VALUE).expect(0xffff_ffff).say("up").spin());
    let running = guest.run().args(["--net", "none"]).spawn();
    running.wait_for("up");
    assert!(!running.threads().contains(&"net".to_owned()), "{:?}", running.threads());
    running.signal(libc::SIGTERM);
    guest.wait(running).expect_code(143);
}

/// A header and a frame that nobody answers: to the gateway, of no known type.
fn packet(header: [u8; 12], len: usize) -> Vec<u8> {
    let gateway = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd];
    let own = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
    let mut packet = [&header[..], &gateway, &own, &[0x88, 0xb5]].concat();
    packet.resize(12 + len, 0x55);
    packet
}

/// Sends what lies at [`SENT`] in one chain and waits until it comes back.
fn send(script: &mut Script, parts: &[Descriptor], count: u16) {
    let ring = ring(u64::from(TRANSMIT), RING);
    script.describe(&ring, 0, &chained(0, parts)).offer(&ring, 0, count);
    script.notify(card(), TRANSMIT).wait_used(&ring, count);
}

#[test]
fn the_network_starts_with_the_driver_and_its_counts_are_in_the_result() {
    let mut script = Script::new();
    script.start(card(), 0, &rings()).copy(SENT, &packet([0; 12], 60));
    send(&mut script, &[Descriptor::read(SENT, HEADER_BYTES + 60)], 1);
    let guest = Guest::new(script.say("up").spin());
    let running = guest.run().arg("--result").arg(guest.path("result")).spawn();
    running.wait_for("up");
    let want = [("net", "2"), ("netfiles", "2")]
        .map(|(name, filter)| (name.to_owned(), filter.to_owned()));
    let found = eventually(&want.to_vec(), || {
        let mut threads = running.thread_status("Seccomp:");
        threads.retain(|(name, _)| name.starts_with("net"));
        threads.sort();
        threads
    });
    assert_eq!(found, want);
    running.signal(libc::SIGTERM);
    guest.wait(running).expect_code(143);
    let result = std::fs::read(guest.path("result")).unwrap();
    let result: serde_json::Value = serde_json::from_slice(&result).unwrap();
    let network = &result["network"];
    for (name, count) in [("card_transmitted_frames", 1), ("guest_frames", 1), ("unserved", 1)] {
        assert_eq!(network[name], count, "{name}: {network}");
    }
}

/// Every packet comes back with nothing written, whatever it says of itself.
#[test]
fn packets_come_back_whatever_they_say() {
    let everything = LOW_FEATURES & !(EVENT_IDX);
    for accepted in [0, CSUM | HOST_TSO4, everything] {
        let mut script = Script::new();
        script.start(card(), accepted, &rings());
        let mut count = 0;
        for header in [
            [0; 12],
            [0xff; 12],
            [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
            [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0],
            [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
            [0, 4, 54, 0, 0xb4, 5, 0, 0, 0, 0, 0, 0],
            [1, 0x83, 0xff, 0xff, 1, 0, 34, 0, 6, 0, 0xff, 0xff],
        ] {
            for len in [0, 1, 13, 14, 60, 1514, 1519, 65_535 + 14, 65_535 + 19] {
                script.copy(SENT, &packet(header, 64)[..HEADER_BYTES as usize + 64]);
                count += 1;
                let whole = HEADER_BYTES + len;
                let cut = whole / 2;
                let parts = [
                    Descriptor::read(SENT, cut),
                    Descriptor::read(SENT + u64::from(cut), whole - cut),
                ];
                send(&mut script, &parts, count);
                script.load32(ring(1, RING).used_len((count - 1) % RING)).expect(0);
            }
        }
        // One byte to a buffer, and less than a header.
        let bytes: Vec<_> = (0..60).map(|at| Descriptor::read(SENT + at, 1)).collect();
        send(&mut script, &bytes, count + 1);
        send(&mut script, &bytes[..11], count + 2);
        send(&mut script, &[Descriptor::write(SENT, 64)], count + 3);
        let guest = Guest::new(script.status(card(), 15).exit(0));
        guest.finish(guest.run()).expect_code(0);
    }
}

#[test]
fn offloads_are_changed_by_commands() {
    let card = card();
    let control = ring(u64::from(CONTROL), RING);
    let mut script = Script::new();
    script.start(card, CTRL_VQ | CTRL_GUEST_OFFLOADS | GUEST_CSUM | GUEST_TSO4, &rings());
    let set = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
    for (count, (command, answer)) in (1..).zip([
        (set(0), 0),
        (set(GUEST_CSUM), 0),
        (set(GUEST_CSUM | GUEST_TSO4), 0),
        (set(CSUM), 1),
        (set(u64::MAX), 1),
        (vec![0, 0, 1], 1),
        (vec![5, 0], 1),
        (vec![255, 255, 0, 0], 1),
    ]) {
        let len = u32::try_from(command.len()).unwrap();
        script.copy(SENT, &command).store8(SENT + 0x100, 0xee);
        let parts = [
            Descriptor::read(SENT, 1),
            Descriptor::read(SENT + 1, len - 1),
            Descriptor::write(SENT + 0x100, 1),
        ];
        script.describe(&control, 0, &chained(0, &parts)).offer(&control, 0, count);
        script.notify(card, CONTROL).wait_used(&control, count);
        script.load8(SENT + 0x100).expect(answer);
    }
    let guest = Guest::new(script.status(card, 15).exit(0));
    guest.finish(guest.run()).expect_code(0);
}

/// Queues that the driver did not set up, or not as far as it said.
#[test]
fn a_card_without_its_queues_asks_for_a_reset() {
    let card = card();
    let [receive, transmit, control] = rings();
    for (features, rings, works) in [
        (0, vec![receive], false),
        (0, vec![receive, transmit], true),
        (CTRL_VQ, vec![receive, transmit], false),
        (CTRL_VQ, vec![receive, transmit, control], true),
    ] {
        let mut script = Script::new();
        script.negotiate(card, features);
        for (index, ring) in (0..).zip(&rings) {
            script.clear_ring(ring).queue(card, index, ring);
        }
        script.write(card, openshell_tests::bare::virtio::register::STATUS, 15);
        if works {
            script.status(card, 15);
        } else {
            script.wait_needs_reset(card).notify(card, TRANSMIT);
            script.start(card, 0, &[receive, transmit]).status(card, 15);
        }
        let guest = Guest::new(script.exit(0));
        guest.finish(guest.run()).expect_code(0);
    }
}

/// Receive buffers that break the rules, offered a thousand times between resets: nothing is written outside of them, and nothing stays.
#[test]
fn a_card_that_is_reset_under_load_leaves_nothing() {
    let card = card();
    let rings = rings();
    let busy = |script: &mut Script| {
        script.start(card, MRG_RXBUF, &rings);
        for slot in 0..8_u16 {
            let at = RECEIVED + 0x1000 * u64::from(slot);
            let buffer = if slot == 7 {
                Descriptor::write(RAM_END - 16, 64)
            } else {
                Descriptor::write(at, 2048)
            };
            script.describe(&rings[0], slot, &[buffer]);
            script.store16(rings[0].avail + 4 + 2 * u64::from(slot), slot);
        }
        script.store16(rings[0].avail_index(), 8).notify(card, RECEIVE);
        for slot in 0..16_u16 {
            script.describe(&rings[1], slot, &[Descriptor::read(SENT, 72)]);
            script.store16(rings[1].avail + 4 + 2 * u64::from(slot), slot);
        }
        script.store16(rings[1].avail_index(), 16).notify(card, TRANSMIT).reset(card);
    };
    let mut script = Script::new();
    script.copy(SENT, &packet([0; 12], 60));
    guard(&mut script, RECEIVED, 0x8000);
    busy(&mut script);
    script.say("before\n").echo_until(b'.');
    let turns = script.repeat(1000);
    busy(&mut script);
    script.again(turns).say("after\n").echo_until(b'.');
    check_guard(&mut script, RECEIVED, 0x8000);
    let guest = Guest::new(script.exit(0));
    crate::resets::compare(&guest, guest.run().stdin(Input::Typed).spawn());
}
