//! The command itself, with two programs that play `openshell-rootfs` and `openshell-vmm`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use prost::Message as _;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::fixture::{
    Client, PATIENCE, condition, connect, create, delete, sandbox, start, stop, until, wait_for,
    watch,
};

const DRIVER: &str = env!("CARGO_BIN_EXE_openshell-driver-vm");

/// Plays `openshell-rootfs`: images are files with their reference in them.
const ROOTFS: &str = r#"#!/bin/sh
here=$(dirname "$0")
while [ $# -gt 0 ]; do
    case $1 in
    --cache) cache=$2; shift 2 ;;
    --output) output=$2; shift 2 ;;
    --size) size=$2; shift 2 ;;
    --add) add="$add $2"; shift 2 ;;
    pull | inspect | make-upper | make-config) verb=$1; shift ;;
    --progress | --base) shift 2 ;;
    --sandbox-user=*) user=" ${1#*=}"; shift ;;
    *) last=$1; shift ;;
    esac
done
echo "$verb $last$user" >> "$here/rootfs.log"
tell() {
    mkdir -p "$cache/images/aa"; echo "$last" > "$cache/images/aa/rootfs.ext4"
    echo "{\"key\":\"sha256:aa\",\"identity\":\"sha256:bb\",\"path\":\"$cache/images/aa/rootfs.ext4\",\"size_bytes\":4096}"
}
case $verb in
pull)
    case $last in *missing*) echo '{"error":"manifest unknown","fix":"check the name"}' >&2; exit 1 ;; esac
    echo '{"phase":"layers"}' >&2; tell ;;
inspect) [ -e "$cache/images/aa/rootfs.ext4" ] || exit 3; tell ;;
make-upper) [ -e "$output" ] && exit 1; truncate -s "$size" "$output"; date +%N > "$output.made" ;;
make-config)
    : > "$output"
    for one in $add; do
        target=${one#*:/}; echo "== /$target" >> "$output"; cat "${one%%:/*}" >> "$output"; echo >> "$output"
    done ;;
esac
"#;

/// Plays `docker`, with one image in it.
const DOCKER: &str = r#"#!/bin/sh
here=$(dirname "$0")
[ -n "$OPENSHELL_REGISTRY_TOKEN" ] && exit 9
echo "$2" >> "$here/docker.log"
for last; do :; done
case $2.$last in
inspect.openshell/sandbox-from:1) echo sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff ;;
save.openshell/sandbox-from:1) echo archive > "$4" ;;
*) echo "Error: No such image: $last" >&2; exit 1 ;;
esac
"#;

/// Plays `openshell-vmm`: what it was given is kept, and a file beside the program says what it does.
const VMM: &str = r#"#!/bin/sh
printf '%s\n' "$@" > arguments
env > environment
echo $$ > pid
echo "openshell-init: hello"
[ -e "$(dirname "$0")/behave" ] && . "$(dirname "$0")/behave"
exec sleep 1000
"#;

/// A place with programs and a state directory.
struct Place {
    place: TempDir,
}

/// A driver's process.
struct Running {
    child: Child,
    client: Client,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Place {
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        for (name, text) in
            [("openshell-rootfs", ROOTFS), ("openshell-vmm", VMM), ("tools.ext4", "")]
        {
            let path = place.path().join(name);
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        }
        Self { place }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn sandbox(&self, id: &str) -> PathBuf {
        self.path("state/sandboxes").join(id)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/driver.sock")
    }

    fn behave(&self, script: &str) {
        fs::write(self.path("behave"), script).expect("written");
    }

    fn command(&self) -> Command {
        let mut command = Command::new(DRIVER);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("OPENSHELL_REGISTRY_TOKEN", "registry-secret")
            .env("OPENSHELL_VM_RUNTIME_DIR", self.place.path())
            .env("OPENSHELL_VM_DRIVER_STATE_DIR", self.path("state"))
            .env("OPENSHELL_GRPC_ENDPOINT", "http://127.0.0.1:17670")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    async fn run(&self) -> Running {
        self.run_with(&[]).await
    }

    async fn run_with(&self, arguments: &[&str]) -> Running {
        let mut command = self.command();
        command
            .arg("--bind-socket")
            .arg(self.socket())
            .arg("--allow-same-uid-peer")
            .args(arguments);
        let child = command.spawn().expect("runs");
        Running { child, client: connect(&self.socket()).await }
    }

    async fn machine(&self, id: &str) -> i32 {
        let path = self.sandbox(id).join("pid");
        until(|| fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))).await;
        let text = fs::read_to_string(&path).expect("read");
        text.trim().parse().expect("a number")
    }

