//! One sandbox from its creation to its deletion, over all that a user does with it meanwhile.

use std::io::Read as _;
use std::time::Instant;

use openshell_proto::v1::sandbox_stream_event::Payload;
use openshell_proto::v1::{
    ExecSandboxRequest, ExecSandboxWindowResize, GetSandboxLogsRequest, SandboxPhase,
    WatchSandboxRequest, exec_sandbox_input,
};
use sha2::{Digest as _, Sha256};
use tonic::Code;

use crate::rig::{Rig, Wanted, command, counts_instructions, id, phase, ready, say};

/// What is copied into a sandbox.
const UPLOAD: usize = 256 << 10;

/// What a command prints when it prints much.
const MUCH: usize = 64 << 20;

/// Sandboxes whose phases are counted; the first one makes the image and wakes an idle lab.
const COUNTED: usize = 4;

#[tokio::test]
async fn a_sandbox_from_create_to_delete() {
    let rig = Rig::start().await;
    if counts_instructions() {
        // By this clock everything takes long: there is time for figures only.
        for _ in 0..COUNTED {
            from_create_to_output(&rig).await;
            assert!(rig.delete("work").await.unwrap());
        }
        return;
    }
    let id = from_create_to_output(&rig).await;
    commands_end_as_they_do(&rig, &id).await;
    the_sandbox_is_as_promised(&rig, &id).await;
    bytes_pass_in_and_out(&rig, &id).await;
    archives_go_up_and_come_down(&rig, &id).await;
    a_terminal_is_one(&rig, &id).await;
    ports_are_forwarded(&rig, &id).await;
    what_was_said_is_kept(&rig, &id).await;
    stop_and_start_keep_data(&rig, &id).await;
    assert!(rig.delete("work").await.unwrap());
    assert!(!rig.delete("work").await.unwrap(), "there is one no more");
    rig.until_gone("work").await;
    let after = rig.left();
    assert!(after.processes.is_empty() && after.files.is_empty(), "{after:#?}");
}

