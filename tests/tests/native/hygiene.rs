//! Threads and descriptors: each thread has its name, and every thread but the main one is gone before the process is.

use std::fs::File;

use openshell_tests::bare::Script;

use crate::guest::Guest;

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
        let want = ["blk0.0", "blk0.1", "openshell-vmm", "vcpu0", "vcpu1", "vsock"];
        let threads: Vec<_> =
            running.threads().into_iter().filter(|name| !is_the_kernels(name)).collect();
        assert_eq!(threads, want);
        for (field, value) in [("Seccomp:", if filtered { "2" } else { "0" }), ("NoNewPrivs:", "1")]
        {
            for (thread, found) in running.thread_status(field) {
                assert!(is_the_kernels(&thread) || found == value, "{thread}: {field} {found}");
            }
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
