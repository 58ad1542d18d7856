//! The client against the server of the user-mode network stack, over links that lose and garble.

use openshell_usernet::dhcp::{self as server};
use openshell_usernet::wire::Mac;
use proptest::prelude::*;

use super::*;

const MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];

fn offered() -> server::Lease {
    server::Lease {
        address: [192, 168, 127, 2].into(),
        prefix_len: 24,
        router: [192, 168, 127, 1].into(),
        resolver: [192, 168, 127, 1].into(),
        search: vec!["corp.example".to_owned(), "example".to_owned()],
        mtu: 65_521,
        seconds: 3600,
    }
}

fn expected() -> Lease {
    Lease {
        address: Prefix { address: [192, 168, 127, 2].into(), len: 24 },
        router: Some([192, 168, 127, 1].into()),
        mtu: Some(65_521),
        dns: vec![IpAddr::from([192, 168, 127, 1])],
        search: vec!["corp.example".to_owned(), "example".to_owned()],
    }
}

/// Runs a client whose messages `answer` sees; the lease and how many messages it took.
fn run(
    client: &mut Client,
    mut answer: impl FnMut(&[u8]) -> Vec<Vec<u8>>,
) -> (Option<Lease>, u32, Duration) {
    let (mut now, mut sent) = (Duration::ZERO, 0);
    loop {
        match client.next(now) {
            Action::Send(bytes) => {
                sent += 1;
                for reply in answer(&bytes) {
                    if let Some(lease) = client.receive(&reply) {
                        return (Some(lease), sent, now);
                    }
                }
            }
            Action::Wait(time) => now += time,
            Action::GiveUp => return (None, sent, now),
        }
    }
}

fn serve(bytes: &[u8]) -> Vec<Vec<u8>> {
    let reply = server::answer(bytes, Mac(MAC), &offered());
    reply.map(|reply| reply.as_bytes().to_vec()).into_iter().collect()
}

/// As [`serve`] by a server that has never heard of rapid commit.
fn serve_slowly(bytes: &[u8]) -> Vec<Vec<u8>> {
    let at = bytes.windows(2).position(|pair| pair == [80, 0]);
    let mut bytes = bytes.to_vec();
    if let Some(at) = at {
        bytes[at] = 0;
    }
    serve(&bytes)
}

#[test]
fn one_message_is_enough_for_a_server_that_commits_rapidly() {
    let mut client = Client::new(MAC, 0x1234_5678, Some("work".to_owned()));
    assert_eq!(run(&mut client, serve), (Some(expected()), 1, Duration::ZERO));
}

#[test]
fn two_messages_are_enough_for_another() {
    let mut client = Client::new(MAC, 1, None);
    assert_eq!(run(&mut client, serve_slowly), (Some(expected()), 2, Duration::ZERO));
}

#[test]
fn silence_ends_after_a_bounded_time() {
    let mut client = Client::new(MAC, 1, None);
    let (lease, sent, took) = run(&mut client, |_| Vec::new());
    assert_eq!((lease, sent), (None, TRIES));
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn answers_to_others_do_not_count() {
    let reply = serve(
        &Request {
            mac: MAC,
            transaction: 7,
            seconds: 0,
            hostname: None,
            address: None,
            server: None,
        }
        .emit(),
    )
    .remove(0);
    assert!(Client::new(MAC, 7, None).receive(&reply).is_some());
    assert!(Client::new(MAC, 8, None).receive(&reply).is_none(), "another transaction");
    assert!(Client::new([2; 6], 7, None).receive(&reply).is_none(), "another machine");
    let mut request = reply;
    request[0] = 1;
    assert!(Client::new(MAC, 7, None).receive(&request).is_none(), "no answer");
}

#[test]
fn a_refusal_begins_anew() {
    let mut client = Client::new(MAC, 1, None);
    let mut refuse = true;
    let (lease, sent, _) = run(&mut client, |bytes| {
        let mut replies = serve_slowly(bytes);
        // The server's identity is in each; the kind of an acknowledgement becomes a refusal once.
        if let Some(reply) = replies.first_mut().filter(|reply| reply[242] == 5 && refuse) {
            refuse = false;
            reply[242] = 6;
        }
        replies
    });
    assert_eq!((lease, sent), (Some(expected()), 4));
}

#[test]
fn a_server_that_offers_and_falls_silent_is_given_up() {
    let mut client = Client::new(MAC, 1, None);
    let (lease, sent, _) = run(&mut client, |bytes| {
        let discovers = bytes[242] == 1;
        if discovers { serve_slowly(bytes) } else { Vec::new() }
    });
    // It offers each time and never commits.
    assert_eq!((lease, sent), (None, TRIES));
}

proptest! {
    #[test]
    fn a_lease_is_whole_or_none(
        lost in proptest::collection::vec(any::<bool>(), 12),
        garbled in proptest::collection::vec((0_usize..300, any::<u8>()), 0..4),
        rapid in any::<bool>(),
    ) {
        let mut lost = lost.into_iter();
        let mut client = Client::new(MAC, 0xdead_beef, None);
        let (lease, _, _) = run(&mut client, |bytes| {
            let replies = if rapid { serve(bytes) } else { serve_slowly(bytes) };
            let mut all = Vec::new();
            for reply in replies {
                let mut wrong = reply.clone();
                for (at, byte) in &garbled {
                    if let Some(place) = wrong.get_mut(*at) {
                        *place = *byte;
                    }
                }
                // Kept apart from the real server by its transaction.
                wrong[4] ^= 0x80;
                all.push(wrong);
                if !lost.next().unwrap_or(false) {
                    all.push(reply);
                }
            }
            all
        });
        if let Some(lease) = lease {
            prop_assert_eq!(lease, expected());
        }
    }

    #[test]
    fn any_datagrams_are_taken(datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..5)) {
        let mut client = Client::new(MAC, 0, None);
        for datagram in datagrams {
            drop(client.receive(&datagram));
        }
        prop_assert!(matches!(client.next(Duration::ZERO), Action::Send(_)));
    }
}
