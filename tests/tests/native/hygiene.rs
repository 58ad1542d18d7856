//! Threads and descriptors: each thread has its name, and every thread but the main one is gone before the process is.

use std::fs::File;

use openshell_tests::bare::Script;

use crate::guest::{Guest, eventually};

/// Threads that the kernel runs in the process on its behalf: of I/O rings and of KVM.
fn is_the_kernels(name: &str) -> bool {
    ["iou-", "kvm-"].iter().any(|prefix| name.starts_with(prefix))
}

#[test]
fn every_thread_has_a_name_and_a_filter() {
    for (flags, filtered) in [(&[][..], true), (&["--no-seccomp"], false)] {
        let guest = Guest::new(Script::new().say("up").spin());
        File::create(guest.path("disk")).unwrap().set_len(1 << 20).unwrap();
        let run = guest.run().args(["--cpus", "2", "--disk"]).arg(guest.path("disk")).args(flags);
        let running = run.arg("--vsock").arg(guest.path("vsock")).spawn();
        running.wait_for("up");
        // The guest runs while the last threads are still on their way.
        let filter = if filtered { "2" } else { "0" };
        for (field, value) in [("Seccomp:", filter), ("NoNewPrivs:", "1")] {
            // Nobody drives the card: its thread sleeps, and gets its filter with the first driver.
            let of = |name| if (name, field) == ("net", "Seccomp:") { "0" } else { value };
            let want = ["blk0.0", "blk0.1", "net", "openshell-vmm", "vcpu0", "vcpu1", "vsock"]
                .map(|name| (name.to_owned(), of(name).to_owned()))
                .to_vec();
            let found = eventually(&want, || {
                let mut threads = running.thread_status(field);
                threads.retain(|(name, _)| !is_the_kernels(name));
                threads.sort();
                threads
            });
            assert_eq!(found, want, "{field}");
        }
        running.signal(libc::SIGTERM);
        guest.wait(running).expect_code(143);
    }
}

#[test]
fn without_filters_the_guest_runs_all_the_same() {
    let guest = Guest::new(Script::new().say("ok").exit(6));
    File::create(guest.path("disk")).unwrap().set_len(1 << 20).unwrap();
    let run = guest.run().arg("--no-seccomp").arg("--disk").arg(guest.path("disk"));
    let finished = guest.finish(run).expect_code(6);
    assert_eq!((finished.text().as_str(), finished.stderr.as_str()), ("ok", ""));
}
