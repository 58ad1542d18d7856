//! The command as a user meets it: arguments in; exit code, standard output and standard error out. Needs no KVM.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]
#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openshell-vmm"));
    // Help is wrapped to the terminal's width.
    command
        .args(args)
        .env_remove("COLUMNS")
        .env_remove("OPENSHELL_VMM_KERNEL")
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// The command fails with `code`, says nothing on standard output and `lines` on standard error.
fn check(args: &[&str], code: i32, lines: &[&str]) {
    let (found, stdout, stderr) = run(args);
    let said: Vec<_> = stderr.lines().collect();
    assert_eq!((found, stdout.as_str(), &said[..]), (code, "", lines), "{args:?}");
}

#[test]
fn usage_errors_of_run_are_ours_and_others_are_two() {
    let run_help = "  fix: see `openshell-vmm run --help`";
    check(&[], 2, &["error: a command is missing", "  fix: see `openshell-vmm --help`"]);
    check(
        &["kernel"],
        2,
        &["error: a command is missing", "  fix: see `openshell-vmm kernel --help`"],
    );
    check(
        &["doctr"],
        2,
        &["error: unrecognized subcommand 'doctr'", "  fix: a similar subcommand exists: 'doctor'"],
    );
    check(
        &["doctor", "--jsn"],
        2,
        &["error: unexpected argument '--jsn' found", "  fix: a similar argument exists: '--json'"],
    );
    check(
        &["run", "--dsk", "x"],
        125,
        &["error: unexpected argument '--dsk' found", "  fix: a similar argument exists: '--disk'"],
    );
    check(
        &["run", "--cpus"],
        125,
        &["error: a value is required for '--cpus <N>' but none was supplied", run_help],
    );
    check(
        &["run", "--boot-trace=xml"],
        125,
        &[
            "error: invalid value 'xml' for '--boot-trace[=<text|json>]' [possible values: text, json]",
            run_help,
        ],
    );
    check(
        &["run", "--memory", "12Q"],
        125,
        &[
            "error: --memory 12Q: a size is a whole number and K, M, G or T, such as 512M or 4Gi",
            "  fix: `openshell-vmm run --help` lists what each flag takes",
        ],
    );
}

#[test]
fn what_cannot_be_run_is_said_in_the_result_too() {
    let dir = tempfile::tempdir().unwrap();
    let result = dir.path().join("result.json");
    let disk = dir.path().join("disk");
    let kernel = dir.path().join("kernel");
    File::create(&disk).unwrap().set_len(1000).unwrap();
    fs::write(&kernel, "kernel").unwrap();
    let [result, disk, kernel] = [&result, &disk, &kernel].map(|path| path.to_str().unwrap());
    check(
        &["run", "--disk", disk, "--kernel", kernel, "--result", result],
        125,
        &[
            &format!("error: disk {disk} has 1000 bytes, which is not a multiple of 512"),
            &format!("  fix: truncate -s 1024 {disk}, if the image is complete"),
        ],
    );
    let document: serde_json::Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
    assert_eq!(document["schema"], 1);
    assert_eq!(document["source"], "vmm");
    assert_eq!(document["code"], 125);
    let reason = document["reason"].as_str().unwrap();
    assert_eq!(reason, format!("disk {disk} has 1000 bytes, which is not a multiple of 512"));

    run(&["run", "--cpus", "x", "--result", result]);
    let document: serde_json::Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
    assert_eq!(document["reason"], "--cpus x: not a whole number", "an older result is replaced");
}

#[test]
fn a_result_file_that_cannot_be_had_is_refused_before_the_machine_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, [7; 512]).unwrap();
    let nowhere = dir.path().join("no/result");
    let [disk, nowhere] = [&disk, &nowhere].map(|path| path.to_str().unwrap());
    check(
        &["run", "--disk", disk, "--result", nowhere],
        125,
        &[
            &format!("error: result file {nowhere}: its directory does not exist"),
            "  fix: make the directory first",
        ],
    );
    check(
        &["run", "--disk", disk, "--result", disk],
        125,
        &[
            &format!("error: result file {disk} exists and holds something other than a result"),
            "  fix: give another name, or remove that file",
        ],
    );
    assert_eq!(fs::read(disk).unwrap(), [7; 512]);
}

#[test]
fn a_lock_of_another_process_is_said_with_its_pid() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, kernel) = (dir.path().join("disk"), dir.path().join("kernel"));
    let file = File::create(&disk).unwrap();
    file.set_len(1 << 20).unwrap();
    file.lock().unwrap();
    fs::write(&kernel, "kernel").unwrap();
    let [disk, kernel] = [&disk, &kernel].map(|path| path.to_str().unwrap());
    let (code, _, stderr) = run(&["run", "--disk", disk, "--kernel", kernel]);
    assert_eq!(code, 125);
    let expected = format!("error: disk {disk} is in use by process {} (", std::process::id());
    assert!(stderr.starts_with(&expected), "{stderr}");
}

