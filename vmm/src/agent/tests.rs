//! The host's side against the guest's own code, as an ordinary process behind a socket that answers as a machine's does.

mod commands;
mod copies;
mod hostile;
mod terminals;

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::Builder;

use openshell_agent::session::{self, Guest};

use super::*;

/// A machine as far as its vsock socket goes.
struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    /// One whose guest has our agent.
    fn new() -> Self {
        let guest = Guest { env: Vec::new(), ..Guest::of_process() };
        Self::with(move |socket| session::serve(OwnedFd::from(socket), &guest))
    }

    /// One whose guest does this with every connection.
    fn with(serve: impl Fn(UnixStream) + Send + Sync + Clone + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("v")).unwrap();
        let accept = move || {
            for socket in listener.incoming() {
                let serve = serve.clone();
                let session = move || serve(greeted(socket.unwrap()));
                Builder::new().name("session".to_owned()).spawn(session).unwrap();
            }
        };
        Builder::new().name("machine".to_owned()).spawn(accept).unwrap();
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("v")
    }

    /// Runs `exec` with `input`, and collects what it writes.
    fn run(&self, command: &Exec, input: Option<&OwnedFd>) -> Ended {
        let (output, error) = (Collected::new(), Collected::new());
        let streams = Streams {
            input: input.map(AsFd::as_fd),
            output: output.pipe.as_fd(),
            error: error.pipe.as_fd(),
            signals: None,
            timeout: None,
        };
        let exit = exec(&self.path(), command, &streams);
        Ended { exit, output: output.end(), error: error.end() }
    }

    fn shell(&self, script: &str) -> Ended {
        self.run(&shell(script, Stdio::Output), None)
    }
}

fn greeted(mut socket: UnixStream) -> UnixStream {
    let mut line = [0; 13];
    socket.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"CONNECT 1022\n");
    socket.write_all(b"OK 1073741824\n").unwrap();
    socket
}

struct Ended {
    exit: Result<Exit, AgentError>,
    output: Vec<u8>,
    error: Vec<u8>,
}

impl Ended {
    #[track_caller]
    fn code(self, code: u8) -> Self {
        let error = String::from_utf8_lossy(&self.error);
        match &self.exit {
            Ok(Exit::Code(found)) if *found == code => {}
            other => panic!("{other:?}, not {code}: {error}"),
        }
        self
    }

    fn text(&self) -> String {
        String::from_utf8(self.output.clone()).unwrap()
    }
}

struct Collected {
    pipe: std::io::PipeWriter,
    reader: std::thread::JoinHandle<Vec<u8>>,
}

impl Collected {
    fn new() -> Self {
        let (mut reader, pipe) = std::io::pipe().unwrap();
        let read = move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        };
        Self { pipe, reader: Builder::new().name("reader".to_owned()).spawn(read).unwrap() }
    }

    fn end(self) -> Vec<u8> {
        drop(self.pipe);
        self.reader.join().unwrap()
    }
}

fn command(args: &[&[u8]], stdio: Stdio) -> Exec {
    Exec::new(args.iter().map(|arg| arg.to_vec()).collect(), stdio).unwrap()
}

fn shell(script: &str, stdio: Stdio) -> Exec {
    command(&[b"/bin/sh", b"-c", script.as_bytes()], stdio)
}
