//! The filters as programs (every call number, every table entry), and as the kernel enforces them (a process of its own per case).

use std::collections::BTreeMap;
use std::ffi::c_long;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use libc::sock_filter;
use proptest::prelude::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use vmm_sys_util::eventfd::EventFd;

use super::assemble;
use super::filters::{Check, Entry, budget, tables};
use super::{Jail, Role, calls};

const ROLES: [Role; 8] = [
    Role::Main,
    Role::Vcpu,
    Role::Block,
    Role::Vsock,
    Role::Net,
    Role::Control,
    Role::Streams,
    Role::Watch,
];
const CASE: &str = "OPENSHELL_VMM_JAIL_CASE";
/// Above every call number of today's kernels, below the x32 ones.
const CALL_NUMBERS: c_long = 1024;
const PAGE: usize = 4096;
const X32: c_long = 0x4000_0000;
const X86_64: u32 = 0xc000_003e;

/// A call as a filter sees it.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    architecture: u32,
    arguments: [u64; 6],
}

impl Call {
    fn new(number: c_long, arguments: [u64; 6]) -> Self {
        Self { number: u32::try_from(number).unwrap(), architecture: X86_64, arguments }
    }

    /// A word of `struct seccomp_data`.
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.architecture,
            _ => {
                let (index, rest) = ((offset - 16) / 8, (offset - 16) % 8);
                u32::try_from(self.arguments[index as usize] >> (rest * 8) & 0xffff_ffff).unwrap()
            }
        }
    }
}

fn compile(role: Role) -> Result<Vec<sock_filter>, assemble::TooLarge> {
    assemble::program(entries(role))
}

/// The same table, through another assembler.
fn compile_otherwise(role: Role) -> Vec<sock_filter> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for entry in entries(role) {
        let chain = rules.entry(entry.call).or_default();
        for checks in entry.any_of {
            let condition = |check: &Check| {
                let (argument, mask, value) = check.parts();
                let operator = SeccompCmpOp::MaskedEq(u64::from(mask));
                let length = SeccompCmpArgLen::Dword;
                SeccompCondition::new(argument, length, operator, u64::from(value)).unwrap()
            };
            chain.push(SeccompRule::new(checks.iter().map(condition).collect()).unwrap());
        }
    }
    let (trap, allow) = (SeccompAction::Trap, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, trap, allow, TargetArch::x86_64).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    program
        .into_iter()
        .map(|seccompiler::sock_filter { code, jt, jf, k }| sock_filter { code, jt, jf, k })
        .collect()
}

/// What the kernel's interpreter would return.
fn evaluate(program: &[sock_filter], call: &Call) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { jt } else { jf });
        match code {
            0x20 => accumulator = call.word(k),
            0x54 => accumulator &= k,
            0x15 => jump(accumulator == k),
            0x25 => jump(accumulator > k),
            0x35 => jump(accumulator >= k),
            0x05 => at += k as usize,
            0x06 => return k,
            other => panic!("instruction {other:#x} is not modelled"),
        }
    }
}

fn allowed(program: &[sock_filter], call: &Call) -> bool {
    match evaluate(program, call) {
        libc::SECCOMP_RET_ALLOW => true,
        libc::SECCOMP_RET_TRAP | libc::SECCOMP_RET_KILL_PROCESS => false,
        other => panic!("action {other:#x}"),
    }
}

fn entries(role: Role) -> impl Iterator<Item = &'static Entry> {
    tables(role).into_iter().flatten()
}

fn holds(check: Check, arguments: &[u64; 6]) -> bool {
    let argument = |index: u8| u32::try_from(arguments[usize::from(index)] & 0xffff_ffff).unwrap();
    match check {
        Check::Is(index, value) => argument(index) == value,
        Check::Masked(index, mask, value) => argument(index) & mask == value,
        Check::OwnProcess(index) => argument(index) == std::process::id(),
        Check::KickSignal(index) => argument(index) == libc::SIGRTMIN().cast_unsigned(),
    }
}

fn listed(role: Role, call: &Call) -> bool {
    entries(role).filter(|entry| entry.call == c_long::from(call.number)).any(|entry| {
        entry.any_of.is_empty()
            || entry
                .any_of
                .iter()
                .any(|checks| checks.iter().all(|check| holds(*check, &call.arguments)))
    })
}

#[test]
fn every_number_that_is_not_listed_is_refused() {
    for role in ROLES {
        let program = compile(role).unwrap();
        let numbers: Vec<c_long> = entries(role).map(|entry| entry.call).collect();
        for number in 0..CALL_NUMBERS {
            let call = Call::new(number, [0; 6]);
            assert!(numbers.contains(&number) || !allowed(&program, &call), "{role:?} {number}");
            let x32 = Call::new(number | X32, [0; 6]);
            assert!(!allowed(&program, &x32), "{role:?} x32 {number}");
            let i386 = Call { architecture: 0x4000_0003, ..call };
            assert!(!allowed(&program, &i386), "{role:?} i386 {number}");
        }
    }
}

