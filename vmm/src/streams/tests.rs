//! The thread against the guest's own agent as an ordinary process, against guests that are not it, and with clients that are.

use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use openshell_agent::exec::Started;
use openshell_agent::session;
use openshell_agent::watched::Watched;
use openshell_agent_proto::{
    DATA_MAX, Decoder, Exit, FailureKind, FromGuest, FromHost, Stream, WINDOW_BYTES,
};

use super::*;
use crate::agent::{AgentError, Streams, attach};
use crate::logbook::{Logbook, Reader, Source};

const PATIENCE: Duration = Duration::from_secs(60);

/// A machine's thread, and what its guest and those who attach connect to.
struct Bench {
    directory: tempfile::TempDir,
    link: Option<Link>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["guest", "attach"].map(|name| directory.path().join(name));
        let plan = StreamsPlan {
            guest: UnixListener::bind(&paths[0]).unwrap(),
            attach: UnixListener::bind(&paths[1]).unwrap(),
            paths,
            log: Logbook::open(directory.path(), 1 << 20).unwrap(),
            tty: false,
            input: true,
            own: false,
        };
        let link = Link::start(plan, None, Jail { seccomp: true }).unwrap();
        Self { directory, link: Some(link) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Begins to attach with this input, if any; ready when the machine has answered.
    fn attach(&self, input: Option<PipeReader>) -> Attached {
        let path = self.path("attach");
        let (mut output, stdout) = io::pipe().unwrap();
        let (mut error, stderr) = io::pipe().unwrap();
        let session = move || {
            let streams = Streams {
                input: input.as_ref().map(AsFd::as_fd),
                output: stdout.as_fd(),
                error: stderr.as_fd(),
                signals: None,
                timeout: None,
            };
            attach(&path, None, false, &streams)
        };
        let session = Builder::new().name("session".to_owned()).spawn(session).unwrap();
        let read = move || {
            let mut bytes = [Vec::new(), Vec::new()];
            output.read_to_end(&mut bytes[0]).unwrap();
            error.read_to_end(&mut bytes[1]).unwrap();
            bytes
        };
        Attached { session, read: Builder::new().name("reader".to_owned()).spawn(read).unwrap() }
    }

    /// Starts the main process, carried by the agent.
    fn start(&self, script: &str) -> JoinHandle<()> {
        let (stdin, input) = io::pipe().unwrap();
        let (output, stdout) = io::pipe().unwrap();
        let (error, stderr) = io::pipe().unwrap();
        let (status, mut tell) = io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).current_dir(self.directory.path());
        let mut child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap();
        drop(command);
        let pid = i32::try_from(child.id()).unwrap();
        Builder::new()
            .name("first".to_owned())
            .spawn(move || {
                use std::os::unix::process::ExitStatusExt as _;
                let status = child.wait().unwrap();
                let told = match (status.code(), status.signal()) {
                    (Some(code), _) => [0, u8::try_from(code).unwrap()],
                    (None, signal) => [1, u8::try_from(signal.unwrap()).unwrap()],
                };
                tell.write_all(&told).unwrap();
            })
            .unwrap();
        let started = Started {
            process: Watched::main(pid, waitless(status.into())).unwrap(),
            input: Some(waitless(input.into())),
            output: Some(waitless(output.into())),
            error: Some(waitless(error.into())),
            is_terminal: false,
        };
        let socket = OwnedFd::from(self.guest());
        let serve = move || session::serve_main(socket, started);
        Builder::new().name("agent".to_owned()).spawn(serve).unwrap()
    }

    fn guest(&self) -> UnixStream {
        UnixStream::connect(self.path("guest")).unwrap()
    }

