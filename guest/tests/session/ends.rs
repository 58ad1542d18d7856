//! How a supervisor's life ends, and what it says of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::gateway::{Gateway, PATIENCE, State};
use crate::supervisor::Supervisor;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_code_is_reported_until_it_is_heard() {
    let state = Arc::new(State::default());
    state.report_failures.store(3, Ordering::SeqCst);
    let mut gateway = Gateway::start(state, 0);
    let supervisor = Supervisor::start(&gateway, "sleep 1; exit 42");
    let session = gateway.session().await;
    let (code, said) = supervisor.end().await;
    assert_eq!(code, 42, "{said}");
    let reports = gateway.state.reports.lock().unwrap().clone();
    assert_eq!(reports.len(), 1, "{said}");
    assert_eq!((reports[0].exit_code, reports[0].sandbox_id.as_str()), (42, "sandbox-1"));
    assert_eq!(reports[0].instance_id, session.hello.instance_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_main_process_that_ends_at_once_is_reported() {
    let gateway = Gateway::start(Arc::default(), 0);
    let supervisor = Supervisor::start(&gateway, "exec /none");
    let (code, said) = supervisor.end().await;
    assert_eq!(code, 127, "{said}");
    assert_eq!(gateway.state.reports.lock().unwrap()[0].exit_code, 127);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_termination_is_passed_on() {
    let mut gateway = Gateway::start(Arc::default(), 0);
    let place = tempfile::tempdir().unwrap();
    let ready = place.path().join("ready");
    let script =
        format!("trap 'exit 7' TERM; : >{}; while :; do sleep 0.05; done", ready.display());
    let supervisor = Supervisor::start(&gateway, &script);
    gateway.session().await;
    // The session may be there before the shell has read its first word.
    let listens = async {
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, listens).await.unwrap();
    supervisor.terminate();
    assert_eq!(supervisor.end().await.0, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_not_ready_is_asked_again() {
    let state = Arc::new(State::default());
    state.config_failures.store(2, Ordering::SeqCst);
    let mut gateway = Gateway::start(state, 0);
    let _supervisor = Supervisor::start(&gateway, "sleep 1000");
    gateway.session().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_refuses_ends_the_sandbox_with_a_reason() {
    let state = Arc::new(State::default());
    state.forbid_config.store(9, Ordering::SeqCst);
    let gateway = Gateway::start(state, 0);
    let (code, said) = Supervisor::start(&gateway, "sleep 1000").end().await;
    assert_eq!(code, 125, "{said}");
    let last = said.lines().last().unwrap();
    assert!(
        last.contains("error: the gateway at http://127.0.0.1:") && last.ends_with("not yours"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_the_main_process_reach_the_gateway() {
    let mut gateway = Gateway::start(Arc::default(), 0);
    let script = "echo one $GIVEN; echo two >&2; sleep 1000";
    let _supervisor = Supervisor::start(&gateway, script);
    gateway.session().await;
    let ends = Instant::now() + PATIENCE;
    loop {
        let found = |target: &str, text: &str| {
            let logs = gateway.state.logs.lock().unwrap();
            logs.iter().any(|line| line.target == target && line.message.contains(text))
        };
        let all = found("main", "one by the user") && found("main", "two");
        if all && found("openshell_supervisor", "session session-1 is up") {
            return;
        }
        assert!(Instant::now() < ends, "lines are missing");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
