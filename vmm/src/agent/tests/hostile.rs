//! Guests that do not keep to the protocol: the host says so, soon, and keeps little.

use std::time::Duration;

use openshell_agent_proto::{Failure, FailureKind, FromGuest, Stream, WINDOW_BYTES, WireError};
use proptest::prelude::*;

use super::*;

/// A guest that answers every session with these bytes, and then waits for the host to go.
fn saying(bytes: Vec<u8>) -> Machine {
    Machine::with(move |mut socket| {
        // The host may have gone before it was all said.
        drop(socket.write_all(&bytes));
        drop(std::io::copy(&mut socket, &mut std::io::sink()));
    })
}

fn frames(list: &[FromGuest<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in list {
        frame.encode(&mut bytes);
    }
    bytes
}

#[track_caller]
fn refused(bytes: Vec<u8>, expected: fn(&AgentError) -> bool) {
    let ended = saying(bytes).shell("true");
    let error = ended.exit.unwrap_err();
    assert!(expected(&error), "{error:?}");
}

#[test]
fn what_is_no_protocol_is_told() {
    let welcome = FromGuest::Welcome(1);
    refused(b"SSH-2.0-OpenSSH\r\n".to_vec(), |error| matches!(error, AgentError::Protocol(_)));
    refused(frames(&[FromGuest::Welcome(2)]), |error| {
        matches!(error, AgentError::Unexpected { .. })
    });
    refused(frames(&[FromGuest::Started(1)]), |error| {
        matches!(error, AgentError::Unexpected { .. })
    });
    refused(frames(&[welcome.clone(), FromGuest::Data(Stream::Input, b"x")]), |error| {
        matches!(error, AgentError::Unexpected { .. })
    });
    refused(frames(&[welcome.clone(), FromGuest::Credit(Stream::Input, 1)]), |error| {
        matches!(error, AgentError::Protocol(WireError::Value("credit")))
    });
    let failure = Failure::new(FailureKind::Busy, "full");
    refused(
        frames(&[FromGuest::Failed(failure)]),
        |error| matches!(error, AgentError::Guest(failure) if failure.kind() == FailureKind::Busy),
    );
}

#[test]
fn output_beyond_the_window_is_not_kept() {
    // Nobody reads the pipe, so that no credit is given.
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut list = vec![FromGuest::Welcome(1)];
    let piece = vec![b'x'; 64 << 10];
    let count = 3 * WINDOW_BYTES / (64 << 10);
    list.extend((0..count).map(|_| FromGuest::Data(Stream::Output, &piece)));
    let machine = saying(frames(&list));
    let streams = Streams {
        input: None,
        output: writer.as_fd(),
        error: writer.as_fd(),
        signals: None,
        timeout: None,
    };
    let error = exec(&machine.path(), &shell("true", Stdio::Output), &streams).unwrap_err();
    assert!(matches!(error, AgentError::Protocol(WireError::Overrun)), "{error:?}");
}

#[test]
fn a_guest_that_ends_is_not_success() {
    let machine = Machine::with(|mut socket| {
        let mut bytes = frames(&[FromGuest::Welcome(1), FromGuest::Started(7)]);
        bytes.truncate(bytes.len() - 1);
        socket.write_all(&bytes).unwrap();
        // It reads, so that the end is not a reset.
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        drop(std::io::copy(&mut socket, &mut std::io::sink()));
    });
    let error = machine.shell("true").exit.unwrap_err();
    assert!(matches!(error, AgentError::Broken) && error.exit_code() == 125, "{error:?}");
    let directory = tempfile::tempdir().unwrap();
    let error = stats(&directory.path().join("none")).unwrap_err();
    assert!(matches!(error, AgentError::Connect { .. }), "{error:?}");
    let refuses = directory.path().join("refuses");
    let listener = UnixListener::bind(&refuses).unwrap();
    let refuse = move || listener.incoming().for_each(drop);
    Builder::new().name("refuses".to_owned()).spawn(refuse).unwrap();
    let error = stats(&refuses).unwrap_err();
    assert!(matches!(error, AgentError::NoAgent { .. }), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_answer_ends_the_session(bytes in prop::collection::vec(any::<u8>(), 0..200), greeted in any::<bool>()) {
        let mut said = if greeted { frames(&[FromGuest::Welcome(1)]) } else { Vec::new() };
        said.extend(&bytes);
        let machine = Machine::with(move |mut socket| {
            drop(socket.write_all(&said));
            drop(socket.shutdown(std::net::Shutdown::Write));
            drop(std::io::copy(&mut socket, &mut std::io::sink()));
        });
        let ended = machine.shell("true");
        prop_assert!(ended.exit.is_err() || bytes.len() >= 6);
    }
}
