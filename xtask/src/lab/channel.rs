//! What passes between the lab and the host, as plain bytes in and values out.
//!
//! Four virtio-serial ports: the command's stdin, stdout and stderr, and `result`, on which only the
//! lab's init speaks. A port is ordered in itself but not against the others, so each output stream
//! ends in a random mark of this run: a machine inside the lab can print anything and still not end
//! a stream or name an exit code.

use std::fmt::Write as _;
use std::io::Read as _;

use anyhow::{Context as _, Result};

/// Names of the ports, as init looks them up below `/sys/class/virtio-ports`.
pub(crate) const PORTS: [&str; 4] = ["stdin", "stdout", "stderr", "result"];

/// One line on the `result` port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Everything is mounted and loaded, the command starts now.
    Ready,
    /// The command ended with this code (128 + N after signal N).
    Exit(u8),
    /// Init could not prepare the lab.
    Fail(String),
}

impl Message {
    /// Reads one line without its newline.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "ready" => Some(Self::Ready),
            Some(("exit", code)) => code.parse().ok().map(Self::Exit),
            Some(("fail", text)) => Some(Self::Fail(text.to_owned())),
            _ => None,
        }
    }
}

/// A mark that no command can guess: 32 random bytes as hexadecimal digits.
pub(crate) fn random_mark() -> Result<String> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    let mut mark = String::new();
    for byte in bytes {
        write!(mark, "{byte:02x}")?;
    }
    Ok(mark)
}

/// Cuts a stream at its mark. Bytes that cannot belong to the mark pass at once.
#[derive(Debug)]
pub(crate) struct UntilMark {
    mark: Vec<u8>,
    held: Vec<u8>,
    ended: bool,
}

impl UntilMark {
    /// A stream that ends where `mark` begins; the mark must not be empty.
    pub(crate) fn new(mark: &str) -> Self {
        Self { mark: mark.as_bytes().to_vec(), held: Vec::new(), ended: false }
    }

    /// Takes what arrived and returns what is certain to be the command's own output.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.ended {
            return Vec::new();
        }
        self.held.extend_from_slice(bytes);
        let found = self.held.windows(self.mark.len()).position(|window| window == self.mark);
        let certain = found.unwrap_or_else(|| self.held.len() - self.mark_begun());
        self.ended = found.is_some();
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether the mark has been seen.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// How many bytes at the end may be the beginning of the mark.
    fn mark_begun(&self) -> usize {
        let longest = self.held.len().min(self.mark.len() - 1);
        (1..=longest).rev().find(|&n| self.held.ends_with(&self.mark[..n])).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn result_lines() {
        for (line, expected) in [
            ("ready", Some(Message::Ready)),
            ("exit 0", Some(Message::Exit(0))),
            ("exit 255", Some(Message::Exit(255))),
            ("fail no module kvm", Some(Message::Fail("no module kvm".into()))),
            ("exit 256", None),
            ("exit -1", None),
            ("exit", None),
            ("", None),
            ("ready 1", None),
        ] {
            assert_eq!(Message::parse(line), expected, "{line}");
        }
    }

    #[test]
    fn marks_differ() {
        let (one, other) = (random_mark().unwrap(), random_mark().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, other);
    }

    #[test]
    fn what_cannot_be_the_mark_passes_at_once() {
        let mut stream = UntilMark::new("aab");
        assert_eq!(stream.push(b"xyz"), b"xyz");
        assert_eq!(stream.push(b"aa"), b"");
        assert_eq!(stream.push(b"a"), b"a");
        assert_eq!(stream.push(b"b after"), b"");
        assert!(stream.ended());
        assert_eq!(stream.push(b"late"), b"");
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same_stream(
            payload in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), any::<u8>()], 0..200),
            cuts in proptest::collection::vec(1_usize..9, 1..80),
        ) {
            let mark = "aabaab";
            let mut wire = payload.clone();
            wire.extend_from_slice(mark.as_bytes());
            let expected = wire.windows(mark.len()).position(|w| w == mark.as_bytes()).unwrap();
            let mut stream = UntilMark::new(mark);
            let mut got = Vec::new();
            let mut rest = wire.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                got.extend(stream.push(now));
                rest = later;
            }
            prop_assert!(stream.ended());
            prop_assert_eq!(&got[..], &wire[..expected]);
        }
    }
}
