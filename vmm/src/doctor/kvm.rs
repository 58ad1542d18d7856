//! What this host's KVM can do.
//!
//! Invariant: a yes comes from a guest that ran, never from a name or a flag; those only explain a no.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use serde::Serialize;

use super::Check;
use super::access::{Me, Node};
use super::probe::{self, Answer, ProbeError};
use crate::kvm::KvmError;

const DEVICE: &str = "/dev/kvm";
/// A guest of a few instructions takes a millisecond; one that is emulated takes ten.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// What this host's KVM can do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KvmReport {
    /// A guest of a few instructions ran.
    pub usable: bool,
    /// An ordinary kernel can run: the instructions that it needs work in kernel mode.
    pub ordinary_guest: bool,
    /// Why it cannot, when it cannot.
    pub reason: Option<String>,
    /// Which module serves the device: `intel`, `amd`, `pvm`, or none that is known.
    pub kind: Option<&'static str>,
    /// The processor says that it has VMX or SVM.
    pub cpu_virtualization: bool,
}

/// What explains a host's KVM, or the lack of it.
#[derive(Debug, Clone, Default)]
struct Facts {
    kind: Option<&'static str>,
    cpu_virtualization: bool,
    me: Me,
    node: Option<Node>,
}

impl Facts {
    fn of_host() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kind = [("kvm_intel", "intel"), ("kvm_amd", "amd"), ("kvm_pvm", "pvm")]
            .into_iter()
            .find(|(module, _)| Path::new("/sys/module").join(module).exists())
            .map(|(_, kind)| kind);
        Self {
            kind,
            cpu_virtualization: has_flag(&cpuinfo),
            me: Me::of_process(),
            node: Node::of(Path::new(DEVICE)),
        }
    }
}

fn has_flag(cpuinfo: &str) -> bool {
    cpuinfo.lines().find(|line| line.starts_with("flags")).is_some_and(|flags| {
        flags.split_ascii_whitespace().any(|flag| ["vmx", "svm"].contains(&flag))
    })
}

/// Runs the probes and explains how they came out.
pub(super) fn examine() -> (KvmReport, Vec<Check>) {
    let (tell, told) = mpsc::channel();
    // On a thread of its own, because nothing can stop a KVM_RUN that does not return.
    let started = std::thread::Builder::new().name("probe".to_owned()).spawn(move || {
        // The receiver is gone only when it has given up.
        drop(tell.send(probe::run()));
    });
    let answers = match started {
        Ok(_) => told.recv_timeout(PROBE_LIMIT).unwrap_or(Err(ProbeError::NoAnswer)),
        Err(source) => Err(ProbeError::Thread { source }),
    };
    explain(answers, &Facts::of_host())
}

fn explain(answers: Result<Vec<Answer>, ProbeError>, facts: &Facts) -> (KvmReport, Vec<Check>) {
    let mut report = KvmReport {
        kind: facts.kind,
        cpu_virtualization: facts.cpu_virtualization,
        ..KvmReport::default()
    };
    let answers = match answers {
        Ok(answers) => answers,
        Err(error) => {
            let check = explain_error(&error, facts);
            report.reason = Some(check.detail.clone());
            return (report, vec![check]);
        }
    };
    report.usable = true;
    let names = facts.kind.map_or_else(String::new, |kind| format!(" ({kind})"));
    let mut checks = vec![Check::ok("kvm", format!("opened {DEVICE}{names} and ran a guest"))];
    let failed: Vec<_> = answers.iter().filter(|answer| answer.failure.is_some()).collect();
    report.ordinary_guest = failed.is_empty();
    if failed.is_empty() {
        let names: Vec<_> = answers.iter().map(|answer| answer.instruction).collect();
        let detail =
            format!("an ordinary kernel can run: {} work in kernel mode", names.join(", "));
        checks.push(Check::ok("ordinary guest", detail));
        return (report, checks);
    }
    let list: Vec<_> = failed
        .iter()
        .map(|answer| {
            format!("{} ({})", answer.instruction, answer.failure.as_deref().unwrap_or_default())
        })
        .collect();
    let mut reason =
        format!("an ordinary kernel cannot run: in kernel mode KVM fails on {}", list.join(", "));
    if facts.kind == Some("pvm") {
        reason.push_str("; this is the PVM kind of KVM, which emulates kernel mode");
    }
    report.reason = Some(reason.clone());
    let fix = "use a host with hardware virtualization (VMX or SVM), or `cargo xtask lab`";
    checks.push(Check::fail("ordinary guest", reason, fix));
    (report, checks)
}

