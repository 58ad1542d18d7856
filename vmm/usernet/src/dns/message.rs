//! DNS messages of RFC 1035 and RFC 6891, as far as a forwarder looks into them.
//!
//! Invariant: reading is bounded by the message, whatever its counts and lengths say, and copies nothing but names. Pure.

use std::ops::Range;

use super::name::Name;

/// The bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed DNS message")]
pub struct Malformed;

/// Types of records.
pub mod kind {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// A name server.
    pub const NS: u16 = 2;
    /// Another name of the same.
    pub const CNAME: u16 = 5;
    /// The head of a zone.
    pub const SOA: u16 = 6;
    /// The name of an address.
    pub const PTR: u16 = 12;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// EDNS.
    pub const OPT: u16 = 41;
    /// How to reach a service.
    pub const SVCB: u16 = 64;
    /// The same for HTTP.
    pub const HTTPS: u16 = 65;
    /// All types, in questions.
    pub const ANY: u16 = 255;
}

/// Results that we send ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rcode {
    /// It is as the records say.
    NoError = 0,
    /// The question cannot be read.
    FormErr = 1,
    /// Nobody could be asked.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// Such questions are not served.
    NotImp = 4,
    /// This question is not served.
    Refused = 5,
}

/// Class IN.
pub const IN: u16 = 1;
/// Bytes of a header.
pub const HEADER_LEN: usize = 12;

/// Bits of the header's second word.
pub mod flag {
    /// It is a response.
    pub const RESPONSE: u16 = 0x8000;
    /// The bits of the operation.
    pub const OPCODE: u16 = 0x7800;
    /// From the authority for it.
    pub const AUTHORITATIVE: u16 = 0x0400;
    /// Cut to fit.
    pub const TRUNCATED: u16 = 0x0200;
    /// Other servers are to be asked.
    pub const RECURSION_DESIRED: u16 = 0x0100;
    /// Other servers are asked.
    pub const RECURSION_AVAILABLE: u16 = 0x0080;
    /// Signatures were found right.
    pub const AUTHENTIC: u16 = 0x0020;
    /// Signatures are left to who asks.
    pub const CHECKING_DISABLED: u16 = 0x0010;
    /// The bits of the result.
    pub const RCODE: u16 = 0x000f;
}

/// The head of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which question it is about.
    pub id: u16,
    /// See [`flag`].
    pub flags: u16,
    /// Questions, answers, authorities, additional records, as it says.
    pub counts: [u16; 4],
}

impl Header {
    /// Reads it.
    ///
    /// # Errors
    /// Too short.
    pub fn read(message: &[u8]) -> Result<Self, Malformed> {
        let word = |at| word(message, at);
        Ok(Self {
            id: word(0)?,
            flags: word(2)?,
            counts: [word(4)?, word(6)?, word(8)?, word(10)?],
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let [a, b, c, d] = self.counts;
        for (place, word) in bytes.chunks_exact_mut(2).zip([self.id, self.flags, a, b, c, d]) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// About what.
    pub name: Name,
    /// Which type of records; see [`kind`].
    pub kind: u16,
    /// Which class of records.
    pub class: u16,
}

impl Question {
    /// Reads the question at `at`, and where what follows it begins.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(message: &[u8], at: usize) -> Result<(Self, usize), Malformed> {
        let (name, at) = Name::read(message, at)?;
        let question = Self { name, kind: word(message, at)?, class: word(message, at + 2)? };
        Ok((question, at + 4))
    }
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// It answers.
    Answer,
    /// It says who knows.
    Authority,
    /// It may help.
    Additional,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub section: Section,
    /// About what.
    pub name: Name,
    /// Its type.
    pub kind: u16,
    /// Its class; of OPT the size of UDP messages.
    pub class: u16,
    /// In seconds; of OPT flags.
    pub ttl: u32,
    /// Where its data lies in the message.
    pub data: Range<usize>,
}

/// The records of a message. It ends after the last, or after an error.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    message: &'a [u8],
    at: usize,
    left: [u16; 3],
}

impl<'a> Records<'a> {
    /// The records that begin at `at`, as many as `header` says.
    #[must_use]
    pub const fn new(message: &'a [u8], at: usize, header: &Header) -> Self {
        let [_, answers, authorities, additional] = header.counts;
        Self { message, at, left: [answers, authorities, additional] }
    }

    /// Where the next record begins.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.at
    }

    fn read(&mut self, section: Section) -> Result<Record, Malformed> {
        let (name, at) = Name::read(self.message, self.at)?;
        let high = word(self.message, at + 4)?;
        let ttl = u32::from(high) << 16 | u32::from(word(self.message, at + 6)?);
        let len = usize::from(word(self.message, at + 8)?);
        let data = at + 10..at + 10 + len;
        if data.end > self.message.len() {
            return Err(Malformed);
        }
        self.at = data.end;
        let (kind, class) = (word(self.message, at)?, word(self.message, at + 2)?);
        Ok(Record { section, name, kind, class, ttl, data })
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let sections = [Section::Answer, Section::Authority, Section::Additional];
        let (left, section) = self.left.iter_mut().zip(sections).find(|(left, _)| **left != 0)?;
        *left -= 1;
        let record = self.read(section);
        if record.is_err() {
            self.left = [0; 3];
        }
        Some(record)
    }
}

/// The two bytes at `at`.
pub(super) fn word(message: &[u8], at: usize) -> Result<u16, Malformed> {
    let bytes = message.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map(|bytes| u16::from_be_bytes(*bytes)).ok_or(Malformed)
}
