use super::*;
use crate::virtio::chain::Segment;
use crate::virtio::test_driver::TestDriver;

const ALL: u64 = F_EVENT_IDX | F_INDIRECT_DESC;
const DATA: u64 = 0x10_0000;

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::anonymous(&[(GuestAddress(0), 4 << 20)]).unwrap())
}

fn pair(size: u16, features: u64) -> (TestDriver, Queue) {
    let ram = ram();
    let driver = TestDriver::new(&ram, 0x1000, size, features);
    let queue = Queue::new(&ram, driver.queue_config(), features).unwrap();
    (driver, queue)
}

fn segment(addr: u64, len_bytes: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len_bytes }
}

#[test]
fn a_chain_comes_out_as_it_went_in_and_goes_back_once() {
    for indirect in [false, true] {
        let (mut driver, mut queue) = pair(8, ALL);
        for _ in 0..70_000_u32 / 8 {
            let buffers = [(DATA, 16, false), (DATA + 0x1000, 512, true), (DATA + 0x2000, 1, true)];
            let head = if indirect { driver.add_indirect(&buffers) } else { driver.add(&buffers) };
            let chain = queue.pop().unwrap().unwrap();
            assert_eq!(chain.readable(), [segment(DATA, 16)]);
            assert_eq!(chain.writable(), [segment(DATA + 0x1000, 512), segment(DATA + 0x2000, 1)]);
            assert!(queue.pop().unwrap().is_none());
            queue.complete(chain.complete(600));
            assert_eq!(driver.used(), [(u32::from(head), 513)]);
        }
    }
}
