//! Straight-line assembly of a machine, one function per step.
//!
//! Invariant: the order of steps is the one that KVM is quick with (see `kvm`), and everything that opens or maps is done before the first
//! thread is confined.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, BootError, CommandLineError, CpuEntry, Kernel, KernelError};
use crate::bus::BusError;
use crate::config::plan::{ConsolePlan, DiskPlan, NetPlan, Plan, VsockPlan};
use crate::devices::event::EventDevice;
use crate::devices::i8042::I8042;
use crate::devices::power::{self, PowerRegisters};
use crate::devices::serial::{self, Serial};
use crate::jail::Jail;
use crate::kvm::{Host, KvmError, Vcpu, Vm};
use crate::layout::{self, MmioSlot};
use crate::memory::{GuestRam, MemoryError};
use crate::sys::random;
use crate::trace::{Marks, Phase};
use crate::vcpu::exit::Buses;
use crate::virtio::block::{Block, BlockError, EngineKind};
use crate::virtio::rng::Rng;
use crate::virtio::transport::{QUEUE_NOTIFY_OFFSET, Transport};
use crate::virtio::vsock::{BindError, HostSocket, Vsock, VsockError};
use crate::virtio::{Interrupt, VirtioDevice};

use super::cmdline::{self, Facts};
use super::net;

