//! Records of pax extended headers: local to one entry, or global to all that follow.
//!
//! A record says its own length, so values are binary. An empty value takes a global one back.

use std::collections::BTreeMap;

use openshell_ext4::tree::{Time, Xattrs};

use super::error::Fault;
use super::sparse::SparseRecords;
use crate::limits::{Limit, Limits};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// The records of the `x` headers in front of an entry.
#[derive(Default)]
pub(super) struct Local {
    map: Map,
    pub(super) sparse: SparseRecords,
    pub(super) present: bool,
}

impl Local {
    pub(super) fn add(&mut self, body: &[u8]) -> Result<(), Fault> {
        self.present = true;
        for record in records(body) {
            let (key, value) = record?;
            if !self.sparse.take(key, value)? {
                self.map.insert(key.to_vec(), value.to_vec());
            }
        }
        Ok(())
    }
}

/// The records of the `g` headers so far.
#[derive(Default)]
pub(super) struct Global {
    map: Map,
    bytes: u64,
}

impl Global {
    pub(super) fn add(&mut self, body: &[u8], limits: &Limits) -> Result<(), Fault> {
        for record in records(body) {
            let (key, value) = record?;
            // A path or a size for every entry that follows is an attack or a mistake.
            let of_one_file =
                matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.");
            if of_one_file && !value.is_empty() {
                return Err(Fault::Global(String::from_utf8_lossy(key).into_owned()));
            }
            self.bytes += (key.len() + value.len()) as u64;
            if self.bytes > limits.extended_header_bytes {
                let limit = Limit::ExtendedHeaderBytes(limits.extended_header_bytes);
                return Err(Fault::Limit(limit));
            }
            if let Some(old) = self.map.insert(key.to_vec(), value.to_vec()) {
                self.bytes -= (key.len() + old.len()) as u64;
            }
        }
        Ok(())
    }
}

/// What holds for one entry: its own records over the global ones.
pub(super) struct Records<'a> {
    pub(super) local: &'a Local,
    pub(super) global: &'a Global,
}

impl Records<'_> {
    /// The value of a key; none when nobody set it or an empty value took it back.
    pub(super) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        let value = self.local.map.get(key).or_else(|| self.global.map.get(key))?;
        (!value.is_empty()).then_some(value)
    }

    pub(super) fn id(&self, key: &'static str) -> Result<Option<u32>, Fault> {
        self.value(key.as_bytes())
            .map(|value| {
                decimal(value).and_then(|id| u32::try_from(id).ok()).ok_or(Fault::Number(key))
            })
            .transpose()
    }

    pub(super) fn size(&self) -> Result<Option<u64>, Fault> {
        self.value(b"size").map(|value| decimal(value).ok_or(Fault::Number("size"))).transpose()
    }

    pub(super) fn mtime(&self) -> Result<Option<Time>, Fault> {
        self.value(b"mtime").map(|value| time(value).ok_or(Fault::Number("mtime"))).transpose()
    }

    /// Extended attributes, in the two spellings that are in use. Both are written by libarchive, with the same values.
    pub(super) fn xattrs(&self, limits: &Limits) -> Result<Xattrs, Fault> {
        let mut found = Xattrs::new();
        for map in [&self.global.map, &self.local.map] {
            for (key, value) in map {
                if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = percent_decoded(name).ok_or(Fault::Xattr)?;
                    found.insert(name, base64_decoded(value).ok_or(Fault::Xattr)?);
                }
            }
            for (key, value) in map {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    found.insert(name.to_vec(), value.clone());
                } else if key == b"RHT.security.selinux" {
                    found.insert(b"security.selinux".to_vec(), value.clone());
                }
            }
        }
        if found.keys().any(|name| name.is_empty() || name.contains(&0) || name.len() > 255) {
            return Err(Fault::Xattr);
        }
        let bytes: usize = found.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > limits.xattr_bytes {
            return Err(Fault::Limit(Limit::XattrBytes(limits.xattr_bytes)));
        }
        Ok(found)
    }
}

/// The records of a body: `LENGTH KEY=VALUE` and a newline, where the length counts all of it.
fn records(mut body: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), Fault>> {
    std::iter::from_fn(move || {
        // Some archivers fill up with NUL bytes.
        if body.iter().all(|byte| *byte == 0) {
            return None;
        }
        let Some((key, value, rest)) = record(body) else {
            body = &[];
            return Some(Err(Fault::Record));
        };
        body = rest;
        Some(Ok((key, value)))
    })
}

