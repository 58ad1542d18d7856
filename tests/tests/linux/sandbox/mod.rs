//! A sandbox's guest with our first process: what the main process finds, how its end and every failure is told.

mod agent;
mod disks;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use openshell_tests::machine::{Finished, fixture};
use serde_json::{Value, json};

use self::disks::{Sandbox, file};

const SECRET: &[u8] = b"secret-of-this-start-0123456789";

/// A config whose main process is a shell with this script.
fn shell(script: &str, more: &Value) -> Value {
    let mut config = json!({
        "version": 1,
        "process": {"args": ["/bin/busybox", "sh", "-c", script]},
    });
    merge(&mut config, more);
    config
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[track_caller]
fn said(finished: &Finished, lines: &[&str]) {
    let text = finished.text().replace('\r', "");
    for line in lines {
        assert!(text.lines().any(|found| found == *line), "no line {line:?}: {finished}");
    }
}

fn everything() -> Value {
    json!({
        "hostname": "work",
        "clock_unix_ms": 4_000_000_000_000_u64,
        "network": {
            "address": "192.168.127.2/24",
            "gateway": "192.168.127.1",
            "mtu": 1400,
            "dns": ["192.168.127.1"],
            "search": ["corp.example"],
        },
        "hosts": [{"address": "192.168.127.254", "names": ["host.openshell.internal"]}],
        "directories": [{"path": "/sandbox", "owner": "sandbox", "mode": "0750"}],
        "hooks": [["/bin/busybox", "sh", "-c", "echo hooked as $(/bin/busybox id -u)"]],
        "programs": ["ip", "nsenter"],
        "process": {
            "env": ["A=1", "A=two words", "HOME=/sandbox"],
            "cwd": "/sandbox",
            "user": "sandbox",
            "groups": ["88"],
        },
    })
}

const LOOK: &str = r#"b=/bin/busybox
echo "root: $($b stat -c %u:%g:%a /)"
echo "root type: $($b awk '$2 == "/" {print $3}' /proc/mounts)"
echo "id: $($b id -u):$($b id -g) groups $($b id -G)"
echo "cwd: $($b pwd) owned $($b stat -c %u:%g:%a .)"
echo "env: $A $HOME $PATH"
echo "name: $($b hostname) $($b cat /etc/hostname)"
echo "key: $($b stat -c %u:%g:%a /opt/openshell/tls/tls.key) $($b cat /opt/openshell/tls/tls.key)"
echo "policy: $($b stat -c %u:%g:%a /etc/openshell/policy.yaml)"
echo "pid1: $($b readlink /proc/1/exe) or $($b stat -c %a /opt/openshell/tools/bin/openshell-init)"
echo "year: $($b date -u +%Y)"
echo "mounts: $($b awk '{printf "%s ", $2}' /proc/mounts)"
echo "dev: $($b readlink /dev/fd) $($b stat -c %a /dev/null) $($b test -c /dev/ptmx && echo ptmx)"
echo "files: $(ulimit -n) $(ulimit -Hn)"
echo "net: $($b ip -4 -o address show eth0 | $b awk '{print $4}') $($b ip route | $b head -1)"
echo "mtu: $($b cat /sys/class/net/eth0/mtu)"
$b sed 's/^/hosts: /; s/\t/ /' /etc/hosts
$b sed 's/^/resolv: /' /etc/resolv.conf
echo "tools: $($b ls /opt/openshell/bin | $b tr '\n' ' ') $($b readlink /usr/sbin/ip)"
echo "config: $($b ls /run)"
echo "input: $($b readlink /proc/self/fd/0)"
exit 7
"#;

#[test]
fn the_main_process_finds_what_it_expects() {
    let sandbox = Sandbox::new();
    let files = [
        file("/opt/openshell/tls/tls.key", 0o600, (10001, 10002), b"key"),
        file("/etc/openshell/policy.yaml", 0o640, (0, 10002), b"policy"),
    ];
    let finished = sandbox.guest(&shell(LOOK, &everything()), &files).end().expect_code(7);
    said(
        &finished,
        &[
            "hooked as 0",
            "root: 7:8:751",
            "root type: overlay",
            "id: 10001:10002 groups 10002 77 88",
            "cwd: /sandbox owned 10001:10002:750",
            "env: two words /sandbox /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "name: work work",
            "key: 10001:10002:600 key",
            "policy: 0:10002:640",
            "pid1:  or 755",
            "year: 2096",
            "mounts: /opt/openshell/tools / /opt/openshell /proc /sys /dev /dev/pts /dev/shm /dev/mqueue /run /sys/fs/cgroup ",
            "dev: /proc/self/fd 666 ptmx",
            "files: 1024 524288",
            "net: 192.168.127.2/24 default via 192.168.127.1 dev eth0 ",
            "mtu: 1400",
            "hosts: 127.0.0.1 localhost",
            "hosts: 192.168.127.2 work",
            "hosts: 192.168.127.254 host.openshell.internal",
            "resolv: nameserver 192.168.127.1",
            "resolv: search corp.example",
            "tools: ip nsenter openshell-init  /opt/openshell/bin/ip",
            "config: ",
            "input: /dev/null",
        ],
    );
}

#[test]
fn without_a_network_in_the_config_there_is_a_lease() {
    let sandbox = Sandbox::new();
    let script = "/bin/busybox ip -4 -o address show eth0
        /bin/busybox ip route; /bin/busybox cat /etc/resolv.conf
        /bin/busybox ping -c 1 -W 20 192.168.127.1
        echo root is $(/bin/busybox readlink /proc/1/exe)";
    let finished = sandbox.guest(&shell(script, &json!({})), &[]).end().expect_code(0);
    said(
        &finished,
        &["nameserver 192.168.127.1", "root is /opt/openshell/tools/bin/openshell-init"],
    );
    let text = finished.text();
    assert!(text.contains("inet 192.168.127.2/24"), "{finished}");
    assert!(text.contains("default via 192.168.127.1"), "{finished}");
    assert!(text.contains(" 0% packet loss"), "{finished}");
}

#[test]
fn data_outlives_a_start_and_secrets_do_not() {
    let sandbox = Sandbox::new();
    let key = |bytes| [file("/opt/openshell/auth/sandbox.jwt", 0o600, (0, 0), bytes)];
    let script = "/bin/busybox cat /opt/openshell/auth/sandbox.jwt
        echo; echo kept >/data; /bin/busybox mkdir -p /d/e; /bin/busybox mv /d /f";
    let first = sandbox.guest(&shell(script, &json!({})), &key(SECRET)).end().expect_code(0);
    said(&first, &[std::str::from_utf8(SECRET).unwrap()]);
    let disk = std::fs::read(sandbox.path("rw")).unwrap();
    assert!(!disk.windows(SECRET.len()).any(|window| window == SECRET), "the secret is on a disk");
    let mut check = Command::new(fixture("e2fsck"));
    let checked = check.args(["-f", "-n"]).arg(sandbox.path("rw")).output().unwrap();
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && !told.contains("recover"), "{told}");
    let script = "/bin/busybox cat /data /opt/openshell/auth/sandbox.jwt
        echo; /bin/busybox test -d /f/e -a ! -e /d && echo moved";
    let second = sandbox.guest(&shell(script, &json!({})), &key(b"another")).end().expect_code(0);
    said(&second, &["kept", "another", "moved"]);
}

