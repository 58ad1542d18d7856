//! What is written is read, whatever comes is judged, and nobody is made to keep much.

use proptest::prelude::*;

use super::*;

fn words(max: usize) -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(1_u8.., 1..20), 1..max)
}

fn size() -> impl Strategy<Value = Size> {
    any::<(u16, u16)>().prop_map(|(columns, rows)| Size { columns, rows })
}

fn exec() -> impl Strategy<Value = Exec> {
    let stdio = prop_oneof![
        Just(Stdio::Detached),
        Just(Stdio::Output),
        Just(Stdio::Pipes),
        size().prop_map(Stdio::Terminal),
    ];
    let env = prop::collection::vec("[A-Z]{1,5}=.{0,10}", 0..5);
    (words(6), stdio, env, prop::option::of("/[a-z/]{0,9}"), prop::option::of("[a-z]{1,8}"))
        .prop_map(|(args, stdio, env, directory, user)| {
            let env = env.into_iter().map(|word| word.replace('\0', "").into_bytes()).collect();
            let mut exec = Exec::new(args, stdio).unwrap().env(env).unwrap();
            if let Some(directory) = directory {
                exec = exec.directory(directory.into_bytes()).unwrap();
            }
            match user {
                Some(user) => exec.user(user).unwrap(),
                None => exec,
            }
        })
}

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Input), Just(Stream::Output), Just(Stream::Error)]
}

fn path() -> impl Strategy<Value = GuestPath> {
    prop::collection::vec(1_u8.., 1..50).prop_map(|path| GuestPath::new(path).unwrap())
}

/// A frame with its own data.
fn from_host() -> impl Strategy<Value = (FromHost<'static>, Vec<u8>)> {
    let frame = prop_oneof![
        any::<(u16, u16)>().prop_map(|(lowest, highest)| FromHost::Hello { lowest, highest }),
        exec().prop_map(FromHost::Exec),
        (path(), any::<bool>(), any::<bool>())
            .prop_map(|(path, into, owners)| FromHost::CopyIn(CopyIn { path, into, owners })),
        (path(), any::<bool>())
            .prop_map(|(path, follow)| FromHost::CopyOut(CopyOut { path, follow })),
        Just(FromHost::Stats),
        any::<u64>().prop_map(FromHost::SetClock),
        any::<bool>().prop_map(|input| FromHost::Attach { input }),
        stream().prop_map(FromHost::End),
        stream().prop_map(|stream| FromHost::Data(stream, b"")),
        (stream(), any::<u32>()).prop_map(|(stream, bytes)| FromHost::Credit(stream, bytes)),
        size().prop_map(FromHost::Resize),
        (1..=64).prop_map(|number| FromHost::Signal(Signal::new(number).unwrap())),
    ];
    (frame, prop::collection::vec(any::<u8>(), 0..300))
}

fn from_guest() -> impl Strategy<Value = (FromGuest<'static>, Vec<u8>)> {
    let kind = prop::sample::select(FailureKind::ALL);
    let frame = prop_oneof![
        any::<u16>().prop_map(FromGuest::Welcome),
        any::<u32>().prop_map(FromGuest::Started),
        any::<u8>().prop_map(|code| FromGuest::Exited(Exit::Code(code))),
        (1..=64).prop_map(|n| FromGuest::Exited(Exit::Signal(Signal::new(n).unwrap()))),
        (kind, ".{0,50}").prop_map(|(kind, text)| FromGuest::Failed(Failure::new(kind, text))),
        any::<[u64; 4]>().prop_map(|[uptime_ms, cpus, tasks, network_sent_bytes]| {
            FromGuest::Stats(Stats {
                uptime_ms,
                cpus,
                tasks,
                network_sent_bytes,
                ..Stats::default()
            })
        }),
        any::<(u64, u64)>().prop_map(|(files, bytes)| FromGuest::Done { files, bytes }),
        stream().prop_map(FromGuest::End),
        stream().prop_map(|stream| FromGuest::Data(stream, b"")),
        (stream(), any::<u32>()).prop_map(|(stream, bytes)| FromGuest::Credit(stream, bytes)),
    ];
    (frame, prop::collection::vec(any::<u8>(), 0..300))
}

/// Takes frames of `bytes`, which arrive in pieces of `step`: them as text, and how it ended.
fn decode_with(
    bytes: &[u8],
    step: usize,
    mut next: impl FnMut(&mut Decoder) -> Result<Option<String>, WireError>,
) -> (Vec<String>, Option<WireError>) {
    let mut decoder = Decoder::new();
    let mut found = Vec::new();
    for mut piece in bytes.chunks(step) {
        while !piece.is_empty() {
            let taken = decoder.feed(piece);
            piece = &piece[taken..];
            loop {
                match next(&mut decoder) {
                    Ok(Some(frame)) => found.push(frame),
                    Ok(None) => break,
                    Err(error) => return (found, Some(error)),
                }
            }
        }
    }
    (found, None)
}

