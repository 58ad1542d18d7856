//! A virtio-mmio register block under a driver that writes anything, with a device behind it that notices when a rule is broken.
#![no_main]

use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use openshell_fuzz::{Script, ram};
use openshell_vmm::bus::BusDevice;
use openshell_vmm::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use openshell_vmm::virtio::transport::{Transport, TransportState};
use openshell_vmm::virtio::{ActivateError, Activation, DeviceKind, Interrupt, VirtioDevice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM_BYTES: u64 = 1 << 20;
const QUEUE_SIZES: [u16; 3] = [256, 64, 1];
const STATUS: u64 = 0x70;
const CONFIG: u64 = 0x100;
const CONFIG_BYTES: usize = 16;
/// All registers, and offsets that are none.
const OFFSETS: [u64; 36] = [
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70,
    0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac, 0xb0, 0xb4, 0xb8, 0xbc, 0xc0, 0xfc, 0x100, 0x108,
    0x10f, 0x18, 0x72, 0xffc, 0x1000,
];

/// What the device was asked, for the test to look at.
#[derive(Debug, Default)]
struct Seen {
    active: bool,
    refuse: bool,
    enabled: Vec<bool>,
    popped: u32,
}

struct Device {
    seen: Arc<Mutex<Seen>>,
    activation: Option<Activation>,
}

impl VirtioDevice for Device {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn notify(&mut self, queue: u16) {
        let mut seen = self.seen.lock().expect("one thread");
        assert!(seen.active && seen.enabled[usize::from(queue)], "a notification too early");
        let activation = self.activation.as_mut().expect("an active device");
        let queue = activation.queues[usize::from(queue)].as_mut().expect("an enabled queue");
        // Each is bounded by the queue's size until it is given back.
        while let Ok(Some(chain)) = queue.pop() {
            seen.popped += 1;
            queue.complete(chain.complete(0));
            if seen.popped > 1 << 12 {
                break;
            }
        }
        if queue.wants_interrupt() {
            activation.interrupt.raise_queue();
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = if at < CONFIG_BYTES as u64 { 0xc0 } else { 0 };
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut seen = self.seen.lock().expect("one thread");
        assert!(!seen.active, "activated twice");
        assert_eq!(activation.features & !(self.features() | 1 << 32), 0);
        assert_eq!(activation.queues.len(), QUEUE_SIZES.len());
        if seen.refuse {
            return Err(ActivateError::MissingQueue(0));
        }
        seen.active = true;
        seen.enabled = activation.queues.iter().map(Option::is_some).collect();
        self.activation = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.seen.lock().expect("one thread").active = false;
        self.activation = None;
    }

    fn shutdown(&mut self) -> std::io::Result<()> {
        self.reset();
        Ok(())
    }
}

struct Bench {
    transport: Transport,
    seen: Arc<Mutex<Seen>>,
    /// The registers as they were when the device became active.
    frozen: Option<TransportState>,
}

fuzz_target!(|script: &[u8]| {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let device = Device { seen: Arc::clone(&seen), activation: None };
    let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    let transport = Transport::new(Box::new(device), ram(RAM_BYTES), interrupt);
    let mut bench = Bench { transport, seen, frozen: None };
    let mut script = Script(script);
    while script.goes_on() {
        bench.step(&mut script);
        bench.check();
    }
    bench.write(STATUS, 0);
    bench.check();
    let end = bench.transport.save();
    assert_eq!((end.status, end.device_failed, end.driver_features), (0, false, 0));
    assert!(end.queues.iter().all(|queue| !queue.ready && queue.config.size == 0));
});

impl Bench {
    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 8 {
            0 | 1 => self.write(offset(script), small(script)),
            2 => self.write(offset(script), script.u32()),
            3 => {
                let mut data = [0xee; 8];
                let data = &mut data[..[1, 2, 4, 8][usize::from(script.byte() % 4)]];
                let offset = offset(script);
                self.transport.read(offset, data);
                let narrow = offset < CONFIG && data.len() != 4;
                assert!(!narrow || data.iter().all(|&byte| byte == 0));
            }
            4 => {
                let len = [0, 1, 2, 3, 8][usize::from(script.byte() % 5)];
                let offset = offset(script);
                let before = self.transport.save();
                let _nothing = self.transport.write(offset, &script.u64().to_le_bytes()[..len]);
                assert!(offset >= CONFIG || self.transport.save() == before, "width {len}");
            }
            5 => self.bring_up(script),
            6 => match script.byte() % 3 {
                0 => self.transport.interrupt().raise_queue(),
                1 => self.transport.interrupt().raise_config(),
                _ => self.transport.interrupt().fail_device(),
            },
            _ => {
                let refuse = script.byte() & 1 != 0;
                self.seen.lock().expect("one thread").refuse = refuse;
            }
        }
    }

    /// What a driver that keeps the rules writes, with the layout of the script.
    fn bring_up(&mut self, script: &mut Script<'_>) {
        for (offset, value) in [(STATUS, 0), (STATUS, 1), (STATUS, 3), (0x24, 1), (0x20, 1)] {
            self.write(offset, value);
            self.check();
        }
        self.write(0x24, 0);
        self.write(0x20, u32::from(script.byte() & 3) << 28);
        self.write(STATUS, 11);
        for queue in 0..u32::from(script.byte() % 4) {
            self.write(0x30, queue);
            self.write(0x38, 1 << (script.byte() % 9));
            for (offset, align) in [(0x80, 16), (0x90, 2), (0xa0, 4)] {
                self.write(offset, u32::from(script.u16()) * align);
                self.check();
            }
            self.write(0x44, 1);
        }
        self.write(STATUS, 15);
    }

    fn write(&self, offset: u64, value: u32) {
        let _nothing = self.transport.write(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The registers agree with the device, and nothing that was frozen has moved.
    fn check(&mut self) {
        let state = self.transport.save();
        let active = self.seen.lock().expect("one thread").active;
        assert_eq!(self.read(STATUS) & 0xbf, u32::from(state.status));
        assert_eq!(self.read(STATUS) & 0x40 != 0, state.device_failed);
        assert!(!active || state.status & 4 != 0, "active without DRIVER_OK: {state:?}");
        match (&self.frozen, active) {
            (Some(frozen), true) => {
                assert_eq!(frozen.queues, state.queues);
                assert_eq!(frozen.driver_features, state.driver_features);
            }
            (None, true) => self.frozen = Some(state),
            (_, false) => self.frozen = None,
        }
    }
}

fn offset(script: &mut Script<'_>) -> u64 {
    match script.byte() {
        255 => script.u64(),
        other => OFFSETS[usize::from(other) % OFFSETS.len()],
    }
}

fn small(script: &mut Script<'_>) -> u32 {
    u32::from(script.byte())
}
