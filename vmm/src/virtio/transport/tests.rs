use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::memory::GuestAddress;
use crate::virtio::lifecycle::{ACKNOWLEDGE, DRIVER_OK, F_VERSION_1, FEATURES_OK};
use crate::virtio::queue::{F_EVENT_IDX, QueueConfig, QueueState};
use crate::virtio::{ActivateError, DeviceKind};

const RAM_BYTES: u64 = 1 << 20;
const STATUS: u64 = 0x70;

#[derive(Debug, Default)]
struct Seen {
    /// Features and queues of the activation that is in force.
    active: Option<(u64, Vec<Option<QueueState>>)>,
    activations: usize,
    resets: usize,
    notified: Vec<u16>,
    config: Vec<(u64, Vec<u8>)>,
    shut_down: bool,
}

struct Probe {
    seen: Arc<Mutex<Seen>>,
    doorbells: Vec<EventFd>,
    refuses: bool,
}

impl VirtioDevice for Probe {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX | 1 << 5
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[256, 64]
    }

    fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    fn notify(&mut self, queue: u16) {
        self.seen.lock().unwrap().notified.push(queue);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = u8::try_from(at).unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.seen.lock().unwrap().config.push((offset, data.to_vec()));
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuses {
            return Err(ActivateError::MissingQueue(0));
        }
        let mut seen = self.seen.lock().unwrap();
        assert!(seen.active.is_none(), "one activation per reset");
        let queues =
            activation.queues.iter().map(|queue| queue.as_ref().map(Queue::save)).collect();
        seen.active = Some((activation.features, queues));
        seen.activations += 1;
        Ok(())
    }

    fn reset(&mut self) {
        let mut seen = self.seen.lock().unwrap();
        seen.active = None;
        seen.resets += 1;
    }

    fn shutdown(&mut self) -> std::io::Result<()> {
        self.seen.lock().unwrap().shut_down = true;
        Ok(())
    }
}

fn rig(doorbells: usize, refuses: bool) -> (Transport, Arc<Mutex<Seen>>) {
    let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), RAM_BYTES)]).unwrap());
    let seen = Arc::new(Mutex::new(Seen::default()));
    let doorbells = (0..doorbells).map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap()).collect();
    let device = Probe { seen: Arc::clone(&seen), doorbells, refuses };
    let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    (Transport::new(Box::new(device), ram, interrupt), seen)
}