    fn read(&self, id: &str, name: &str) -> String {
        fs::read_to_string(self.sandbox(id).join(name)).expect(name)
    }
}

fn runs(pid: i32) -> bool {
    // One that nobody has reaped does not run.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_child(child);
    kill_process(pid, signal).expect("sent");
}

#[tokio::test]
async fn a_sandbox_becomes_a_process_with_the_right_arguments() {
    let place = Place::new();
    let mut driver =
        place.run_with(&["--host-access", "gateway", "--overlay-disk-mib", "64"]).await;
    let mut changes = watch(&mut driver.client).await;
    create(&mut driver.client, sandbox("a")).await.expect("created");
    let words = changes.words("Started").await;
    assert_eq!(
        words,
        [
            "Scheduled",
            "=Starting",
            "ResolvingImage",
            "CacheMiss",
            "Pulled",
            "PreparingOverlay",
            "Started"
        ]
    );
    let pid = place.machine("a").await;
    let arguments = place.read("a", "arguments");
    let tools = place.path("tools.ext4").canonicalize().expect("there");
    let expected = format!(
        "run --disk {},ro --disk ../../images/images/aa/rootfs.ext4,ro --disk overlay.ext4 --disk config.ext4,ro --cpus 2 \
         --memory 2048M --append rootfstype=ext4 init=/bin/openshell-init --vsock vsock --console stdio --result result.json \
         --allow tcp:host:17670",
        tools.display()
    );
    assert_eq!(arguments.lines().collect::<Vec<_>>().join(" "), expected);
    let environment = place.read("a", "environment");
    assert!(!environment.contains("registry-secret") && !environment.contains("OPENSHELL_GRPC"));
    let overlay = fs::metadata(place.sandbox("a").join("overlay.ext4")).expect("there");
    assert_eq!(overlay.len(), 64 << 20);
    let config = place.read("a", "config.ext4");
    assert!(config.contains("== /config.json:0600:0:0\n{"), "{config}");
    assert!(config.contains("== /files/opt/openshell/auth/sandbox.jwt:0600:0:0\nsecret-token\n"));
    assert!(!place.sandbox("a").join("config.new").exists(), "secrets lie on the disk only");
    assert_eq!(place.read("a", "image-identity"), "sha256:aa\n");
    let log = place.sandbox("a").join("rootfs-console.log");
    until(|| fs::read_to_string(&log).is_ok_and(|text| text == "openshell-init: hello\n")).await;
    for entry in fs::read_dir(place.sandbox("a")).expect("read") {
        let path = entry.expect("an entry").path();
        let mode = fs::metadata(&path).expect("there").permissions().mode() & 0o077;
        assert_eq!(mode, 0, "{}", path.display());
    }
    assert_eq!(delete(&mut driver.client, "a").await, Ok(true));
    assert!(!runs(pid));
    assert!(!place.sandbox("a").exists());
    assert_eq!(changes.words("-").await, ["=Deleting", "-"]);
}