fn host_frames(bytes: &[u8], step: usize) -> (Vec<String>, Option<WireError>) {
    decode_with(bytes, step, |decoder| {
        decoder.next::<FromHost<'_>>().map(|frame| frame.map(|frame| format!("{frame:?}")))
    })
}

fn guest_frames(bytes: &[u8], step: usize) -> (Vec<String>, Option<WireError>) {
    decode_with(bytes, step, |decoder| {
        decoder.next::<FromGuest<'_>>().map(|frame| frame.map(|frame| format!("{frame:?}")))
    })
}

proptest! {
    #[test]
    fn what_a_host_sends_is_read(
        frames in prop::collection::vec(from_host(), 1..6),
        step in 1_usize..200,
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (frame, data) in &frames {
            let frame = match frame {
                FromHost::Data(stream, _) => FromHost::Data(*stream, data),
                frame => frame.clone(),
            };
            frame.encode(&mut bytes);
            expected.push(format!("{frame:?}"));
        }
        prop_assert_eq!(host_frames(&bytes, step), (expected, None));
    }

    #[test]
    fn what_a_guest_sends_is_read(
        frames in prop::collection::vec(from_guest(), 1..6),
        step in 1_usize..200,
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (frame, data) in &frames {
            let frame = match frame {
                FromGuest::Data(stream, _) => FromGuest::Data(*stream, data),
                frame => frame.clone(),
            };
            frame.encode(&mut bytes);
            expected.push(format!("{frame:?}"));
        }
        prop_assert_eq!(guest_frames(&bytes, step), (expected, None));
    }

    #[test]
    fn any_bytes_are_judged_the_same_in_any_pieces(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        step in 1_usize..50,
    ) {
        prop_assert_eq!(host_frames(&bytes, step), host_frames(&bytes, 1000));
        prop_assert_eq!(guest_frames(&bytes, step), guest_frames(&bytes, 1000));
    }

    #[test]
    fn any_payload_of_a_known_kind_is_judged(
        kind in 0_u8..0x50,
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = vec![u8::try_from(payload.len()).unwrap(), 0, 0, kind];
        bytes.extend(&payload);
        host_frames(&bytes, 1000);
        guest_frames(&bytes, 1000);
    }

    #[test]
    fn a_change_of_a_byte_is_judged((frame, _) in from_host(), at in any::<usize>(), byte in any::<u8>()) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let at = at % bytes.len();
        bytes[at] = byte;
        host_frames(&bytes, 7);
    }

    #[test]
    fn credit_never_lets_more_through_than_the_window(
        steps in prop::collection::vec((0_usize..100_000, 0_usize..100_000), 0..100),
    ) {
        let (mut sender, mut receiver) = (SendWindow::default(), ReceiveWindow::default());
        let mut held = 0;
        for (send, passed) in steps {
            let len = send.min(sender.left());
            sender.sent(len);
            receiver.received(len).unwrap();
            held += len;
            prop_assert!(held <= WINDOW_BYTES as usize);
            let passed = passed.min(held);
            held -= passed;
            if let Some(credit) = receiver.used(passed) {
                sender.credit(credit).unwrap();
            }
            // Whoever has passed everything on is never waited for.
            prop_assert!(held > 0 || sender.left() > 0);
        }
    }
}

#[test]
fn a_frame_that_is_too_long_is_refused_by_its_header() {
    for (header, expected) in [
        ([0xff, 0xff, 0xff, 0x02], WireError::Long { kind: 0x02, len: 0xff_ffff }),
        ([0x02, 0x00, 0x01, 0x20], WireError::Long { kind: 0x20, len: 0x1_0002 }),
        ([0x11, 0x00, 0x00, 0x05], WireError::Long { kind: 0x05, len: 0x11 }),
        ([0x00, 0x00, 0x00, 0x7f], WireError::Kind(0x7f)),
    ] {
        assert_eq!(host_frames(&header, 4), (Vec::new(), Some(expected)), "{header:?}");
    }
}

