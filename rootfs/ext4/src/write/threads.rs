//! The same work for many things on several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `work` for 0 to `count`, each once, on `threads` threads of which one is the caller's. Each thread has a state of its own.
/// After a failure no more is begun; the failure of the smallest number is returned.
pub(super) fn each<S, E: Send>(
    threads: usize,
    count: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let run = || {
        let mut state = state();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return;
            }
            if let Err(error) = work(&mut state, at) {
                next.store(count, Ordering::Relaxed);
                let mut failed = failed.lock().expect("no thread panics with the lock");
                if failed.as_ref().is_none_or(|(first, _)| at < *first) {
                    *failed = Some((at, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for number in 1..threads.min(count) {
            let name = format!("ext4-{number}");
            // A thread that cannot be had leaves its part to the others.
            let started = std::thread::Builder::new().name(name).spawn_scoped(scope, run);
            if started.is_err() {
                break;
            }
        }
        run();
    });
    let failed = failed.into_inner().expect("no thread panics with the lock");
    failed.map_or(Ok(()), |(_, error)| Err(error))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::each;

    #[test]
    fn each_number_comes_once() {
        for threads in [0, 1, 3, 8] {
            let seen = Mutex::new(Vec::new());
            let result: Result<(), ()> = each(
                threads,
                100,
                || (),
                |(), at| {
                    seen.lock().unwrap().push(at);
                    Ok(())
                },
            );
            let mut seen = seen.into_inner().unwrap();
            seen.sort_unstable();
            assert_eq!((result, seen), (Ok(()), (0..100).collect()));
        }
    }

    #[test]
    fn a_failure_ends_the_work() {
        let result = each(2, usize::MAX, || (), |(), at| if at < 50 { Ok(()) } else { Err(at) });
        assert!(matches!(result, Err(50..=52)), "{result:?}");
    }
}
