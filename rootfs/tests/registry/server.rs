//! An HTTP/1.1 server that does exactly what it is told, also when that is wrong.
//!
//! Each request is answered by a function on a thread of its own, and remembered.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A request, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) at: Instant,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// First and last byte that are asked for.
    pub(crate) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// How a body is sent.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// With its length.
    Plain(Vec<u8>),
    /// With a length that is wrong by so much.
    Announced(usize, Vec<u8>),
    /// In chunks, without a length.
    Chunked(Vec<u8>),
    /// In chunks, and on and on.
    Endless,
    /// With its length, a byte at a time.
    Drip(Vec<u8>, Duration),
    /// No answer at all.
    Silence(Duration),
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: Body::Plain(body.into()) }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

struct Shared {
    answer: Box<Answer>,
    requests: Mutex<Vec<Request>>,
    sent: AtomicU64,
    open: AtomicUsize,
    most_open: AtomicUsize,
    ended: AtomicBool,
}

/// A server on loopback, until it is dropped.
pub(crate) struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            answer: Box::new(answer),
            requests: Mutex::default(),
            sent: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let serving = shared.clone();
        let thread = std::thread::Builder::new().spawn(move || {
            for connection in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let serving = serving.clone();
                let connection = connection.unwrap();
                std::thread::Builder::new().spawn(move || serving.serve(&connection)).unwrap();
            }
        });
        Self { shared, address, thread: Some(thread.unwrap()) }
    }

    /// Host and port.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The requests whose target holds a text.
    pub(crate) fn asked(&self, text: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.target.contains(text)).collect()
    }

    /// How many bytes of bodies went out.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// How many requests were being answered at most at the same time.
    pub(crate) fn most_open(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn serve(&self, connection: &TcpStream) {
        let Some(request) = read(connection) else { return };
        self.requests.lock().unwrap().push(request.clone());
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_open.fetch_max(open, Ordering::SeqCst);
        let reply = (self.answer)(&request);
        // A client that goes away is what many tests are about.
        drop(self.send(connection, &reply, request.method == "HEAD"));
        self.open.fetch_sub(1, Ordering::SeqCst);
        drop(connection.shutdown(Shutdown::Both));
    }

    fn send(&self, mut to: &TcpStream, reply: &Reply, head_only: bool) -> std::io::Result<()> {
        if let Body::Silence(wait) = &reply.body {
            std::thread::sleep(*wait);
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match &reply.body {
            Body::Plain(bytes) | Body::Drip(bytes, _) => {
                head += &format!("content-length: {}\r\n", bytes.len());
            }
            Body::Announced(len, _) => head += &format!("content-length: {len}\r\n"),
            Body::Chunked(_) | Body::Endless => head += "transfer-encoding: chunked\r\n",
            Body::Silence(_) => {}
        }
        to.write_all(format!("{head}\r\n").as_bytes())?;
        if head_only {
            return Ok(());
        }
        match &reply.body {
            Body::Plain(bytes) | Body::Announced(_, bytes) => self.write(to, bytes),
            Body::Chunked(bytes) => {
                for chunk in bytes.chunks(100_000) {
                    self.chunk(to, chunk)?;
                }
                to.write_all(b"0\r\n\r\n")
            }
            Body::Endless => loop {
                self.chunk(to, &[b' '; 65_536])?;
            },
            Body::Drip(bytes, wait) => bytes.iter().try_for_each(|byte| {
                std::thread::sleep(*wait);
                self.write(to, &[*byte])
            }),
            Body::Silence(_) => Ok(()),
        }
    }

    fn chunk(&self, mut to: &TcpStream, chunk: &[u8]) -> std::io::Result<()> {
        to.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
        self.write(to, chunk)?;
        to.write_all(b"\r\n")
    }

    fn write(&self, mut to: &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        for piece in bytes.chunks(65_536) {
            to.write_all(piece)?;
            self.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        Ok(())
    }
}

fn read(connection: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut request = Request { method, target, headers, body: String::new(), at: Instant::now() };
    let len = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    request.body = String::from_utf8(body).ok()?;
    Some(request)
}
