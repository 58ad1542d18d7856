//! Who may use whom: between the packages of the workspace, and between the modules of the VMM.
//!
//! Both tables are the whole truth: a package or module that is not in them is an error, so that
//! its place is decided before it is used.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::sources;
use crate::{binaries, cmd};

/// A package, by its directory, and the packages of ours that it may link.
const PACKAGES: [(&str, &[&str]); 17] = [
    // Of ext4 it uses the writer, for the two disks of a machine that hold nothing of an image.
    ("vmm", &["vmm/usernet", "rootfs/ext4", "guest/copy", "proto/agent"]),
    ("vmm/usernet", &[]),
    ("rootfs", &["rootfs/ext4"]),
    ("rootfs/ext4", &[]),
    ("gateway", &["proto"]),
    ("gateway/driver", &["proto"]),
    ("guest", &["guest/init", "proto"]),
    ("guest/init", &["proto"]),
    ("guest/agent", &["guest/copy", "guest/init", "proto/agent"]),
    ("guest/copy", &[]),
    ("guest/program", &["guest/agent", "guest/init"]),
    ("proto", &[]),
    ("proto/agent", &[]),
    ("xtask", &[]),
    ("tests/conformance", &["proto"]),
    ("tests", &["vmm", "vmm/usernet", "rootfs", "rootfs/ext4", "proto"]),
    ("benches", &["tests", "vmm", "vmm/usernet", "rootfs", "rootfs/ext4", "proto"]),
];

/// Libraries of others that a package must not link, and why.
const REFUSED: [(&str, &[&str], &str); 3] = [
    ("vmm", &["tokio", "tonic", "async-std", "smol"], "the VMM has threads and epoll"),
    ("vmm/usernet", &["tokio", "libc", "kvm-ioctls", "mio", "nix"], "the network stack is pure"),
    ("gateway", &["kvm-ioctls", "vm-memory"], "the gateway faces the network"),
];

/// The modules of the VMM from the top down. A module may use those of the layers below it.
const LAYERS: [&[&str]; 8] = [
    &["main", "cli"],
    &["machine", "launch"],
    &["boot", "vcpu", "report", "control", "streams", "machines", "snapshot", "doctor"],
    &["devices", "virtio"],
    &["bus", "disk", "net", "event", "agent"],
    &["kvm", "jail"],
    &["memory"],
    // Plain values and the floor: none of these uses another module of ours.
    &["config", "layout", "sys", "metrics", "trace", "console_tail", "logbook", "explain"],
];

/// Arrows within a layer or up, each with its reason.
const EXCEPTIONS: [(&str, &str, &str); 8] = [
    ("config", "layout", "a plan is checked against the guest's physical map"),
    ("config", "sys", "a plan holds opened and locked files"),
    ("config", "logbook", "a plan holds the open log of a machine that has a name"),
    ("config", "explain", "what is wrong with what the user wrote is explained"),
    ("net", "event", "what runs beside the net thread waits with the event loop's epoll"),
    ("trace", "sys", "a trace starts with the process, whose clock is a system call"),
    ("layout", "memory", "the map is made of guest addresses"),
    ("vcpu", "boot", "a vCPU starts in the state that the boot protocol asks for"),
];

