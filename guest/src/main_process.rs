//! The sandbox's main process: one for the whole life of the supervisor, with whoever attaches to it.
//!
//! What it writes goes to everybody attached, and the last [`KEPT`] bytes to whoever attaches later. Invariant: it is never
//! stopped by a reader for longer than [`PATIENCE`]: who does not read is let go.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

use crate::children::{Child, Exit, Group};
use crate::process::{Program, Sandbox, StartError, Streams};
use crate::pty::{Pty, Size};

/// Bytes that are kept for whoever attaches later.
const KEPT: usize = 64 << 10;
/// How long a reader may keep the process from writing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Chunks that wait for a reader.
const WAITING: usize = 16;
const CHUNK: usize = 32 << 10;
/// How long output may take to be read to its end once the process has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Something that it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The bytes.
    pub bytes: Arc<[u8]>,
    /// Whether they are errors.
    pub errors: bool,
}

/// What an attached client gets.
#[derive(Debug)]
pub struct Attachment {
    /// What was written before.
    pub before: Vec<u8>,
    /// What is written from now on; ends with the process, or when the client is too slow.
    pub output: mpsc::Receiver<Chunk>,
}

#[derive(Debug, Default)]
struct Outputs {
    kept: VecDeque<u8>,
    attached: Vec<mpsc::Sender<Chunk>>,
    ended: bool,
}

impl Outputs {
    async fn publish(&mut self, chunk: Chunk) {
        let excess = (self.kept.len() + chunk.bytes.len()).saturating_sub(KEPT);
        self.kept.drain(..excess.min(self.kept.len()));
        let tail = chunk.bytes.len().saturating_sub(KEPT);
        self.kept.extend(&chunk.bytes[tail..]);
        let mut kept = Vec::with_capacity(self.attached.len());
        for client in self.attached.drain(..) {
            if client.send_timeout(chunk.clone(), PATIENCE).await.is_ok() {
                kept.push(client);
            }
        }
        self.attached = kept;
    }
}

/// The main process.
#[derive(Debug)]
pub struct MainProcess {
    input: mpsc::Sender<Vec<u8>>,
    outputs: Arc<Mutex<Outputs>>,
    exit: watch::Receiver<Option<Exit>>,
    group: Group,
    terminal: Option<Arc<Pty>>,
}

impl MainProcess {
    /// Starts it. What it writes is also offered to `tap`, which may miss some.
    ///
    /// # Errors
    /// Why not.
    pub fn start(
        sandbox: &Sandbox,
        program: &Program,
        tty: bool,
        tap: mpsc::Sender<Chunk>,
    ) -> Result<Self, StartError> {
        let size = tty.then(|| Size::new(0, 0));
        let (child, streams) = sandbox.start(program, size)?;
        let group = child.group();
        let (input, typed) = mpsc::channel(WAITING);
        let (tell, exit) = watch::channel(None);
        let outputs = Arc::new(Mutex::new(Outputs::default()));
        let sink = Sink { outputs: Arc::clone(&outputs), tap };
        let mut pumps = JoinSet::new();
        let terminal = match streams {
            Streams::Terminal(pty) => {
                pumps.spawn(pump_terminal(Arc::clone(&pty), sink));
                tokio::spawn(type_in(Arc::clone(&pty), typed));
                Some(pty)
            }
            Streams::Pipes { input, output, errors } => {
                pumps.spawn(pump(output, sink.clone(), false));
                pumps.spawn(pump(errors, sink, true));
                tokio::spawn(feed(input, typed));
                None
            }
        };
        tokio::spawn(watch_end(child, pumps, Arc::clone(&outputs), tell));
        Ok(Self { input, outputs, exit, group, terminal })
    }

    /// Waits for its end, and until what it wrote has been read.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Signal(libc::SIGKILL)),
            // The task that tells it is never ended before it has.
            Err(_) => Exit::Signal(libc::SIGKILL),
        }
    }

    /// Sends a signal to it and its group.
    pub fn signal(&self, signal: Signal) {
        if self.exit.borrow().is_none() {
            self.group.signal(signal);
        }
    }

    /// Attaches a client.
    pub async fn attach(&self) -> Attachment {
        let mut outputs = self.outputs.lock().await;
        let before = outputs.kept.iter().copied().collect();
        let (client, output) = mpsc::channel(WAITING);
        if !outputs.ended {
            outputs.attached.push(client);
        }
        Attachment { before, output }
    }

    /// Gives it input, from any client.
    ///
    /// # Errors
    /// When it reads no more.
    pub async fn feed(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.input.send(bytes).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Gives its terminal another size, if it has one.
    pub fn resize(&self, size: Size) {
        if let Some(terminal) = &self.terminal {
            drop(terminal.resize(size));
        }
    }
}