fn explain_error(error: &ProbeError, facts: &Facts) -> Check {
    let fail = |detail: String, fix: String| Check::fail("kvm", detail, fix);
    let ProbeError::Open { errno } = error else {
        return match error {
            ProbeError::Vm { source: KvmError::Call { source, .. } }
                if source.raw_os_error() == Some(libc::EBUSY) =>
            {
                fail(
                    format!("{error}: another hypervisor has the processor's virtualization"),
                    "stop it (VirtualBox and VMware hold it while a machine runs)".to_owned(),
                )
            }
            _ => fail(
                error.to_string(),
                "update the host's kernel, and see dmesg for kvm".to_owned(),
            ),
        };
    };
    match *errno {
        libc::EACCES | libc::EPERM => {
            let node = facts.node.as_ref();
            let owner = node.map_or_else(|| "unreadable".to_owned(), Node::describe);
            let detail = format!(
                "{DEVICE}: permission denied: it is {owner}, this is {}",
                facts.me.describe()
            );
            let fix = node.map_or_else(
                || format!("ls -l {DEVICE}"),
                |node| node.fix(Path::new(DEVICE), &facts.me),
            );
            fail(detail, fix)
        }
        _ if facts.kind.is_some() => fail(
            format!("{error}, although the module is loaded"),
            format!("in a container, pass the device in: --device {DEVICE}"),
        ),
        _ if facts.cpu_virtualization => fail(
            format!("{error}: no KVM module is loaded, and the processor has VMX or SVM"),
            "sudo modprobe kvm_intel, or kvm_amd; if that is refused, turn virtualization on in the firmware"
                .to_owned(),
        ),
        _ => fail(
            format!("{error}: the processor shows neither VMX nor SVM"),
            "turn virtualization on in the firmware; on a cloud machine, choose a kind with nested virtualization"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    fn facts(kind: Option<&'static str>, cpu_virtualization: bool) -> Facts {
        let node = Node {
            uid: 0,
            owner: Some("root".to_owned()),
            gid: 108,
            group: Some("kvm".to_owned()),
            mode: 0o660,
        };
        let me = Me { uid: 1000, user: Some("alice".to_owned()), groups: vec![(1000, None)] };
        Facts { kind, cpu_virtualization, me, node: Some(node) }
    }

    #[test]
    fn every_failure_to_open_has_its_own_remedy() {
        for (errno, kind, cpu, detail, fix) in [
            (
                libc::EACCES,
                Some("intel"),
                true,
                "/dev/kvm: permission denied: it is root:kvm 0660, this is uid 1000 (alice), groups 1000",
                "sudo usermod -aG kvm alice, then log in again",
            ),
            (
                libc::ENOENT,
                Some("amd"),
                true,
                "cannot open /dev/kvm: No such file or directory (os error 2), although the module is loaded",
                "in a container, pass the device in: --device /dev/kvm",
            ),
            (
                libc::ENOENT,
                None,
                true,
                "cannot open /dev/kvm: No such file or directory (os error 2): no KVM module is loaded, and the processor has VMX or SVM",
                "sudo modprobe kvm_intel, or kvm_amd; if that is refused, turn virtualization on in the firmware",
            ),
            (
                libc::ENOENT,
                None,
                false,
                "cannot open /dev/kvm: No such file or directory (os error 2): the processor shows neither VMX nor SVM",
                "turn virtualization on in the firmware; on a cloud machine, choose a kind with nested virtualization",
            ),
        ] {
            let (report, checks) = explain(Err(ProbeError::Open { errno }), &facts(kind, cpu));
            assert!(!report.usable && !report.ordinary_guest);
            assert_eq!(report.reason.as_deref(), Some(detail));
            assert_eq!(checks, [Check::fail("kvm", detail, fix)]);
        }
    }

    #[test]
    fn one_instruction_that_fails_is_enough_for_a_no() {
        let works = |instruction| Answer { instruction, failure: None };
        let fails = |instruction| Answer { instruction, failure: Some("internal error".into()) };
        let (report, checks) = explain(Ok(vec![works("INT3"), works("IRETQ")]), &facts(None, true));
        assert!(report.usable && report.ordinary_guest && report.reason.is_none());
        assert!(checks.iter().all(|check| check.status == Status::Ok));

        let (report, checks) =
            explain(Ok(vec![works("INT3"), fails("IRETQ")]), &facts(Some("pvm"), false));
        assert!(report.usable && !report.ordinary_guest);
        let reason = report.reason.unwrap();
        assert!(reason.contains("IRETQ (internal error)") && reason.contains("PVM"), "{reason}");
        assert!(!reason.contains("INT3"), "{reason}");
        assert_eq!(checks.last().unwrap().status, Status::Fail);
    }

    #[test]
    fn processor_flags_are_whole_words() {
        for (cpuinfo, want) in [
            ("flags\t\t: fpu vmx sse\n", true),
            ("flags\t\t: fpu svm\n", true),
            ("flags\t\t: fpu svm_lock vmxnet\nvmx flags\t: vnmi\n", false),
            ("", false),
        ] {
            assert_eq!(has_flag(cpuinfo), want, "{cpuinfo}");
        }
    }
}