#[test]
fn no_role_exceeds_its_budget_or_holds_what_no_role_may() {
    let never = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_open,
        libc::SYS_openat2,
        libc::SYS_creat,
        libc::SYS_rename,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_kill,
        libc::SYS_memfd_create,
        libc::SYS_listen,
    ];
    for role in ROLES {
        let mut numbers: Vec<c_long> = entries(role).map(|entry| entry.call).collect();
        // A call listed twice must be a conditional one both times, because conditions are joined.
        for entry in entries(role) {
            let twice = numbers.iter().filter(|number| **number == entry.call).count() > 1;
            assert!(!twice || !entry.any_of.is_empty(), "{role:?} {}", entry.call);
        }
        numbers.sort_unstable();
        numbers.dedup();
        let debug_only = usize::from(
            cfg!(debug_assertions) && matches!(role, Role::Main | Role::Vcpu | Role::Block),
        );
        assert!(numbers.len() <= budget(role) + debug_only, "{role:?}: {}", numbers.len());
        assert!(never.iter().all(|number| !numbers.contains(number)), "{role:?}");
        assert!(role == Role::Net || !numbers.contains(&libc::SYS_bind), "{role:?}");
        assert!(role == Role::Watch || !numbers.contains(&libc::SYS_openat), "{role:?}");
        if !matches!(role, Role::Vsock | Role::Net | Role::Control) {
            assert!(!numbers.contains(&libc::SYS_socket) && !numbers.contains(&libc::SYS_connect));
        }
    }
}

fn argument() -> impl Strategy<Value = u64> {
    let near: Vec<u64> = ROLES
        .into_iter()
        .flat_map(entries)
        .flat_map(|entry| entry.any_of.iter().copied().flatten())
        .map(|check| match *check {
            Check::Is(_, value) | Check::Masked(_, _, value) => u64::from(value),
            Check::OwnProcess(_) => u64::from(std::process::id()),
            Check::KickSignal(_) => u64::from(libc::SIGRTMIN().cast_unsigned()),
        })
        .collect();
    prop_oneof![
        4 => prop::sample::select(near.clone()),
        1 => (prop::sample::select(near), 0_u32..64).prop_map(|(value, bit)| value ^ (1 << bit)),
        1 => any::<u64>(),
    ]
}

proptest! {
    #[test]
    fn a_filter_allows_just_what_its_table_says(
        role in prop::sample::select(ROLES.to_vec()),
        pick in any::<prop::sample::Index>(),
        arguments in prop::array::uniform6(argument()),
    ) {
        let entries: Vec<&Entry> = entries(role).collect();
        let call = Call::new(pick.get(&entries).call, arguments);
        let said = allowed(&compile(role).unwrap(), &call);
        prop_assert_eq!(said, listed(role, &call));
        prop_assert_eq!(said, allowed(&compile_otherwise(role), &call));
    }
}

fn role_key(role: Role) -> String {
    format!("{role:?}")
}

/// Runs one case in a process of its own.
fn run(role: Role, case: &str, seccomp: bool) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1", "jail::tests::one_case_of_a_child"])
        .env(CASE, format!("{}:{case}:{seccomp}", role_key(role)))
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!("{:?} {}", output.status, String::from_utf8_lossy(&output.stderr))
}

/// The child's side of [`run`]; by itself it checks that a case is named only by a parent.
#[test]
fn one_case_of_a_child() {
    let Ok(spec) = std::env::var(CASE) else {
        return;
    };
    let mut words = spec.split(':');
    let role =
        ROLES.into_iter().find(|role| Some(role_key(*role).as_str()) == words.clone().next());
    let (role, case) = (role.unwrap(), words.nth(1).unwrap().to_owned());
    let jail = Jail { seccomp: words.next() == Some("true") };
    if case == "ordinary" {
        ordinary_work(jail, role);
        return;
    }
    let call: fn() = match case.as_str() {
        "start-thread" => || drop(std::thread::Builder::new().spawn(|| {}).unwrap().join()),
        "abort" => || std::process::abort(),
        "confine-self" => return confine_self(jail, role),
        "privileges" => return hold_no_privileges(jail, role),
        _ => calls::FORBIDDEN.into_iter().find(|(name, ..)| *name == case).unwrap().2,
    };
    jail.spawn(role, "victim", call).unwrap().join().unwrap();
}

fn confine_self(jail: Jail, role: Role) {
    let confined = std::thread::Builder::new().name("loop".to_owned());
    let (sender, receiver) = std::sync::mpsc::channel();
    let (told, wait) = std::sync::mpsc::channel::<()>();
    let thread = confined.spawn(move || {
        jail.confine(role).unwrap();
        sender.send(()).unwrap();
        wait.recv().unwrap();
        drop(File::open("/dev/null"));
    });
    receiver.recv().unwrap();
    File::open("/dev/null").unwrap();
    told.send(()).unwrap();
    thread.unwrap().join().unwrap();
}