fn read(transport: &Transport, offset: u64) -> u32 {
    let mut data = [0xaa; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(transport: &Transport, offset: u64, value: u32) {
    assert_eq!(transport.write(offset, &value.to_le_bytes()), Effect::None);
}

fn negotiate(transport: &Transport) {
    let accepted = u32::try_from(F_EVENT_IDX).unwrap();
    for (offset, value) in [
        (STATUS, 0),
        (STATUS, 1),
        (STATUS, 3),
        (0x24, 0),
        (0x20, accepted),
        (0x24, 1),
        (0x20, 1),
        (STATUS, 11),
    ] {
        write(transport, offset, value);
    }
    assert_eq!(read(transport, STATUS), 11);
}

fn set_up_queue(transport: &Transport, index: u32, config: QueueConfig) {
    write(transport, 0x30, index);
    write(transport, 0x38, config.size.into());
    for (offset, addr) in [(0x80, config.desc), (0x90, config.avail), (0xa0, config.used)] {
        write(transport, offset, u32::try_from(addr & 0xffff_ffff).unwrap());
        write(transport, offset + 4, u32::try_from(addr >> 32).unwrap());
    }
    write(transport, 0x44, 1);
}

const QUEUE: QueueConfig = QueueConfig { size: 64, desc: 0x1000, avail: 0x2000, used: 0x3000 };

fn start(transport: &Transport) {
    negotiate(transport);
    set_up_queue(transport, 0, QUEUE);
    set_up_queue(transport, 1, QueueConfig { size: 8, ..QUEUE });
    write(transport, STATUS, 15);
}

#[test]
fn the_constant_registers() {
    let (transport, _) = rig(0, false);
    for (offset, want) in [
        (0x00, 0x7472_6976),
        (0x04, 2),
        (0x08, 2),
        (0x0c, VENDOR_ID),
        (0x10, 1 << 29 | 1 << 5),
        (0x34, 256),
        (0x44, 0),
        (0x60, 0),
        (STATUS, 0),
        (0xb0, u32::MAX),
        (0xb4, u32::MAX),
        (0xb8, u32::MAX),
        (0xbc, u32::MAX),
        (0xc0, 0),
        (0xfc, 0),
        (0x100, 0x0302_0100),
        // Registers that are only written, and no registers.
        (0x14, 0),
        (0x50, 0),
        (0x80, 0),
        (0x54, 0),
        (0x1000, 0),
    ] {
        assert_eq!(read(&transport, offset), want, "{offset:#x}");
    }
    write(&transport, 0x14, 1);
    assert_eq!(read(&transport, 0x10), 1, "VERSION_1");
    write(&transport, 0x30, 1);
    assert_eq!(read(&transport, 0x34), 64);
    write(&transport, 0x30, 2);
    assert_eq!(read(&transport, 0x34), 0);
}

#[test]
fn a_driver_that_keeps_the_rules_gets_its_device() {
    let (transport, seen) = rig(0, false);
    start(&transport);
    assert_eq!(read(&transport, STATUS), 15);
    assert_eq!(read(&transport, 0x44), 1);
    assert_eq!(transport.refused_writes(), 0);
    let state = transport.save();
    assert_eq!((state.status, state.driver_features), (15, F_VERSION_1 | F_EVENT_IDX));
    {
        let seen = seen.lock().unwrap();
        let (features, queues) = seen.active.as_ref().unwrap();
        assert_eq!(*features, F_VERSION_1 | F_EVENT_IDX);
        let configs: Vec<_> = queues.iter().map(|queue| queue.map(|state| state.config)).collect();
        assert_eq!(configs, [Some(QUEUE), Some(QueueConfig { size: 8, ..QUEUE })]);
    }
    write(&transport, 0x50, 1);
    write(&transport, 0x50, 0);
    assert_eq!(seen.lock().unwrap().notified, [1, 0]);
    write(&transport, STATUS, 0);
    assert_eq!(read(&transport, STATUS), 0);
    assert!(seen.lock().unwrap().active.is_none());
    write(&transport, 0x50, 0);
    assert_eq!(seen.lock().unwrap().notified, [1, 0], "no notification after the reset");
    start(&transport);
    assert_eq!(seen.lock().unwrap().activations, 2);
}

#[test]
fn a_doorbell_is_rung_where_the_device_has_one() {
    let (mut transport, seen) = rig(2, false);
    start(&transport);
    write(&transport, 0x50, 1);
    write(&transport, 0x50, 2);
    write(&transport, 0x50, 65537);
    let rung: Vec<_> = transport.doorbells().map(|(queue, fd)| (queue, fd.read().ok())).collect();
    assert_eq!(rung, [(0, None), (1, Some(1))]);
    assert!(seen.lock().unwrap().notified.is_empty());
    assert_eq!(transport.refused_writes(), 2);
}

#[test]
fn rings_outside_ram_and_a_device_that_cannot_start_need_a_reset() {
    let bad = QueueConfig { used: RAM_BYTES - 8, ..QUEUE };
    for (refuses, config) in [(false, bad), (true, QUEUE)] {
        let (transport, seen) = rig(0, refuses);
        negotiate(&transport);
        set_up_queue(&transport, 0, config);
        write(&transport, STATUS, 15);
        assert_eq!(read(&transport, STATUS), 15 | 64);
        assert_eq!(read(&transport, 0x60), 2, "a configuration change tells the driver");
        write(&transport, 0x50, 0);
        assert!(seen.lock().unwrap().notified.is_empty());
        assert_eq!(seen.lock().unwrap().activations, 0);
        write(&transport, STATUS, 15 | 64);
        assert_eq!(read(&transport, STATUS), 15 | 64);
        write(&transport, STATUS, 0);
        assert_eq!((read(&transport, STATUS), read(&transport, 0x60)), (0, 0));
    }
}

#[test]
fn interrupt_reasons_are_read_and_acknowledged_bit_by_bit() {
    let (transport, _) = rig(0, false);
    start(&transport);
    transport.interrupt().raise_queue();
    transport.interrupt().raise_config();
    assert_eq!(read(&transport, 0x60), 3);
    assert_eq!(read(&transport, 0xfc), 1, "the configuration has another generation");
    write(&transport, 0x64, 1);
    assert_eq!(read(&transport, 0x60), 2);
    write(&transport, 0x64, u32::MAX);
    assert_eq!(read(&transport, 0x60), 0);
    assert_eq!(transport.interrupt().line().read().unwrap(), 2);
}

#[test]
fn nothing_after_driver_ok_changes_the_queues() {
    let (transport, _) = rig(0, false);
    start(&transport);
    let before = transport.save();
    for (offset, value) in [
        (0x38, 256),
        (0x80, 0),
        (0x84, 1),
        (0x90, 7),
        (0xa4, 9),
        (0x44, 0),
        (0x20, 0),
        (STATUS, 11),
        (STATUS, 300),
    ] {
        write(&transport, offset, value);
        assert_eq!(transport.save(), before, "{offset:#x}");
    }
    assert_eq!(transport.refused_writes(), 9);
}

#[test]
fn bad_accesses_read_as_zero_and_write_nothing() {
    let (transport, seen) = rig(0, false);
    for (offset, len) in
        [(0, 1), (0, 2), (0, 8), (2, 4), (0x70, 3), (0x101, 2), (0xffc, 8), (0x1000, 4)]
    {
        let mut data = vec![0xaa; len];
        transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{offset:#x} {len}");
        let refused = transport.refused_writes();
        assert_eq!(transport.write(offset, &vec![1; len]), Effect::None);
        assert_eq!(transport.refused_writes(), refused + 1);
    }
    assert_eq!(read(&transport, STATUS), 0);
    write(&transport, 0x100, 1);
    assert!(seen.lock().unwrap().config.is_empty(), "there is no driver yet");
    negotiate(&transport);
    assert_eq!(transport.write(0x102, &[5, 6]), Effect::None);
    assert_eq!(seen.lock().unwrap().config, [(2, vec![5, 6])]);
}

#[test]
fn shutdown_reaches_the_device_and_ends_notifications() {
    let (transport, seen) = rig(0, false);
    start(&transport);
    transport.shutdown().unwrap();
    write(&transport, 0x50, 0);
    assert!(seen.lock().unwrap().shut_down && seen.lock().unwrap().notified.is_empty());
}

#[test]
fn registers_are_used_by_several_threads_at_once() {
    let (transport, seen) = rig(0, false);
    let rounds = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for round in 0..200_u32 {
                    write(&transport, STATUS, [0, 1, 3, 11, 15][round as usize % 5]);
                    write(&transport, 0x24, 1);
                    write(&transport, 0x20, 1);
                    write(&transport, 0x30, 0);
                    write(&transport, 0x50, 0);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(rounds.load(Ordering::Relaxed), 600);
    write(&transport, STATUS, 0);
    start(&transport);
    assert!(seen.lock().unwrap().active.is_some());
}

#[derive(Debug, Clone)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Negotiate,
    SetUp(u32, QueueConfig),
    Status(u8),
}

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let offset = || prop_oneof![6 => (0..64_u64).prop_map(|word| 4 * word), 1 => 0..0x1010_u64];
    let len = || prop_oneof![6 => Just(4_usize), 1 => prop_oneof![Just(1), Just(2), Just(8)]];
    let value = prop_oneof![
        3 => (0..17_u64).prop_map(u64::to_le_bytes),
        1 => (0..20_u64).prop_map(|n| (n << 12).to_le_bytes()),
        1 => any::<[u8; 8]>(),
    ];
    let addr = || prop_oneof![4 => (1..40_u64).prop_map(|n| n << 12), 1 => any::<u64>()];
    let config = (0..10_u32, addr(), addr(), addr())
        .prop_map(|(log, desc, avail, used)| QueueConfig { size: 1 << log, desc, avail, used });
    let status = prop_oneof![Just(0), Just(1), Just(3), Just(11), Just(15), any::<u8>()];
    let access = prop_oneof![
        2 => (offset(), len()).prop_map(|(offset, len)| Access::Read(offset, len)),
        6 => (offset(), len(), value).prop_map(|(at, len, v)| Access::Write(at, v[..len].to_vec())),
        1 => Just(Access::Negotiate),
        3 => (0..3_u32, config).prop_map(|(index, config)| Access::SetUp(index, config)),
        3 => status.prop_map(Access::Status),
    ];
    proptest::collection::vec(access, 0..120)
}

proptest! {
    #[test]
    fn a_device_is_given_what_was_frozen_and_nothing_else(accesses in accesses()) {
        let (transport, seen) = rig(0, false);
        let mut frozen: Option<(usize, u64, Vec<Option<QueueConfig>>)> = None;
        for access in accesses {
            match access {
                Access::Read(offset, len) => transport.read(offset, &mut vec![0; len]),
                Access::Write(offset, data) => {
                    prop_assert_eq!(transport.write(offset, &data), Effect::None);
                }
                Access::Negotiate => negotiate(&transport),
                Access::SetUp(index, config) => set_up_queue(&transport, index, config),
                Access::Status(status) => write(&transport, STATUS, status.into()),
            }
            let state = transport.save();
            let wanted: Vec<_> =
                state.queues.iter().map(|queue| queue.ready.then_some(queue.config)).collect();
            let seen = seen.lock().unwrap();
            let Some((features, queues)) = &seen.active else {
                frozen = None;
                continue;
            };
            let needed = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
            prop_assert_eq!(state.status & needed, needed);
            let given: Vec<_> = queues.iter().map(|queue| queue.map(|q| q.config)).collect();
            prop_assert_eq!((state.driver_features, &wanted), (*features, &given));
            let now = (seen.activations, *features, given);
            // A reset and a new activation may have come in one step.
            if frozen.as_ref().is_some_and(|(count, ..)| *count == seen.activations) {
                prop_assert_eq!(frozen.as_ref(), Some(&now));
            }
            frozen = Some(now);
        }
    }
}
