//! What a guest asks, and the answers that need no resolver.
//!
//! Invariant: only a query of exactly one question, with nothing but EDNS beside it, is ever passed on. Pure.

use std::net::{IpAddr, Ipv4Addr};

use super::message::{HEADER_LEN, Header, IN, Question, Rcode, Records, flag, kind};
use super::name::Name;
use super::{FIXED_NAMES, Fixed};
use crate::policy::Scene;

/// A query that may be passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// As the guest sent it.
    pub bytes: Vec<u8>,
    /// Its question.
    pub question: Question,
    /// Where the question ends.
    pub question_end: usize,
    /// The EDNS record: the largest UDP message that the guest takes, and EDNS flags.
    pub edns: Option<(u16, u32)>,
}

/// What is not passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It gets no answer: a response, or too short for one.
    Ignored,
    /// It is answered with this.
    Answered(Vec<u8>),
}

impl Query {
    /// The longest query: a name of full length, EDNS with a cookie, and padding.
    pub const MAX_LEN: usize = 1_232;
    /// UDP messages of those who do not say more.
    const PLAIN_UDP_LEN: u16 = 512;

    /// Reads a query.
    ///
    /// # Errors
    /// What becomes of it instead.
    pub fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let header = Header::read(bytes).map_err(|_| Refused::Ignored)?;
        if header.flags & flag::RESPONSE != 0 {
            return Err(Refused::Ignored);
        }
        let refuse = |rcode| Refused::Answered(bare(&header, rcode));
        if header.flags & flag::OPCODE != 0 {
            return Err(refuse(Rcode::NotImp));
        }
        let [questions, answers, authorities, _] = header.counts;
        if bytes.len() > Self::MAX_LEN || questions != 1 || answers != 0 || authorities != 0 {
            return Err(refuse(Rcode::FormErr));
        }
        let formerr = |_| refuse(Rcode::FormErr);
        let (question, question_end) = Question::read(bytes, HEADER_LEN).map_err(formerr)?;
        let mut records = Records::new(bytes, question_end, &header);
        let mut edns = None;
        for record in &mut records {
            let record = record.map_err(formerr)?;
            if record.kind != kind::OPT || edns.is_some() {
                return Err(refuse(Rcode::FormErr));
            }
            edns = Some((record.class, record.ttl));
        }
        if records.position() != bytes.len() {
            return Err(refuse(Rcode::FormErr));
        }
        let query = Self { bytes: bytes.to_vec(), question, question_end, edns };
        // Zone transfers, and types that are about the message itself.
        if matches!(query.question.kind, 0 | kind::OPT | 249..=254) {
            return Err(Refused::Answered(query.reply(Rcode::NotImp)));
        }
        Ok(query)
    }

    /// The identifier that the guest chose.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.bytes.first_chunk().map_or(0, |id| u16::from_be_bytes(*id))
    }

    /// The most bytes that an answer by UDP may have, where the link takes `link` of them.
    #[must_use]
    pub fn max_udp_len(&self, link: u16) -> usize {
        let asked = self.edns.map_or(0, |(len, _)| len).max(Self::PLAIN_UDP_LEN);
        usize::from(asked.min(link))
    }

    /// A response without records.
    #[must_use]
    pub fn reply(&self, rcode: Rcode) -> Vec<u8> {
        self.response(rcode as u16, None)
    }

    /// A response that says to ask again by TCP.
    #[must_use]
    pub fn truncated(&self, rcode: u16) -> Vec<u8> {
        self.response(flag::TRUNCATED | rcode & flag::RCODE, None)
    }

    /// The answer, if the stack knows it itself.
    #[must_use]
    pub fn local(&self, scene: &Scene) -> Option<Vec<u8>> {
        let Question { name, kind, class } = &self.question;
        if *class != IN {
            return None;
        }
        let text = name.text();
        let places = scene.v4();
        if let Some((_, fixed)) = FIXED_NAMES.iter().find(|(name, _)| *name == text) {
            let address = match fixed {
                Fixed::Host => places.host,
                Fixed::Gateway => places.gateway,
            };
            return Some(match (*kind, address) {
                (kind::A | kind::ANY, IpAddr::V4(address)) => {
                    self.response(flag::AUTHORITATIVE, Some(address))
                }
                _ => self.response(flag::AUTHORITATIVE, None),
            });
        }
        let zone = FIXED_NAMES.iter().filter_map(|(name, _)| name.split_once('.')).find_map(
            |(_, zone)| {
                text.strip_suffix(zone).filter(|rest| rest.is_empty() || rest.ends_with('.'))
            },
        );
        // The head of a zone is there and has nothing; below it is nothing else.
        let rcode = match zone {
            Some("") => Rcode::NoError,
            Some(_) => Rcode::NxDomain,
            None if reverse(name).is_some_and(|ip| scene.in_guest_network(ip)) => Rcode::NxDomain,
            None => return None,
        };
        Some(self.response(flag::AUTHORITATIVE | rcode as u16, None))
    }

    fn response(&self, flags: u16, answer: Option<Ipv4Addr>) -> Vec<u8> {
        const TTL_SECONDS: u32 = 300;
        const UDP_LEN: u16 = 1_232;
        const DNSSEC_OK: u32 = 0x8000;
        let asked = Header::read(&self.bytes).map_or(0, |header| header.flags);
        let kept = asked & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
        let header = Header {
            id: self.id(),
            flags: flag::RESPONSE | flag::RECURSION_AVAILABLE | kept | flags,
            counts: [1, u16::from(answer.is_some()), 0, u16::from(self.edns.is_some())],
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(self.question_bytes());
        if let Some(address) = answer {
            // The name is that of the question, which begins after the header.
            bytes.extend_from_slice(&[0xc0, 12]);
            for word in [kind::A, IN] {
                bytes.extend_from_slice(&word.to_be_bytes());
            }
            bytes.extend_from_slice(&TTL_SECONDS.to_be_bytes());
            bytes.extend_from_slice(&[0, 4]);
            bytes.extend_from_slice(&address.octets());
        }
        if let Some((_, edns)) = self.edns {
            bytes.push(0);
            for word in [kind::OPT, UDP_LEN] {
                bytes.extend_from_slice(&word.to_be_bytes());
            }
            bytes.extend_from_slice(&(edns & DNSSEC_OK).to_be_bytes());
            bytes.extend_from_slice(&[0, 0]);
        }
        bytes
    }

    pub(super) fn question_bytes(&self) -> &[u8] {
        self.bytes.get(HEADER_LEN..self.question_end).unwrap_or_default()
    }
}

/// A response of a header alone.
fn bare(asked: &Header, rcode: Rcode) -> Vec<u8> {
    let kept = asked.flags & (flag::OPCODE | flag::RECURSION_DESIRED);
    let flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | kept | rcode as u16;
    Header { id: asked.id, flags, counts: [0; 4] }.to_bytes().to_vec()
}

/// The address whose name is asked for.
fn reverse(name: &Name) -> Option<IpAddr> {
    let mut octets = [0_u8; 4];
    let mut labels = name.labels();
    for octet in octets.iter_mut().rev() {
        let label = std::str::from_utf8(labels.next()?).ok()?;
        *octet = label.parse().ok()?;
    }
    let zone = labels.eq([b"in-addr".as_slice(), b"arpa"]);
    zone.then(|| Ipv4Addr::from(octets).into())
}
