//! What a command is given, what comes back, and what is left when it ends or nobody listens any more.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use openshell_agent_proto::{FailureKind, FromGuest, FromHost, Signal, Stream};

use super::super::connection::Connection;
use super::*;

const GIB: u64 = 1 << 30;

#[test]
fn every_exit_code_and_signal_is_told() {
    let machine = Machine::new();
    for code in 0..=255 {
        machine.shell(&format!("exit {code}")).code(code);
    }
    for number in [1, 2, 9, 15, 6, 31] {
        let exit = machine.shell(&format!("kill -{number} $$")).exit.unwrap();
        assert_eq!(exit, Exit::Signal(Signal::new(number).unwrap()));
        assert_eq!(i32::from(exit.code()), 128 + number);
    }
}

#[test]
fn arguments_arrive_byte_for_byte() {
    let machine = Machine::new();
    let odd: [&[u8]; 7] =
        [b"", b" a  b ", b"$HOME", b"'\"\\", b"\xff\xfe\n", b"-n", "ä€".as_bytes()];
    let mut args: Vec<&[u8]> = vec![b"/usr/bin/printf", b"%s\\0"];
    args.extend(odd);
    let ended = machine.run(&command(&args, Stdio::Output), None).code(0);
    let expected: Vec<u8> = odd.iter().flat_map(|arg| [*arg, b"\0"].concat()).collect();
    assert_eq!(ended.output, expected);
}

#[test]
fn environment_and_directory_are_the_requests() {
    let machine = Machine::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap();
    let env = ["A=1", "A=two words", "EMPTY=", "EQUALS=a=b"].map(|word| word.as_bytes().to_vec());
    let exec = shell("pwd; echo \"$A|$EMPTY|$EQUALS|$PATH|$HOME\"", Stdio::Output);
    let exec = exec.env(env.to_vec()).unwrap();
    let exec = exec.directory(path.as_os_str().as_encoded_bytes().to_vec()).unwrap();
    let text = machine.run(&exec, None).code(0).text();
    let mut lines = text.lines();
    assert_eq!(lines.next().map(Path::new), Some(path.as_path()));
    let rest = lines.next().unwrap();
    assert!(rest.starts_with("two words||a=b|/usr/local/sbin:"), "{rest}");
    assert!(rest.rsplit_once('|').unwrap().1.starts_with('/'), "{rest}");
}