#[test]
fn a_long_request_is_kept_and_nothing_longer() {
    let args = vec![b"program".to_vec(), vec![b'x'; REQUEST_MAX - 200]];
    let exec = Exec::new(args, Stdio::Output).unwrap();
    let mut bytes = Vec::new();
    FromHost::Exec(exec.clone()).encode(&mut bytes);
    let mut decoder = Decoder::new();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        assert!(decoder.next::<FromHost<'_>>().unwrap().is_none());
        let taken = decoder.feed(rest);
        rest = &rest[taken..];
    }
    assert_eq!(decoder.next::<FromHost<'_>>().unwrap(), Some(FromHost::Exec(exec)));
    assert!(decoder.is_between_frames());
}

#[test]
fn what_cannot_be_started_is_refused_when_it_is_said() {
    let args = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let new = |words: &[&str]| Exec::new(args(words), Stdio::Output);
    assert_eq!(new(&[]), Err(ExecError::Empty));
    assert_eq!(new(&[""]), Err(ExecError::Empty));
    assert_eq!(new(&["a", "b\0"]), Err(ExecError::Nul("the command")));
    let exec = new(&["a", "", " "]).unwrap();
    assert_eq!(exec.clone().env(args(&["=x"])), Err(ExecError::Variable));
    assert_eq!(exec.clone().env(args(&["x"])), Err(ExecError::Variable));
    assert_eq!(exec.clone().env(args(&["x=\0"])), Err(ExecError::Nul("the environment")));
    assert_eq!(exec.clone().directory(b"x".to_vec()), Err(ExecError::Directory));
    assert_eq!(exec.clone().user(String::new()), Err(ExecError::User));
    let long = vec![b"a".to_vec(), vec![b'x'; REQUEST_MAX]];
    assert_eq!(Exec::new(long, Stdio::Output), Err(ExecError::Long));
}

#[test]
fn a_failure_is_one_printable_line() {
    let failure = Failure::new(FailureKind::Path, "a\nb\u{1b}[2J".to_owned() + &"ä".repeat(1000));
    assert!(failure.text().starts_with("a?b?[2J") && failure.text().len() <= 1024);
    let mut bytes = Vec::new();
    FromGuest::Failed(failure.clone()).encode(&mut bytes);
    // A guest may send anything.
    let last = bytes.len() - 1;
    bytes[last] = 0xff;
    bytes[6] = 7;
    let (frames, error) = guest_frames(&bytes, 10);
    assert!(error.is_none() && !frames[0].contains('\u{7}'), "{frames:?}");
}

#[test]
fn numbers_that_a_newer_guest_adds_are_passed_over() {
    let stats = Stats { uptime_ms: 7, network_sent_bytes: 9, ..Stats::default() };
    let mut bytes = Vec::new();
    FromGuest::Stats(stats).encode(&mut bytes);
    bytes.extend([1; 8]);
    bytes[0] += 8;
    assert_eq!(guest_frames(&bytes, 100), (vec![format!("{:?}", FromGuest::Stats(stats))], None));
}

#[test]
fn a_sender_without_credit_and_credit_without_cause_are_found_out() {
    let mut receiver = ReceiveWindow::default();
    receiver.received(WINDOW_BYTES as usize).unwrap();
    assert_eq!(receiver.received(1), Err(WireError::Overrun));
    assert_eq!(SendWindow::default().credit(1), Err(WireError::Value("credit")));
    let mut sender = SendWindow::default();
    sender.sent(5);
    assert!(sender.credit(u32::MAX).is_err());
}

#[test]
fn room_grows_with_what_comes_and_keeps_to_its_limits() {
    let mut room = Room::default();
    let mut offered = Vec::new();
    let mut take = |limit: usize, len: usize| {
        let read = room.read(limit, |bytes| {
            offered.push(bytes.len());
            bytes[..len].fill(7);
            Ok::<_, WireError>(len)
        });
        assert_eq!(read.unwrap(), vec![7; len]);
    };
    take(usize::MAX, 10);
    take(usize::MAX, 4096);
    take(100, 100);
    take(usize::MAX, 8192);
    take(usize::MAX, 16384);
    take(usize::MAX, 32768);
    take(usize::MAX, 65536);
    take(usize::MAX, 0);
    assert_eq!(offered, [4096, 4096, 100, 8192, 16384, 32768, DATA_MAX, DATA_MAX]);
}

#[test]
fn a_decoder_has_a_page_for_a_quiet_stream_and_a_frame_for_a_busy_one() {
    let mut decoder = Decoder::new();
    assert_eq!(decoder.space().len(), 4096);
    let mut bytes = Vec::new();
    for _ in 0..8 {
        FromGuest::Data(Stream::Output, &[1; DATA_MAX]).encode(&mut bytes);
    }
    let (mut rest, mut largest, mut frames) = (&bytes[..], 0, 0);
    while !rest.is_empty() {
        largest = largest.max(decoder.space().len());
        rest = &rest[decoder.feed(rest)..];
        while decoder.next::<FromGuest<'_>>().unwrap().is_some() {
            frames += 1;
        }
    }
    assert_eq!(frames, 8);
    assert!((DATA_MAX..=DATA_MAX + 100).contains(&largest), "{largest}");
}