#[tokio::test]
async fn a_driver_that_is_killed_takes_its_machines_along_and_brings_them_back() {
    let place = Place::new();
    let mut driver = place.run().await;
    for id in ["runs", "stopped"] {
        create(&mut driver.client, sandbox(id)).await.expect("created");
        place.machine(id).await;
    }
    stop(&mut driver.client, "stopped").await.expect("stopped");
    let (pid, made) = (place.machine("runs").await, place.read("runs", "overlay.ext4.made"));
    signal(&driver.child, Signal::KILL);
    drop(driver);
    until(|| !runs(pid)).await;
    fs::remove_file(place.sandbox("runs").join("pid")).expect("removed");
    fs::remove_file(place.sandbox("stopped").join("pid")).expect("removed");

    let mut driver = place.run().await;
    assert_ne!(place.machine("runs").await, pid);
    assert_eq!(place.read("runs", "overlay.ext4.made"), made, "the disk is the same");
    assert!(place.read("runs", "config.ext4").contains("secret-token"), "the secrets are new");
    assert_eq!(condition(&mut driver.client, "stopped").await.expect("there").kind, "Stopped");
    assert!(!place.sandbox("stopped").join("pid").exists());
    start(&mut driver.client, "stopped").await.expect("started");
    place.machine("stopped").await;
}

#[tokio::test]
async fn nothing_is_left_when_the_gateway_dies() {
    let place = Place::new();
    let directory = place.sandbox("a");
    fs::create_dir_all(&directory).expect("made");
    let mut request = sandbox("a");
    request.name = "restored".to_owned();
    fs::write(directory.join("sandbox.pb"), request.encode_to_vec()).expect("written");
    // A gateway that starts a driver and is killed.
    let script = r#""$0" --bind-socket "$1" --expected-peer-pid $$ & echo $! > "$2"; wait"#;
    let driver_pid = place.path("driver.pid");
    let template = place.command();
    let mut gateway = Command::new("sh");
    gateway.args(["-c", script, DRIVER]).arg(place.socket()).arg(&driver_pid).env_clear();
    gateway.envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut gateway = gateway.stderr(Stdio::null()).spawn().expect("runs");
    let machine = place.machine("a").await;
    let driver: i32 =
        fs::read_to_string(&driver_pid).expect("read").trim().parse().expect("a number");
    assert!(runs(machine) && runs(driver));
    gateway.kill().expect("killed");
    gateway.wait().expect("gone");
    let began = std::time::Instant::now();
    until(|| !runs(machine) && !runs(driver)).await;
    println!("driver and machine gone after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(15));
    assert!(!place.socket().exists());
    assert!(!directory.join("stopped").exists() && !directory.join("main-process-exited").exists());
}

#[tokio::test]
async fn a_stranger_among_the_processes_is_not_heard() {
    let place = Place::new();
    let mut command = place.command();
    command.arg("--bind-socket").arg(place.socket()).args(["--expected-peer-pid", "1"]);
    let mut child = command.spawn().expect("runs");
    until(|| place.socket().exists()).await;
    let mut stream = tokio::net::UnixStream::connect(place.socket()).await.expect("connected");
    let mut bytes = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes);
    let read = tokio::time::timeout(PATIENCE, read).await.expect("closed");
    assert!(read.is_err() || bytes.is_empty(), "{bytes:?}");
    child.kill().expect("killed");
    child.wait().expect("gone");
}

#[tokio::test]
async fn an_orderly_end_leaves_no_process_and_no_socket() {
    let place = Place::new();
    let mut driver = place.run().await;
    create(&mut driver.client, sandbox("a")).await.expect("created");
    let pid = place.machine("a").await;
    signal(&driver.child, Signal::TERM);
    let status = driver.child.wait().expect("ended");
    assert!(status.success(), "{status}");
    assert!(!runs(pid) && !place.socket().exists());
    assert!(!place.sandbox("a").join("main-process-exited").exists());
}

#[tokio::test]
async fn a_machine_that_ends_says_why() {
    let place = Place::new();
    place.behave(
        r#"echo "openshell-init: error: mount-base: /dev/vdb: no such device (ENXIO)"
echo '{"source":"panic","code":125,"phase":"kernel_entry","reason":"the guest kernel panicked"}' > result.json
exit 125
"#,
    );
    let mut driver = place.run().await;
    create(&mut driver.client, sandbox("a")).await.expect("created");
    let found = wait_for(&mut driver.client, "a", "ProcessExited").await;
    for part in ["status 125", "guest kernel panicked", "kernel_entry", "mount-base: /dev/vdb"] {
        assert!(found.message.contains(part), "{part} in {}", found.message);
    }
    assert_eq!(place.read("a", "main-process-exited").trim_end(), found.message);
}

