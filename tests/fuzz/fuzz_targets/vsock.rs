//! A conversation of vsock packets: streams and buffered bytes stay within their bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openshell_vmm::virtio::vsock::fuzz;

fuzz_target!(|packets: &[u8]| fuzz::packets(packets));
