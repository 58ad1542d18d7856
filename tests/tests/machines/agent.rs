//! What the host asks of a machine that runs, by its name: commands, copies, figures.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;

use openshell_tests::machine::{Finished, Input, Run};
use openshell_tests::pty::Window;
use openshell_tests::walk::walk;

use crate::rig::{DEADLINE, Home};

const SCRIPT: &str = "echo ready; while :; do sleep 3600 & wait $!; done";
const CTRL_C: &[u8] = b"\x03";
const CTRL_Z: &[u8] = b"\x1a";

/// A home with a machine `work` that does nothing.
fn working(home: &Home) {
    let image = home.shell_image();
    let flags = ["-d", "--name", "work", "-e", "A=machine", "-u", "7:8", &image, "--", SCRIPT];
    home.run(flags).finish().expect_code(0);
    home.until_logged("work", "ready");
}

fn exec(home: &Home, words: &[&str]) -> Run {
    home.command(["exec"]).args(words)
}

fn script(home: &Home, script: &str) -> Finished {
    exec(home, &["work", "--", "sh", "-c", script]).finish()
}

#[test]
fn commands_behave_as_with_docker() {
    let home = Home::new();
    working(&home);
    // Every code that there is, of 32 commands at once.
    for batch in (0..=255_u8).collect::<Vec<_>>().chunks(32) {
        let start = |code: &u8| {
            let script = format!("exec 2>&1; echo {code}; exit {code}");
            (*code, exec(&home, &["work", "--", "sh", "-c", &script]).spawn())
        };
        for (code, running) in batch.iter().map(start).collect::<Vec<_>>() {
            let finished = running.wait().expect_code(code);
            assert_eq!(finished.text(), format!("{code}\n"));
        }
    }
    for signal in [1, 2, 6, 9, 11, 13, 15] {
        script(&home, &format!("kill -{signal} $$")).expect_code(128 + signal);
    }
    let apart = script(&home, "echo $A $FROM $(id -u):$(id -g) $(pwd); echo apart >&2");
    let apart = apart.expect_code(0);
    assert_eq!(
        (apart.text().as_str(), apart.stderr.as_str()),
        ("machine image 7:8 /tmp\n", "apart\n")
    );
    let ours = ["-e", "A=exec", "-e", "B", "-w", "/bin", "-u", "0:0", "work", "--", "sh", "-c"];
    let ours = exec(&home, &ours).arg("echo $A $B $(id -u):$(id -g) $(pwd)").env("B", "taken over");
    assert_eq!(ours.finish().expect_code(0).text(), "exec taken over 0:0 /bin\n");
    for (words, code, text) in [
        (&["work", "--", "none"][..], 127, "none: no such file or directory"),
        (&["work", "--", "/tmp"], 126, "/tmp: "),
        (&["-u", "nobody", "work", "--", "sh"], 125, "nobody"),
        (&["-w", "/none", "work", "--", "sh"], 126, "/none: "),
        (&["other", "--", "sh"], 125, "there is no machine \"other\""),
        (&["--timeout", "1", "work", "--", "sleep", "1000"], 124, "1"),
    ] {
        let finished = exec(&home, words).finish().expect_code(code);
        assert!(finished.stderr.contains(text), "{words:?}: {finished}");
        assert_eq!(finished.text(), "", "{words:?}");
    }
    let bytes: Vec<u8> =
        (0..8_000_001_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let finished =
        exec(&home, &["-i", "work", "--", "cat"]).stdin(Input::Bytes(bytes.clone())).finish();
    assert!(finished.stdout == bytes, "{} bytes came back", finished.stdout.len());
    let id = exec(
        &home,
        &["-d", "-u", "0", "work", "--", "sh", "-c", "sleep 1; echo >/tmp/later; sleep 1000"],
    );
    id.finish().expect_code(0);
    script(&home, "for n in $(seq 100); do test -e /tmp/later && exit 0; sleep 1; done; exit 1")
        .expect_code(0);

    let table = home.says(&["stats"]);
    assert!(
        table.starts_with("NAME")
            && table.lines().nth(1).is_some_and(|row| row.starts_with("work ")),
        "{table}"
    );
    let told = home.json(&["stats", "-o", "json", "work"]);
    let number = |name: &str| told[0][name].as_u64().unwrap();
    assert!(number("memory_total_bytes") > 200 << 20 && number("tasks") > 5, "{told}");
    assert!(number("disk_available_bytes") <= number("disk_total_bytes"), "{told}");

    home.says(&["pause", "work"]);
    let resumed = home.command(["resume", "work"]).finish().expect_code(0);
    assert_eq!(resumed.stderr, "", "the clock was set");
    home.says(&["stop", "-t", "0", "work"]);
    let finished = exec(&home, &["work", "--", "sh"]).finish().expect_code(125);
    assert!(finished.stderr.contains("is not running"), "{finished}");
    home.says(&["rm", "work"]);
}

#[test]
fn a_terminal_is_as_wide_as_the_window_and_stops_jobs() {
    let home = Home::new();
    working(&home);
    let mut window = Window::open().unwrap();
    window.resize(101, 31).unwrap();
    let before = window.modes().unwrap();
    let side = || window.program_side().unwrap();
    let run = exec(&home, &["-it", "work", "--", "sh"]);
    let running = run.stdin(Input::From(side().into())).stdout(side()).spawn();
    let at = window.wait_for("$ ", 0, DEADLINE).unwrap();
    window.type_keys(b"stty size\r").unwrap();
    let at = window.wait_for("\r\n31 101\r\n", at, DEADLINE).unwrap();
    assert!(!window.modes().unwrap().is_cooked());
    window.resize(77, 22).unwrap();
    running.signal(libc::SIGWINCH);
    window.type_keys(b"until stty size | grep 77; do :; done\r").unwrap();
    let at = window.wait_for("\r\n22 77\r\n", at, DEADLINE).unwrap();
    // Not before the job has the terminal.
    window.type_keys(b"sh -c 'echo started; exec sleep 1000'\r").unwrap();
    let at = window.wait_for("\r\nstarted\r\n", at, DEADLINE).unwrap();
    window.type_keys(CTRL_Z).unwrap();
    let at = window.wait_for("Stopped", at, DEADLINE).unwrap();
    window.type_keys(b"jobs; echo told=$?\r").unwrap();
    let at = window.wait_for("\r\ntold=0\r\n", at, DEADLINE).unwrap();
    window.type_keys(b"fg\r").unwrap();
    let at = window.wait_for("exec sleep 1000\"\r\n", at, DEADLINE).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    window.type_keys(CTRL_C).unwrap();
    let at = window.wait_for("$ ", at, DEADLINE).unwrap();
    window.type_keys(b"exit 9\r").unwrap();
    window.wait_for("exit 9", at, DEADLINE).unwrap();
    let finished = running.wait().expect_code(9);
    assert_eq!(finished.stderr, "");
    assert_eq!(window.modes().unwrap(), before, "the window is as it was");
    home.says(&["rm", "-f", "work"]);
}

/// A tree of many files and of all that a file can be.
fn plant(root: &Path) {
    for directory in 0..200 {
        let path = root.join(format!("d{directory}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..100_u32 {
            let path = path.join(format!("file with a name {file}"));
            fs::write(&path, vec![u8::try_from(file).unwrap(); file as usize * 7]).unwrap();
        }
    }
    let odd = root.join("odd");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("setuid"), "x").unwrap();
    chown(odd.join("setuid"), Some(1234), Some(70_000)).unwrap();
    fs::set_permissions(odd.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::hard_link(odd.join("setuid"), odd.join("other name")).unwrap();
    symlink("nowhere/at all", odd.join("broken")).unwrap();
    lchown(odd.join("broken"), Some(5), Some(6)).unwrap();
    let sparse = fs::File::create(odd.join("sparse")).unwrap();
    sparse.set_len(4 << 20).unwrap();
    sparse.write_all_at(b"middle", 2 << 20).unwrap();
    xattr::set(odd.join("sparse"), "user.binary", b"\0\xff\n").unwrap();
    fs::write(odd.join("n".repeat(255)), "").unwrap();
    fs::set_permissions(&odd, fs::Permissions::from_mode(0o1700)).unwrap();
}

#[test]
fn a_tree_of_20_000_files_goes_in_and_comes_back_the_same() {
    let home = Home::new();
    working(&home);
    let tree = home.path("tree");
    plant(&tree);
    let (tree, back) = (tree.to_str().unwrap(), home.path("back"));
    home.says(&["cp", "-a", tree, "work:/tmp"]);
    let counted = exec(&home, &["-u", "0", "work", "--", "sh", "-c"])
        .arg("cd /tmp/tree && find . | wc -l; du -k odd/sparse | cut -f 1; stat -c %u:%g:%a:%h odd/setuid")
        .finish()
        .expect_code(0);
    let text = counted.text();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!((lines[0], lines[2]), ("20207", "1234:70000:6755:2"), "{text}");
    assert!(lines[1].parse::<u32>().unwrap() < 100, "holes stay holes: {text}");
    home.says(&["cp", "-a", "work:/tmp/tree", back.to_str().unwrap()]);
    let (before, after) = (walk(Path::new(tree)).unwrap(), walk(&back).unwrap());
    let differs = before.lines().zip(after.lines()).find(|(before, after)| before != after);
    assert!(before == after, "{differs:?}");
    let archive = home.command(["cp", "work:/tmp/tree/odd", "-"]).finish().expect_code(0);
    assert!(archive.stdout.windows(10).any(|part| part == b"odd/setuid"), "{archive}");
    for (words, code, text) in [
        (["cp", "work:/none", tree], 1, "/none: No such file"),
        (["cp", "/none", "work:/tmp"], 1, "/none"),
        (["cp", "other:/tmp", tree], 3, "there is no machine \"other\""),
        (["cp", "/a", "/b"], 2, "write MACHINE:PATH"),
    ] {
        let finished = home.command(words).finish().expect_code(code);
        assert!(finished.stderr.contains(text), "{words:?}: {finished}");
    }
    home.says(&["rm", "-f", "work"]);
}
