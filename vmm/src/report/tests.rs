use std::time::{Duration, Instant};

use super::verdict::{CODE_TIMEOUT, CODE_VMM};
use super::*;

const PANIC: &str = "\
[    0.4] VFS: Cannot open root device \"vda\" or unknown-block(0,0): error -6\r
[    0.5] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r
[    0.6] Rebooting in 1 seconds..\r
";

fn outcome(end: End, console: &str) -> Outcome {
    let start = Instant::now();
    let mut trace = BootTrace::from(start);
    trace.mark_at(Phase::ProcessStart, start + Duration::from_millis(1));
    trace.mark_at(Phase::KernelEntry, start + Duration::from_millis(5));
    let mut tail = ConsoleTail::default();
    tail.push(console.as_bytes());
    let network = vec![("guest_frames".to_owned(), 7)];
    Outcome { end, trace, console: tail, last_exit: Some("port write 0x64".to_owned()), network }
}

fn triple_fault() -> End {
    let registers = Registers { rip: 0xdead_beef, cr2: 0x10, ..Registers::default() };
    End::TripleFault { cpu: 3, registers }
}

#[test]
fn every_end_has_a_source_and_a_code() {
    let failed = || End::Failed { what: "the disk is gone".into(), why: None, fix: None };
    let lost = || End::VcpuFailed {
        cpu: 0,
        reason: "internal error".into(),
        registers: Registers::default(),
    };
    for (end, console, source, code) in [
        (End::GuestExit(GuestExit::Code(0)), "", Source::Guest, 0),
        (End::GuestExit(GuestExit::Code(255)), PANIC, Source::Guest, 255),
        (End::GuestExit(GuestExit::Signal(9)), "", Source::Guest, 137),
        (End::GuestExit(GuestExit::Signal(255)), "", Source::Guest, 255),
        (End::Reset, "", Source::Guest, 0),
        (End::Reset, PANIC, Source::Panic, CODE_VMM),
        (End::PowerOff, "", Source::Guest, 0),
        (End::PowerOff, PANIC, Source::Guest, 0),
        (End::Halted, "", Source::Guest, CODE_VMM),
        (End::Halted, PANIC, Source::Panic, CODE_VMM),
        (End::Halted, "[ 9.1] reboot: System halted\r\n", Source::Guest, 0),
        (triple_fault(), "", Source::TripleFault, CODE_VMM),
        (triple_fault(), PANIC, Source::Panic, CODE_VMM),
        (lost(), PANIC, Source::Vmm, CODE_VMM),
        (End::TimedOut, "", Source::Timeout, CODE_TIMEOUT),
        (End::TimedOut, PANIC, Source::Timeout, CODE_TIMEOUT),
        (End::Signal(libc::SIGTERM), "", Source::Signal, 143),
        (End::Signal(-1), "", Source::Signal, CODE_VMM),
        (failed(), "", Source::Vmm, CODE_VMM),
    ] {
        let verdict = Verdict::of(&outcome(end.clone(), console));
        assert_eq!((verdict.source, verdict.code), (source, code), "{end:?} {console}");
        assert!(!verdict.failed || verdict.code >= CODE_TIMEOUT, "{end:?}");
    }
}

#[test]
fn a_panic_is_told_with_its_meaning_and_its_console() {
    let outcome = outcome(End::Reset, PANIC);
    let text = text::ending(&outcome, &Verdict::of(&outcome));
    assert_eq!(
        text,
        "\
error: the guest kernel panicked: VFS: Unable to mount root fs on unknown-block(0,0)
  the guest found no file system that it can mount as root
  last phase completed: kernel entry, 5.000 ms after the start
  last exit: port write 0x64
  last 3 console lines:
  | [    0.4] VFS: Cannot open root device \"vda\" or unknown-block(0,0): error -6
  | [    0.5] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)
  | [    0.6] Rebooting in 1 seconds..
  fix: check that the first --disk holds a file system that the kernel has, and root= in --append
"
    );
}