#[test]
fn what_cannot_be_started_is_told_apart() {
    let machine = Machine::new();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let script = |name: &str, text: &str, mode| {
        fs::write(at(name), text).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    script("plain", "text", 0o644);
    script("lost", "#!/no/interpreter\n", 0o755);
    script("garbage", "\u{7f}ELF and then nothing", 0o755);
    for (program, kind, code, text) in [
        ("/no/such/program", FailureKind::NotFound, 127, "/no/such/program: no such file"),
        ("no-such-program", FailureKind::NotFound, 127, "no-such-program: no such file"),
        (&at("plain"), FailureKind::NotRunnable, 126, "plain: not an executable file"),
        (&at("lost"), FailureKind::NotRunnable, 126, "lost: its interpreter is missing"),
        (&at("garbage"), FailureKind::NotRunnable, 126, "garbage: not a program for this machine"),
        ("/tmp", FailureKind::NotRunnable, 126, "/tmp: not an executable file"),
    ] {
        let error =
            machine.run(&command(&[program.as_bytes()], Stdio::Output), None).exit.unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        let AgentError::Guest(failure) = error else { panic!("{error}") };
        assert!(failure.kind() == kind && failure.text().contains(text), "{failure}");
    }
    let exec = || shell("true", Stdio::Output);
    for (exec, kind, text) in [
        (exec().directory(b"/no/where".to_vec()).unwrap(), FailureKind::Directory, "/no/where: "),
        (exec().user("no-such-user".to_owned()).unwrap(), FailureKind::User, "\"no-such-user\""),
    ] {
        let AgentError::Guest(failure) = machine.run(&exec, None).exit.unwrap_err() else {
            panic!()
        };
        assert!(failure.kind() == kind && failure.text().contains(text), "{failure}");
    }
}

#[test]
fn a_gibibyte_goes_in_and_comes_out_whole() {
    let machine = Machine::new();
    let input = tempfile::tempfile().unwrap();
    input.set_len(GIB).unwrap();
    let ended = machine.run(&command(&[b"/usr/bin/wc", b"-c"], Stdio::Pipes), Some(&input.into()));
    assert_eq!(ended.code(0).text().trim(), GIB.to_string());
    // And back, in no order of sizes that a buffer would like.
    let (reader, mut writer) = std::io::pipe().unwrap();
    let bytes: Vec<u8> =
        (0..40_000_003_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let sent = bytes.clone();
    let feed = Builder::new().spawn(move || {
        for piece in sent.chunks(77_777) {
            writer.write_all(piece).unwrap();
        }
    });
    let ended = machine.run(&command(&[b"/bin/cat"], Stdio::Pipes), Some(&reader.into())).code(0);
    feed.unwrap().join().unwrap();
    assert!(ended.output == bytes, "{} bytes of {}", ended.output.len(), bytes.len());
}

#[test]
fn output_and_error_are_apart_and_complete() {
    let machine = Machine::new();
    let script =
        "i=0; while [ $i -lt 2000 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done; exit 3";
    let ended = machine.shell(script).code(3);
    let lines = |prefix: &str| (0..2000).map(|n| format!("{prefix}{n}\n")).collect::<String>();
    assert_eq!(ended.output, lines("out").as_bytes());
    assert_eq!(ended.error, lines("err").as_bytes());
}

#[test]
fn thirty_two_at_once_do_not_mix() {
    let machine = Machine::new();
    thread::scope(|scope| {
        for number in 0..32_u8 {
            let machine = &machine;
            scope.spawn(move || {
                let script =
                    format!("for i in 1 2 3 4 5 6 7 8; do echo {number}; done; exit {number}");
                let ended = machine.shell(&script).code(number);
                assert_eq!(ended.text(), format!("{number}\n").repeat(8));
            });
        }
    });
}

#[test]
fn input_that_nobody_reads_holds_nothing_up() {
    let machine = Machine::new();
    let endless = fs::File::open("/dev/zero").unwrap();
    machine.run(&shell("exit 4", Stdio::Pipes), Some(&endless.into())).code(4);
    let endless = fs::File::open("/dev/zero").unwrap();
    machine.run(&shell("exec <&-; sleep 0.2; exit 5", Stdio::Pipes), Some(&endless.into())).code(5);
}

#[test]
fn a_full_input_holds_no_signal_back() {
    let machine = Machine::new();
    let mut connection =
        Connection::open(&machine.path(), &FromHost::Exec(shell("sleep 1000", Stdio::Pipes)))
            .unwrap();
    for _ in 0..4 {
        connection.send(&FromHost::Data(Stream::Input, &[0; 64 << 10]));
    }
    connection.send(&FromHost::Signal(Signal::new(libc::SIGTERM).unwrap()));
    let begun = Instant::now();
    loop {
        connection.flush().unwrap();
        match connection.decoder.next().unwrap() {
            Some(FromGuest::Exited(exit)) => {
                assert_eq!(exit, Exit::Signal(Signal::new(libc::SIGTERM).unwrap()));
                break;
            }
            Some(_) => {}
            None => {
                connection.wait(Some(begun + Duration::from_secs(20))).unwrap();
                connection.receive().unwrap();
            }
        }
    }
}

#[test]
fn a_process_in_the_background_does_not_hold_the_session() {
    let machine = Machine::new();
    let begun = Instant::now();
    let ended = machine.shell("sleep 1000 & echo $!").code(0);
    assert!(begun.elapsed() < Duration::from_secs(60));
    let pid = ended.text().trim().to_owned();
    assert!(Path::new("/proc").join(&pid).exists(), "it was to live on");
    machine.shell(&format!("kill -9 {pid}")).code(0);
}

#[test]
fn what_a_session_started_ends_with_it() {
    let machine = Machine::new();
    for script in [
        "sleep 1000 & echo $$ $!; wait",
        "trap '' HUP; sh -c 'trap \"\" HUP; sleep 1000' & echo $$ $!; while :; do sleep 1; done",
    ] {
        let request = FromHost::Exec(shell(script, Stdio::Pipes));
        let mut connection = Connection::open(&machine.path(), &request).unwrap();
        let ends = Instant::now() + Duration::from_secs(30);
        let pids = loop {
            match connection.decoder.next().unwrap() {
                Some(FromGuest::Data(_, bytes)) => {
                    break String::from_utf8(bytes.to_vec()).unwrap();
                }
                Some(_) => {}
                None => {
                    connection.wait(Some(ends)).unwrap();
                    connection.receive().unwrap();
                }
            }
        };
        drop(connection);
        let lives = |pid: &str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // An orphan's parent may reap it late.
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while pids.split_whitespace().any(lives) {
            assert!(Instant::now() < ends, "{pids} live on");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_detached_command_runs_on() {
    let machine = Machine::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("done");
    let script = format!("sleep 0.3; echo x >{}", path.display());
    machine.run(&shell(&script, Stdio::Detached), None).code(0);
    let ends = Instant::now() + Duration::from_secs(30);
    while !path.exists() {
        assert!(Instant::now() < ends, "it did not run on");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    let machine = Machine::new();
    let (output, error) = (Collected::new(), Collected::new());
    let streams = Streams {
        input: None,
        output: output.pipe.as_fd(),
        error: error.pipe.as_fd(),
        signals: None,
        timeout: Some(Duration::from_millis(300)),
    };
    let script =
        shell("trap 'echo asked; exit 0' TERM; while :; do sleep 0.1; done", Stdio::Output);
    let failed = exec(&machine.path(), &script, &streams).unwrap_err();
    assert_eq!((failed.exit_code(), output.end().as_slice()), (124, &b"asked\n"[..]), "{failed}");
    drop(error);
}

#[test]
fn a_reader_that_goes_ends_the_command() {
    let machine = Machine::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let streams = Streams {
        input: None,
        output: writer.as_fd(),
        error: writer.as_fd(),
        signals: None,
        timeout: None,
    };
    let failed = exec(&machine.path(), &command(&[b"/usr/bin/yes"], Stdio::Output), &streams);
    assert_eq!(failed.unwrap_err().exit_code(), 128 + 13);
}

#[test]
fn figures_are_told() {
    let stats = stats(&Machine::new().path()).unwrap();
    assert!(stats.memory_total_bytes > 0 && stats.cpus > 0, "{stats:?}");
}
