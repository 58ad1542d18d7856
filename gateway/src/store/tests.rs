use openshell_proto::datamodel::v1::ObjectMeta;
use openshell_proto::v1::{Sandbox, SandboxStatus};

use super::*;

fn sandbox(id: &str, name: &str, workspace: &str, label: Option<(&str, &str)>) -> Sandbox {
    Sandbox {
        metadata: Some(ObjectMeta {
            id: id.into(),
            name: name.into(),
            workspace: workspace.into(),
            labels: label.map(|(key, value)| (key.into(), value.into())).into_iter().collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn names(rows: &[Sandbox]) -> Vec<&str> {
    rows.iter().map(|row| row.meta().unwrap().name.as_str()).collect()
}

async fn memory() -> Store {
    Store::open("sqlite::memory:").await.unwrap()
}

#[tokio::test]
async fn a_row_is_created_once() {
    let store = memory().await;
    let row = sandbox("1", "a", "w", None);
    assert_eq!(store.put_if(&row, Condition::MustCreate).await.unwrap(), 1);
    for again in [row.clone(), sandbox("1", "b", "w", None), sandbox("2", "a", "w", None)] {
        let error = store.put_if(&again, Condition::MustCreate).await.unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }), "{error:?}");
    }
    store.put_if(&sandbox("2", "a", "v", None), Condition::MustCreate).await.unwrap();
    let nameless = store.put_if(&Sandbox::default(), Condition::MustCreate).await.unwrap_err();
    assert!(matches!(nameless, StoreError::NoId { .. }));
    let found: Sandbox = store.fetch_by_name("w", "a").await.unwrap().unwrap();
    assert_eq!(found.meta().unwrap().id, "1");
    assert_eq!(found.meta().unwrap().resource_version, 1);
}

#[tokio::test]
async fn of_two_writers_one_gets_a_conflict() {
    let store = memory().await;
    let row = sandbox("1", "a", "w", None);
    store.put_if(&row, Condition::MustCreate).await.unwrap();
    let condition = Condition::MatchResourceVersion(1);
    assert_eq!(store.put_if(&row, condition).await.unwrap(), 2);
    let error = store.put_if(&row, condition).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
    let error = store.put_if(&sandbox("9", "z", "w", None), condition).await.unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error:?}");
    let error = store.put_if(&row, Condition::MatchResourceVersion(u64::MAX)).await.unwrap_err();
    assert!(matches!(error, StoreError::Version(_)), "{error:?}");
}

#[tokio::test]
async fn no_update_is_lost_among_writers() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?mode=rwc", directory.path().join("rows.db").display());
    let store = Store::open(&url).await.unwrap();
    store.put_if(&sandbox("1", "a", "w", None), Condition::MustCreate).await.unwrap();
    let mut writers = Vec::new();
    for _ in 0..4 {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            for _ in 0..10 {
                let add = |row: &Sandbox| {
                    let mut next = row.clone();
                    next.status.get_or_insert_default().current_policy_version += 1;
                    Some(next)
                };
                assert!(store.update_message_cas("1", add).await.unwrap().unwrap().1);
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let row: Sandbox = store.fetch("1").await.unwrap().unwrap();
    assert_eq!(row.status.as_ref().unwrap().current_policy_version, 40);
    assert_eq!(row.meta().unwrap().resource_version, 41);
}

#[tokio::test]
async fn rows_outlive_the_process_and_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rows.db");
    let url = format!("sqlite:{}", file.display());
    let mut row = sandbox("1", "a", "w", None);
    row.status = Some(SandboxStatus { exit_code: Some(0), ..Default::default() });
    let first = Store::open(&url).await.unwrap();
    first.put_if(&row, Condition::MustCreate).await.unwrap();
    // Not closed: as if the process had been killed.
    let second = Store::open(&url).await.unwrap();
    let found: Sandbox = second.fetch("1").await.unwrap().unwrap();
    assert_eq!(found.status, row.status);
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
    assert!(second.delete::<Sandbox>("1").await.unwrap());
    assert!(!second.delete::<Sandbox>("1").await.unwrap());
    assert!(second.fetch::<Sandbox>("1").await.unwrap().is_none());
}

#[tokio::test]
async fn rows_are_listed_by_workspace_and_labels() {
    let store = memory().await;
    for row in [
        sandbox("3", "c", "w", Some(("team", "x"))),
        sandbox("1", "a", "w", Some(("team", "y"))),
        sandbox("2", "b", "w", None),
        sandbox("4", "a", "v", Some(("team", "x"))),
    ] {
        store.put_if(&row, Condition::MustCreate).await.unwrap();
    }
    for (workspace, selector, expected) in [
        (Some("w"), "", &["a", "b", "c"][..]),
        (None, "", &["a", "a", "b", "c"]),
        (Some("w"), "team=x", &["c"]),
        (None, "team=x", &["a", "c"]),
        (Some("w"), "team=x,other=1", &[]),
        (Some("nobody's"), "", &[]),
    ] {
        let selector = Selector::parse(selector).unwrap();
        let rows = store.list::<Sandbox>(workspace, &selector).await.unwrap();
        assert_eq!(names(&rows), expected, "{workspace:?} {selector:?}");
    }
}

#[test]
fn selectors_are_key_and_value() {
    for (text, valid) in [
        ("", true),
        ("a=b", true),
        (" a=b , c=d ", true),
        ("a=", true),
        ("a=b,a=b", true),
        ("a", false),
        ("=b", false),
        ("a=b,a=c", false),
    ] {
        assert_eq!(Selector::parse(text).is_ok(), valid, "{text:?}");
    }
}

#[tokio::test]
async fn other_databases_are_refused_without_their_passwords() {
    let error = Store::open("mysql://root:hunter2@host/db").await.unwrap_err();
    assert!(matches!(error, StoreError::Url(_)));
    assert!(!error.to_string().contains("hunter2"), "{error}");
}
