//! Domain names of RFC 1035, read from messages with compression.
//!
//! Invariant: a name is lower-case and at most 255 bytes; reading one visits each byte of a message at most once, since a pointer
//! only leads to what lies before all that was read. Pure.

use super::message::Malformed;

/// The first byte of a message that may belong to a name.
const FIRST: usize = 12;
const MAX_LEN: usize = 255;

/// A name in the form of the wire, without compression.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    wire: Vec<u8>,
}

impl Name {
    /// Reads the name at `at`, and where what follows it begins.
    ///
    /// # Errors
    /// [`Malformed`]: cut short, too long, or led round in circles.
    pub fn read(message: &[u8], at: usize) -> Result<(Self, usize), Malformed> {
        let mut wire = Vec::new();
        let (mut at, mut segment, mut end) = (at, at, None);
        loop {
            let len = usize::from(*message.get(at).ok_or(Malformed)?);
            match len >> 6 {
                0 => {
                    let label = message.get(at..=at + len).ok_or(Malformed)?;
                    wire.extend(label.iter().map(u8::to_ascii_lowercase));
                    if wire.len() > MAX_LEN {
                        return Err(Malformed);
                    }
                    at += len + 1;
                    if len == 0 {
                        return Ok((Self { wire }, end.unwrap_or(at)));
                    }
                }
                3 => {
                    let low = usize::from(*message.get(at + 1).ok_or(Malformed)?);
                    let to = (len & 0x3f) << 8 | low;
                    if !(FIRST..segment).contains(&to) {
                        return Err(Malformed);
                    }
                    end = end.or(Some(at + 2));
                    (at, segment) = (to, to);
                }
                _ => return Err(Malformed),
            }
        }
    }

    /// The name that `text` is, labels between dots. `None`: a label is empty or too long, or all of it is.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let mut wire = Vec::new();
        for label in text.split('.').filter(|_| !text.is_empty()) {
            let len = u8::try_from(label.len()).ok().filter(|len| (1..64).contains(len))?;
            wire.push(len);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        wire.push(0);
        (wire.len() <= MAX_LEN).then_some(Self { wire })
    }

    /// Its bytes as on the wire.
    #[must_use]
    pub fn as_wire(&self) -> &[u8] {
        &self.wire
    }

    /// Its labels, without that of the root.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.wire[..];
        std::iter::from_fn(move || {
            let (len, after) = rest.split_first().filter(|(len, _)| **len != 0)?;
            let (label, after) = after.split_at_checked(usize::from(*len))?;
            rest = after;
            Some(label)
        })
    }

    /// Labels between dots; what is no letter, digit, `-` or `_` is written as a backslash and three digits. The root is empty.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(self.wire.len());
        for label in self.labels() {
            if !text.is_empty() {
                text.push('.');
            }
            for &byte in label {
                if byte.is_ascii_alphanumeric() || b"-_".contains(&byte) {
                    text.push(char::from(byte));
                } else {
                    text.push('\\');
                    text.extend(
                        [byte / 100, byte / 10 % 10, byte % 10].map(|n| char::from(b'0' + n)),
                    );
                }
            }
        }
        text
    }
}