/// From the request to the first output of a command, by phases.
async fn from_create_to_output(rig: &Rig) -> String {
    let begin = Instant::now();
    let mut phases = Vec::new();
    let wanted = Wanted { variable: Some(("COLOUR", "dark green")), ..Wanted::default() };
    let row = rig.create("work", wanted).await.unwrap();
    phases.push(("accepted".to_owned(), begin.elapsed()));
    assert_ne!(phase(&row), SandboxPhase::Ready);
    let again = rig.create("work", Wanted::default()).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    let refused = rig.exec(command(&id(&row), &["true"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let request = WatchSandboxRequest {
        id: id(&row),
        follow_status: true,
        follow_events: true,
        event_tail: 100,
        stop_on_terminal: true,
        ..Default::default()
    };
    let mut watch = rig.client().watch_sandbox(request).await.unwrap().into_inner();
    while let Some(event) = watch.message().await.unwrap() {
        match event.payload {
            Some(Payload::Event(event)) => phases.push((event.reason, begin.elapsed())),
            Some(Payload::Sandbox(row)) if phase(&row) == SandboxPhase::Ready => {
                phases.push(("Ready".to_owned(), begin.elapsed()));
            }
            Some(Payload::Sandbox(row)) => assert_ne!(phase(&row), SandboxPhase::Error, "{row:#?}"),
            _ => {}
        }
    }
    let said = rig.exec(command(&id(&row), &["echo", "smoke-ok"])).await.unwrap();
    phases.push(("output".to_owned(), begin.elapsed()));
    assert_eq!((said.text().as_str(), said.code), ("smoke-ok\n", Some(0)));
    for (name, at) in phases {
        let at = if counts_instructions() {
            format!("{:>8.1} million instructions", at.as_secs_f64() * 1e3)
        } else {
            format!("{:>8.3} s", at.as_secs_f64())
        };
        say(&format!("create to exec: {name:<20} {at}"));
    }
    id(&row)
}

async fn commands_end_as_they_do(rig: &Rig, id: &str) {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137)] {
        assert_eq!(rig.shell(id, script).await.unwrap().code, Some(code), "{script}");
    }
    let missing = rig.exec(command(id, &["no-such-program"])).await.unwrap();
    assert_eq!(missing.code, Some(127), "{missing:?}");
    let said = rig.shell(id, "echo out; echo err >&2; exit 3").await.unwrap();
    assert_eq!((&said.stdout[..], &said.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    let request = ExecSandboxRequest {
        workdir: "/tmp".into(),
        environment: [("SHAPE".to_owned(), "it's round".to_owned())].into(),
        ..command(id, &["sh", "-c", "pwd; echo $SHAPE; echo $COLOUR"])
    };
    assert_eq!(rig.exec(request).await.unwrap().text(), "/tmp\nit's round\ndark green\n");
    let late = ExecSandboxRequest { timeout_seconds: 2, ..command(id, &["sleep", "1000"]) };
    assert_eq!(rig.exec(late).await.unwrap_err().code(), Code::DeadlineExceeded);
}

async fn the_sandbox_is_as_promised(rig: &Rig, id: &str) {
    let script = "id -un; pwd; stat -f -c %t /; stat -c %U:%a /sandbox; hostname
        stat -c %U:%a /opt/openshell/tls/tls.key /opt/openshell/auth/sandbox.jwt
        cat /opt/openshell/tls/tls.key /opt/openshell/auth/sandbox.jwt 2>&1 | grep -c denied
        env | grep -c OPENSHELL_SANDBOX_TOKEN=";
    let said = rig.shell(id, script).await.unwrap().text();
    let lines: Vec<&str> = said.lines().collect();
    // The number of overlayfs.
    let root = "794c7630";
    assert_eq!(lines[..3], ["sandbox", "/sandbox", root], "{said}");
    assert_eq!(lines[3..], ["sandbox:755", "work", "root:600", "root:600", "2", "0"], "{said}");
}

async fn bytes_pass_in_and_out(rig: &Rig, id: &str) {
    let begin = Instant::now();
    let said =
        rig.exec(command(id, &["head", "-c", &MUCH.to_string(), "/dev/zero"])).await.unwrap();
    assert_eq!((said.stdout.len(), said.code), (MUCH, Some(0)));
    assert!(said.stdout.iter().all(|byte| *byte == 0));
    let took = begin.elapsed().as_secs_f64();
    say(&format!("exec: {} MiB of output in {took:.1} s", MUCH >> 20));
    // In order and whole, with what is no text.
    let data: Vec<u8> = (0..UPLOAD).map(|at| (at * at / 251 % 256).to_le_bytes()[0]).collect();
    let begin = Instant::now();
    let typing = rig.interact(command(id, &["sh", "-c", "cat >data"])).await.unwrap();
    for part in data.chunks(64 << 10) {
        typing.send(part).await;
    }
    assert_eq!(typing.end().await.unwrap().code, Some(0));
    let sum: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(rig.shell(id, "sha256sum data").await.unwrap().text().starts_with(&sum));
    assert!(rig.exec(command(id, &["cat", "data"])).await.unwrap().stdout == data);
    let took = begin.elapsed().as_secs_f64();
    say(&format!("exec: {} KiB in and out in {took:.1} s", UPLOAD >> 10));
}

/// What is in an archive: name, mode, contents; a link has its target.
type Entry = (String, u32, Vec<u8>);

/// Up and down as the stock client does it: archives over SSH, through a relay.
async fn archives_go_up_and_come_down(rig: &Rig, id: &str) {
    let data: Vec<u8> = (0..UPLOAD).map(|at| (at * 7 / 3 % 256).to_le_bytes()[0]).collect();
    let entries: Vec<Entry> = vec![
        ("tree/data".into(), 0o644, data),
        ("tree/a name with blanks".into(), 0o600, Vec::new()),
        ("tree/run".into(), 0o755, b"#!/bin/sh\necho it ran\n".to_vec()),
        (format!("tree/{}", "long".repeat(40)), 0o640, b"long\n".to_vec()),
        ("tree/link".into(), 0o777, b"run".to_vec()),
    ];
    let begin = Instant::now();
    let ssh = rig.ssh(id).await;
    ssh.run("mkdir -p '/sandbox/up load' && tar xf - -C '/sandbox/up load'", &pack(&entries)).await;
    assert_eq!(ssh.run("'/sandbox/up load/tree/link'", b"").await, b"it ran\n");
    // Where it really is, before it is taken from there.
    assert_eq!(
        ssh.run("cd '/sandbox/up load/tree' && pwd -P", b"").await,
        b"/sandbox/up load/tree\n"
    );
    let archive = ssh.run("tar cf - -C '/sandbox/up load' tree", b"").await;
    let mut expected = entries;
    expected.sort();
    assert!(unpack(&archive) == expected, "what comes down is not what went up");
    let took = begin.elapsed().as_secs_f64();
    say(&format!("archives over SSH: {} KiB up and down in {took:.1} s", UPLOAD >> 10));
}

fn pack(entries: &[Entry]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, mode, contents) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        if name.ends_with("/link") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, name, String::from_utf8_lossy(contents).as_ref())
        } else {
            header.set_size(contents.len() as u64);
            archive.append_data(&mut header, name, &contents[..])
        }
        .unwrap();
    }
    archive.into_inner().unwrap()
}