#[test]
fn in_memory_nothing_is_kept() {
    let sandbox = Sandbox::new();
    let config = shell("echo x >/data && /bin/busybox sync && echo written", &json!({}));
    let guest = sandbox.guest(&config, &[]).append("openshell.rw=memory ");
    said(&guest.end().expect_code(0), &["written"]);
    let again = sandbox.guest(&shell("/bin/busybox test ! -e /data", &json!({})), &[]);
    drop(again.end().expect_code(0));
}

#[test]
fn every_failure_is_a_line_and_an_exit_code() {
    let sandbox = Sandbox::new();
    let plain = |more: Value| {
        let mut config = shell("true", &json!({"network": {"mode": "none"}}));
        merge(&mut config, &more);
        config.to_string()
    };
    let args = |args: &[&str]| plain(json!({"process": {"args": args}}));
    for (config, words, code, line) in [
        (
            plain(json!({})),
            "openshell.base=vdx",
            125,
            "mount-base: /dev/vdx: no such file or directory (ENOENT)",
        ),
        (
            plain(json!({})),
            "openshell.base=vdc/x",
            125,
            "start: /proc/cmdline: \"openshell.base=vdc/x\" cannot be",
        ),
        (
            plain(json!({})),
            "openshell.config=vdb",
            125,
            "config: /config.json: no such file or directory (ENOENT)",
        ),
        (
            "{\n\"version\": 1,".to_owned(),
            "",
            125,
            "config: /config.json: line 2 column 13: EOF while parsing",
        ),
        (
            plain(json!({"process": {"user": "nobody"}})),
            "",
            125,
            "user: nobody: no user \"nobody\" in /etc/passwd",
        ),
        (
            plain(json!({"hooks": [["/bin/busybox", "false"]]})),
            "",
            125,
            "hook: /bin/busybox: ended with exit status: 1",
        ),
        (
            plain(json!({"network": {"mode": "dhcp", "interface": "eth7"}})),
            "",
            125,
            "network: eth7: no such device (ENODEV)",
        ),
        (
            plain(json!({"directories": [{"path": "/bin/busybox/x", "mode": "0755"}]})),
            "",
            125,
            "directories: /bin/busybox/x: not a directory (ENOTDIR)",
        ),
        (args(&["/bin/none"]), "", 127, "exec: /bin/none: no such file or directory (ENOENT)"),
        (args(&["none"]), "", 127, "exec: none: no such file or directory (ENOENT)"),
        (args(&["/bin/plain"]), "", 126, "exec: /bin/plain: not an executable file"),
        (args(&["/bin/lost"]), "", 126, "exec: /bin/lost: no such file or directory (ENOENT)"),
    ] {
        let guest = sandbox.guest_with(config.as_bytes(), &[]).append(words).append(" ");
        let finished = guest.end().expect_code(code);
        let text = finished.text();
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let expected = format!("openshell-init: error: {line}");
        assert!(last.trim_end().starts_with(&expected), "no {expected:?}: {finished}");
    }
}