#[tokio::test]
async fn a_guest_that_hangs_ends_with_its_last_phase_and_its_console() {
    let place = Place::new();
    place.behave(
        r#"trap 'echo "{\"source\":\"signal\",\"phase\":\"kernel_entry\",\"reason\":\"told to end\"}" > result.json; exit 143' TERM
echo "kernel: and no further"
while :; do sleep 0.05; done
"#,
    );
    let mut driver = place.run_with(&["--boot-timeout", "1"]).await;
    create(&mut driver.client, sandbox("a")).await.expect("created");
    let pid = place.machine("a").await;
    let found = wait_for(&mut driver.client, "a", "ProcessExited").await;
    for part in ["did not boot within 1 s", "kernel_entry", "kernel: and no further"] {
        assert!(found.message.contains(part), "no {part:?} in {}", found.message);
    }
    assert!(!runs(pid));
}

#[tokio::test]
async fn a_machine_that_is_killed_by_a_stranger_says_so() {
    let place = Place::new();
    let mut driver = place.run().await;
    create(&mut driver.client, sandbox("a")).await.expect("created");
    let pid = place.machine("a").await;
    kill_process(Pid::from_raw(pid).expect("a process"), Signal::KILL).expect("killed");
    let found = wait_for(&mut driver.client, "a", "ProcessExited").await;
    assert!(found.message.contains("killed by signal 9 (status 137)"), "{}", found.message);
    assert!(found.message.contains("openshell-init: hello"), "{}", found.message);
}

#[tokio::test]
async fn a_host_without_kvm_says_so() {
    let place = Place::new();
    place.behave(
        r#"echo '{"source":"vmm","code":125,"phase":null,"reason":"cannot open /dev/kvm","detail":"permission denied","fix":"join the group kvm"}' > result.json
exec 1>/dev/null; rm rootfs-console.log; exit 125
"#,
    );
    fs::write(place.path("openshell-vmm"), VMM.replace("echo \"openshell-init: hello\"\n", ""))
        .expect("written");
    let mut driver = place.run().await;
    create(&mut driver.client, sandbox("a")).await.expect("created");
    let found = wait_for(&mut driver.client, "a", "ProvisioningFailed").await;
    for part in ["cannot open /dev/kvm", "permission denied", "join the group kvm"] {
        assert!(found.message.contains(part), "{part} in {}", found.message);
    }
    assert!(!place.sandbox("a").exists());
}

#[tokio::test]
async fn an_image_that_is_not_there_says_so() {
    let place = Place::new();
    let mut driver = place.run().await;
    let mut asked = sandbox("a");
    let template = asked.spec.as_mut().and_then(|spec| spec.template.as_mut()).expect("a template");
    template.image = "registry.example/missing:1".to_owned();
    create(&mut driver.client, asked).await.expect("accepted");
    let found = wait_for(&mut driver.client, "a", "ProvisioningFailed").await;
    assert_eq!(found.message, "manifest unknown; check the name");
}

#[tokio::test]
async fn a_sandbox_starts_again_on_the_image_it_was_made_from() {
    let place = Place::new();
    let mut driver = place.run().await;
    create(&mut driver.client, sandbox("a")).await.expect("created");
    place.machine("a").await;
    for (key, reason) in [("sha256:aa", "Starting"), ("sha256:cc", "ProvisioningFailed")] {
        stop(&mut driver.client, "a").await.expect("stopped");
        fs::remove_dir_all(place.path("state/images/images")).expect("pruned");
        fs::write(place.sandbox("a").join("image-identity"), key).expect("written");
        fs::remove_file(place.sandbox("a").join("pid")).expect("removed");
        start(&mut driver.client, "a").await.expect("started");
        if reason == "Starting" {
            place.machine("a").await;
        }
        let found = wait_for(&mut driver.client, "a", reason).await;
        assert_eq!(found.message.contains("no longer in the cache"), reason != "Starting");
        assert!(place.sandbox("a").join("overlay.ext4").exists());
    }
}

