//! The store as its users and its accidents leave it, with stand-ins for the processes of machines.

use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};

use super::identity::Identity;
use super::journal::{Event, Events, Journal};
use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let home = tempfile::tempdir().unwrap();
    let store = Store::at(home.path().join("openshell-vmm"));
    (home, store)
}

fn record(name: &str) -> Record {
    Record {
        schema: record::SCHEMA,
        id: String::new(),
        name: name.to_owned(),
        created_unix_ms: 1,
        ephemeral: false,
        words: vec!["image".to_owned()],
        cwd: PathBuf::from("/"),
        image: None,
        process: None,
        labels: BTreeMap::new(),
        cpus: 1,
        memory_bytes: 1 << 29,
        ports: Vec::new(),
    }
}

/// A process that says it runs a machine.
fn claim_for(machine: &Machine, child: &Child) {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let ticks = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    let boot_id = Identity::of_process().unwrap().boot_id;
    let process = Identity { pid: child.id(), start_ticks: ticks, boot_id };
    let running = Running { schema: record::SCHEMA, process, started_unix_ms: 2 };
    replace(&machine.path(names::PROCESS), &running).unwrap();
}

fn sleeper() -> Child {
    Command::new("sleep").arg("60").spawn().unwrap()
}

fn names_of(store: &Store) -> Vec<String> {
    store.list().into_iter().map(|machine| machine.record.name).collect()
}

#[test]
fn a_machine_is_found_by_name_id_and_the_beginning_of_that() {
    let (_home, store) = store();
    let first = store.create(record("first")).unwrap().machine;
    let second = store.create(record("")).unwrap().machine;
    assert_eq!(second.record.name, second.record.id);
    assert_eq!(second.record.id.len(), 12);
    for word in ["first", &first.record.id, &first.record.id[..6]] {
        assert_eq!(store.find(word).unwrap().record.name, "first", "{word}");
    }
    assert_eq!(first.status(), Status::Created);
    let directory = fs::metadata(&first.directory).unwrap();
    assert_eq!(directory.mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(first.path(names::RECORD)).unwrap().mode() & 0o7777, 0o600);
    for (word, code) in [("none", 3), ("../first", 3), ("", 3), ("abc", 3), (".new-x", 3)] {
        assert_eq!(store.find(word).unwrap_err().code(), code, "{word}");
    }
    let other = Record { id: first.record.id.clone(), ..record("copy") };
    let copy = store.create(other).unwrap();
    assert_ne!(copy.machine.record.id, first.record.id, "an id is never taken over");
}

#[test]
fn names_are_taken_once_and_only_what_can_be_one() {
    let (_home, store) = store();
    drop(store.create(record("one")).unwrap());
    let error = store.create(record("one")).unwrap_err();
    assert!(matches!(&error, StoreError::NameTaken { name } if name == "one"));
    assert_eq!(error.code(), 5);
    for name in ["..", ".x", "-x", "a/b", "a b", "\u{e9}", &"x".repeat(64)] {
        assert!(matches!(store.create(record(name)), Err(StoreError::BadName { .. })), "{name}");
    }
    assert_eq!(names_of(&store), ["one"]);
    let entries = fs::read_dir(store.root().join("machines")).unwrap().count();
    assert_eq!(entries, 1, "a refusal leaves nothing");
}

#[test]
fn of_many_who_want_a_name_one_gets_it() {
    let (_home, store) = store();
    let won: usize = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..16).map(|_| scope.spawn(|| store.create(record("name")).is_ok())).collect();
        threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
    });
    assert_eq!(won, 1);
    assert_eq!(fs::read_dir(store.root().join("machines")).unwrap().count(), 1);
}

#[test]
fn who_changes_a_machine_holds_it_alone() {
    let (_home, store) = store();
    let held = store.create(record("one")).unwrap();
    let begin = Instant::now();
    let error = store.find("one").unwrap().hold().unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }) && error.code() == 5);
    assert!(begin.elapsed() >= LOCK_PATIENCE);
    // A look that is over in a moment is waited for.
    let releaser = thread::Builder::new()
        .spawn(move || {
            thread::sleep(LOCK_PATIENCE / 5);
            drop(held);
        })
        .unwrap();
    let held = store.find("one").unwrap().hold().unwrap();
    releaser.join().unwrap();
    let second = store.find("one").unwrap();
    held.remove(&store).unwrap();
    assert!(matches!(second.hold(), Err(StoreError::NotFound { .. })));
    assert!(names_of(&store).is_empty());
}

