//! Asks a guest to stop, or whether it could: a line over its vsock device, as docs/guest.md has it.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The socket of a machine's vsock device, in the sandbox's directory.
pub(super) const SOCKET: &str = "vsock";
/// Where `openshell-init` takes requests.
const PORT: u32 = 1023;
/// How long the guest may take to answer. It answers before it begins to stop.
const ANSWER: Duration = Duration::from_secs(2);

/// Between two questions to a guest that boots.
const AGAIN: Duration = Duration::from_secs(1);

/// Asks the guest to end its main process within `patience`, and then itself.
pub(super) async fn ask(directory: &Path, patience: Duration) -> io::Result<()> {
    let talk = async {
        let mut stream = connect(directory).await?;
        stream.write_all(format!("STOP {}\n", patience.as_secs().max(1)).as_bytes()).await?;
        expect(&mut stream, "OK").await
    };
    timeout(ANSWER, talk).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Waits until the guest attends to requests, which it does once its main process has started.
pub(super) async fn attended(directory: &Path) {
    let look = async || {
        let mut stream = connect(directory).await?;
        // No request: the guest hears it and hangs up.
        stream.write_all(b"\n").await?;
        stream.read_u8().await
    };
    loop {
        if let Ok(Err(error)) = timeout(ANSWER, look()).await
            && error.kind() == io::ErrorKind::UnexpectedEof
        {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// A connection to the guest's first process.
async fn connect(directory: &Path) -> io::Result<UnixStream> {
    // A path through the directory's descriptor: the real one may be too long for an address.
    let opened = std::fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd());
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).await?;
    expect(&mut stream, "OK ").await?;
    Ok(stream)
}

/// Reads one short line, byte by byte: what follows it is not ours.
async fn expect(stream: &mut UnixStream, beginning: &str) -> io::Result<()> {
    let mut line = Vec::new();
    while line.len() < 32 {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            break;
        }
        line.push(byte);
    }
    if line.starts_with(beginning.as_bytes()) {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncBufReadExt as _;
    use tokio::net::UnixListener;

    use super::*;

    async fn answer(first: &str, second: &str) -> (io::Result<()>, Vec<String>) {
        let place = tempfile::tempdir().expect("a directory");
        let deep = place.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("made");
        let opened = std::fs::File::open(&deep).expect("opened");
        let path = format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd());
        let listener = UnixListener::bind(path).expect("bound");
        let guest = async {
            let (stream, _) = listener.accept().await.expect("asked");
            let (read, mut write) = stream.into_split();
            let mut lines = tokio::io::BufReader::new(read).lines();
            let mut heard = Vec::new();
            for answer in [first, second] {
                let Ok(Some(line)) = lines.next_line().await else { break };
                heard.push(line);
                write.write_all(answer.as_bytes()).await.expect("answered");
            }
            heard
        };
        tokio::join!(ask(&deep, Duration::from_secs(3)), guest)
    }

    #[tokio::test]
    async fn a_guest_is_asked_by_its_protocol_whatever_the_length_of_the_path() {
        let (asked, heard) = answer("OK 1073741824\n", "OK\n").await;
        asked.expect("agreed");
        assert_eq!(heard, ["CONNECT 1023", "STOP 3"]);
    }

    #[tokio::test]
    async fn another_answer_is_a_refusal() {
        let (asked, _) = answer("NO\n", "").await;
        assert_eq!(asked.expect_err("refused").kind(), io::ErrorKind::InvalidData);
        let long = "x".repeat(100);
        let (asked, _) = answer("OK 1\n", &long).await;
        assert_eq!(asked.expect_err("refused").kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn no_machine_is_no_answer() {
        let place = tempfile::tempdir().expect("a directory");
        let asked = ask(place.path(), Duration::from_secs(3)).await;
        assert_eq!(asked.expect_err("nobody").kind(), io::ErrorKind::NotFound);
    }
}
