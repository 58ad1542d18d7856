//! Programs that people use, as clients behind the stack.

use crate::rig::{Beside, HOST, Rig, WORLD, eventually, output};

/// Waits until somebody listens at this port of the namespace.
fn until_served(namespace: &openshell_tests::netns::Namespace, port: u16) {
    eventually("a server", || {
        let mut ss = namespace.command("ss");
        let said = output(ss.args(["-Hltn", &format!("sport = :{port}")]));
        (!said.trim().is_empty()).then_some(())
    });
}

/// What a run of iperf3 came to. Its server takes a moment between two.
fn iperf3(rig: &Rig, words: &[&str]) -> serde_json::Value {
    eventually("a run of iperf3", || {
        let mut iperf = rig.guest.command("timeout");
        iperf.args(["30", "iperf3", "-c", &HOST.to_string(), "-p", "5301", "-t", "2", "-J"]);
        let said = iperf.args(words).output().unwrap().stdout;
        let json: serde_json::Value = serde_json::from_slice(&said).ok()?;
        json.get("error").is_none().then(|| json["end"].clone())
    })
}

#[test]
fn iperf3_moves_bytes_both_ways_with_one_stream_and_with_eight() {
    let rig = Rig::open();
    let _server =
        Beside::start(rig.host.command("iperf3").args(["-s", "-B", "127.0.0.1", "-p", "5301"]));
    until_served(&rig.host, 5301);
    for words in [&[][..], &["-R"], &["-P", "8"], &["-P", "8", "-R"]] {
        let bits = iperf3(&rig, words)["sum_received"]["bits_per_second"].as_f64().unwrap();
        println!("iperf3 {words:?}: {:.2} Gb/s", bits / 1e9);
        // Far below what any machine moves when nothing stalls.
        assert!(bits > 50e6, "{words:?}: {bits}");
    }
    let end = iperf3(&rig, &["-u", "-b", "50M"]);
    let lost = end["sum"]["lost_percent"].as_f64().unwrap();
    assert!(lost < 50.0, "{lost} % lost");
    rig.end();
}

#[test]
fn curl_speaks_http_1_and_2() {
    let rig = Rig::open();
    let root = rig.path("root");
    std::fs::create_dir(&root).unwrap();
    let body: Vec<u8> =
        (0..8_u32 << 20).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    std::fs::write(root.join("file"), &body).unwrap();
    let fetch = |words: &[&str], port: u16| {
        let into = rig.path("fetched");
        let mut curl = rig.guest.command("curl");
        curl.args(["-sS", "--max-time", "50", "-w", "%{http_version}", "-o"])
            .arg(&into)
            .args(words);
        let said = output(curl.arg(format!("http://{HOST}:{port}/file")));
        assert!(std::fs::read(&into).unwrap() == body, "{words:?}");
        said
    };
    let mut web = rig.host.command("busybox");
    web.args(["httpd", "-f", "-p", "127.0.0.1:8001", "-h"]).arg(&root);
    let _one = Beside::start(&mut web);
    until_served(&rig.host, 8001);
    assert!(fetch(&["--http1.1"], 8001).starts_with('1'));
    let mut web = rig.host.command("nghttpd");
    web.args(["--no-tls", "-a", "127.0.0.1", "-d"]).arg(&root).arg("8002");
    let _two = Beside::start(&mut web);
    until_served(&rig.host, 8002);
    assert_eq!(fetch(&["--http2-prior-knowledge"], 8002), "2");
    rig.end();
}

/// How long a stream lasts that lasts an hour where there is time for it, in seconds.
fn long() -> u32 {
    if std::env::var_os("OPENSHELL_NET_LONG").is_some() { 3600 } else { 8 }
}

