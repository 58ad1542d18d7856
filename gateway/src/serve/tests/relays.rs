//! Relays through a session over a real socket: the gateway's end is the registry's, the supervisor's is a client of the services.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;

/// A sandbox whose supervisor opens every relay that it is asked for.
struct Guest {
    lab: Lab,
    id: String,
    opened: mpsc::UnboundedReceiver<Opened>,
    _messages: mpsc::Sender<SupervisorMessage>,
}

/// A relay as its supervisor has it.
struct Opened {
    frames: mpsc::Sender<RelayFrame>,
    back: tonic::Streaming<RelayFrame>,
}

impl Opened {
    async fn say(&self, bytes: &[u8]) {
        let payload = Some(relay_frame::Payload::Data(bytes.to_vec().into()));
        self.frames.send(RelayFrame { payload }).await.unwrap();
    }

    /// Ends the supervisor's half. To drop the other half would cut the call off.
    fn close(self) -> tonic::Streaming<RelayFrame> {
        self.back
    }

    /// What comes until the end.
    async fn rest(&mut self) -> Vec<u8> {
        let mut heard = Vec::new();
        while let Some(Ok(frame)) = self.back.next().await {
            if let Some(relay_frame::Payload::Data(data)) = frame.payload {
                heard.extend(data);
            }
        }
        heard
    }
}

impl Guest {
    async fn new() -> Self {
        let lab = Lab::new().await;
        let row = lab.create("one").await;
        let token = lab.token(&row);
        let id = id(&row).to_owned();
        let (messages, mut inbound) = lab.connect(&token, &id).await.unwrap();
        let accepted = inbound.next().await.unwrap().unwrap().payload;
        assert!(matches!(accepted, Some(gateway_message::Payload::SessionAccepted(_))));
        let (tell, opened) = mpsc::unbounded_channel();
        let client = lab.client.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = inbound.next().await {
                let Some(gateway_message::Payload::RelayOpen(open)) = message.payload else {
                    continue;
                };
                let (frames, outbound) = mpsc::channel(4);
                let init = RelayInit { channel_id: open.channel_id };
                let payload = Some(relay_frame::Payload::Init(init));
                frames.send(RelayFrame { payload }).await.unwrap();
                let stream = ReceiverStream::new(outbound);
                let back = client.clone().relay_stream(with(&token, stream)).await;
                let back = back.unwrap().into_inner();
                if tell.send(Opened { frames, back }).is_err() {
                    return;
                }
            }
        });
        Self { lab, id, opened, _messages: messages }
    }

    async fn relay(&self) -> Result<DuplexStream, Status> {
        let sessions = self.lab.gateway.compute().sessions();
        let target = relay_open::Target::Ssh(SshRelayTarget {});
        sessions.open_relay(&self.id, target, "", Duration::from_secs(5)).await?.opened().await
    }

    async fn pair(&mut self) -> (DuplexStream, Opened) {
        let near = self.relay().await.unwrap();
        (near, self.opened.recv().await.unwrap())
    }
}

#[tokio::test]
async fn relay_round_trips_bytes() {
    let mut guest = Guest::new().await;
    let (mut near, mut far) = guest.pair().await;
    near.write_all(b"to the guest").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(far.rest().await, b"to the guest");
    far.say(b"and back").await;
    let _back = far.close();
    let mut heard = Vec::new();
    near.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"and back");
}

#[tokio::test]
async fn relay_closes_cleanly_when_gateway_drops() {
    let mut guest = Guest::new().await;
    let (near, mut far) = guest.pair().await;
    drop(near);
    assert!(far.rest().await.is_empty());
}

#[tokio::test]
async fn relay_sees_eof_when_supervisor_closes() {
    let mut guest = Guest::new().await;
    let (mut near, far) = guest.pair().await;
    far.say(b"last words").await;
    let _back = far.close();
    let mut heard = Vec::new();
    near.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");
}

#[tokio::test]
async fn open_relay_times_out_when_no_session() {
    let lab = Lab::new().await;
    let row = lab.create("one").await;
    let sessions = lab.gateway.compute().sessions();
    let target = relay_open::Target::Ssh(SshRelayTarget {});
    let opened = sessions.open_relay(id(&row), target, "", Duration::from_millis(50)).await;
    assert_eq!(opened.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn concurrent_relays_multiplex_independently() {
    let mut guest = Guest::new().await;
    let mut pairs = Vec::new();
    for _ in 0..8 {
        pairs.push(guest.pair().await);
    }
    // The first is not read from: the others go on.
    let (mut stuck, _unread) = pairs.remove(0);
    let flood = tokio::spawn(async move { stuck.write_all(&vec![0; 8 << 20]).await });
    for (at, (near, far)) in pairs.iter_mut().enumerate() {
        let word = format!("relay {at}");
        near.write_all(word.as_bytes()).await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(far.rest().await, word.as_bytes());
    }
    assert!(!flood.is_finished(), "8 MiB are not held for who does not read");
    flood.abort();
}

#[tokio::test]
async fn open_relay_enforces_per_sandbox_cap_under_concurrent_burst() {
    let lab = Lab::new().await;
    let row = lab.create("one").await;
    // It is asked, and never opens one.
    let (_messages, mut inbound) = lab.connect(&lab.token(&row), id(&row)).await.unwrap();
    inbound.next().await.unwrap().unwrap();
    let reading = tokio::spawn(async move { while inbound.next().await.is_some() {} });
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (compute, id) = (lab.gateway.compute().clone(), id(&row).to_owned());
        asked.spawn(async move {
            let target = relay_open::Target::Ssh(SshRelayTarget {});
            let patience = Duration::from_secs(5);
            compute.sessions().open_relay(&id, target, "", patience).await
        });
    }
    let asked = asked.join_all().await;
    let (good, refused): (Vec<_>, Vec<_>) = asked.into_iter().partition(Result::is_ok);
    assert_eq!(good.len(), Limits::default().pending_per_sandbox);
    for one in refused {
        assert_eq!(one.unwrap_err().code(), Code::ResourceExhausted);
    }
    reading.abort();
}