#[tokio::test]
async fn another_supervisor_gets_a_disk_of_its_own() {
    let place = Place::new();
    for name in ["openshell-init", "my-supervisor"] {
        fs::write(place.path(name), format!("program {name}")).expect("written");
    }
    let supervisor = place.path("my-supervisor").display().to_string();
    let mut driver = place.run_with(&["--supervisor-bin", &supervisor]).await;
    let tools = fs::read_to_string(place.path("state/tools.ext4")).expect("made");
    assert!(tools.contains("== /bin/openshell-sandbox:0755:0:0\nprogram my-supervisor"), "{tools}");
    assert!(tools.contains("== /bin/openshell-init:0755:0:0\nprogram openshell-init"), "{tools}");
    create(&mut driver.client, sandbox("a")).await.expect("created");
    place.machine("a").await;
    assert!(place.read("a", "arguments").contains("/state/tools.ext4,ro"));
    assert!(place.read("a", "config.ext4").contains("/opt/openshell/bin/openshell-sandbox"));
}

#[test]
fn what_the_operator_gets_wrong_is_said_at_once() {
    let place = Place::new();
    let socket = place.socket().display().to_string();
    let good = ["--bind-socket", &socket, "--allow-same-uid-peer"];
    let check = |arguments: &[&str], part: &str| {
        let mut command = place.command();
        let output = command.args(arguments).stderr(Stdio::piped()).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text.contains(part), "{part:?} in {text:?}");
    };
    check(&[], "nowhere to listen");
    check(&["--bind-socket", &socket], "--expected-peer-pid");
    check(&["--bind-address", "127.0.0.1:1"], "--allow-unauthenticated-tcp");
    check(&["--bind-socket", &socket, "--expected-peer-pid", "4194399"], "cannot watch process");
    for (more, part) in [
        (["--openshell-endpoint", "http://0.0.0.0:1"], "which nobody can dial"),
        (["--openshell-endpoint", "https://localhost:1"], "--guest-tls-ca"),
        (["--guest-tls-ca", "/dev/null"], "go together"),
        (["--sandbox-uid", "0"], "must not be 0"),
        (["--vcpus", "0"], "--vcpus"),
        (["--overlay-disk-mib", "1"], "--overlay-disk-mib"),
        (["--tools-disk", "/nowhere/tools"], "/nowhere/tools"),
        (["--state-dir", "/dev/null"], "/dev/null"),
    ] {
        check(&[&good[..], &more].concat(), part);
    }
}

#[tokio::test]
async fn every_flag_of_the_original_is_taken() {
    let place = Place::new();
    let state = place.path("state").display().to_string();
    let pem = place.path("tools.ext4").display().to_string();
    let mut driver = place
        .run_with(&[
            "--log-level",
            "debug",
            "--otlp-endpoint",
            "http://127.0.0.1:4317",
            "--openshell-endpoint",
            "https://127.0.0.1:17670",
            "--state-dir",
            &state,
            "--default-image",
            "base:1",
            "--bootstrap-image",
            "boot:1",
            "--krun-log-level",
            "3",
            "--vcpus",
            "1",
            "--mem-mib",
            "512",
            "--overlay-disk-mib",
            "128",
            "--guest-tls-ca",
            &pem,
            "--guest-tls-cert",
            &pem,
            "--guest-tls-key",
            &pem,
            "--gpu",
            "--gpu-mem-mib",
            "1",
            "--gpu-vcpus",
            "1",
            "--sandbox-uid",
            "2000",
            "--sandbox-gid",
            "2000",
        ])
        .await;
    let able = driver
        .client
        .get_capabilities(openshell_proto::compute::v1::GetCapabilitiesRequest::default());
    assert_eq!(able.await.expect("an answer").into_inner().default_image, "base:1");
    let log = place.path("rootfs.log");
    let fetched = |image: &str| fs::read_to_string(&log).is_ok_and(|log| log.contains(image));
    until(|| fetched("pull base:1 2000:2000") && fetched("pull boot:1 2000:2000")).await;
}

#[test]
fn a_program_of_a_driver_that_is_gone_is_not_started() {
    let place = Place::new();
    let mark = place.path("mark");
    let output = Command::new(DRIVER)
        .args(["--internal-launch", "1", "touch"])
        .arg(&mark)
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the driver is gone"));
    assert!(!Path::new(&mark).exists());
}

