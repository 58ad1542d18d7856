//! `/healthz`, `/readyz` and `/metrics` over plain HTTP/1.1, for probes and scrapers.
//!
//! Invariant: a client gets one answer, within bounded time and memory, and learns nothing about any one sandbox.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openshell_proto::v1::Sandbox;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Gateway;
use crate::compute::rules::phase_of;
use crate::store::Selector;

const REQUEST_MAX: u64 = 8 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECTIONS: usize = 32;

/// Answers for ever.
pub async fn serve(gateway: Gateway, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let gateway = gateway.clone();
        tokio::spawn(async move {
            // A prober that is slow or gone gets no answer.
            drop(tokio::time::timeout(PATIENCE, answer(&gateway, stream)).await);
            drop(place);
        });
    }
}

async fn answer(gateway: &Gateway, mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut limited = (&mut stream).take(REQUEST_MAX);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if limited.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&head);
    let mut words = text.split_whitespace();
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET" | "HEAD"), Some(path)) => {
            page(gateway, path.split('?').next().unwrap_or_default()).await
        }
        _ => ("400 Bad Request", String::new()),
    };
    let reply = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(reply.as_bytes()).await?;
    if !text.starts_with("HEAD") {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

async fn page(gateway: &Gateway, path: &str) -> (&'static str, String) {
    match path {
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        "/readyz" => match gateway.compute().store().ping().await {
            Ok(()) => ("200 OK", "ready\n".to_owned()),
            Err(_) => ("503 Service Unavailable", "the store does not answer\n".to_owned()),
        },
        "/metrics" => ("200 OK", metrics(gateway).await),
        _ => ("404 Not Found", String::new()),
    }
}

async fn metrics(gateway: &Gateway) -> String {
    let compute = gateway.compute();
    let mut text = String::new();
    let mut gauge = |name: &str, labels: &str, value: usize| {
        text.push_str(&format!("openshell_gateway_{name}{labels} {value}\n"));
    };
    gauge("supervisor_sessions", "", compute.sessions().len());
    gauge("pending_relays", "", compute.sessions().pending_relays());
    gauge("watched_sandboxes", "", compute.bus().topics());
    if let Ok(rows) = compute.store().list::<Sandbox>(None, &Selector::default()).await {
        let mut phases = BTreeMap::<&str, usize>::new();
        for row in &rows {
            *phases.entry(phase_of(row).as_str_name()).or_default() += 1;
        }
        for (phase, count) in phases {
            let phase = phase.trim_start_matches("SANDBOX_PHASE_").to_lowercase();
            gauge("sandboxes", &format!("{{phase=\"{phase}\"}}"), count);
        }
    }
    text
}
