//! What a resolver answers, and what of it a guest is given.
//!
//! Invariant: no address that the policy refuses is left in an answer, and every address that leads from the question's name is
//! pinned to that name alone. An answer with nothing to take out is passed on byte for byte. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::message::{
    HEADER_LEN, Header, IN, Malformed, Question, Record, Records, Section, flag, kind, word,
};
use super::name::Name;
use super::query::Query;
use crate::Instant;
use crate::policy::Egress;

/// The largest message.
pub(super) const MAX_LEN: usize = 0xffff;
/// As many further names as a chain of them may have.
const MAX_CHAIN: usize = 16;

/// An answer to `query`?
///
/// # Errors
/// It is not: it belongs to another query, or to none.
pub(super) fn belongs(query: &Query, id: u16, bytes: &[u8]) -> Result<Header, Malformed> {
    let header = Header::read(bytes)?;
    if header.id != id || header.flags & (flag::RESPONSE | flag::OPCODE) != flag::RESPONSE {
        return Err(Malformed);
    }
    match header.counts {
        [1, ..] => {
            let (question, _) = Question::read(bytes, HEADER_LEN)?;
            if question == query.question { Ok(header) } else { Err(Malformed) }
        }
        // Servers that could not read the question leave it out.
        [0, 0, 0, _] if matches!(header.flags & flag::RCODE, 1 | 2 | 4 | 5) => Ok(header),
        _ => Err(Malformed),
    }
}

/// The answer for the guest, with the identifier that it chose; and how many addresses were taken out.
///
/// # Errors
/// It cannot be read.
pub(super) fn admit(
    now: Instant,
    query: &Query,
    bytes: &[u8],
    egress: &mut Egress,
) -> Result<(Vec<u8>, usize), Malformed> {
    let header = Header::read(bytes)?;
    let mut at = HEADER_LEN;
    for _ in 0..header.counts[0] {
        at = Question::read(bytes, at)?.1;
    }
    let records = Records::new(bytes, at, &header);
    let chain = chain(&query.question.name, bytes, records.clone())?;
    let mut judge =
        Judge { now, bytes, egress, name: pinned_name(&query.question), chain, refused: 0 };
    let mut rewritten = Rewritten::new(query);
    for record in records {
        let record = record?;
        judge.record(&record, &mut rewritten)?;
    }
    let refused = judge.refused;
    let mut answer = if refused == 0 { bytes.to_vec() } else { rewritten.finish(&header)? };
    answer.splice(..2, query.id().to_be_bytes());
    Ok((answer, refused))
}

/// The names that the question's name leads to, itself first.
fn chain(start: &Name, bytes: &[u8], records: Records<'_>) -> Result<Vec<Name>, Malformed> {
    let mut links = Vec::new();
    for record in records {
        let record = record?;
        let link = record.section == Section::Answer && record.kind == kind::CNAME;
        if link && links.len() < MAX_CHAIN {
            links.push((record.name, Name::read(bytes, record.data.start)?.0));
        }
    }
    let mut chain = vec![start.clone()];
    while let Some((_, next)) = links.iter().find(|(from, _)| chain.last() == Some(from)) {
        if chain.contains(next) {
            break;
        }
        chain.push(next.clone());
    }
    Ok(chain)
}

/// The name that addresses are pinned to: of a service, that of the host.
fn pinned_name(question: &Question) -> String {
    let text = question.name.text();
    let mut rest = &text[..];
    if matches!(question.kind, kind::SVCB | kind::HTTPS) {
        while let Some((_, host)) = rest.split_once('.').filter(|_| rest.starts_with('_')) {
            rest = host;
        }
    }
    rest.to_owned()
}

struct Judge<'a> {
    now: Instant,
    bytes: &'a [u8],
    egress: &'a mut Egress,
    name: String,
    chain: Vec<Name>,
    refused: usize,
}