/// Checks both tables.
pub(crate) fn check() -> Result<()> {
    let mut wrong = packages(&binaries::metadata()?, cmd::workspace());
    wrong.extend(modules(&cmd::workspace().join("vmm/src"))?);
    if !wrong.is_empty() {
        bail!("arrows against the tables of xtask/src/lint/arrows.rs:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn packages(metadata: &Value, workspace: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in binaries::packages(metadata) {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let directory = directory_of(manifest.parent().unwrap_or(manifest), workspace);
        let Some((_, allowed)) = PACKAGES.iter().find(|(name, _)| *name == directory) else {
            wrong.push(format!("package {directory} has no place in the table"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let name = dependency["name"].as_str().unwrap_or_default();
            if let Some(path) = dependency["path"].as_str() {
                let to = directory_of(Path::new(path), workspace);
                if !allowed.contains(&to.as_str()) {
                    wrong.push(format!("package {directory} -> {to}"));
                }
            }
            for (of, refused, why) in REFUSED {
                if of == directory && refused.contains(&name) {
                    wrong.push(format!("package {directory} -> {name}: {why}"));
                }
            }
        }
    }
    wrong
}

fn directory_of(path: &Path, workspace: &Path) -> String {
    path.strip_prefix(workspace).unwrap_or(path).to_string_lossy().into_owned()
}

fn modules(root: &Path) -> Result<Vec<String>> {
    let mut wrong = BTreeSet::new();
    for file in sources::rust_files(root)? {
        let inside = file.strip_prefix(root)?;
        if sources::is_test_file(inside) {
            continue;
        }
        let text = sources::read(&file)?;
        let from = module_of(inside).context("a file below src has a module")?;
        for to in uses(&sources::code_of(&text), depth_of(inside)) {
            if let Some(fault) = fault(&from, &to) {
                wrong.insert(format!("{}: {fault}", inside.display()));
            }
        }
    }
    Ok(wrong.into_iter().collect())
}

/// The top-level module that a file belongs to; `lib.rs` only declares and belongs to none above.
fn module_of(inside: &Path) -> Option<String> {
    let first = inside.components().next()?.as_os_str().to_string_lossy().into_owned();
    Some(first.strip_suffix(".rs").map_or(first.clone(), str::to_owned))
}

/// How many `super` lead from a file's module to the crate root.
fn depth_of(inside: &Path) -> usize {
    let parts = inside.components().count();
    let own = inside.file_name().is_some_and(|name| name == "mod.rs" || name == "lib.rs");
    parts - usize::from(own)
}

fn fault(from: &str, to: &str) -> Option<String> {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    // The crate root names its modules; what is re-exported there counts as the root's own.
    if from == to || from == "lib" || to.starts_with(char::is_uppercase) {
        return None;
    }
    let (Some(above), Some(below)) = (layer(from), layer(to)) else {
        let stranger = if layer(from).is_none() { from } else { to };
        return Some(format!("module {stranger} has no place in the table"));
    };
    let excepted = EXCEPTIONS.iter().any(|(a, b, _)| (*a, *b) == (from, to));
    (above >= below && !excepted).then(|| format!("{from} -> {to}"))
}

/// The top-level modules that code names through `crate::` or through `super` up to the root.
fn uses(code: &str, depth: usize) -> BTreeSet<String> {
    let root = "super::".repeat(depth);
    let mut found = BTreeSet::new();
    for prefix in ["crate::", root.as_str()] {
        for (at, _) in code.match_indices(prefix).filter(|_| !prefix.is_empty()) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            let after = &code[at + prefix.len()..];
            match after.strip_prefix('{') {
                Some(group) => found.extend(heads(group)),
                None => found.extend(word(after)),
            }
        }
    }
    found.remove("super");
    found
}

/// First words of the entries of a `{...}` group, whose opening brace has been read.
fn heads(group: &str) -> Vec<String> {
    let mut depth = 1;
    let mut fresh = true;
    let mut found = Vec::new();
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => fresh = true,
            _ if fresh && !c.is_whitespace() => {
                found.extend(word(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

fn word(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        modules(root.path()).unwrap()
    }

    #[test]
    fn arrows_down_pass() {
        let wrong = tree(&[
            ("lib.rs", "pub mod machine;\npub use crate::machine::Machine;"),
            ("machine/mod.rs", "use crate::{boot::load, memory, virtio::{block, net}};"),
            ("virtio/block/mod.rs", "use crate::disk::Disk;\nuse super::queue::Queue;"),
            ("disk/raw.rs", "use crate::sys::mmap; fn f() -> crate::Error {}"),
        ]);
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn arrows_up_and_sideways_fail() {
        for (path, code, expected) in [
            ("memory/mod.rs", "use crate::virtio::queue;", "memory -> virtio"),
            (
                "virtio/queue.rs",
                "use crate::{\n    memory,\n    machine::Machine,\n};",
                "virtio -> machine",
            ),
            ("devices/serial.rs", "use crate::virtio::queue;", "devices -> virtio"),
            ("disk/io/uring.rs", "fn f() { crate::machine::stop() }", "disk -> machine"),
            ("disk/raw.rs", "use super::super::machine;", "disk -> machine"),
            ("disk/mod.rs", "use super::machine;", "disk -> machine"),
            ("sys.rs", "use super::{memory, kvm};", "sys -> memory"),
            ("sys/x.rs", "use crate::odd::x;", "module odd has no place"),
            ("odd.rs", "use crate::sys::x;", "module odd has no place"),
        ] {
            let wrong = tree(&[(path, code)]);
            assert!(wrong.iter().any(|line| line.contains(expected)), "{path}: {wrong:?}");
        }
    }

    #[test]
    fn comments_and_tests_draw_no_arrows() {
        let wrong = tree(&[
            ("sys/a.rs", "// use crate::machine;\n/// [`crate::machine`]\nfn f() {}\n"),
            ("sys/b.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::machine::x;\n}\n"),
            ("sys/tests.rs", "use crate::machine::x;"),
        ]);
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn packages_follow_their_table() {
        let answer = |directory: &str, dependency: &str| {
            let text = format!(
                r#"{{"packages":[{{"manifest_path":"/w/{directory}/Cargo.toml","dependencies":[{dependency}]}}]}}"#
            );
            packages(&serde_json::from_str(&text).unwrap(), Path::new("/w"))
        };
        let path =
            |to: &str, kind: &str| format!(r#"{{"name":"x","kind":{kind},"path":"/w/{to}"}}"#);
        assert!(answer("rootfs", &path("rootfs/ext4", "null")).is_empty());
        assert_eq!(answer("gateway", &path("vmm", "null")), ["package gateway -> vmm"]);
        assert!(answer("gateway", &path("vmm", "\"dev\"")).is_empty());
        assert!(answer("vmm", r#"{"name":"tokio","kind":null}"#)[0].contains("threads and epoll"));
        assert_eq!(answer("odd", ""), ["package odd has no place in the table"]);
    }

    #[test]
    fn the_table_names_every_module_once() {
        let all: Vec<&str> = LAYERS.iter().flat_map(|layer| layer.iter().copied()).collect();
        let once: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(all.len(), once.len());
        for (from, to, why) in EXCEPTIONS {
            assert!(once.contains(from) && once.contains(to) && !why.is_empty(), "{from} -> {to}");
        }
    }
}