#[test]
fn orphans_are_reaped_and_a_signal_is_told() {
    let sandbox = Sandbox::new();
    let script = r"b=/bin/busybox
        for n in 1 2 3 4 5 6 7 8 9 10; do ( $b sh -c '/bin/busybox true' & ) ; done
        ( $b sleep 1000 & )
        $b sleep 1
        echo zombies: $($b grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | $b wc -l)
        kill -9 $$";
    let finished = sandbox.guest(&shell(script, &json!({})), &[]).end().expect_code(128 + 9);
    said(&finished, &["zombies: 0"]);
}

#[test]
fn the_host_can_ask_for_an_orderly_stop() {
    let sandbox = Sandbox::new();
    let script = "trap 'echo asked; echo late >/data; exit 3' TERM
        echo ready; while true; do /bin/busybox sleep 1; done";
    let guest = sandbox.guest(&shell(script, &json!({})), &[]);
    let path = sandbox.path("vsock");
    let (running, _directory) = guest.option("--vsock", &path).start();
    running.wait_for("ready");
    let mut host = UnixStream::connect(&path).unwrap();
    host.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    host.write_all(b"CONNECT 1023\nSTOP 60\n").unwrap();
    let mut answer = String::new();
    host.read_to_string(&mut answer).unwrap();
    let finished = running.wait().expect_code(3);
    said(&finished, &["asked"]);
    assert!(answer.starts_with("OK ") && answer.ends_with("\nOK\n"), "{answer:?}");
    let again = sandbox.guest(&shell("/bin/busybox cat /data", &json!({})), &[]);
    said(&again.end().expect_code(0), &["late"]);
}

#[test]
fn the_main_process_can_have_the_console_and_can_be_pid_1() {
    let sandbox = Sandbox::new();
    let script = "/bin/busybox tty; echo pid $$ term $TERM; echo controlling >/dev/tty
        exec /opt/openshell/bin/openshell-init exit 9";
    let config = shell(script, &json!({"process": {"tty": true, "pid1": true}}));
    let finished = sandbox.guest(&config, &[]).end().expect_code(9);
    said(&finished, &["/dev/ttyS0", "pid 1 term xterm", "controlling"]);
}

/// The commands of a supervisor that gives its workload a network namespace.
#[test]
fn our_ip_and_nsenter_make_a_network_namespace() {
    let sandbox = Sandbox::new();
    let script = "set -e; b=/bin/busybox
        i=/usr/sbin/ip
        $i netns add sandbox-1; $i link add veth-h type veth peer name veth-s
        $i link set veth-s netns sandbox-1; $i addr add 10.200.0.1/24 dev veth-h; $i link set veth-h up
        n='/usr/bin/nsenter --net=/var/run/netns/sandbox-1 --'
        $n $i addr add 10.200.0.2/24 dev veth-s; $n $i link set veth-s up; $n $i link set lo up
        $n $i route add default via 10.200.0.1
        $n $b ip -o -4 address show veth-s; $n $b ip route
        $n $b ping -c 1 -W 20 10.200.0.1
        $i link delete veth-h; $i netns delete sandbox-1
        $b test ! -e /var/run/netns/sandbox-1
        echo gone
        $i link set none up";
    let config = shell(script, &json!({"programs": ["ip", "nsenter"]}));
    let finished = sandbox.guest(&config, &[]).end().expect_code(2);
    said(
        &finished,
        &[
            "gone",
            "default via 10.200.0.1 dev veth-s ",
            "ip: interface none: no such device (ENODEV)",
        ],
    );
    let text = finished.text();
    assert!(text.contains("inet 10.200.0.2/24") && text.contains(" 0% packet loss"), "{finished}");
}