fn record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&body[..space])?).ok()?;
    let (record, rest) = body.split_at_checked(length)?;
    let (newline, record) = record.get(space + 1..)?.split_last()?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (*newline == b'\n' && !key.is_empty()).then_some((key, value, rest))
}

/// Decimal digits and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Seconds with a fraction, negative ones too. Digits after the ninth are cut off towards the past.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) =
        text.strip_prefix(b"-").map_or((false, text), |positive| (true, positive));
    let dot = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = dot.map_or((text, &[][..]), |at| (&text[..at], &text[at + 1..]));
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (kept, cut) = fraction.split_at(fraction.len().min(9));
    let digits = kept.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0u32, |value, byte| value * 10 + u32::from(byte - b'0'));
    if !negative {
        return Time::new(seconds, nanoseconds).ok();
    }
    let nanoseconds = nanoseconds + u32::from(cut.iter().any(|byte| *byte != b'0'));
    match nanoseconds {
        0 => Time::new(-seconds, 0).ok(),
        _ => Time::new(-seconds - 1, 1_000_000_000 - nanoseconds).ok(),
    }
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = char::from(*bytes.next()?).to_digit(16)?;
                let low = char::from(*bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            plain => *plain,
        });
    }
    Some(decoded)
}

/// The standard alphabet, with or without padding.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let digits = &text[..text.len() - padding];
    if padding > 2 || digits.len() % 4 == 1 {
        return None;
    }
    let mut decoded = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for byte in group {
            bits = bits << 6 | u32::from(sextet(*byte)?);
        }
        bits <<= 6 * (4 - group.len());
        decoded.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(decoded)
}

fn sextet(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_cut_by_their_length() {
        let body = b"30 mtime=1350244992.023960108\n12 a=b\nc=\xffd\n5 e=\n\0\0";
        let found: Result<Vec<_>, _> = records(body).collect();
        let expected: Vec<(&[u8], &[u8])> =
            vec![(b"mtime", b"1350244992.023960108"), (b"a", b"b\nc=\xffd"), (b"e", b"")];
        assert_eq!(found.expect("records"), expected);
    }

    #[test]
    fn malformed_records_are_errors() {
        for body in [
            &b"x"[..],
            b"9 a=b\n",
            b"5 a=b\n",
            b"6 a b\n",
            b"4 =\n",
            b"18446744073709551616 a=b\n",
            b"-6 a=b\n",
            b"0 a=b\n",
            b"2 a=b\n",
            b"6 a=b\n6 c=d",
            b"6 a=b\0",
        ] {
            let found: Result<Vec<_>, _> = records(body).collect();
            assert_eq!(found, Err(Fault::Record), "{body:?}");
        }
    }

    #[test]
    fn times_round_towards_the_past() {
        let check = |text: &[u8], expected: Option<(i64, u32)>| {
            let found = time(text).map(|time| (time.seconds(), time.nanoseconds()));
            assert_eq!(found, expected, "{}", String::from_utf8_lossy(text));
        };
        check(b"0", Some((0, 0)));
        check(b"1.5", Some((1, 500_000_000)));
        check(b"1.0000000019", Some((1, 1)));
        check(b"-1", Some((-1, 0)));
        check(b"-1.5", Some((-2, 500_000_000)));
        check(b"-0.000000001", Some((-1, 999_999_999)));
        check(b"-0.0000000001", Some((-1, 999_999_999)));
        check(b"-0.9999999991", Some((-1, 0)));
        check(b"4294967296.25", Some((1 << 32, 250_000_000)));
        check(b"1.", Some((1, 0)));
        check(b"", None);
        check(b".5", None);
        check(b"1e3", None);
        check(b"--1", None);
        check(b"99999999999999999999", None);
    }

    #[test]
    fn libarchive_names_and_values_are_decoded() {
        assert_eq!(percent_decoded(b"user.%25a%3Db"), Some(b"user.%a=b".to_vec()));
        assert_eq!(percent_decoded(b"a%2"), None);
        assert_eq!(base64_decoded(b"AQID"), Some(vec![1, 2, 3]));
        assert_eq!(base64_decoded(b"AQI="), Some(vec![1, 2]));
        assert_eq!(base64_decoded(b"AQ"), Some(vec![1]));
        assert_eq!(base64_decoded(b""), Some(vec![]));
        assert_eq!(base64_decoded(b"A"), None);
        assert_eq!(base64_decoded(b"A*=="), None);
    }
}
