//! Which kernel modules a wish needs, in the order in which they must be loaded.
//!
//! Reads the text of `modules.dep` (depmod(8)): `FILE: DEPENDENCY ...`, all paths relative to the
//! module directory. In names `-` and `_` are the same letter, as for modprobe(8).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cmd;

/// The modules of one kernel.
#[derive(Debug)]
pub(crate) struct Modules {
    files: BTreeMap<String, Entry>,
    builtin: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    path: String,
    needs: Vec<String>,
}

impl Modules {
    /// Reads both texts; lines that name no module are passed over.
    pub(crate) fn parse(dep: &str, builtin: &str) -> Self {
        let files = dep
            .lines()
            .filter(|line| line.starts_with("kernel/"))
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let needs = needs.split_whitespace().map(name_of).collect();
                (name_of(path), Entry { path: path.to_owned(), needs })
            })
            .collect();
        Self { files, builtin: builtin.lines().map(name_of).collect() }
    }

    /// Reads the modules of an unpacked kernel package, whose `modules.dep` is yet to be made.
    pub(crate) fn of_package(tree: &Path, version: &str) -> Result<Self> {
        let depmod = cmd::require("depmod", "kmod")?;
        let mut command = Command::new(depmod);
        command.arg("-n").arg("-b").arg(tree).arg(version);
        let dep = String::from_utf8_lossy(&cmd::output(&mut command)?).into_owned();
        let builtin = tree.join("lib/modules").join(version).join("modules.builtin");
        let builtin = std::fs::read_to_string(&builtin)
            .with_context(|| format!("cannot read {}", builtin.display()))?;
        Ok(Self::parse(&dep, &builtin))
    }

    /// The files to load for `wanted`, each after everything it needs and named once. What is built
    /// into the kernel needs no file; a name that is in neither list is an error.
    pub(crate) fn resolve(&self, wanted: &[&str]) -> Result<Vec<&str>> {
        let mut order = Vec::new();
        for name in wanted {
            let name = name_of(name);
            if self.builtin.contains(&name) {
                continue;
            }
            self.visit(&name, &mut Vec::new(), &mut order)?;
        }
        Ok(order)
    }

    /// The lines of `modules.dep` for these files.
    pub(crate) fn lines_of(&self, files: &[&str]) -> String {
        let mut text = String::new();
        for entry in files.iter().filter_map(|file| self.files.get(&name_of(file))) {
            let needs = entry.needs.iter().filter_map(|need| self.files.get(need));
            let needs: Vec<&str> = needs.map(|need| need.path.as_str()).collect();
            text.push_str(&format!("{}: {}\n", entry.path, needs.join(" ")));
        }
        text
    }

    fn visit<'a>(
        &'a self,
        name: &str,
        above: &mut Vec<String>,
        order: &mut Vec<&'a str>,
    ) -> Result<()> {
        let entry = self.files.get(name).with_context(|| format!("no kernel module `{name}`"))?;
        if order.contains(&entry.path.as_str()) {
            return Ok(());
        }
        if above.iter().any(|other| other == name) {
            bail!("kernel module `{name}` needs itself: {}", above.join(" -> "));
        }
        above.push(name.to_owned());
        for need in &entry.needs {
            self.visit(need, above, order)?;
        }
        above.pop();
        order.push(&entry.path);
        Ok(())
    }
}

/// The version string of an unpacked kernel package: the one directory below `lib/modules`.
pub(crate) fn version_of(tree: &Path) -> Result<String> {
    let directory = tree.join("lib/modules");
    let mut versions: Vec<PathBuf> = std::fs::read_dir(&directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    versions.sort();
    let newest = versions.pop().with_context(|| format!("no kernel in {}", directory.display()))?;
    let name = newest.file_name().context("a directory entry has a name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// `kernel/x/kvm-amd.ko.xz` and `kvm_amd` are the same module: `kvm_amd`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split(".ko").next().unwrap_or(file);
    stem.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/arch/x86/kvm/kvm-amd.ko: kernel/drivers/crypto/ccp/ccp.ko kernel/arch/x86/kvm/kvm.ko kernel/virt/lib/irqbypass.ko
kernel/arch/x86/kvm/kvm.ko: kernel/virt/lib/irqbypass.ko
kernel/drivers/crypto/ccp/ccp.ko:
kernel/virt/lib/irqbypass.ko:
kernel/a/ring.ko: kernel/a/ring_b.ko.xz
kernel/a/ring_b.ko.xz: kernel/a/ring.ko
kernel/a/broken.ko: kernel/a/absent.ko
# alias lines follow
alias x y
";
    const BUILTIN: &str = "kernel/fs/ext4/ext4.ko\n";

    fn names(wanted: &[&str]) -> Result<Vec<String>> {
        let modules = Modules::parse(DEP, BUILTIN);
        Ok(modules.resolve(wanted)?.into_iter().map(name_of).collect())
    }

    #[test]
    fn loads_what_is_needed_first_and_once() {
        let order = names(&["kvm_amd", "kvm", "kvm-amd"]).unwrap();
        assert_eq!(order, ["ccp", "irqbypass", "kvm", "kvm_amd"]);
    }

    #[test]
    fn builtin_needs_no_file() {
        assert!(names(&["ext4"]).unwrap().is_empty());
    }

    #[test]
    fn unknown_missing_and_circular_are_errors() {
        for (wanted, message) in [
            ("nothing", "no kernel module `nothing`"),
            ("broken", "no kernel module `absent`"),
            ("ring", "needs itself"),
        ] {
            let error = names(&[wanted]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
