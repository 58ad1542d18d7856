//! Layers over connections that break, lie, dawdle and lead elsewhere.

use std::io::Read as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use openshell_rootfs::image::Blobs as _;
use openshell_rootfs::registry::{Mismatch, Patience, RegistryError};

use crate::fake::{Fake, MIB, chain, client, client_with, part, patience, read, read_all, resolve};
use crate::server::{Body, Reply, Request, Server};

/// A registry whose answers for blobs of at least so many bytes go through `fault`, with their number.
fn faulty(
    fake: &Fake,
    fault: impl Fn(&Request, usize, &[u8]) -> Reply + Send + Sync + 'static,
) -> Server {
    let fake = fake.clone();
    let count = AtomicUsize::new(0);
    Server::start(move |request| {
        let name = request.target.rsplit('/').next().unwrap();
        match fake.blobs.get(name).filter(|bytes| bytes.len() > 1000) {
            None => fake.answer(request),
            Some(bytes) => fault(request, count.fetch_add(1, Ordering::SeqCst), bytes),
        }
    })
}

/// What becomes of the only layer.
fn pulled(server: &Server, patience: Patience) -> std::io::Result<Vec<u8>> {
    let registry = client_with(openshell_rootfs::auth::Keychain::empty(), patience);
    let pull = resolve(&registry, &server.host()).unwrap();
    read(&pull, &pull.image.layers[0])
}

/// The registry's error below what a reader says.
fn fault_of(result: std::io::Result<Vec<u8>>) -> RegistryError {
    let error = result.expect_err("the layer is wrong");
    *error.into_inner().unwrap().downcast::<RegistryError>().unwrap()
}

#[test]
fn layers_come_whole_in_parts_and_at_once() {
    let fake = Fake::with_layers(&[18 * MIB, 100, 0, 9 * MIB, 9 * MIB, 5 * MIB, 16 * MIB]);
    let serving = fake.clone();
    let server = Server::start(move |request| serving.answer(request));
    let registry = client();
    let pull = resolve(&registry, &server.host()).unwrap();
    for (n, layer) in read_all(&pull).into_iter().enumerate() {
        assert!(layer.unwrap() == fake.layer(n), "layer {n}");
    }
    let parts = server.requests().iter().filter(|request| request.range().is_some()).count();
    assert_eq!(parts, 5 + 3 + 3 + 2 + 4);
    // The parts of an image, and one more for each layer that found none left.
    assert!((5..=16 + 7).contains(&server.most_open()), "{}", server.most_open());
    for request in server.requests() {
        assert_eq!(request.header("accept-encoding"), Some("identity"), "{}", request.target);
    }
}

#[test]
fn a_connection_that_is_cut_twenty_times_is_taken_up_again() {
    let fake = Fake::with_layers(&[3 * MIB]);
    let server = faulty(&fake, |request, n, bytes| {
        let whole = part(bytes, request.range());
        let Body::Plain(rest) = &whole.body else { panic!("a plain body") };
        let (len, rest) = (rest.len(), rest.clone());
        if n < 20 {
            whole.body(Body::Announced(len, rest[..len.min(130_000)].to_vec()))
        } else {
            whole
        }
    });
    let registry = client();
    let pull = resolve(&registry, &server.host()).unwrap();
    let before = server.sent();
    assert!(read(&pull, &pull.image.layers[0]).unwrap() == fake.layer(0));
    let sent = server.sent() - before;
    assert!(sent <= 3 * MIB as u64 * 103 / 100, "{sent}");
    assert_eq!(server.asked("/blobs/").len(), 1 + 21);
}

#[test]
fn a_connection_that_never_gets_further_ends() {
    let fake = Fake::with_layers(&[MIB]);
    let server = faulty(&fake, |request, _, bytes| {
        let whole = part(bytes, request.range());
        whole.body(Body::Announced(bytes.len(), Vec::new()))
    });
    let error = fault_of(pulled(&server, patience()));
    assert!(matches!(error, RegistryError::Transport { .. }), "{error:?}");
    assert_eq!(server.asked("/blobs/").len(), 1 + 5);
}

#[test]
fn a_server_without_ranges_is_read_from_the_front() {
    let fake = Fake::with_layers(&[20 * MIB]);
    let server = faulty(&fake, |_, _, bytes| Reply::new(200, bytes));
    assert!(pulled(&server, patience()).unwrap() == fake.layer(0));
    assert_eq!(server.asked("/blobs/").len(), 1 + 1);
}

#[test]
fn a_cut_from_a_server_without_ranges_is_taken_up_again() {
    let fake = Fake::with_layers(&[20 * MIB]);
    let server = faulty(&fake, |_, n, bytes| {
        let cut = if n == 0 { 10 * MIB } else { bytes.len() };
        Reply::new(200, "").body(Body::Announced(bytes.len(), bytes[..cut].to_vec()))
    });
    assert!(pulled(&server, patience()).unwrap() == fake.layer(0));
}