/// The files and links of an archive, in order of their names.
fn unpack(archive: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mode = entry.header().mode().unwrap();
        let mut contents = Vec::new();
        match entry.header().entry_type() {
            tar::EntryType::Directory => continue,
            tar::EntryType::Symlink => {
                let target = entry.link_name().unwrap().unwrap();
                contents.extend(target.as_os_str().as_encoded_bytes());
            }
            _ => drop(entry.read_to_end(&mut contents).unwrap()),
        }
        entries.push((name, mode, contents));
    }
    entries.sort();
    entries
}

async fn a_terminal_is_one(rig: &Rig, id: &str) {
    let request = ExecSandboxRequest { tty: true, cols: 100, rows: 30, ..command(id, &["sh"]) };
    let mut typing = rig.interact(request).await.unwrap();
    typing.send(b"tty; stty size\n").await;
    typing.wait_for("/dev/pts/").await;
    typing.wait_for("30 100").await;
    let size = ExecSandboxWindowResize { cols: 111, rows: 33 };
    typing.put(exec_sandbox_input::Payload::Resize(size)).await;
    typing.send(b"stty size\n").await;
    typing.wait_for("33 111").await;
    // Until the shell has put the command into the foreground, the key would be the shell's. The word is typed in two parts, so that
    // its echo is not taken for it.
    typing.send(b"sh -c 'echo under''way; exec sleep 1000'\n").await;
    typing.wait_for("underway").await;
    typing.send(b"\x03").await;
    typing.send(b"echo interrupted $?\n").await;
    typing.wait_for("interrupted 130").await;
    typing.send(b"exit 9\n").await;
    assert_eq!(typing.end().await.unwrap().code, Some(9));
}

async fn ports_are_forwarded(rig: &Rig, id: &str) {
    let script = "mkdir -p www; echo served >www/page; busybox httpd -p 127.0.0.1:8080 -h www";
    assert_eq!(rig.shell(id, script).await.unwrap().code, Some(0));
    let forward = rig.forward(id, Some(8080)).await.unwrap();
    forward.send(b"GET /page HTTP/1.0\r\n\r\n").await;
    let answer = String::from_utf8_lossy(&forward.rest().await.unwrap()).into_owned();
    assert!(answer.starts_with("HTTP/1.") && answer.ends_with("\r\n\r\nserved\n"), "{answer:?}");
    let closed = rig.forward(id, Some(8081)).await;
    assert_eq!(closed.map(drop).unwrap_err().code(), Code::Unavailable);
    let mut ssh = rig.forward(id, None).await.unwrap();
    assert!(ssh.read().await.unwrap().starts_with(b"SSH-2.0-"));
}

async fn what_was_said_is_kept(rig: &Rig, id: &str) {
    let request = GetSandboxLogsRequest { sandbox_id: id.into(), ..Default::default() };
    let logs = rig.client().get_sandbox_logs(request).await.unwrap().into_inner().logs;
    assert!(logs.iter().any(|line| line.message.contains("session")), "{logs:#?}");
}

async fn stop_and_start_keep_data(rig: &Rig, id: &str) {
    rig.stop("work").await.unwrap();
    let row = rig.row("work").await.unwrap();
    assert_eq!((phase(&row), ready(&row).0.as_str()), (SandboxPhase::Stopped, "Stopped"));
    assert_eq!(rig.machine(id), None);
    assert!(rig.sandbox(id).join("stopped").exists());
    let refused = rig.exec(command(id, &["true"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    rig.stop("work").await.unwrap();
    rig.start_again("work").await.unwrap();
    rig.until_phase("work", SandboxPhase::Ready).await;
    assert!(!rig.sandbox(id).join("stopped").exists());
    assert_eq!(rig.shell(id, "cat www/page").await.unwrap().text(), "served\n");
    let sizes = rig.shell(id, "cat data | wc -c; cat 'up load/tree/data' | wc -c").await.unwrap();
    let sizes = sizes.text();
    assert!(sizes.split_whitespace().eq([&*UPLOAD.to_string(); 2]), "{sizes}");
}