#[derive(Debug, Clone)]
struct Sink {
    outputs: Arc<Mutex<Outputs>>,
    tap: mpsc::Sender<Chunk>,
}

impl Sink {
    async fn take(&self, bytes: &[u8], errors: bool) {
        let chunk = Chunk { bytes: bytes.into(), errors };
        // Logs are best effort.
        drop(self.tap.try_send(chunk.clone()));
        self.outputs.lock().await.publish(chunk).await;
    }
}

async fn watch_end(
    mut child: Child,
    mut pumps: JoinSet<()>,
    outputs: Arc<Mutex<Outputs>>,
    tell: watch::Sender<Option<Exit>>,
) {
    let exit = child.wait().await;
    let all = async { while pumps.join_next().await.is_some() {} };
    // A process in the background may hold the streams for ever.
    if tokio::time::timeout(LAST_WORDS, all).await.is_err() {
        pumps.shutdown().await;
    }
    let mut outputs = outputs.lock().await;
    outputs.ended = true;
    outputs.attached.clear();
    tell.send_replace(Some(exit));
}

async fn pump(mut from: pipe::Receiver, sink: Sink, errors: bool) {
    let mut bytes = vec![0; CHUNK];
    while let Ok(len @ 1..) = from.read(&mut bytes).await {
        sink.take(&bytes[..len], errors).await;
    }
}

async fn pump_terminal(pty: Arc<Pty>, sink: Sink) {
    let mut bytes = vec![0; CHUNK];
    while let Ok(len @ 1..) = pty.read(&mut bytes).await {
        sink.take(&bytes[..len], false).await;
    }
}

async fn feed(mut input: pipe::Sender, mut typed: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = typed.recv().await {
        if input.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn type_in(pty: Arc<Pty>, mut typed: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = typed.recv().await {
        if pty.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::{sandbox, words};

    async fn all(mut attachment: Attachment) -> String {
        let mut bytes = attachment.before;
        while let Some(chunk) = attachment.output.recv().await {
            bytes.extend(&*chunk.bytes);
        }
        String::from_utf8(bytes).unwrap()
    }

    fn start(script: &str, tty: bool) -> MainProcess {
        let program = words(&["/bin/sh", "-c", script]);
        MainProcess::start(&sandbox(), &program, tty, mpsc::channel(1).0).unwrap()
    }

    #[tokio::test]
    async fn everybody_attached_sees_what_it_writes() {
        let main = start("read line; echo got $line; echo no >&2; exit 5", false);
        let (first, second) = (main.attach().await, main.attach().await);
        main.feed(b"word\n".to_vec()).await.unwrap();
        assert_eq!(main.wait().await, Exit::Code(5));
        for attachment in [first, second, main.attach().await] {
            let text = all(attachment).await;
            assert!(text.contains("got word\n") && text.contains("no\n"), "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_terminal_has_the_size_it_is_given() {
        let main = start("read line; stty size", true);
        let attachment = main.attach().await;
        main.resize(Size::new(101, 37));
        main.feed(b"\n".to_vec()).await.unwrap();
        assert_eq!(main.wait().await, Exit::Code(0));
        assert!(all(attachment).await.contains("37 101"));
    }

    #[tokio::test]
    async fn only_the_last_bytes_are_kept() {
        let main = start("head -c 300000 /dev/zero | tr '\\0' x; echo end", false);
        main.wait().await;
        let text = all(main.attach().await).await;
        assert_eq!(text.len(), KEPT);
        assert!(text.ends_with("xend\n"));
    }

    #[tokio::test]
    async fn a_process_in_the_background_does_not_hold_the_end() {
        let main = start("sleep 30 & echo $!", false);
        let begin = std::time::Instant::now();
        assert_eq!(main.wait().await, Exit::Code(0));
        assert!(begin.elapsed() < Duration::from_secs(20));
        main.group.signal(Signal::KILL);
    }

    #[tokio::test]
    async fn a_signal_ends_it() {
        let main = start("sleep 100", false);
        main.signal(Signal::TERM);
        assert_eq!(main.wait().await, Exit::Signal(libc::SIGTERM));
    }
}