#[test]
fn ranges_that_are_refused_are_done_without() {
    let fake = Fake::with_layers(&[20 * MIB]);
    let server = faulty(&fake, |request, _, bytes| match request.range() {
        Some((first, _)) if first > 0 => Reply::new(416, ""),
        range => part(bytes, range),
    });
    assert!(pulled(&server, patience()).unwrap() == fake.layer(0));
}

#[test]
fn ranges_that_stop_in_the_middle_are_done_without() {
    let fake = Fake::with_layers(&[20 * MIB]);
    let server = faulty(&fake, |request, n, bytes| match n {
        0 => part(bytes, request.range()),
        _ => Reply::new(200, bytes),
    });
    assert!(pulled(&server, patience()).unwrap() == fake.layer(0));
}

#[test]
fn another_range_than_the_one_asked_for_is_an_error() {
    let fake = Fake::with_layers(&[20 * MIB]);
    for range in ["bytes 5-9/20971520", "bytes 0-20971519/20971520", "nonsense", ""] {
        let server = faulty(&fake, move |_, _, bytes| {
            Reply::new(206, &bytes[..10]).with("content-range", range)
        });
        let error = fault_of(pulled(&server, patience()));
        assert!(matches!(error, RegistryError::Range { .. }), "{range}: {error:?}");
    }
    let server = faulty(&fake, |_, _, bytes| {
        Reply::new(206, &bytes[..10]).with("content-range", "bytes 0-9/10")
    });
    let error = fault_of(pulled(&server, patience()));
    assert!(matches!(error, RegistryError::Length { found: 10, .. }), "{error:?}");
}

#[test]
fn a_range_shorter_than_asked_for_is_continued() {
    let fake = Fake::with_layers(&[20 * MIB]);
    let server = faulty(&fake, |request, _, bytes| {
        let range = request.range().map(|(first, last)| (first, last.min(first + 5 * MIB - 1)));
        part(bytes, range)
    });
    assert!(pulled(&server, patience()).unwrap() == fake.layer(0));
}

#[test]
fn wrong_bytes_never_end_well() {
    let fake = Fake::with_layers(&[MIB]);
    let server = faulty(&fake, |request, _, bytes| {
        let mut bytes = bytes.to_vec();
        bytes[MIB / 2] ^= 1;
        part(&bytes, request.range())
    });
    let error = pulled(&server, patience()).unwrap_err();
    let mismatch = error.into_inner().unwrap().downcast::<Mismatch>().unwrap();
    assert_ne!(mismatch.found, Some(mismatch.expected));
}

#[test]
fn a_wrong_length_is_an_error_and_not_tried_again() {
    let fake = Fake::with_layers(&[MIB]);
    for (found, body) in [
        (MIB - 1, Body::Plain(vec![0; MIB - 1])),
        (MIB + 1, Body::Plain(vec![0; MIB + 1])),
        (0, Body::Plain(Vec::new())),
    ] {
        let server = faulty(&fake, move |_, _, _| Reply::new(200, "").body(body.clone()));
        let error = fault_of(pulled(&server, patience()));
        let RegistryError::Length { found: reported, .. } = error else { panic!("{error:?}") };
        assert_eq!(reported, found as u64);
        assert_eq!(server.asked("/blobs/").len(), 1 + 1);
    }
}

#[test]
fn without_a_length_the_descriptor_decides() {
    let fake = Fake::with_layers(&[MIB]);
    let server =
        faulty(&fake, |_, _, bytes| Reply::new(200, "").body(Body::Chunked(bytes.to_vec())));
    assert!(pulled(&server, patience()).unwrap() == fake.layer(0));
    let server = faulty(&fake, |_, _, bytes| {
        Reply::new(200, "").body(Body::Chunked([bytes, b"more"].concat()))
    });
    let error = fault_of(pulled(&server, patience()));
    assert!(matches!(error, RegistryError::Length { .. }), "{error:?}");
    let server = faulty(&fake, |_, _, _| Reply::new(200, "").body(Body::Endless));
    let error = fault_of(pulled(&server, patience()));
    assert!(matches!(error, RegistryError::Length { .. }), "{error:?}");
    let server = faulty(&fake, |request, _, bytes| {
        let rest = &bytes[request.range().map_or(0, |(first, _)| first)..];
        Reply::new(200, "").body(Body::Chunked(rest[..rest.len().min(1000)].to_vec()))
    });
    let error = fault_of(pulled(&server, patience()));
    assert!(matches!(error, RegistryError::Cut { .. }), "{error:?}");
}

#[test]
fn encoded_content_is_refused() {
    let fake = Fake::with_layers(&[MIB]);
    for encoding in ["gzip", "br", "x-unknown"] {
        let server = faulty(&fake, move |_, _, bytes| {
            Reply::new(200, bytes).with("content-encoding", encoding)
        });
        let error = fault_of(pulled(&server, patience()));
        assert!(matches!(error, RegistryError::Encoding { .. }), "{error:?}");
    }
    let server =
        faulty(&fake, |_, _, bytes| Reply::new(200, bytes).with("content-encoding", "identity"));
    assert!(pulled(&server, patience()).is_ok());
}