#[test]
fn a_slow_stream_of_http_2_lasts_beside_fast_ones() {
    let rig = Rig::open();
    let root = rig.path("root");
    std::fs::create_dir(&root).unwrap();
    let body: Vec<u8> =
        (0..16_u32 << 20).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    std::fs::write(root.join("file"), &body).unwrap();
    let mut web = rig.host.command("nghttpd");
    web.args(["--no-tls", "-a", "127.0.0.1", "-d"]).arg(&root).arg("8002");
    let _web = Beside::start(&mut web);
    until_served(&rig.host, 8002);
    let fetch = |into: &std::path::Path, rate: u32| {
        let mut curl = rig.guest.command("curl");
        curl.args(["-sS", "--http2-prior-knowledge", "-w", "%{http_version}"]);
        curl.args(["--limit-rate", &rate.to_string(), "-o"]).arg(into);
        let output = curl.arg(format!("http://{HOST}:8002/file")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, b"2");
        assert!(std::fs::read(into).unwrap() == body, "{}", into.display());
    };
    let (slow, fast) = (rig.path("slow"), rig.path("fast"));
    let begin = std::time::Instant::now();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| fetch(&slow, (16 << 20) / long()));
        for _ in 0..4 {
            fetch(&fast, 1 << 30);
        }
        assert!(!slow.is_finished(), "it was to be slow");
    });
    assert!(begin.elapsed().as_secs() >= u64::from(long() / 2), "it was to be slow");
    let said = rig.end();
    assert_eq!(Rig::counter(&said, "tcp_established"), 5, "{said}");
    assert_eq!(Rig::counter(&said, "tcp_resets_sent"), 0, "{said}");
}

/// Whether the tests are root of the host, and not of a user namespace: a server that becomes another user needs that.
fn is_root_of_the_host() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295")
}

#[test]
fn ssh_carries_commands_and_their_data() {
    if !is_root_of_the_host() {
        println!("not run: sshd wants to become its own user, which is not in this user namespace");
        return;
    }
    let rig = Rig::open();
    for key in ["host_key", "key"] {
        let mut keygen = std::process::Command::new("ssh-keygen");
        output(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(rig.path(key)));
    }
    let path = |name: &str| rig.path(name).display().to_string();
    let config = format!(
        "HostKey {}\nAuthorizedKeysFile {}\nPermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n",
        path("host_key"),
        path("key.pub"),
    );
    std::fs::write(rig.path("sshd_config"), config).unwrap();
    std::fs::create_dir_all("/run/sshd").unwrap();
    let mut server = rig.host.command("/usr/sbin/sshd");
    server.args(["-D", "-o", "ListenAddress=127.0.0.1:2222", "-f"]).arg(rig.path("sshd_config"));
    let _server = Beside::start(&mut server);
    until_served(&rig.host, 2222);
    let body: Vec<u8> =
        (0..8_u32 << 20).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    std::fs::write(rig.path("body"), &body).unwrap();
    let (from, into) = (rig.path("body"), rig.path("back"));
    let ssh = format!(
        "exec timeout 50 ssh -T -p 2222 -i {} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o LogLevel=ERROR root@{HOST} 'cat; echo $SSH_CONNECTION >&2' <{} >{}",
        path("key"),
        from.display(),
        into.display(),
    );
    let mut shell = rig.guest.command("sh");
    let said = output(shell.args(["-c", &ssh]));
    assert!(said.starts_with("127.0.0.1 "), "the host sees itself: {said}");
    assert!(std::fs::read(into).unwrap() == body);
    rig.end();
}

#[test]
fn the_world_is_reached_through_the_host() {
    let rig = Rig::with(&[]);
    let root = rig.path("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("file"), vec![7; 1 << 20]).unwrap();
    let mut web = rig.world.command("busybox");
    let _web = Beside::start(web.args(["httpd", "-f", "-p", "80", "-h"]).arg(&root));
    until_served(&rig.world, 80);
    let mut curl = rig.guest.command("curl");
    let said = output(
        curl.args(["-sS", "--max-time", "50", "-o", "/dev/null", "-w", "%{size_download}"])
            .arg(format!("http://{WORLD}/file")),
    );
    assert_eq!(said, (1 << 20).to_string());
    rig.end();
}
