//! Many sandboxes, without machines: what the driver itself costs.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::fixture::{Fixture, create, delete, list, sandbox};

/// Requests under way at one time.
const IN_FLIGHT: usize = 50;

/// Runs `count` requests, so many at a time.
async fn many<F: Future<Output = ()> + Send + 'static>(count: usize, request: impl Fn(usize) -> F) {
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut all = JoinSet::new();
    for number in 0..count {
        let place = Arc::clone(&places).acquire_owned().await.expect("open");
        let request = request(number);
        all.spawn(async move {
            request.await;
            drop(place);
        });
        // So that the list of what was done is not what grows.
        while all.try_join_next().is_some() {}
    }
    all.join_all().await;
}

/// Resident memory in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("read");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sandboxes_are_created_listed_and_deleted() {
    let mut fixture = Fixture::new().await;
    let client = fixture.client.clone();
    let began = Instant::now();
    many(1000, |number| {
        let mut client = client.clone();
        async move { create(&mut client, sandbox(&format!("s{number}"))).await.expect("created") }
    })
    .await;
    fixture.wait_for_running(1000).await;
    println!("1000 sandboxes, {IN_FLIGHT} creates in flight: {:?}", began.elapsed());
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(list(&mut fixture.client).await.len(), 1000);
        times.push(began.elapsed());
    }
    times.sort();
    println!("list of 1000: median {:?}, worst {:?}", times[10], times[19]);
    assert!(times[0] < Duration::from_secs(2), "{times:?}");
    let mut watch = fixture.watch().await;
    for _ in 0..1000 {
        assert_eq!(watch.word().await, "=Starting");
    }
    let began = Instant::now();
    many(1000, |number| {
        let mut client = client.clone();
        async move {
            assert_eq!(delete(&mut client, &format!("s{number}")).await, Ok(true));
        }
    })
    .await;
    println!("1000 deletes: {:?}", began.elapsed());
    assert!(list(&mut fixture.client).await.is_empty());
    assert_eq!(fixture.stub.running(), 0);
    let left = fs::read_dir(fixture.state().join("sandboxes")).expect("read").count();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_flat_over_many_cycles() {
    let fixture = Fixture::new().await;
    let client = fixture.client.clone();
    let cycle = |number: usize| {
        let mut client = client.clone();
        async move {
            let id = format!("s{number}");
            create(&mut client, sandbox(&id)).await.expect("created");
            assert_eq!(delete(&mut client, &id).await, Ok(true));
        }
    };
    many(2000, cycle).await;
    let before = resident();
    let began = Instant::now();
    many(10_000, cycle).await;
    let after = resident();
    println!("10000 cycles: {:?}, {before} KiB before, {after} KiB after", began.elapsed());
    // A KiB kept of each would be 10 MiB; an allocator takes some for itself.
    assert!(after < before + (9 << 10), "{before} KiB became {after} KiB");
    assert_eq!(fixture.stub.running(), 0);
    let left = |part: &str| fs::read_dir(fixture.state().join(part)).expect("read").count();
    assert_eq!((left("sandboxes"), left("trash")), (0, 0));
}