    fn until(&self, what: &str, mut holds: impl FnMut(&Path) -> bool) {
        let begin = Instant::now();
        while !holds(self.directory.path()) {
            assert!(begin.elapsed() < PATIENCE, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn finish(&mut self) -> bool {
        self.link.take().unwrap().finish()
    }
}

/// Any descriptor, not blocking.
fn waitless(fd: OwnedFd) -> OwnedFd {
    let socket = UnixStream::from(fd);
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

struct Attached {
    session: JoinHandle<Result<Exit, AgentError>>,
    read: JoinHandle<[Vec<u8>; 2]>,
}

#[test]
fn streams_are_apart_for_readers_and_in_the_log_and_the_end_is_told() {
    let mut bench = Bench::new();
    let (stdin, mut input) = io::pipe().unwrap();
    let giver = bench.attach(Some(stdin));
    let script =
        r"read x; : >ready; read go; echo out $go; echo err >&2; printf 'a\0\rb\n'; exit 7";
    let agent = bench.start(script);
    let reader = Client::greeted(&bench, &FromHost::Attach { input: false });
    input.write_all(b"x\n").unwrap();
    bench.until("the first gives the input", |directory| directory.join("ready").exists());
    let mut late = Client::greeted(&bench, &FromHost::Attach { input: true });
    assert!(late.next(
        |frame| matches!(frame, FromGuest::Failed(failure) if failure.kind() == FailureKind::Busy)
    ));
    input.write_all(b"now\n").unwrap();
    let want = ["out now\na\0\rb\n", "err\n"].map(|text| text.as_bytes().to_vec());
    let exit = giver.session.join().unwrap().unwrap();
    assert_eq!((exit, giver.read.join().unwrap()), (Exit::Code(7), want.clone()));
    assert_eq!(reader.collect(), (Some(Exit::Code(7)), want.clone()));
    agent.join().unwrap();
    assert!(bench.finish());
    let records = Reader::new(bench.directory.path()).more();
    let of = |source| -> Vec<u8> {
        let records = records.iter().filter(|record| record.source == source);
        records.flat_map(|record| record.bytes.clone()).collect()
    };
    assert_eq!([of(Source::Guest), of(Source::Stderr)], want);
    assert!(!bench.path("guest").exists() && !bench.path("attach").exists());
}

#[test]
fn a_gibibyte_goes_in_and_comes_out_as_it_was() {
    const WORDS: u64 = 1 << 27;
    let mut bench = Bench::new();
    let (stdin, mut input) = io::pipe().unwrap();
    let (mut output, stdout) = io::pipe().unwrap();
    let (_error, stderr) = io::pipe().unwrap();
    let path = bench.path("attach");
    let session = Builder::new().name("session".to_owned()).spawn(move || {
        let streams = Streams {
            input: Some(stdin.as_fd()),
            output: stdout.as_fd(),
            error: stderr.as_fd(),
            signals: None,
            timeout: None,
        };
        attach(&path, None, false, &streams)
    });
    let agent = bench.start("exec cat");
    let write = Builder::new().name("writer".to_owned()).spawn(move || {
        let mut piece = Vec::with_capacity(1 << 20);
        for first in (0..WORDS).step_by(1 << 17) {
            piece.clear();
            (first..first + (1 << 17)).for_each(|word| piece.extend(scrambled(word)));
            input.write_all(&piece).unwrap();
        }
    });
    let mut piece = vec![0; 1 << 20];
    let mut word = 0;
    while word < WORDS {
        output.read_exact(&mut piece).unwrap();
        for found in piece.chunks_exact(8) {
            assert_eq!(found, scrambled(word), "word {word}");
            word += 1;
        }
    }
    write.unwrap().join().unwrap();
    assert_eq!(session.unwrap().join().unwrap().unwrap(), Exit::Code(0));
    assert_eq!(output.read(&mut piece).unwrap(), 0);
    agent.join().unwrap();
    assert!(bench.finish());
}

fn scrambled(word: u64) -> [u8; 8] {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

#[test]
fn who_does_not_read_holds_the_process_back_and_who_goes_does_not() {
    let mut bench = Bench::new();
    let lazy = Client::greeted(&bench, &FromHost::Attach { input: false });
    let agent = bench.start("head -c 16000000 /dev/zero; : >done");
    thread::sleep(Duration::from_millis(400));
    assert!(!bench.path("done").exists(), "more than a window went on");
    drop(lazy);
    bench.until("the process goes on", |directory| directory.join("done").exists());
    agent.join().unwrap();
    assert!(bench.finish());
}

#[test]
fn the_input_can_be_given_by_one_after_the_other_and_ends_once() {
    let mut bench = Bench::new();
    let agent = bench.start("cat; echo end");
    let reader = Client::greeted(&bench, &FromHost::Attach { input: false });
    for text in [&b"one "[..], b"two "] {
        let mut giver = Client::greeted(&bench, &FromHost::Attach { input: true });
        giver.send(&FromHost::Data(Stream::Input, text));
        giver.until_data(text);
    }
    let mut last = Client::greeted(&bench, &FromHost::Attach { input: true });
    last.send(&FromHost::End(Stream::Input));
    let want = [b"one two end\n".to_vec(), Vec::new()];
    assert_eq!(reader.collect(), (Some(Exit::Code(0)), want));
    agent.join().unwrap();
    assert!(bench.finish());
}

#[test]
fn a_machine_that_is_cut_off_lets_everybody_go() {
    let mut bench = Bench::new();
    let reader = Client::greeted(&bench, &FromHost::Attach { input: false });
    let agent = bench.start("echo first; read x");
    bench.until("it is in the log", |directory| !Reader::new(directory).more().is_empty());
    let begin = Instant::now();
    assert!(bench.finish(), "there has been a process");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(reader.collect(), (None, [b"first\n".to_vec(), Vec::new()]));
    // Its input has ended, and it with it.
    agent.join().unwrap();
    let mut silent = Bench::new();
    let reader = silent.attach(None);
    assert!(!silent.finish(), "nobody came");
    assert!(reader.session.join().unwrap().is_err());
}

#[test]
fn a_guest_that_does_not_keep_to_the_protocol_is_cut_off_and_nothing_else() {
    let encoded = |frames: &[FromGuest<'_>]| {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        bytes
    };
    let data = vec![b'x'; DATA_MAX];
    let exits = vec![FromGuest::Exited(Exit::Code(1)); 50_000];
    // The reader's window, the guest's own, and more.
    let pieces = 2 + 3 * WINDOW_BYTES as usize / DATA_MAX;
    let cases = [
        vec![0xff; 100_000],
        encoded(&[FromGuest::Data(Stream::Input, b"x")]),
        encoded(&[FromGuest::Credit(Stream::Input, 1)]),
        encoded(&vec![FromGuest::Data(Stream::Output, &data); pieces]),
        encoded(&exits),
        encoded(&[FromGuest::Done { files: 0, bytes: 0 }]),
    ];
    for (number, bytes) in cases.into_iter().enumerate() {
        let mut bench = Bench::new();
        // It reads nothing, so that a window is a window.
        let _lazy = Client::greeted(&bench, &FromHost::Attach { input: true });
        let mut guest = bench.guest();
        drop(guest.write_all(&bytes));
        let mut rest = Vec::new();
        guest.set_read_timeout(Some(PATIENCE)).unwrap();
        let end = guest.read_to_end(&mut rest);
        let reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        assert!(end.as_ref().map_or_else(reset, |_| true), "{number}: {end:?}");
        let refused = UnixStream::connect(bench.path("guest")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "one comes, once");
        bench.finish();
    }
}

#[test]
fn who_attaches_without_the_protocol_is_dropped() {
    let mut bench = Bench::new();
    let agent = bench.start("read x; echo got $x");
    for bytes in [&[0xff; 9][..], &encoded(&[FromHost::Attach { input: true }])] {
        let mut socket = UnixStream::connect(bench.path("attach")).unwrap();
        socket.write_all(bytes).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(socket.read(&mut [0; 64]).unwrap_or(0), 0);
    }
    let old = FromHost::Hello { lowest: 7, highest: 9 };
    let mut socket = UnixStream::connect(bench.path("attach")).unwrap();
    socket.write_all(&encoded(&[old])).unwrap();
    let mut said = Vec::new();
    socket.read_to_end(&mut said).unwrap();
    let mut decoder = Decoder::new();
    decoder.feed(&said);
    let frame = decoder.next::<FromGuest<'_>>().unwrap();
    assert!(
        matches!(frame, Some(FromGuest::Failed(failure)) if failure.kind() == FailureKind::Version)
    );
    let mut giver = Client::greeted(&bench, &FromHost::Attach { input: true });
    giver.send(&FromHost::Data(Stream::Input, b"it\n"));
    giver.until_data(b"got it\n");
    agent.join().unwrap();
    assert!(bench.finish());
}

fn encoded(frames: &[FromHost<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

/// One who has attached, frame by frame.
struct Client {
    socket: UnixStream,
    decoder: Decoder,
}

impl Client {
    fn greeted(bench: &Bench, request: &FromHost<'_>) -> Self {
        let socket = UnixStream::connect(bench.path("attach")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self { socket, decoder: Decoder::new() };
        // In one piece: who is welcome has attached.
        let hello = FromHost::Hello { lowest: 1, highest: 1 };
        client.socket.write_all(&encoded(&[hello, request.clone()])).unwrap();
        assert!(client.next(|frame| matches!(frame, FromGuest::Welcome(1))));
        client
    }

    fn send(&mut self, frame: &FromHost<'_>) {
        self.socket.write_all(&encoded(std::slice::from_ref(frame))).unwrap();
    }

    /// What the next frame is like.
    fn next(&mut self, is: impl Fn(&FromGuest<'_>) -> bool) -> bool {
        loop {
            if let Some(frame) = self.decoder.next::<FromGuest<'_>>().unwrap() {
                return is(&frame);
            }
            let len = self.socket.read(self.decoder.space()).unwrap();
            assert_ne!(len, 0, "it was let go");
            self.decoder.filled(len);
        }
    }

    fn until_data(&mut self, want: &[u8]) {
        while !self.next(|frame| matches!(frame, FromGuest::Data(_, bytes) if *bytes == want)) {}
    }

    /// Everything to the end, and how that was told.
    fn collect(mut self) -> (Option<Exit>, [Vec<u8>; 2]) {
        let (mut exit, mut outputs) = (None, [Vec::new(), Vec::new()]);
        loop {
            match self.decoder.next::<FromGuest<'_>>().unwrap() {
                Some(FromGuest::Data(Stream::Output, bytes)) => outputs[0].extend(bytes),
                Some(FromGuest::Data(Stream::Error, bytes)) => outputs[1].extend(bytes),
                Some(FromGuest::Exited(told)) => exit = Some(told),
                Some(other) => panic!("{other:?}"),
                None => match self.socket.read(self.decoder.space()).unwrap() {
                    0 => return (exit, outputs),
                    len => self.decoder.filled(len),
                },
            }
        }
    }
}