#[test]
fn removed_and_made_again_a_name_is_another_machine() {
    let (_home, store) = store();
    drop(store.create(record("one")).unwrap());
    let old = store.find("one").unwrap();
    let lock = open_lock(&old.directory).unwrap();
    store.find("one").unwrap().hold().unwrap().remove(&store).unwrap();
    let new = store.create(record("one")).unwrap();
    assert!(!is_at(&lock, &new.machine.path(names::LOCK)));
    assert_ne!(new.machine.record.id, old.record.id);
}

#[test]
fn status_comes_from_the_process_table() {
    let (_home, store) = store();
    let held = store.create(record("one")).unwrap();
    let machine = held.machine.clone();
    let mut child = sleeper();
    claim_for(&machine, &child);
    assert!(matches!(machine.status(), Status::Running(run) if run.process.pid == child.id()));
    drop(held);
    // It is locked by nobody here, and still it runs: no other command may change it. A real machine holds its lock.
    let lock = open_lock(&machine.directory).unwrap();
    lock.lock().unwrap();
    let error = machine.clone().hold().unwrap_err();
    assert!(matches!(error, StoreError::Running { pid, .. } if pid == child.id()));
    drop(lock);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(machine.status(), Status::Dead);
    let write = |text: &str| fs::write(machine.path(names::RESULT), text).unwrap();
    write(&format!("{{\"schema\":1,\"source\":\"vmm\",\"code\":125,\"reason\":\"{CUT_OFF}\"}}"));
    assert_eq!(machine.status(), Status::Dead);
    write("{\"schema\":1,\"source\":\"guest\",\"code\":7,\"reason\":\"it ended\",\"more\":[]}");
    assert!(matches!(machine.status(), Status::Exited(ended) if ended.code == 7));
    write("{\"schema\":1,\"sou");
    assert_eq!(machine.status(), Status::Dead, "a torn file is no success");
    let held = machine.clone().hold().unwrap();
    held.claim().unwrap();
    let Status::Running(run) = machine.status() else { panic!("this process runs it") };
    assert_eq!(run.process, Identity::of_process().unwrap());
}

#[test]
fn what_was_to_go_is_swept_and_what_runs_stays() {
    let (_home, store) = store();
    let short = |name| Record { ephemeral: true, ..record(name) };
    for name in ["kept", "fresh"] {
        drop(store.create(if name == "kept" { record(name) } else { short(name) }).unwrap());
    }
    let mut child = sleeper();
    let running = store.create(short("running")).unwrap();
    claim_for(&running.machine, &child);
    let mut gone = sleeper();
    for name in ["killed", "kept-killed"] {
        let held = store.create(if name == "killed" { short(name) } else { record(name) }).unwrap();
        claim_for(&held.machine, &gone);
    }
    gone.kill().unwrap();
    gone.wait().unwrap();
    store.sweep();
    assert_eq!(names_of(&store), ["fresh", "kept", "kept-killed", "running"]);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(running);
    store.sweep();
    assert_eq!(names_of(&store), ["fresh", "kept", "kept-killed"]);
}

#[test]
fn prune_takes_what_nobody_has_and_says_so_before() {
    let (_home, store) = store();
    for name in ["one", "two"] {
        drop(store.create(record(name)).unwrap());
    }
    let busy = store.create(record("busy")).unwrap();
    let mut child = sleeper();
    let running = store.create(record("running")).unwrap();
    claim_for(&running.machine, &child);
    let machines = store.root().join("machines");
    // Half made by one who is still at it, and by one who is not.
    let mut at_it = Vec::new();
    for (name, live) in [(".new-aa", true), (".gone-bb", false)] {
        fs::create_dir(machines.join(name)).unwrap();
        fs::write(machines.join(name).join(names::RECORD), b"{").unwrap();
        let lock = make_lock(&machines.join(name)).unwrap();
        if live {
            at_it.push(lock);
        }
    }
    let would = store.prune(u64::MAX, true).unwrap();
    assert_eq!(would.machines, ["busy", "one", "two"]);
    assert_eq!(would.leftovers, [machines.join(".gone-bb")]);
    assert_eq!(names_of(&store).len(), 4, "nothing went");
    assert!(store.prune(1, false).unwrap().machines.is_empty(), "nothing is that old");
    let did = store.prune(u64::MAX, false).unwrap();
    assert_eq!(did.machines, ["one", "two"]);
    assert!(did.bytes > 0);
    assert_eq!(names_of(&store), ["busy", "running"]);
    assert!(machines.join(".new-aa").exists() && !machines.join(".gone-bb").exists());
    drop(busy);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(running);
    assert_eq!(store.prune(u64::MAX, false).unwrap().machines, ["busy", "running"]);
}

