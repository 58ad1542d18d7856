//! What the supervisor and the main process say, to the console and to the gateway.
//!
//! Best effort: lines wait in a bounded queue, and what does not fit is counted and left out. Invariant: nobody ever waits for a log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openshell_proto::v1::{PushSandboxLogsRequest, SandboxLogLine};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::connect::{Backoff, Client};
use crate::main_process::Chunk;

const WAITING: usize = 1024;
const BATCH: usize = 50;
const BATCH_TIME: Duration = Duration::from_millis(500);
const LINE_MAX: usize = 4096;
/// Chunks of the main process that wait to be cut into lines.
const CHUNKS: usize = 64;

/// Takes lines.
#[derive(Debug, Clone)]
pub struct Log {
    sandbox_id: Arc<str>,
    lines: mpsc::Sender<SandboxLogLine>,
    dropped: Arc<AtomicU64>,
}

impl Log {
    /// A log, and its other end for [`push`].
    #[must_use]
    pub fn new(sandbox_id: &str) -> (Self, Lines) {
        let (lines, receiver) = mpsc::channel(WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let log = Self { sandbox_id: sandbox_id.into(), lines, dropped: Arc::clone(&dropped) };
        let pending = Vec::new();
        (log, Lines { sandbox_id: sandbox_id.to_owned(), receiver, dropped, pending, since: None })
    }

    /// Something that happened.
    pub fn info(&self, message: &str) {
        self.say("INFO", message);
    }

    /// Something that went wrong and is dealt with.
    pub fn warn(&self, message: &str) {
        self.say("WARN", message);
    }

    /// Something that went wrong.
    pub fn error(&self, message: &str) {
        self.say("ERROR", message);
    }

    fn say(&self, level: &str, message: &str) {
        use std::io::Write as _;
        drop(writeln!(std::io::stderr(), "openshell-supervisor: {message}"));
        self.line(level, "openshell_supervisor", message.to_owned());
    }

    fn line(&self, level: &str, target: &str, message: String) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = SandboxLogLine {
            sandbox_id: (*self.sandbox_id).to_owned(),
            timestamp_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            level: level.to_owned(),
            target: target.to_owned(),
            message,
            source: "sandbox".to_owned(),
            ..SandboxLogLine::default()
        };
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Where the main process's output may be offered; it is cut into lines here.
    #[must_use]
    pub fn tap(&self) -> mpsc::Sender<Chunk> {
        let (sender, mut chunks) = mpsc::channel::<Chunk>(CHUNKS);
        let log = self.clone();
        tokio::spawn(async move {
            let (mut output, mut errors) = (Cutter::default(), Cutter::default());
            while let Some(Chunk { bytes, errors: is_error }) = chunks.recv().await {
                let cutter = if is_error { &mut errors } else { &mut output };
                cutter.cut(&bytes, |line| log.line("INFO", "main", line));
            }
        });
        sender
    }
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
struct Cutter {
    begun: Vec<u8>,
}

impl Cutter {
    fn cut(&mut self, bytes: &[u8], mut take: impl FnMut(String)) {
        for &byte in bytes {
            if byte == b'\n' || self.begun.len() == LINE_MAX {
                let text = String::from_utf8_lossy(&self.begun);
                let text: String = text.chars().filter(|c| *c == '\t' || !c.is_control()).collect();
                if !text.trim().is_empty() {
                    take(text);
                }
                self.begun.clear();
            }
            if byte != b'\n' {
                self.begun.push(byte);
            }
        }
    }
}

/// Lines on their way to the gateway.
#[derive(Debug)]
pub struct Lines {
    sandbox_id: String,
    receiver: mpsc::Receiver<SandboxLogLine>,
    dropped: Arc<AtomicU64>,
    pending: Vec<SandboxLogLine>,
    since: Option<Instant>,
}

impl Lines {
    /// The next batch; nothing when nobody logs any more. May be dropped and called again: no line is lost.
    async fn batch(&mut self) -> Option<PushSandboxLogsRequest> {
        while self.pending.len() < BATCH {
            let line = match self.since {
                None => self.receiver.recv().await,
                Some(since) => {
                    match tokio::time::timeout_at(since + BATCH_TIME, self.receiver.recv()).await {
                        Ok(line) => line,
                        Err(_) => break,
                    }
                }
            };
            match line {
                Some(line) => self.pending.push(line),
                None if self.pending.is_empty() => return None,
                None => break,
            }
            self.since.get_or_insert_with(Instant::now);
        }
        self.since = None;
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let mut logs = std::mem::take(&mut self.pending);
        if let (Some(last), 1..) = (logs.last().cloned(), dropped) {
            let message = format!("{dropped} lines were left out");
            logs.push(SandboxLogLine { level: "WARN".to_owned(), message, ..last });
        }
        Some(PushSandboxLogsRequest { sandbox_id: self.sandbox_id.clone(), logs })
    }
}

/// Pushes lines for ever, on one stream as long as that holds.
pub async fn push(client: Client, mut lines: Lines) {
    let mut backoff = Backoff::default();
    loop {
        let (sender, batches) = mpsc::channel(2);
        let mut client = client.clone();
        let call = client.push_sandbox_logs(ReceiverStream::new(batches));
        tokio::pin!(call);
        loop {
            let batch = tokio::select! {
                _ended = &mut call => break,
                batch = lines.batch() => batch,
            };
            let Some(batch) = batch else { return };
            tokio::select! {
                _ended = &mut call => break,
                sent = sender.send(batch) => match sent {
                    Ok(()) => backoff.reset(),
                    Err(_) => break,
                },
            }
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_into_lines_without_control_characters() {
        let mut cutter = Cutter::default();
        let mut lines = Vec::new();
        for part in [&b"one\r\ntw"[..], b"o\n\n\x1b[1mbold\x1b[0m\n", b"rest"] {
            cutter.cut(part, |line| lines.push(line));
        }
        assert_eq!(lines, ["one", "two", "[1mbold[0m"]);
        cutter.cut(&vec![b'x'; 3 * LINE_MAX], |line| lines.push(line));
        assert_eq!(lines.len(), 6);
        assert!(lines.iter().all(|line| line.len() <= LINE_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_bounded_in_size_and_time() {
        let (log, mut lines) = Log::new("id");
        for number in 0..BATCH + 5 {
            log.line("INFO", "t", number.to_string());
        }
        assert_eq!(lines.batch().await.unwrap().logs.len(), BATCH);
        let begin = Instant::now();
        assert_eq!(lines.batch().await.unwrap().logs.len(), 5);
        assert_eq!(begin.elapsed(), BATCH_TIME);
        drop(log);
        assert!(lines.batch().await.is_none());
    }

    #[tokio::test]
    async fn what_does_not_fit_is_counted() {
        let (log, mut lines) = Log::new("id");
        for _ in 0..WAITING + 7 {
            log.line("INFO", "t", "x".to_owned());
        }
        let batch = lines.batch().await.unwrap();
        assert_eq!(batch.logs.last().unwrap().message, "7 lines were left out");
    }
}