#[test]
fn a_configuration_file_is_read_and_its_errors_have_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("machine.toml");
    let config_name = config.to_str().unwrap();
    fs::write(&config, "cpus = 1\nmemmory = 64\n").unwrap();
    let (code, _, stderr) = run(&["run", "--config", config_name]);
    assert_eq!(code, 125);
    assert!(stderr.starts_with(&format!("error: {config_name}:2:1: unknown field")), "{stderr}");
    assert!(stderr.ends_with("  fix: did you mean `memory`?\n"), "{stderr}");

    fs::write(&config, "cpus = 40\n[[disk]]\npath = '/nope'\n").unwrap();
    let (_, _, stderr) = run(&["run", "--config", config_name]);
    assert!(stderr.starts_with("error: 40 CPUs"), "{stderr}");
    let (_, _, stderr) = run(&["run", "--config", config_name, "-c", "2", "--kernel", config_name]);
    assert!(stderr.starts_with("error: disk /nope: no such file"), "flags win: {stderr}");

    check(
        &["run", "--config", "/nope"],
        125,
        &[
            "error: cannot read the configuration file /nope",
            "  No such file or directory (os error 2)",
            "  fix: check the path given to --config",
        ],
    );
}

#[test]
fn kernels_are_found_where_they_are_installed() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("openshell-vmm/kernels/tiny");
    let find = |verb, profile| {
        let mut command = command(&["kernel", verb, "--profile", profile]);
        command.env("XDG_DATA_HOME", home.path()).output().unwrap()
    };
    let missing = find("path", "tiny");
    let stderr = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr.contains("cargo xtask kernel") && stderr.contains("--kernel"), "{stderr}");

    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("vmlinux"), "abc").unwrap();
    let found = find("path", "tiny");
    assert_eq!(found.status.code(), Some(0));
    assert_eq!(found.stdout, format!("{}/vmlinux\n", dir.display()).into_bytes());
    assert_eq!(find("verify", "tiny").status.code(), Some(1), "no manifest");
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let manifest = serde_json::json!({
        "vmlinux_sha256": digest, "build_id": "b", "profile": "tiny", "tables": "mptable",
        "source_version": "6.1.1"
    });
    fs::write(dir.join("kernel.json"), manifest.to_string()).unwrap();
    let verified = find("verify", "tiny");
    assert_eq!(verified.status.code(), Some(0));
    assert!(String::from_utf8(verified.stdout).unwrap().contains("Linux 6.1.1, profile tiny"));
}

#[test]
fn the_doctor_answers_in_both_forms() {
    let (code, stdout, _) = run(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["ok"].as_bool(), Some(code == 0));
    let ordinary = report["kvm"]["ordinary_guest"].as_bool().expect("a yes or a no");
    assert_eq!(ordinary, report["kvm"]["reason"].is_null(), "a no has a reason");
    let usable = report["kvm"]["usable"].as_bool().unwrap();
    assert_eq!(usable, report["checks"][0]["status"] == "ok");
    let (again, text, _) = run(&["doctor"]);
    assert_eq!(again, code);
    assert!(text.lines().next().unwrap().contains("kvm"), "{text}");
    for check in report["checks"].as_array().unwrap() {
        assert_eq!(check["status"] == "ok", check["fix"].is_null(), "{check}");
    }
}

#[test]
fn version_completions_and_manual_pages() {
    let version = env!("CARGO_PKG_VERSION");
    for args in [["version"].as_slice(), &["--version"]] {
        assert_eq!(run(args), (0, format!("openshell-vmm {version}\n"), String::new()));
    }
    let json: serde_json::Value = serde_json::from_str(&run(&["version", "--json"]).1).unwrap();
    assert_eq!(json["version"], version);
    for shell in ["bash", "zsh", "fish"] {
        let (code, stdout, _) = run(&["completions", shell]);
        assert_eq!(code, 0);
        assert!(stdout.contains("boot-trace"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    assert_eq!(run(&["man", pages.to_str().unwrap()]).0, 0);
    let page = fs::read_to_string(pages.join("openshell-vmm-run.1")).unwrap();
    assert!(page.contains("boot\\-trace"));
}

/// What `help` of these words says, behind a heading, and then that of each verb that it lists.
fn reference(words: &[&str], text: &mut String) {
    let (code, help, stderr) = run(&[words, &["--help"]].concat());
    assert_eq!((code, stderr.as_str()), (0, ""), "{words:?}");
    let level = if words.len() < 2 { "##" } else { "###" };
    let trimmed: Vec<&str> = help.lines().map(str::trim_end).collect();
    let name = [&["openshell-vmm"], words].concat().join(" ");
    *text += &format!("\n{level} {name}\n\n```text\n{}\n```\n", trimmed.join("\n"));
    let listed = trimmed.iter().skip_while(|line| **line != "Commands:").skip(1);
    // Names of verbs are indented by two columns, what goes on from the line before by more.
    let names = listed.take_while(|line| !line.is_empty()).filter_map(|line| {
        line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '))?.split(' ').next()
    });
    for verb in names {
        reference(&[words, &[verb]].concat(), text);
    }
}

#[test]
fn the_reference_in_the_documents_is_what_the_command_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let mut made = "# The command\n\nWhat `openshell-vmm` and each of its verbs say to `--help`, written down by the \
                    command's tests.\n[machines.md](machines.md) explains machines and exit codes.\n"
        .to_owned();
    reference(&[], &mut made);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(made == kept, "run again with UPDATE_GOLDEN=1 and review the change:\n{made}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = command(&["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}