#[test]
fn a_server_that_dawdles_meets_a_deadline() {
    let fake = Fake::with_layers(&[MIB]);
    let patience = Patience {
        tries: 2,
        response: Duration::from_millis(300),
        pace: Duration::from_millis(300),
        pace_bytes: 1000,
        ..patience()
    };
    for body in
        [Body::Drip(vec![0; MIB], Duration::from_millis(5)), Body::Silence(Duration::from_secs(2))]
    {
        let server = faulty(&fake, move |_, _, _| Reply::new(200, "").body(body.clone()));
        let start = Instant::now();
        let error = fault_of(pulled(&server, patience));
        assert!(matches!(error, RegistryError::Slow { .. }), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

#[test]
fn a_reader_that_takes_its_time_is_no_slow_server() {
    let fake = Fake::with_layers(&[20 * MIB]);
    let server = faulty(&fake, |request, _, bytes| part(bytes, request.range()));
    let patience = Patience { pace: Duration::from_millis(500), ..patience() };
    let registry = client_with(openshell_rootfs::auth::Keychain::empty(), patience);
    let pull = resolve(&registry, &server.host()).unwrap();
    let mut reader = pull.open(&pull.image.layers[0]).unwrap();
    let mut start = vec![0; MIB];
    reader.read_exact(&mut start).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!([start, rest].concat() == fake.layer(0));
}

#[test]
fn errors_of_the_server_are_tried_again() {
    let fake = Fake::with_layers(&[MIB]);
    for status in [500, 502, 503, 504, 429, 408] {
        let server = faulty(&fake, move |request, n, bytes| match n {
            0..3 => Reply::new(status, "a page"),
            _ => part(bytes, request.range()),
        });
        assert!(pulled(&server, patience()).is_ok(), "{status}");
    }
    for (status, asked) in [(500, 5), (404, 1), (403, 1), (400, 1)] {
        let server = faulty(&fake, move |_, _, _| Reply::new(status, ""));
        let error = fault_of(pulled(&server, patience()));
        assert!(
            matches!(error, RegistryError::Status { status: s, .. } if s == status),
            "{error:?}"
        );
        assert_eq!(server.asked("/blobs/").len(), 1 + asked, "{status}");
    }
}

#[test]
fn the_wait_that_a_server_asks_for_is_kept_up_to_a_cap() {
    let fake = Fake::with_layers(&[MIB]);
    let server = faulty(&fake, |request, n, bytes| match n {
        0 => Reply::new(429, "").with("retry-after", "1"),
        _ => part(bytes, request.range()),
    });
    assert!(pulled(&server, patience()).is_ok());
    let asked = server.asked("/blobs/");
    let waited = asked[2].at - asked[1].at;
    assert!(waited >= Duration::from_millis(990), "{waited:?}");
    let server = faulty(&fake, |_, _, _| Reply::new(429, "").with("retry-after", "3600"));
    let error = fault_of(pulled(&server, patience()));
    assert!(matches!(error, RegistryError::Limited { wait, .. } if wait.as_secs() == 3600));
}

#[test]
fn a_redirect_in_a_circle_ends_and_one_without_tls_is_not_followed() {
    let fake = Fake::with_layers(&[MIB]);
    let server =
        faulty(&fake, |request, _, _| Reply::new(307, "").with("location", request.target.clone()));
    let error = fault_of(pulled(&server, patience()));
    assert!(chain(&error).contains("too many redirects"), "{error:?}");
    for location in [
        "http://192.0.2.1/blob",
        "http://169.254.169.254/latest",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
    ] {
        let server = faulty(&fake, move |_, _, _| Reply::new(302, "").with("location", location));
        let error = fault_of(pulled(&server, patience()));
        assert!(matches!(error, RegistryError::Redirect { .. }), "{location}: {error:?}");
    }
}

#[test]
fn a_layer_that_occurs_twice_is_read_twice() {
    let mut fake = Fake::default();
    let layer = crate::fake::noise(1, 5000);
    let manifest = fake.image(&[layer.clone(), layer.clone()]);
    fake.tag("1", crate::fake::MANIFEST, manifest.to_string());
    let serving = fake.clone();
    let server = Server::start(move |request| serving.answer(request));
    let registry = client();
    let pull = resolve(&registry, &server.host()).unwrap();
    for read in read_all(&pull) {
        assert!(read.unwrap() == layer);
    }
}

#[test]
fn a_reader_that_is_dropped_leaves_nothing_behind() {
    let fake = Fake::with_layers(&[40 * MIB]);
    let server = faulty(&fake, |request, _, bytes| part(bytes, request.range()));
    let registry = client();
    let pull = resolve(&registry, &server.host()).unwrap();
    let mut reader = pull.open(&pull.image.layers[0]).unwrap();
    reader.read_exact(&mut [0; 1000]).unwrap();
    drop(reader);
    drop(registry);
    // The pull alone keeps the sockets' thread alive.
    assert!(read(&pull, &pull.image.layers[0]).unwrap() == fake.layer(0));
}
