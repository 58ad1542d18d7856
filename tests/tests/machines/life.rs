//! A machine with a name, from its creation to its removal.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::rig::{DEADLINE, Home};

const SCRIPT: &str = r#"trap "echo bye; exit 5" USR1
trap "echo heard" USR2
cat mark 2>/dev/null
echo kept >mark
echo ready
while :; do sleep 3600 & wait $!; done"#;

#[test]
fn a_machine_is_stopped_as_its_image_says_and_keeps_what_it_wrote() {
    let home = Home::new();
    let image = home.shell_image();
    let flags = ["-d", "--name", "work", "--stop-timeout", "100", &image, "--", SCRIPT];
    home.run(flags).finish().expect_code(0);
    home.until_logged("work", "ready");
    assert_eq!(home.status("work"), "running");
    home.says(&["pause", "work"]);
    home.says(&["kill", "-s", "USR2", "work"]);
    std::thread::sleep(Duration::from_millis(500));
    assert!(!home.says(&["logs", "work"]).contains("heard"), "a paused machine does nothing");
    home.says(&["resume", "work"]);
    home.says(&["kill", "-s", "USR2", "work"]);
    home.until_logged("work", "heard");
    assert_eq!(home.says(&["stop", "work"]), "work\n");
    assert_eq!(
        (home.says(&["wait", "work"]).as_str(), home.status("work").as_str()),
        ("5\n", "exited")
    );
    let log = home.says(&["logs", "work"]);
    assert!(log.ends_with("bye\n") && !log.contains("kept"), "{log}");
    home.says(&["start", "work"]);
    home.until_logged("work", "kept");
    home.until_logged("work", "kept\nready");
    home.kill_process("work");
    assert_eq!(home.status("work"), "dead");
    assert!(home.says(&["logs", "--tail", "1", "work"]).contains("ready"));
    home.says(&["rm", "work"]);
}

#[test]
fn a_published_port_of_a_machine_in_the_background_leads_to_it() {
    let home = Home::new();
    let image = home.shell_image();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let publish = format!("{port}:8080");
    let serve = "while :; do echo answer | busybox nc -l -p 8080; done";
    home.run(["-d", "-n", "web", "--rm", "-p", &publish, &image, "--", serve])
        .finish()
        .expect_code(0);
    assert_eq!(home.says(&["port", "web"]), format!("127.0.0.1:{port} -> 8080/tcp\n"));
    let begin = Instant::now();
    loop {
        let mut answer = String::new();
        let asked = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).and_then(|mut stream| {
            stream.write_all(b"?\n")?;
            stream.read_to_string(&mut answer)
        });
        if asked.is_ok() && answer == "answer\n" {
            break;
        }
        assert!(begin.elapsed() < DEADLINE, "no answer: {asked:?} {answer:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    home.says(&["rm", "-f", "web"]);
    assert_eq!(home.says(&["ps", "-aq"]), "");
}
