//! The guest kernel's command line: what the machine knows, then what the user added.
//!
//! Invariant: the user's words come last, because the kernel lets the last one win.

use crate::boot::{CommandLine, CommandLineError};
use crate::config::plan::Tables;
use crate::layout::{MmioSlot, VIRTIO_MMIO_STRIDE};

/// What the command line depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// How the guest finds its devices.
    pub(super) tables: Tables,
    /// The virtio-mmio transports, in order.
    pub(super) devices: &'a [MmioSlot],
    /// Whether there is a console to print to.
    pub(super) console: bool,
    /// The first disk: whether it is read-only.
    pub(super) root_read_only: Option<bool>,
    /// What the user wrote.
    pub(super) append: &'a str,
}

/// Arguments of every machine: a panic ends it at once through the i8042 reset, which is the quickest one that says "reset"
/// and not "triple fault"; nothing that does not exist is looked for; memory of each processor is had by the page, because a
/// kernel that has it by 2 MiB clears 4 MiB of pointers for the second piece, which a few devices make it need.
const ALWAYS: [&str; 7] = [
    "reboot=k",
    "panic=-1",
    "pci=off",
    "nomodule",
    "i8042.noaux",
    "i8042.nopnp",
    "percpu_alloc=page",
];

/// Builds the command line.
///
/// # Errors
/// [`CommandLineError`] when it gets too long or the user's part holds what a command line can't.
pub(super) fn build(facts: Facts<'_>) -> Result<CommandLine, CommandLineError> {
    let mut line = CommandLine::new();
    if facts.console {
        line.push("console=ttyS0")?;
    } else {
        line.push("8250.nr_uarts=0")?;
    }
    line.push("quiet")?;
    for argument in ALWAYS {
        // Only a kernel of ours is known to have all it needs built in.
        if argument != "nomodule" || facts.tables == Tables::MpTable {
            line.push(argument)?;
        }
    }
    let user_names_root =
        facts.append.split_ascii_whitespace().any(|word| word.starts_with("root="));
    if let (Some(read_only), false) = (facts.root_read_only, user_names_root) {
        line.push("root=/dev/vda")?;
        line.push(if read_only { "ro" } else { "rw" })?;
    }
    if facts.tables == Tables::MpTable {
        for device in facts.devices {
            let MmioSlot { base, gsi } = *device;
            let size_kib = VIRTIO_MMIO_STRIDE >> 10;
            line.push(&format!("virtio_mmio.device={size_kib}K@{base:#x}:{gsi}"))?;
        }
    }
    for word in facts.append.split_ascii_whitespace() {
        line.push(word)?;
    }
    Ok(line)
}

/// Whether the user told the kernel to reset the machine by a triple fault, which then is no failure.
pub(super) fn asks_for_triple_fault(append: &str) -> bool {
    let mut reboot =
        append.split_ascii_whitespace().filter_map(|word| word.strip_prefix("reboot="));
    reboot.next_back().is_some_and(|how| how.split(',').any(|part| part.starts_with('t')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::mmio_slot;

    fn facts<'a>(devices: &'a [MmioSlot], append: &'a str) -> Facts<'a> {
        Facts {
            tables: Tables::MpTable,
            devices,
            console: true,
            root_read_only: Some(false),
            append,
        }
    }

    fn text(facts: Facts<'_>) -> String {
        build(facts).unwrap().as_str().to_owned()
    }

    #[test]
    fn devices_are_named_only_where_no_table_names_them() {
        let devices = [mmio_slot(0).unwrap(), mmio_slot(1).unwrap()];
        let line = text(facts(&devices, ""));
        assert!(
            line.contains("virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6")
        );
        let line = text(Facts { tables: Tables::Acpi, ..facts(&devices, "") });
        assert!(!line.contains("virtio_mmio"), "{line}");
    }

    #[test]
    fn the_first_disk_is_root_unless_the_user_says_otherwise() {
        assert!(text(facts(&[], "")).contains("root=/dev/vda rw"));
        let read_only = Facts { root_read_only: Some(true), ..facts(&[], "") };
        assert!(text(read_only).contains("root=/dev/vda ro"));
        let line = text(facts(&[], "root=/dev/vdb ro"));
        assert!(!line.contains("vda") && line.ends_with("root=/dev/vdb ro"), "{line}");
        assert!(!text(Facts { root_read_only: None, ..facts(&[], "") }).contains("root="));
    }

    #[test]
    fn the_last_word_on_how_to_reset_counts() {
        for (append, want) in [
            ("", false),
            ("reboot=t", true),
            ("quiet reboot=triple,force", true),
            ("reboot=w,t", true),
            ("reboot=t reboot=k", false),
            ("noreboot=t", false),
        ] {
            assert_eq!(asks_for_triple_fault(append), want, "{append}");
        }
    }

    #[test]
    fn the_users_words_come_last() {
        assert!(
            text(facts(&[], " loglevel=7  init=/bin/sh ")).ends_with(" loglevel=7 init=/bin/sh")
        );
    }
}
