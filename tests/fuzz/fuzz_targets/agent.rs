//! Frames between a host and the agent of its guest, in both directions: read or refused, and the same in any pieces.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use openshell_agent_proto::{Decoder, FromGuest, FromHost, WireError};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&how, bytes)) = data.split_first() else { return Corpus::Reject };
    let read = if how & 1 == 0 { of_host } else { of_guest };
    let step = usize::from(how >> 1) + 1;
    let (frames, again, end) = read(bytes, bytes.len().max(1));
    assert_eq!(read(bytes, step), (frames.clone(), again.clone(), end));
    let (found, _, end) = read(&again, step);
    assert_eq!((found, end), (frames, None));
    Corpus::Keep
});

/// Frames as text, the same frames written again, and why the rest is none.
type Outcome = (Vec<String>, Vec<u8>, Option<WireError>);

fn of_host(bytes: &[u8], step: usize) -> Outcome {
    read(bytes, step, |decoder, again| {
        let frame = decoder.next::<FromHost<'_>>()?;
        Ok(frame.map(|frame| {
            frame.encode(again);
            format!("{frame:?}")
        }))
    })
}

fn of_guest(bytes: &[u8], step: usize) -> Outcome {
    read(bytes, step, |decoder, again| {
        let frame = decoder.next::<FromGuest<'_>>()?;
        Ok(frame.map(|frame| {
            frame.encode(again);
            format!("{frame:?}")
        }))
    })
}

fn read(
    bytes: &[u8],
    step: usize,
    next: fn(&mut Decoder, &mut Vec<u8>) -> Result<Option<String>, WireError>,
) -> Outcome {
    let (mut decoder, mut found, mut again) = (Decoder::new(), Vec::new(), Vec::new());
    for mut piece in bytes.chunks(step) {
        while !piece.is_empty() {
            piece = &piece[decoder.feed(piece)..];
            loop {
                match next(&mut decoder, &mut again) {
                    Ok(Some(frame)) => found.push(frame),
                    Ok(None) => break,
                    Err(error) => return (found, again, Some(error)),
                }
            }
        }
    }
    (found, again, None)
}
