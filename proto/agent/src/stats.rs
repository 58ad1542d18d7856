//! What a guest uses, as it counts itself.
//!
//! Invariant: numbers only; a newer guest may append some, which an older host passes over.

use crate::wire::{Reader, WireError, Writer};

macro_rules! stats {
    ($($(#[doc = $what:literal])* $name:ident,)*) => {
        /// What a guest uses. The numbers are the guest's own and as true as the guest is.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[doc = $what])* pub $name: u64,)*
        }

        impl Stats {
            /// Names and values, in the order in which they are sent.
            #[must_use]
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }

            pub(crate) fn write(&self, kind: u8, out: &mut Vec<u8>) {
                let values = self.values();
                values.iter().fold(Writer::new(kind, out), |writer, (_, value)| writer.u64(*value)).end();
            }

            pub(crate) fn read(mut reader: Reader<'_>) -> Result<Self, WireError> {
                Ok(Self { $($name: reader.u64()?,)* })
            }
        }
    };
}

stats! {
    /// Time since the boot, in milliseconds.
    uptime_ms,
    /// Memory that the kernel manages, in bytes.
    memory_total_bytes,
    /// Memory that could be had without swapping, in bytes.
    memory_available_bytes,
    /// Memory of the page cache, in bytes.
    memory_cached_bytes,
    /// Time that all processors spent in processes, in microseconds.
    cpu_user_us,
    /// Time that all processors spent in the kernel, in microseconds.
    cpu_system_us,
    /// Time that all processors had nothing to do, in microseconds.
    cpu_idle_us,
    /// Processors.
    cpus,
    /// Processes and threads.
    tasks,
    /// Processes that were killed because memory ran out.
    oom_kills,
    /// Size of the root file system, in bytes.
    disk_total_bytes,
    /// What is free of it for everybody, in bytes.
    disk_available_bytes,
    /// Inodes of the root file system.
    disk_inodes,
    /// What is free of them.
    disk_inodes_free,
    /// Bytes read from virtio disks.
    disk_read_bytes,
    /// Bytes written to them.
    disk_written_bytes,
    /// Bytes that network cards received.
    network_received_bytes,
    /// Bytes that they sent.
    network_sent_bytes,
}