const RNG_SEED_BYTES: usize = 32;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// KVM.
    #[error("{0}")]
    Kvm(#[source] KvmError),
    /// Guest RAM.
    #[error("cannot give the guest its memory")]
    Memory(#[source] MemoryError),
    /// The kernel image.
    #[error("kernel {path}: {source}")]
    Kernel {
        /// As the user wrote it.
        path: String,
        /// What is wrong with it.
        #[source]
        source: KernelError,
    },
    /// The kernel command line.
    #[error("kernel command line: {0}")]
    CommandLine(#[source] CommandLineError),
    /// What the kernel needs in memory.
    #[error("{0}")]
    Boot(#[source] BootError),
    /// More virtio devices than there are places for.
    #[error("a machine has room for {} devices", layout::MMIO_SLOTS)]
    TooManyDevices,
    /// Two devices claim one address.
    #[error("devices overlap")]
    Bus(#[source] BusError),
    /// A disk could not be made.
    #[error("{0}")]
    Block(#[source] BlockError),
    /// The vsock device's host socket.
    #[error("{0}")]
    VsockSocket(#[source] BindError),
    /// The vsock device.
    #[error("{0}")]
    Vsock(#[source] VsockError),
    /// A device could not be made.
    #[error("cannot make {what}")]
    Device {
        /// Which one.
        what: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    /// What the user can do about it, one line.
    pub(super) fn fix(&self) -> Option<String> {
        let fix = match self {
            Self::Kvm(
                KvmError::Open(_) | KvmError::MissingCapability(_) | KvmError::ApiVersion(_),
            ) => "`openshell-vmm doctor` says what this host lacks",
            Self::Memory(_) => "give the machine less memory with --memory",
            Self::TooManyDevices => "give the machine fewer disks",
            _ => return None,
        };
        Some(fix.to_owned())
    }
}

fn device(what: impl Into<String>) -> impl FnOnce(io::Error) -> BuildError {
    let what = what.into();
    move |source| BuildError::Device { what, source }
}

/// A machine that is ready to run.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) vm: Vm,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) buses: Arc<Buses>,
    pub(super) serial: Arc<Serial>,
    pub(super) console: ConsolePlan,
    /// Transports of the disks, in the order of the plan.
    pub(super) disks: Vec<Arc<Transport>>,
    /// All other transports.
    pub(super) others: Vec<Arc<Transport>>,
    /// What there will be to say of the network, where there is one.
    pub(super) network: Option<net::Tally>,
}

/// Builds the machine of `plan`, stamping `marks` on the way.
///
/// # Errors
/// [`BuildError`] names the part.
pub(super) fn build(plan: Plan, marks: &Arc<Marks>, jail: Jail) -> Result<Parts, BuildError> {
    let host = Host::open().map_err(BuildError::Kvm)?;
    marks.stamp(Phase::KvmOpen);
    let ram = GuestRam::anonymous(&layout::ram_ranges(plan.memory_bytes))
        .map(Arc::new)
        .map_err(BuildError::Memory)?;
    let vm = Vm::new(&host, Arc::clone(&ram), plan.cpus, plan.runtime_dir.as_deref())
        .map_err(BuildError::Kvm)?;
    marks.stamp(Phase::Memory);

    let root_read_only = plan.disks.first().map(|disk| disk.read_only);
    let mut slots = Slots { ram: &ram, vm: &vm, buses: Buses::default(), used: Vec::new() };
    let disks = add_disks(&mut slots, plan.disks, plan.cpus, jail)?;
    let mut others = add_others(&mut slots, plan.vsock, jail)?;
    let net = plan.net.map(|plan| add_net(&mut slots, plan, jail)).transpose()?;
    let network = net.map(|(transport, tally)| {
        others.push(transport);
        tally
    });
    let Slots { mut buses, used, .. } = slots;
    let serial = add_platform(&vm, &mut buses, marks)?;

    let kernel = Kernel::parse(&plan.kernel.image)
        .map_err(|source| kernel_error(&plan.kernel.image, source))?;
    let tables = kernel.tables(plan.tables);
    let cmdline = cmdline::build(Facts {
        tables,
        devices: &used,
        console: !matches!(plan.console, ConsolePlan::None),
        root_read_only,
        append: &plan.append,
    })
    .map_err(BuildError::CommandLine)?;
    let loaded = kernel
        .load(&plan.kernel.image, &ram)
        .map_err(|source| kernel_error(&plan.kernel.image, source))?;
    let setup = boot::Setup {
        cpus: plan.cpus,
        cmdline: &cmdline,
        initrd: plan.initrd.as_ref(),
        tables,
        devices: &used,
        serial: true,
        rng_seed: random::array::<RNG_SEED_BYTES>().map_err(device("the guest's random seed"))?,
    };
    let entry = boot::prepare(&ram, &loaded, &setup).map_err(BuildError::Boot)?;
    marks.stamp(Phase::KernelLoad);

    let vcpus = make_vcpus(&vm, plan.cpus, &entry)?;
    let buses = Arc::new(buses);
    let console = plan.console;
    Ok(Parts { vm, vcpus, buses, serial, console, disks, others, network })
}

fn kernel_error(image: &crate::config::plan::InputFile, source: KernelError) -> BuildError {
    BuildError::Kernel { path: image.path.display().to_string(), source }
}

/// The virtio-mmio places of a machine, given out in order.
struct Slots<'a> {
    ram: &'a Arc<GuestRam>,
    vm: &'a Vm,
    buses: Buses,
    used: Vec<MmioSlot>,
}

impl Slots<'_> {
    fn add(&mut self, virtio: Box<dyn VirtioDevice>) -> Result<Arc<Transport>, BuildError> {
        let slot = layout::mmio_slot(self.used.len()).ok_or(BuildError::TooManyDevices)?;
        let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(device("an interrupt line"))?;
        self.vm.attach_interrupt(&line, slot.gsi).map_err(BuildError::Kvm)?;
        let mut transport = Transport::new(virtio, Arc::clone(self.ram), Interrupt::new(line));
        for (queue, doorbell) in transport.doorbells() {
            self.vm
                .attach_doorbell(doorbell, slot.base + QUEUE_NOTIFY_OFFSET, u32::from(queue))
                .map_err(BuildError::Kvm)?;
        }
        let transport = Arc::new(transport);
        let registers = Arc::clone(&transport);
        self.buses
            .mmio
            .attach(slot.base, layout::VIRTIO_MMIO_STRIDE, registers)
            .map_err(BuildError::Bus)?;
        self.used.push(slot);
        Ok(transport)
    }
}

fn add_disks(
    slots: &mut Slots<'_>,
    plans: Vec<DiskPlan>,
    cpus: u8,
    jail: Jail,
) -> Result<Vec<Arc<Transport>>, BuildError> {
    let mut disks = Vec::with_capacity(plans.len());
    for (index, plan) in plans.into_iter().enumerate() {
        let block = Block::new(index, plan, u16::from(cpus), EngineKind::Auto, jail)
            .map_err(BuildError::Block)?;
        disks.push(slots.add(Box::new(block))?);
    }
    Ok(disks)
}

fn add_others(
    slots: &mut Slots<'_>,
    vsock: Option<VsockPlan>,
    jail: Jail,
) -> Result<Vec<Arc<Transport>>, BuildError> {
    let mut others = vec![slots.add(Box::new(Rng::new()))?];
    if let Some(plan) = vsock {
        let socket = HostSocket::bind(&plan.path).map_err(BuildError::VsockSocket)?;
        let vsock = Vsock::new(socket, &plan, jail).map_err(BuildError::Vsock)?;
        others.push(slots.add(Box::new(vsock))?);
    }
    Ok(others)
}

/// After all others, so that a machine without a network has the rest in the same places.
fn add_net(
    slots: &mut Slots<'_>,
    plan: NetPlan,
    jail: Jail,
) -> Result<(Arc<Transport>, net::Tally), BuildError> {
    let (net, tally) = net::device(plan, jail).map_err(device("the network card"))?;
    Ok((slots.add(Box::new(net))?, tally))
}

fn add_platform(vm: &Vm, buses: &mut Buses, marks: &Arc<Marks>) -> Result<Arc<Serial>, BuildError> {
    let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(device("the serial port's line"))?;
    vm.attach_interrupt(&line, layout::SERIAL_GSI).map_err(BuildError::Kvm)?;
    let serial = Arc::new(Serial::new(line).map_err(device("the serial port"))?);
    let event = Arc::new(EventDevice::new(Arc::clone(marks)));
    let ports = &mut buses.ports;
    let attach = |error| BuildError::Bus(error);
    let registers = Arc::clone(&serial);
    ports.attach(u64::from(layout::SERIAL_PORT), serial::PORTS, registers).map_err(attach)?;
    ports.attach(u64::from(layout::I8042_PORT) + 4, 1, Arc::new(I8042)).map_err(attach)?;
    let sleep = u64::from(layout::ACPI_SLEEP_CONTROL_PORT);
    ports.attach(sleep, power::PORTS, Arc::new(PowerRegisters)).map_err(attach)?;
    let event_port = u64::from(layout::EVENT_PORT);
    ports.attach(event_port, u64::from(layout::EVENT_PORTS), event).map_err(attach)?;
    Ok(serial)
}

fn make_vcpus(vm: &Vm, cpus: u8, entry: &CpuEntry) -> Result<Vec<Vcpu>, BuildError> {
    (0..cpus)
        .map(|index| {
            let boot = (index == 0).then(|| (entry.regs(), |sregs: &mut _| entry.apply(sregs)));
            vm.vcpu(index, cpus, boot).map_err(BuildError::Kvm)
        })
        .collect()
}
