//! What a script does with the client, over TLS.

use openshell_gateway::certs;
use sha2::{Digest as _, Sha256};

use crate::rig::{Door, Rig};
use crate::supervisor::Supervisor;

async fn created(rig: &Rig, name: &str) -> String {
    let said = rig.call(&["create", name, "-o", "json"], b"").await.json();
    assert_eq!((said["name"].as_str(), said["phase"].as_str()), (Some(name), Some("Provisioning")));
    said["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_makes_uses_stops_and_deletes_a_sandbox() {
    let rig = Rig::new(Door::Tls);
    let words = ["create", "one", "--env", "A=b", "--cpu", "1", "--memory", "256Mi"];
    let words = [&words[..], &["--label", "of=test", "--", "sleep", "9"]].concat();
    let said = rig.call(&words, b"").await;
    assert!(said.code == 0 && said.text().contains("one   Provisioning"), "{said:?}");
    let id = rig.call(&["get", "one", "-o", "json"], b"").await.json()["id"].clone();
    let id = id.as_str().unwrap();
    let spec = rig.given(id).spec.unwrap();
    assert_eq!((spec.command.join(" "), spec.environment["A"].as_str()), ("sleep 9".into(), "b"));
    assert_eq!(spec.template.unwrap().resources.unwrap().memory_limit, "256Mi");

    // Not ready yet: said, with the code that is ours.
    let early = rig.call(&["exec", "one", "--", "true"], b"").await;
    assert_eq!((early.code, early.err.lines().count()), (125, 1), "{early:?}");
    assert!(early.err.contains("sandbox is not ready"), "{early:?}");

    let supervisor = Supervisor::start(&rig, id, "run-1");
    rig.until("one", "ready").await;
    let script = "cat; echo oh >&2; exit 7";
    let said = rig.call(&["exec", "one", "--", "sh", "-c", script], b"to and fro").await;
    assert_eq!((said.code, said.text().as_str(), said.err.as_str()), (7, "to and fro", "oh\n"));
    let words = ["exec", "one", "-n", "--workdir", "/", "--env", "X=a b", "--"];
    let said = rig.call(&[&words[..], &["sh", "-c", "pwd; echo $X"]].concat(), b"").await;
    assert_eq!((said.code, said.text().as_str()), (0, "/\na b\n"));
    let late = rig.call(&["exec", "one", "-n", "--timeout", "1", "--", "sleep", "60"], b"").await;
    assert_eq!(late.code, 124, "{late:?}");

    let list = rig.call(&["list", "--selector", "of=test", "-o", "json"], b"").await.json();
    assert_eq!((list.as_array().unwrap().len(), list[0]["phase"].as_str()), (1, Some("Ready")));
    assert_eq!(rig.call(&["list", "--selector", "of=no", "-o", "json"], b"").await.text(), "[]\n");
    let logs = rig.call(&["logs", "one"], b"").await;
    assert!(logs.code == 0 && logs.text().contains("session"), "{logs:?}");

    let stopped = rig.call(&["stop", "one", "--wait"], b"").await;
    assert!(stopped.code == 0 && stopped.text().contains("Stopped"), "{stopped:?}");
    drop(supervisor);
    let started = rig.call(&["start", "one"], b"").await;
    assert_eq!(started.code, 0, "{started:?}");
    let _supervisor = Supervisor::start(&rig, id, "run-2");
    rig.until("one", "ready").await;
    let said = rig.call(&["delete", "one"], b"").await;
    assert_eq!((said.code, said.text().as_str()), (0, "deleted one\n"));
    let gone = rig.call(&["get", "one"], b"").await;
    assert_eq!(
        (gone.code, gone.err.as_str()),
        (1, "openshell-gateway: sandbox `one`: not found\n")
    );
    assert_eq!(rig.stub.running(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_end_and_say_what_was_last_heard() {
    let rig = Rig::new(Door::Tls);
    let late = rig.call(&["create", "slow", "--wait", "--timeout", "1"], b"").await;
    assert_eq!((late.code, late.err.lines().count()), (124, 1), "{late:?}");
    assert!(late.err.contains("Provisioning after 1 s, not ready; Starting: "), "{late:?}");
    rig.stub.set_refusal(Some("no such image"));
    let failed = rig.call(&["create", "bad", "--wait"], b"").await;
    assert_eq!((failed.code, failed.err.lines().count()), (1, 1), "{failed:?}");
    assert!(failed.err.contains("ProvisioningFailed: "), "{failed:?}");
    assert!(failed.err.contains("no such image"), "{failed:?}");
    let again = rig.call(&["create", "bad"], b"").await;
    assert!(again.code == 1 && again.err.contains("(AlreadyExists)"), "{again:?}");
    for (words, expected) in [
        (&["create", "Not A Name"][..], "InvalidArgument"),
        (&["delete", "none"][..], "not found"),
        (&["stop", "slow"][..], "FailedPrecondition"),
    ] {
        let said = rig.call(words, b"").await;
        assert!(said.code == 1 && said.err.contains(expected), "{words:?}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guests_certificate_and_a_strangers_open_nothing() {
    let rig = Rig::new(Door::Tls);
    let other = tempfile::tempdir().unwrap();
    certs::generate(other.path(), &[]).unwrap();
    // The files that a guest has.
    let guest = tempfile::tempdir().unwrap();
    for (from, to) in
        [("ca.crt", "ca.crt"), ("guest/tls.crt", "tls.crt"), ("guest/tls.key", "tls.key")]
    {
        std::fs::copy(rig.tls().join(from), guest.path().join(to)).unwrap();
    }
    let refused = rig.call_as(guest.path(), &["list"], b"").await;
    assert!(refused.code == 1 && refused.err.contains("(Unauthenticated)"), "{refused:?}");
    assert!(refused.err.contains("guest's certificate"), "{refused:?}");
    let refused = rig.call_as(other.path(), &["list"], b"").await;
    assert_eq!((refused.code, refused.err.lines().count()), (1, 1), "{refused:?}");
    assert_eq!(rig.call(&["list"], b"").await.code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_goes_both_ways_at_once() {
    let rig = Rig::new(Door::Tls);
    let id = created(&rig, "one").await;
    let _supervisor = Supervisor::start(&rig, &id, "run-1");
    rig.until("one", "ready").await;
    let sent: Vec<u8> =
        (0..16_u32 << 20).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let said = rig.call(&["exec", "one", "--", "cat"], &sent).await;
    assert_eq!((said.code, said.out.len()), (0, sent.len()), "{}", said.err);
    assert_eq!(Sha256::digest(&said.out), Sha256::digest(&sent));
    let script = "head -c 67108864 /dev/zero | tr '\\0' x";
    let said = rig.call(&["exec", "one", "-n", "--", "sh", "-c", script], b"").await;
    assert_eq!((said.code, said.out.len()), (0, 64 << 20), "{}", said.err);
    assert!(said.out.iter().all(|byte| *byte == b'x'));
}