#[test]
fn who_sweeps_takes_nothing_from_who_makes() {
    let (_home, store) = store();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.sweep();
                store.prune(0, false).unwrap();
            }
        });
        let made = (0..500).try_for_each(|number| {
            store.create(record(&format!("m{number}"))).and_then(|held| held.remove(&store))
        });
        done.store(true, Ordering::Relaxed);
        made.unwrap();
    });
    assert!(store.entries().is_empty());
}

#[test]
fn what_is_left_of_a_removal_goes_once_nobody_can_be_at_it() {
    let (_home, store) = store();
    let held = store.create(record("one")).unwrap();
    let directory = held.machine.directory.clone();
    fs::write(directory.join("odd"), b"x").unwrap();
    remove_own(&directory);
    assert!(directory.exists(), "what is not known is not removed");
    assert!(matches!(held.machine.clone().hold(), Err(StoreError::NotFound { .. })));
    store.sweep();
    assert!(directory.exists(), "its last moment, perhaps");
    let old = std::time::SystemTime::now() - Duration::from_secs(120);
    File::open(&directory).unwrap().set_modified(old).unwrap();
    store.sweep();
    assert!(!directory.exists());
}

#[test]
fn a_machine_of_another_version_is_left_alone() {
    let (_home, store) = store();
    drop(store.create(record("old")).unwrap());
    let path = store.root().join("machines/old").join(names::RECORD);
    fs::write(&path, "{\"schema\":2,\"name\":\"old\"}").unwrap();
    let error = store.find("old").unwrap_err();
    assert!(error.to_string().contains("is of version 2"), "{error}");
    assert!(names_of(&store).is_empty());
    store.sweep();
    assert!(store.prune(u64::MAX, false).is_err());
    assert!(path.exists());
}

#[test]
fn a_machine_removes_itself_to_the_last_file() {
    let (_home, store) = store();
    let held = store.create(record("one")).unwrap();
    let directory = held.machine.directory.clone();
    for name in names::ALL {
        fs::write(directory.join(name), b"x").unwrap();
    }
    remove_own(&directory);
    assert!(!directory.exists());
}

#[test]
fn the_journal_is_read_while_it_grows_and_after_it_was_replaced() {
    let (_home, store) = store();
    let machine = store.create(record("one")).unwrap().machine;
    let mut events = Events::of(&store);
    assert!(events.more().is_empty());
    let mut journal = Journal::open(&store);
    journal.add(&Event::now("create", &machine));
    journal.add(&Event { code: Some(7), ..Event::now("die", &machine) });
    let seen = events.more();
    assert_eq!((seen.len(), seen[1].code, seen[1].name.as_str()), (2, Some(7), "one"));
    assert!(events.more().is_empty());
    for _ in 0..20_000 {
        journal.add(&Event::now("start", &machine));
    }
    // Whoever opens it next finds it too large.
    let mut next = Journal::open(&store);
    journal.add(&Event::now("pause", &machine));
    next.add(&Event::now("resume", &machine));
    let seen = events.more();
    assert_eq!(seen.len(), 20_002);
    assert_eq!(seen.last().unwrap().event, "resume");
    let bytes: u64 = ["events.0", "events.1"]
        .iter()
        .map(|name| fs::metadata(store.root().join(name)).unwrap().len())
        .sum();
    assert!(bytes < 4 << 20, "{bytes}");
    let again = Events::of(&store).more();
    assert_eq!(again.len(), 20_004, "both files are read");
}

#[test]
fn a_socket_is_reached_through_a_path_that_is_too_long() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::at(home.path().join("d".repeat(120)));
    let machine = store.create(record("one")).unwrap().machine;
    let path = machine.socket("control").unwrap();
    assert!(path.as_os_str().len() < 40, "{}", path.display());
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(machine.path("control").exists());
    assert!(std::os::unix::net::UnixStream::connect(machine.socket("control").unwrap()).is_ok());
    drop(listener);
}
