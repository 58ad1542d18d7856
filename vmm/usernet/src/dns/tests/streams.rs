use proptest::prelude::*;

use super::*;

fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

fn host_query(id: u16) -> Vec<u8> {
    framed(&query(id, "host.docker.internal", RecordType::A))
}

impl World {
    fn open(&mut self) -> StreamId {
        self.dns.open(self.now).unwrap()
    }

    fn push(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        self.dns.push(self.now, stream, bytes, &mut self.egress, &mut self.host)
    }

    /// All messages that wait on a stream, read `step` bytes at a time.
    fn pull(&mut self, stream: StreamId, step: usize) -> Vec<Message> {
        let (mut all, mut piece) = (Vec::new(), vec![0; step]);
        loop {
            let count = self.dns.pull(stream, &mut piece);
            all.extend_from_slice(&piece[..count]);
            if count == 0 {
                break;
            }
        }
        let mut messages = Vec::new();
        let mut rest = &all[..];
        while let Some((len, after)) = rest.split_first_chunk() {
            let (message, after) = after.split_at(u16::from_be_bytes(*len).into());
            messages.push(Message::from_vec(message).unwrap());
            rest = after;
        }
        messages
    }
}

#[test]
fn a_stream_carries_queries_however_they_are_cut() {
    let bytes: Vec<u8> = (0..5).flat_map(host_query).collect();
    for step in [1, 2, 3, 40, 1000] {
        let mut world = World::new(&[]);
        let stream = world.open();
        for piece in bytes.chunks(step) {
            assert_eq!(world.push(stream, piece), piece.len());
        }
        assert_eq!(world.dns.take_ready(), Some(stream));
        assert_eq!(world.dns.take_ready(), None);
        assert!(world.dns.readable(stream) > 0 && !world.dns.is_done(stream));
        let ids: Vec<u16> = world.pull(stream, step).iter().map(|of| of.metadata.id).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4]);
        world.dns.finish(stream);
        assert!(world.dns.is_done(stream));
    }
}

#[test]
fn answers_come_as_they_are_ready_and_end_the_stream_after_them() {
    let mut world = World::new(&[]);
    let stream = world.open();
    let first = framed(&query(1, "a.example", RecordType::A));
    assert_eq!(world.push(stream, &first), first.len());
    let (flow, _, sent) = world.asked();
    assert_eq!(world.push(stream, &host_query(2)), host_query(2).len());
    assert_eq!(world.pull(stream, 100)[0].metadata.id, 2);
    world.dns.finish(stream);
    assert!(!world.dns.is_done(stream), "one is in flight");
    let mut answer = answer_to(&sent);
    answer.add_answers((0..100_u8).map(|n| address("a.example", &format!("1.1.1.{n}"))));
    while world.dns.take_ready().is_some() {}
    world.deliver(flow, Ok(answer.to_vec().unwrap()));
    assert_eq!(world.dns.take_ready(), Some(stream));
    assert_eq!(world.pull(stream, 100)[0].answers.len(), 100, "not cut to the size of a datagram");
    assert!(world.dns.is_done(stream));
}

#[test]
fn a_stream_with_many_unanswered_queries_is_not_read() {
    let mut world = World::new(&[]);
    let stream = world.open();
    let bytes: Vec<u8> =
        (0..20).flat_map(|id| framed(&query(id, "a.example", RecordType::A))).collect();
    let taken = world.push(stream, &bytes);
    assert_eq!((world.dns.in_flight(), taken), (16, bytes.len() / 20 * 16));
    assert_eq!(world.push(stream, &bytes[taken..]), 0);
    let (flow, _, sent) = world.asked();
    world.deliver(flow, Ok(answer_to(&sent).to_vec().unwrap()));
    assert_eq!(world.dns.take_ready(), Some(stream), "there is room again");
    assert_eq!(world.push(stream, &bytes[taken..]), bytes.len() / 20);
    world.dns.close(stream, &mut world.host);
    assert_eq!((world.dns.in_flight(), world.host.open.len()), (0, 0));
    assert_eq!(world.push(stream, &bytes), 0);
    assert!(world.dns.is_done(stream));
}

#[test]
fn a_guest_that_reads_no_answers_is_not_read() {
    let mut world = World::new(&[]);
    let stream = world.open();
    let mut pushed = 0;
    while world.push(stream, &host_query(1)) != 0 {
        pushed += 1;
        assert!(pushed < 10_000);
    }
    assert!((128 << 10..130 << 10).contains(&world.dns.readable(stream)));
    while world.dns.take_ready().is_some() {}
    assert!(world.dns.pull(stream, &mut [0; 4096]) == 4096);
    assert_eq!(world.dns.take_ready(), Some(stream));
    assert_ne!(world.push(stream, &host_query(1)), 0);
}

#[test]
fn what_is_no_dns_ends_the_stream() {
    for bytes in [&[0xff, 0xff, 1, 2, 3][..], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut world = World::new(&[]);
        let stream = world.open();
        assert_eq!(world.push(stream, bytes), bytes.len(), "taken, and thrown away");
        assert!(world.dns.is_done(stream));
    }
    let mut world = World::new(&[]);
    let stream = world.open();
    let unanswerable = framed(&[1, 2, 3]);
    for _ in 0..100 {
        assert_eq!(world.push(stream, &unanswerable), 5);
    }
    assert_eq!(world.push(stream, &host_query(3)), host_query(3).len());
    assert_eq!(world.pull(stream, 99).len(), 1);
}

#[test]
fn an_idle_stream_ends_and_streams_are_bounded() {
    let mut world = World::new(&[]);
    let idle = world.open();
    world.pass(Duration::from_secs(10));
    let busy = world.open();
    assert_eq!(world.dns.deadline(), Some(START + Duration::from_secs(30)));
    world.pass(Duration::from_secs(20));
    assert!(world.dns.is_done(idle) && !world.dns.is_done(busy));
    assert_eq!(world.dns.take_ready(), Some(idle));
    assert_eq!(world.dns.deadline(), Some(START + Duration::from_secs(40)), "time goes on");
    world.dns.close(idle, &mut world.host);
    for _ in 1..Dns::MAX_STREAMS {
        world.open();
    }
    assert!(world.dns.open(world.now).is_none());
}

proptest! {
    #[test]
    fn any_bytes_on_a_stream_are_taken_or_refused(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
        let mut world = World::new(&[]);
        let stream = world.open();
        for piece in &pieces {
            prop_assert!(world.push(stream, piece) <= piece.len());
        }
        world.dns.finish(stream);
        world.pass(Duration::from_secs(60));
        world.pull(stream, 17);
        prop_assert!(world.dns.is_done(stream));
    }
}