#[test]
fn a_triple_fault_is_told_with_registers() {
    let outcome = outcome(triple_fault(), "");
    let text = text::ending(&outcome, &Verdict::of(&outcome));
    for part in [
        "error: CPU 3 of the guest shut down (triple fault)\n",
        "  registers of CPU 3:\n    rip    00000000deadbeef",
        "cr2    0000000000000010",
        "  the guest printed nothing\n",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn a_time_out_says_how_far_the_guest_came() {
    for (console, init, why) in [
        ("", false, "the guest has not reported that its init runs"),
        ("Run /sbin/init as init process\n", false, "the guest was running"),
        ("", true, "the guest was running"),
        (
            PANIC,
            false,
            "the guest kernel panicked: VFS: Unable to mount root fs on unknown-block(0,0)",
        ),
    ] {
        let mut outcome = outcome(End::TimedOut, console);
        if init {
            outcome.trace.mark(Phase::Init);
        }
        assert_eq!(Verdict::of(&outcome).why.as_deref(), Some(why));
    }
}

#[test]
fn a_good_end_says_nothing() {
    for end in [End::PowerOff, End::GuestExit(GuestExit::Code(3)), End::Signal(15)] {
        let outcome = outcome(end, "login: ");
        assert_eq!(text::ending(&outcome, &Verdict::of(&outcome)), "");
    }
}

#[test]
fn phases_sum_to_the_whole_and_leave_out_what_was_not_seen() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut trace = BootTrace::from(start);
    for (phase, ms) in [
        (Phase::ProcessStart, 2),
        (Phase::KvmOpen, 3),
        // Made by another thread before the one above was made here.
        (Phase::Memory, 1),
        (Phase::FirstRun, 7),
        (Phase::Exit, 100),
        // Only the first mark counts.
        (Phase::FirstRun, 50),
    ] {
        trace.mark_at(phase, at(ms));
    }
    let phases: Vec<_> = trace.durations().map(|(phase, took)| (phase, took.as_millis())).collect();
    let expected = [
        (Phase::ProcessStart, 2),
        (Phase::KvmOpen, 1),
        (Phase::Memory, 0),
        (Phase::FirstRun, 4),
        (Phase::Exit, 93),
    ];
    assert_eq!(phases, expected);
    assert_eq!(trace.total(), Duration::from_millis(100));
    assert_eq!(trace.reached(), Some(Phase::FirstRun));
    assert_eq!(BootTrace::from(start).reached(), None);
    assert_eq!(
        text::boot_trace(&trace),
        "\
boot trace:
  process start     2.000 ms
  KVM open          1.000 ms
  memory            0.000 ms
  first run         4.000 ms
  exit             93.000 ms
  total           100.000 ms
"
    );
}

/// What the file of a run holds at its start and at its end.
fn documents(document: &json::Document) -> [serde_json::Value; 2] {
    let file = tempfile::NamedTempFile::new().unwrap();
    let read = || serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
    let result = json::ResultFile::start(file.reopen().unwrap()).unwrap();
    let start = read();
    result.finish(document).unwrap();
    [start, read()]
}

#[test]
fn the_document_has_every_key() {
    let outcome = outcome(triple_fault(), "last words\n");
    let [_, found] = documents(&json::Document::of(&outcome, &Verdict::of(&outcome)));
    for (key, expected) in [
        ("schema", serde_json::json!(1)),
        ("source", serde_json::json!("triple_fault")),
        ("code", serde_json::json!(125)),
        ("phase", serde_json::json!("kernel_entry")),
        ("reason", serde_json::json!("CPU 3 of the guest shut down (triple fault)")),
        ("last_exit", serde_json::json!("port write 0x64")),
        ("cpu", serde_json::json!(3)),
        ("console_tail", serde_json::json!(["last words"])),
    ] {
        assert_eq!(found[key], expected, "{key}");
    }
    assert_eq!(found["registers"]["rip"], 0xdead_beef_u64);
    let phases = found["boot_trace"]["phases"].as_array().unwrap();
    let sum: f64 = phases.iter().map(|step| step["us"].as_f64().unwrap()).sum();
    assert!((sum - found["boot_trace"]["total_us"].as_f64().unwrap()).abs() < 0.01);
}

#[test]
fn a_run_that_has_not_ended_says_that_it_was_cut_off() {
    let short = Verdict { what: String::new(), why: None, ..Verdict::cut_off() };
    let [start, end] = documents(&json::Document::of_failure(&short));
    assert_eq!((&start["code"], &start["reason"]), (&125.into(), &"the run was cut off".into()));
    assert_eq!(end["reason"], "", "a shorter document replaces all of it");
}

#[test]
fn the_start_of_the_process_lies_in_the_past_by_the_time_it_worked() {
    let before = Instant::now();
    let mut work = 0_u64;
    while before.elapsed() < Duration::from_millis(20) {
        work = work.wrapping_add(1);
    }
    assert!(work > 0);
    let mut trace = BootTrace::of_process();
    trace.mark(Phase::ProcessStart);
    // Other tests share the processor and the process, so only the lower bound is sure, and it is loose.
    assert!(trace.until(Phase::ProcessStart).unwrap() >= Duration::from_millis(2));
}