#[tokio::test]
async fn an_image_of_the_hosts_engine_is_taken_from_there_once() {
    let place = Place::new();
    let engine = place.path("docker");
    fs::write(&engine, DOCKER).expect("written");
    fs::set_permissions(&engine, fs::Permissions::from_mode(0o755)).expect("set");
    let mut command = place.command();
    let path = std::env::var("PATH").expect("set");
    command.env("PATH", format!("{}:{path}", place.place.path().display()));
    command.arg("--bind-socket").arg(place.socket()).arg("--allow-same-uid-peer");
    let child = command.spawn().expect("runs");
    let mut driver = Running { child, client: connect(&place.socket()).await };
    let with = |id: &str, image: &str| {
        let mut wanted = sandbox(id);
        let template = wanted.spec.as_mut().and_then(|spec| spec.template.as_mut());
        template.expect("a template").image = image.to_owned();
        wanted
    };
    for id in ["a", "b"] {
        let wanted = with(id, "openshell/sandbox-from:1");
        create(&mut driver.client, wanted).await.expect("created");
        place.machine(id).await;
    }
    let asked = fs::read_to_string(place.path("docker.log")).expect("read");
    assert_eq!(asked, "inspect\nsave\ninspect\n", "the second one is in the cache");
    let made = fs::read_to_string(place.path("rootfs.log")).expect("read");
    let pulled = made.lines().filter(|line| line.starts_with("pull docker-archive:/")).count();
    assert_eq!(pulled, 1, "{made}");
    let kept = fs::read_dir(place.path("state/engine")).expect("read");
    assert_eq!(kept.count(), 1, "no archive is left");
    create(&mut driver.client, with("c", "openshell/sandbox-from:2")).await.expect("created");
    let found = wait_for(&mut driver.client, "c", "ProvisioningFailed").await;
    assert!(found.message.contains("No such image: openshell/sandbox-from:2"), "{found:?}");
}

/// Sandboxes that come and go, and how many of them at a time.
const CYCLES: usize = 200;
const AT_ONCE: usize = 4;

#[tokio::test]
async fn two_hundred_cycles_leave_nothing_behind() {
    let place = Place::new();
    let driver = place.run().await;
    let cycle = async |number: usize| {
        let mut client = driver.client.clone();
        let id = format!("cycle-{number}");
        create(&mut client, sandbox(&id)).await.expect("created");
        match number % 3 {
            // Deleted at once, with a process, and after its end.
            0 => {}
            1 => drop(place.machine(&id).await),
            _ => {
                let pid = place.machine(&id).await;
                kill_process(Pid::from_raw(pid).expect("a process"), Signal::KILL).expect("killed");
                wait_for(&mut client, &id, "ProcessExited").await;
            }
        }
        assert_eq!(delete(&mut client, &id).await, Ok(true));
        assert!(!place.sandbox(&id).exists());
    };
    let some = async |first: usize| {
        for number in (first..CYCLES).step_by(AT_ONCE) {
            cycle(number).await;
        }
    };
    let descriptors = || {
        let all = fs::read_dir(format!("/proc/{}/fd", driver.child.id())).expect("read");
        all.count()
    };
    // What the driver takes once and keeps.
    cycle(CYCLES).await;
    let before = descriptors();
    tokio::join!(some(0), some(1), some(2), some(3));
    for directory in ["sandboxes", "trash"] {
        let left = fs::read_dir(place.path("state").join(directory)).expect("read").count();
        assert_eq!(left, 0, "{directory}");
    }
    let parent = driver.child.id().to_string();
    until(|| {
        let processes = fs::read_dir("/proc").expect("read").flatten();
        let mut stats =
            processes.filter_map(|one| fs::read_to_string(one.path().join("stat")).ok());
        // State and parent come behind the name.
        stats.all(|stat| {
            let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            rest.split(' ').nth(1) != Some(&*parent)
        })
    })
    .await;
    until(|| descriptors() <= before + 2).await;
}
