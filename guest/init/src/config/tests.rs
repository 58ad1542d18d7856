//! What a config may say, and what it is told when it says something else.

use proptest::prelude::*;

use super::*;

fn with(more: &str) -> String {
    format!(r#"{{"version": 1, "process": {{"args": ["/bin/true"]}}{more}}}"#)
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    let message = parse(text.as_bytes()).expect_err(text);
    assert!(message.contains(expected), "{text}: {message}");
}

#[test]
fn the_example_of_the_document_is_read() {
    let page = include_str!("../../../../docs/guest.md");
    let json = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let config = parse(json.as_bytes()).unwrap();
    assert_eq!(config.hostname.as_deref(), Some("work"));
    assert_eq!(config.network.mode(), Mode::Static);
    let address = Prefix { address: [192, 168, 127, 2].into(), len: 24 };
    assert_eq!(config.network.address, Some(address));
    assert_eq!(config.directories[0].mode(), 0o755);
    assert_eq!(config.hosts[0].names.len(), 3);
    assert_eq!(config.programs, [Tool::Ip, Tool::Nsenter]);
    assert_eq!(config.process.cwd(), "/");
}

#[test]
fn the_least_has_defaults() {
    let config = parse(with("").as_bytes()).unwrap();
    assert_eq!(config.network.interface(), "eth0");
    assert_eq!(config.network.mode(), Mode::Dhcp);
    assert!(!config.network.is_required());
    assert_eq!(config.process.cwd(), "/");
    assert!(!config.process.tty && !config.process.pid1);
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    refused("", "line 1 column 0: EOF");
    refused("{\n \"version\": 1,\n \"hostnam\": 1}", "line 3 column 10: unknown field `hostnam`");
    refused(r#"{"version": 1}"#, "missing field `process`");
    refused(r#"{"version": 2, "process": {"args": ["a"]}}"#, "version 2 is not 1");
    refused(r#"{"version": 1, "process": {"args": []}}"#, "process.args");
    refused(r#"{"version": 1, "process": {"args": ["a\u0000b"]}}"#, "process.args");
    refused(r#"{"version": 1, "process": {"args": ["a"], "env": ["=x"]}}"#, "process.env");
    refused(r#"{"version": 1, "process": {"args": ["a"], "env": ["x"]}}"#, "process.env");
    refused(r#"{"version": 1, "process": {"args": ["a"], "cwd": "x"}}"#, "process.cwd");
    refused(r#"{"version": 1, "process": {"args": ["a"], "cwd": "/../x"}}"#, "process.cwd");
    refused(
        r#"{"version": 1, "agent": true, "process": {"args": ["a"], "pid1": true}}"#,
        "agent needs a first process",
    );
    refused(
        r#"{"version": 1, "process": {"args": ["a"], "streams": {}}}"#,
        "process.streams need agent",
    );
    refused(
        r#"{"version": 1, "agent": true, "process": {"args": ["a"], "streams": {"rows": -1}}}"#,
        "invalid value",
    );
    for (more, expected) in [
        (r#", "hostname": "a b""#, "hostname"),
        (r#", "hostname": """#, "hostname"),
        (r#", "network": {"mode": "static"}"#, "static without an address"),
        (r#", "network": {"address": "1.2.3.4"}"#, "no ADDRESS/BITS"),
        (r#", "network": {"address": "1.2.3.4/33"}"#, "no ADDRESS/BITS"),
        (r#", "network": {"mtu": 67}"#, "mtu"),
        (r#", "network": {"interface": "../x"}"#, "network.interface"),
        (r#", "network": {"interface": "a-name-too-long-"}"#, "network.interface"),
        (r#", "hosts": [{"address": "1.2.3.4", "names": ["a\nb"]}]"#, "hosts"),
        (r#", "directories": [{"path": "x", "mode": "755"}]"#, "path of a directory"),
        (r#", "directories": [{"path": "/x", "mode": "8"}]"#, "mode of a directory"),
        (r#", "directories": [{"path": "/x", "mode": "+755"}]"#, "mode of a directory"),
        (r#", "hooks": [[]]"#, "hook"),
        (r#", "programs": ["sh"]"#, "expected `ip` or `nsenter`"),
        (r#", "agent": 1"#, "expected a boolean"),
        (r#", "volatile": 1"#, "expected a boolean"),
    ] {
        refused(&with(more), expected);
    }
    let many = vec!["\"A=1\""; WORDS_MAX + 1].join(",");
    refused(
        &format!(r#"{{"version": 1, "process": {{"args": ["a"], "env": [{many}]}}}}"#),
        "process.env",
    );
    refused(&" ".repeat(BYTES_MAX + 1), "larger than");
}

#[test]
fn a_secret_in_the_environment_is_not_in_the_message() {
    let text = r#"{"version": 1, "process": {"args": ["a"], "env": ["TOKEN=secret\u0000"]}}"#;
    let message = parse(text.as_bytes()).unwrap_err();
    assert!(message.contains("TOKEN") && !message.contains("secret"), "{message}");
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(parse(&bytes));
    }

    #[test]
    fn any_change_of_a_good_file_is_judged(at in 0_usize..500, byte in any::<u8>()) {
        let page = include_str!("../../../../docs/guest.md");
        let json = page.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
        let mut bytes = json.as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(config) = parse(&bytes) {
            prop_assert!(!config.process.args.is_empty());
            prop_assert!(config.directories.iter().all(|directory| directory.mode() <= 0o7777));
        }
    }
}
