//! The packet path as one function of bytes, for fuzzing and tests.
//!
//! Invariant checked: whatever the guest sends, streams and buffered bytes stay within their bounds and nothing panics.

use std::time::Duration;

use super::mux::{HostRead, Input, MAX_STREAMS, Mux};
use super::packet::{HEADER_BYTES, HOST_CID, Header};
use super::stream::{Action, BUF_ALLOC, Outgoing};

const GUEST_CID: u64 = 3;

/// Runs `data` as a conversation: each 44 bytes are a header of the guest, whose first byte also says how the host behaves.
///
/// # Panics
/// When a bound does not hold.
pub fn packets(data: &[u8]) {
    let mut mux = Mux::new(GUEST_CID);
    let mut now = Duration::ZERO;
    for bytes in data.as_chunks::<HEADER_BYTES>().0 {
        let mood = bytes[0];
        let header = Header { src_cid: GUEST_CID, dst_cid: HOST_CID, ..Header::parse(bytes) };
        now += Duration::from_millis(u64::from(bytes[1]));
        if mood & 1 == 0 {
            mux.on_tick(now);
        }
        match mux.on_packet(&header, now) {
            Input::Payload { id, direct: true } if mood & 2 == 0 => mux.forwarded(id, header.len),
            Input::Payload { id, .. } => {
                mux.buffer(id, &vec![0; header.len as usize]);
                let (front, back) = mux.backlog(id);
                assert!(front.len() + back.len() <= BUF_ALLOC as usize);
                if mood & 4 != 0 {
                    mux.flushed(id, usize::from(bytes[2]) << 8);
                } else if mood & 8 != 0 {
                    mux.host_hung_up(id, now);
                }
            }
            Input::Done => {}
        }
        obey(&mut mux, mood, now);
        if mood & 16 != 0 {
            answer(&mut mux, mood, now);
        }
        obey(&mut mux, mood, now);
        assert!(mux.len() <= MAX_STREAMS);
    }
}

fn obey(mux: &mut Mux, mood: u8, now: Duration) {
    while let Some(action) = mux.next_action() {
        match action {
            Action::Connect(id, _) if mood & 32 != 0 => mux.connected(id),
            Action::Connect(id, _) if mood & 64 != 0 => mux.connect_later(id, now),
            Action::Connect(id, _) => mux.host_failed(id),
            _ => {}
        }
    }
}

fn answer(mux: &mut Mux, mood: u8, now: Duration) {
    if let Some(Outgoing::Payload { id, max_bytes }) = mux.next_outgoing() {
        let end = match mood >> 6 {
            0 => HostRead::Ended,
            1 => HostRead::Drained,
            2 => HostRead::Failed,
            _ => HostRead::More,
        };
        if end == HostRead::More {
            assert_ne!(max_bytes, 0);
            mux.payload_header(id, max_bytes.min(1 << 16));
        }
        mux.host_read(id, end, now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn noise_with_plausible_ports_and_operations_breaks_nothing(
            mut data in prop::collection::vec(any::<u8>(), 0..20_000)
        ) {
            packets(&data);
            for bytes in data.as_chunks_mut::<HEADER_BYTES>().0 {
                bytes[17..20].fill(0);
                bytes[20..24].copy_from_slice(&[2, 0, 0, 0]);
                bytes[16] &= 3;
                bytes[26..28].fill(0);
                bytes[28..30].copy_from_slice(&[1, 0]);
                let op = bytes[3] & 7;
                bytes[30..32].copy_from_slice(&[op, 0]);
            }
            packets(&data);
        }
    }
}
