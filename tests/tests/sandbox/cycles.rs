//! Sandboxes that come and go leave nothing behind, whenever they go.

use std::time::{Duration, Instant};

use crate::rig::{PATIENCE, Rig, Wanted, id};

/// How many, a third of them at each moment, unless the variable says another number.
const CYCLES: u32 = 18;
const VARIABLE: &str = "OPENSHELL_VMM_CYCLES";

#[tokio::test]
async fn sandboxes_that_come_and_go_leave_nothing() {
    let wanted = std::env::var(VARIABLE).ok().map(|number| number.parse().unwrap());
    let rig = Rig::start().await;
    // What programs take once and keep.
    for cycle in 0..3 {
        come_and_go(&rig, cycle).await;
    }
    let before = rig.left();
    assert!(before.processes.is_empty() && before.files.is_empty(), "{before:#?}");
    for cycle in 0..wanted.unwrap_or(CYCLES) {
        come_and_go(&rig, cycle).await;
    }
    let ends = Instant::now() + PATIENCE;
    loop {
        let after = rig.left();
        // Connections that are kept come and go by ones.
        let more = after.count().saturating_sub(before.count());
        if after.processes.is_empty() && after.files.is_empty() && more <= 2 {
            return;
        }
        assert!(Instant::now() < ends, "before: {before:#?}\nafter: {after:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One cycle: deleted at once, when its machine has started, or when that has printed something.
async fn come_and_go(rig: &Rig, cycle: u32) {
    let name = format!("cycle-{cycle}");
    let id = id(&rig.create(&name, Wanted::default()).await.unwrap());
    let ends = Instant::now() + PATIENCE;
    let console = rig.sandbox(&id).join("rootfs-console.log");
    let far_enough = || match cycle % 3 {
        0 => true,
        1 => rig.machine(&id).is_some(),
        _ => std::fs::metadata(&console).is_ok_and(|console| console.len() > 0),
    };
    while !far_enough() {
        assert!(Instant::now() < ends, "{name} does not start: {:?}", rig.row(&name).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(rig.delete(&name).await.unwrap());
    assert!(!rig.sandbox(&id).exists());
    assert_eq!(rig.machine(&id), None);
}