impl Judge<'_> {
    fn record(&mut self, record: &Record, out: &mut Rewritten) -> Result<(), Malformed> {
        let data = self.bytes.get(record.data.clone()).ok_or(Malformed)?;
        if record.class != IN {
            return out.push(self.bytes, record, None);
        }
        match record.kind {
            kind::A | kind::AAAA => {
                let address = match (record.kind, data.len()) {
                    (kind::A, 4) => data.first_chunk().map(|octets| Ipv4Addr::from(*octets).into()),
                    (kind::AAAA, 16) => {
                        data.first_chunk().map(|octets| Ipv6Addr::from(*octets).into())
                    }
                    _ => None,
                };
                if self.address(record, address.ok_or(Malformed)?) {
                    out.push(self.bytes, record, None)?;
                }
                Ok(())
            }
            kind::SVCB | kind::HTTPS => {
                let hints = self.without_refused_hints(record)?;
                out.push(self.bytes, record, hints)
            }
            _ => out.push(self.bytes, record, None),
        }
    }

    /// Whether the guest may see `address`.
    fn address(&mut self, record: &Record, address: IpAddr) -> bool {
        let leads = record.section == Section::Answer && self.chain.contains(&record.name);
        let ttl = leads.then(|| Duration::from_secs(record.ttl.into()));
        let open = self.egress.answer(self.now, &self.name, address, ttl).is_ok();
        self.refused += usize::from(!open);
        open
    }

    /// The data of a service record without lists of addresses that hold a refused one (RFC 9460, section 2.2), or `None` when there
    /// is no such list.
    fn without_refused_hints(&mut self, record: &Record) -> Result<Option<Vec<u8>>, Malformed> {
        const IPV4_HINT: u16 = 4;
        const IPV6_HINT: u16 = 6;
        let data = self.bytes.get(..record.data.end).ok_or(Malformed)?;
        let (_, mut at) = Name::read(data, record.data.start + 2)?;
        let mut kept = data.get(record.data.start..at).ok_or(Malformed)?.to_vec();
        let mut changed = false;
        while at < data.len() {
            let (key, len) = (word(data, at)?, usize::from(word(data, at + 2)?));
            let value = data.get(at + 4..at + 4 + len).ok_or(Malformed)?;
            let addresses: Vec<IpAddr> = match key {
                IPV4_HINT => {
                    value.as_chunks().0.iter().map(|of| Ipv4Addr::from(*of).into()).collect()
                }
                IPV6_HINT => {
                    value.as_chunks().0.iter().map(|of| Ipv6Addr::from(*of).into()).collect()
                }
                _ => Vec::new(),
            };
            // Each is judged and pinned, also after one that is refused.
            let mut open = true;
            for address in addresses {
                open &= self.address(record, address);
            }
            if open {
                kept.extend_from_slice(&data[at..at + 4 + len]);
            }
            changed |= !open;
            at += 4 + len;
        }
        Ok(changed.then_some(kept))
    }
}

/// A message made anew of some of another's records, names without compression but for the question's.
struct Rewritten {
    bytes: Vec<u8>,
    question: Name,
    counts: [u16; 4],
}

impl Rewritten {
    fn new(query: &Query) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes.extend_from_slice(query.question_bytes());
        Self { bytes, question: query.question.name.clone(), counts: [1, 0, 0, 0] }
    }

    /// Adds a record of `message`, with other data if there is some.
    fn push(
        &mut self,
        message: &[u8],
        record: &Record,
        data: Option<Vec<u8>>,
    ) -> Result<(), Malformed> {
        if self.bytes.len() > MAX_LEN {
            return Ok(());
        }
        let data = match data {
            Some(data) => data,
            None => expanded(message, record)?,
        };
        let len = u16::try_from(data.len()).map_err(|_| Malformed)?;
        if record.name == self.question {
            self.bytes.extend_from_slice(&[0xc0, 12]);
        } else {
            self.bytes.extend_from_slice(record.name.as_wire());
        }
        for word in [record.kind, record.class] {
            self.bytes.extend_from_slice(&word.to_be_bytes());
        }
        self.bytes.extend_from_slice(&record.ttl.to_be_bytes());
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(&data);
        let place = match record.section {
            Section::Answer => 1,
            Section::Authority => 2,
            Section::Additional => 3,
        };
        self.counts[place] += 1;
        Ok(())
    }

    fn finish(mut self, header: &Header) -> Result<Vec<u8>, Malformed> {
        if self.bytes.len() > MAX_LEN {
            return Err(Malformed);
        }
        // What was changed is no longer what was found authentic.
        let flags = header.flags & !flag::AUTHENTIC;
        let header = Header { id: header.id, flags, counts: self.counts };
        self.bytes.splice(..HEADER_LEN, header.to_bytes());
        Ok(self.bytes)
    }
}

/// The data of `record` without compression: of the types that may have some (RFC 3597, section 4).
fn expanded(message: &[u8], record: &Record) -> Result<Vec<u8>, Malformed> {
    /// Bytes before the names, and how many names there are.
    const WITH_NAMES: [(u16, usize, usize); 12] = [
        (kind::NS, 0, 1),
        (kind::CNAME, 0, 1),
        (kind::SOA, 0, 2),
        (kind::PTR, 0, 1),
        (15, 2, 1),
        (17, 0, 2),
        (18, 2, 1),
        (21, 2, 1),
        (26, 2, 2),
        (33, 6, 1),
        (36, 2, 1),
        (39, 0, 1),
    ];
    let data = message.get(..record.data.end).ok_or(Malformed)?;
    let known = WITH_NAMES.iter().find(|(kind, ..)| *kind == record.kind);
    let (before, names) = known.map_or((0, 0), |&(_, before, names)| (before, names));
    let mut at = record.data.start + before;
    let mut out = data.get(record.data.start..at).ok_or(Malformed)?.to_vec();
    for _ in 0..names {
        let (name, end) = Name::read(data, at)?;
        out.extend_from_slice(name.as_wire());
        at = end;
    }
    out.extend_from_slice(data.get(at..).ok_or(Malformed)?);
    Ok(out)
}
