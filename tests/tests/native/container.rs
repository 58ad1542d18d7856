//! A machine where there is nothing but `/dev/kvm`: as an ordinary user, in a root of its own with the program and what it runs.

use std::fs::{self, File};
use std::process::Command;

use openshell_tests::bare::Script;
use openshell_tests::machine::fixture;

/// Makes the root and runs the program in it; the namespaces take mounts and processes with them.
const CONTAINER: &str = r#"
mkdir root
mount -t tmpfs -o mode=755 none root
mkdir root/dev root/proc root/tmp
mknod -m 666 root/dev/kvm c 10 232
mknod -m 666 root/dev/null c 1 3
chmod 1777 root/tmp
mount -t proc none root/proc
cp openshell-vmm guest.elf tools.ext4 base.ext4 root/
inside() {
    env -i HOME=/tmp OPENSHELL_VMM_TOOLS=/tools.ext4 "$(command -v chroot)" --userspec=65534:65534 root /openshell-vmm "$@"
}
inside run --memory 32M --kernel /guest.elf /base.ext4 -- main || echo "ended with $?"
inside run -d --name work --memory 32M --kernel /guest.elf /base.ext4 -- main >/dev/null
echo "waited for $(inside wait work)"
echo "said $(inside logs work)"
inside rm work
echo "left $(inside ps -aq) $(ls root/tmp/.local/state/openshell-vmm/machines)"
"#;

#[test]
fn an_ordinary_user_needs_the_kvm_device_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("guest.elf"), Script::new().say("up\n").exit(7).elf()).unwrap();
    fs::copy(fixture("openshell-vmm"), path("openshell-vmm")).unwrap();
    for disk in ["tools.ext4", "base.ext4"] {
        File::create(path(disk)).unwrap().set_len(1 << 20).unwrap();
    }
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "timeout", "60"])
        .args(["sh", "-euc", CONTAINER])
        .current_dir(directory.path())
        .output()
        .unwrap();
    let [said, errors] = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
    let want = "up\nended with 7\nwaited for 7\nsaid up\nwork\nleft  \n";
    assert!(output.status.success() && said == want, "{said}{errors}");
}
