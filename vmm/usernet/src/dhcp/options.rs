//! Options of DHCP messages: read with overload and concatenation as far as the server needs them, written within bounds.

use std::net::Ipv4Addr;

/// What the server looks at in a client's options.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked<'a> {
    /// What the message is (53); 0 stands for none.
    pub(super) kind: u8,
    /// The address that the client wants (50).
    pub(super) address: Option<Ipv4Addr>,
    /// The server that it means (54).
    pub(super) server: Option<Ipv4Addr>,
    /// What it would like to know (55).
    pub(super) parameters: &'a [u8],
    /// How it names itself (61), given back as it is.
    pub(super) client_identifier: Option<&'a [u8]>,
    /// Whether it takes an ACK at once (80).
    pub(super) rapid_commit: bool,
}

impl<'a> Asked<'a> {
    /// Reads `options`, and those in the boot file's and the server's name where an option says that some are there (52). `None`
    /// where an option does not fit in or has a length that it cannot have. A missing end is none of these: BOOTP clients
    /// cut it off.
    pub(super) fn parse(options: &'a [u8], file: &'a [u8], server: &'a [u8]) -> Option<Self> {
        let mut asked = Self::default();
        let overload = asked.read(options)?;
        if overload & 1 != 0 {
            asked.read(file)?;
        }
        if overload & 2 != 0 {
            asked.read(server)?;
        }
        Some(asked)
    }

    /// The value of an overload option among them, or 0.
    fn read(&mut self, mut options: &'a [u8]) -> Option<u8> {
        let mut overload = 0;
        loop {
            let (code, value, rest) = match options {
                [] | [255, ..] => return Some(overload),
                [0, rest @ ..] => {
                    options = rest;
                    continue;
                }
                [code, len, rest @ ..] => {
                    let (value, rest) = rest.split_at_checked(usize::from(*len))?;
                    (*code, value, rest)
                }
                [_] => return None,
            };
            match (code, value) {
                (50, &[a, b, c, d]) => self.address = Some(Ipv4Addr::new(a, b, c, d)),
                (52, &[which @ 1..=3]) => overload = which,
                (53, &[kind]) => self.kind = kind,
                (54, &[a, b, c, d]) => self.server = Some(Ipv4Addr::new(a, b, c, d)),
                (55, parameters) => self.parameters = parameters,
                (61, identifier) if identifier.len() >= 2 => {
                    self.client_identifier = Some(identifier);
                }
                (80, &[]) => self.rapid_commit = true,
                (50 | 52 | 53 | 54 | 61 | 80, _) => return None,
                _ => {}
            }
            options = rest;
        }
    }
}

/// Options of an answer. Invariant: there is always room for the end.
#[derive(Debug)]
pub(super) struct Options<'a> {
    message: &'a mut [u8],
    at: usize,
}

impl<'a> Options<'a> {
    /// Behind the first `at` bytes of `message`.
    pub(super) fn new(message: &'a mut [u8], at: usize) -> Self {
        Self { message, at }
    }

    /// How many bytes an option may still have.
    fn room(&self) -> usize {
        self.message.len().saturating_sub(self.at + 3).min(255)
    }

    /// Adds an option, or nothing where there is no room for it.
    pub(super) fn put(&mut self, code: u8, value: &[u8]) {
        let Ok(len) = u8::try_from(value.len()) else { return };
        if value.len() > self.room() {
            return;
        }
        let Some(out) = self.message.get_mut(self.at..self.at + 2 + value.len()) else { return };
        out[0] = code;
        out[1] = len;
        out[2..].copy_from_slice(value);
        self.at += out.len();
    }

    /// Adds as many of `domains` as fit in one option, in the form of RFC 1035 section 3.1 (RFC 3397). What is no domain name is
    /// left out.
    pub(super) fn put_search(&mut self, domains: &[String]) {
        let mut list = Vec::new();
        for domain in domains {
            let Some(name) = encode_domain(domain) else { continue };
            if list.len() + name.len() > self.room() {
                break;
            }
            list.extend(name);
        }
        if !list.is_empty() {
            self.put(119, &list);
        }
    }

    /// Ends them; the length of the message, at least `min_len`.
    pub(super) fn end(self, min_len: usize) -> usize {
        if let Some(end) = self.message.get_mut(self.at) {
            *end = 255;
        }
        (self.at + 1).max(min_len).min(self.message.len())
    }
}

/// A domain name as labels with their lengths.
pub(crate) fn encode_domain(domain: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for label in domain.trim_end_matches('.').split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..64).contains(len))?;
        out.push(len);
        out.extend(label.as_bytes());
    }
    out.push(0);
    (out.len() <= 255).then_some(out)
}