/// The status file is opened by a thread that is still free, and read by the confined one.
fn hold_no_privileges(jail: Jail, role: Role) {
    let status = std::thread::Builder::new().spawn(move || {
        let mut status = File::open("/proc/thread-self/status").unwrap();
        jail.confine(role).unwrap();
        let mut bytes = [0; PAGE];
        let len = status.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    });
    let status = status.unwrap().join().unwrap();
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    let mode = if jail.seccomp { "Seccomp:\t2\n" } else { "Seccomp:\t0\n" };
    assert!(status.contains(mode), "{status}");
}

/// What threads of every role do: descriptors, locks, memory small and large, time, the thread's end.
fn ordinary_work(jail: Jail, role: Role) {
    let bell = Arc::new(EventFd::new(0).unwrap());
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let opened = File::open("/dev/zero").unwrap();
    let threads: Vec<_> = (0..12)
        .map(|number| {
            let (bell, gate) = (Arc::clone(&bell), Arc::clone(&gate));
            let mut opened = opened.try_clone().unwrap();
            let body = move || {
                bell.write(1).unwrap();
                let mut open = gate.0.lock().unwrap();
                while !*open {
                    open = gate.1.wait_timeout(open, Duration::from_secs(1)).unwrap().0;
                }
                drop(open);
                // Enough, in pieces small enough, for a heap of its own to grow and then to want to shrink.
                let pieces: Vec<Vec<u8>> = (0..=255).map(|fill| vec![fill; 60_000]).collect();
                drop(pieces);
                let mut grown = Vec::new();
                for _ in 0..20 {
                    grown.extend_from_slice(&[7; 100_000]);
                }
                opened.read_exact(&mut grown[..PAGE]).unwrap();
                drop(opened);
                (number, grown.len(), Instant::now().elapsed() < Duration::from_secs(60))
            };
            jail.spawn(role, &format!("t{number}"), body).unwrap()
        })
        .collect();
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    for (number, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), (number, 2_000_000, true));
    }
    assert_eq!(bell.read().unwrap(), 12);
}

#[test]
fn ordinary_work_is_done_in_every_role() {
    for role in ROLES {
        let output = run(role, "ordinary", true);
        assert!(output.status.success(), "{role:?}: {}", text(&output));
    }
}

#[test]
fn a_call_outside_the_filter_ends_the_process_and_is_named() {
    for role in ROLES {
        for (name, number, _) in calls::FORBIDDEN {
            // A machine that leaves nothing removes its own directory, which is empty then.
            let allowed = [(Role::Net, "inet"), (Role::Watch, "open"), (Role::Main, "remove-dir")];
            if allowed.contains(&(role, name)) {
                continue;
            }
            let output = run(role, name, true);
            let line =
                format!("openshell-vmm: thread victim made forbidden system call {number}\n");
            assert_eq!(
                output.status.code(),
                Some(128 + libc::SIGSYS),
                "{role:?} {name}: {}",
                text(&output)
            );
            assert!(text(&output).contains(&line), "{role:?} {name}: {}", text(&output));
        }
    }
}

/// Starting a thread blocks every signal first, so that the handler cannot run.
#[test]
fn where_the_handler_cannot_run_the_kernel_kills() {
    for role in ROLES {
        let output = run(role, "start-thread", true);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{role:?}: {}", text(&output));
    }
    let output = run(Role::Main, "start-thread", false);
    assert!(output.status.success(), "{}", text(&output));
}

/// What an abort looks like, panics of release builds included.
#[test]
fn an_abort_is_told_from_a_violation() {
    for role in ROLES {
        let output = run(role, "abort", true);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(128 + libc::SIGABRT), "{role:?}: {said}");
        assert!(said.contains("openshell-vmm: thread victim aborted\n"), "{role:?}: {said}");
    }
}

/// The event loop's thread confines itself, and its siblings stay as they are.
#[test]
fn confine_binds_the_calling_thread_alone() {
    let output = run(Role::Main, "confine-self", true);
    assert_eq!(output.status.code(), Some(128 + libc::SIGSYS), "{}", text(&output));
    let line = format!("thread loop made forbidden system call {}\n", libc::SYS_openat);
    assert!(text(&output).contains(&line), "{}", text(&output));
}

/// No new privileges, with and without filters.
#[test]
fn every_thread_gives_up_new_privileges() {
    for seccomp in [true, false] {
        let output = run(Role::Block, "privileges", seccomp);
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn without_filters_the_same_calls_end_nothing() {
    for (name, ..) in calls::FORBIDDEN {
        let output = run(Role::Vcpu, name, false);
        assert!(output.status.success(), "{name}: {}", text(&output));
    }
}
