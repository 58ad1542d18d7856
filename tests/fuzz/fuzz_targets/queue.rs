//! A split virtqueue against the virtio-queue crate: the same driver's operations, the same answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openshell_vmm::virtio::queue::model;

fuzz_target!(|script: &[u8]| {
    let outcome = model::run(script);
    assert!(outcome.completed <= outcome.popped);
});
