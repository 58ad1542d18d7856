//! Maps of sparse files: the four ways in which GNU tar writes them.
//!
//! Old GNU headers and pax 0.0 and 0.1 keep the map in headers, pax 1.0 in front of the data.

use super::error::Fault;
use super::extended::decimal;
use super::header::in_range;
use crate::limits::Limit;

/// A run of a sparse file that has data in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
}

/// The `GNU.sparse` records in front of an entry.
#[derive(Default)]
pub(super) struct SparseRecords {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    major: Option<u64>,
    minor: Option<u64>,
    /// Offsets and lengths in turn, of 0.0 and 0.1.
    map: Vec<u64>,
    any: bool,
}

/// Where the map of a sparse file is.
pub(super) enum Place {
    /// It is known from the headers.
    Here(Vec<Extent>),
    /// It stands in front of the data.
    InData,
}

impl SparseRecords {
    /// Takes a record; false when it is about something else.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<bool, Fault> {
        let Some(key) = key.strip_prefix(b"GNU.sparse.") else { return Ok(false) };
        let number = || decimal(value).ok_or(Fault::Sparse);
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"size" | b"realsize" => self.real_size = Some(number()?),
            b"offset" if self.map.len().is_multiple_of(2) => self.map.push(number()?),
            b"numbytes" if !self.map.len().is_multiple_of(2) => self.map.push(number()?),
            b"offset" | b"numbytes" => return Err(Fault::Sparse),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').filter(|part| !part.is_empty());
                self.map = numbers
                    .map(|part| decimal(part).ok_or(Fault::Sparse))
                    .collect::<Result<_, _>>()?;
            }
            // How many pairs there are is known from the pairs.
            _ => {}
        }
        self.any = true;
        Ok(true)
    }

    /// Where the map of the file is, if these records make it a sparse one.
    pub(super) fn place(&self) -> Result<Option<Place>, Fault> {
        match (self.any, self.major, self.minor) {
            (false, ..) => Ok(None),
            (true, Some(1), Some(0)) => Ok(Some(Place::InData)),
            (true, None | Some(0), None | Some(0 | 1)) => Ok(Some(Place::Here(pairs(&self.map)?))),
            _ => Err(Fault::Sparse),
        }
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<Extent>, Fault> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Fault::Sparse);
    }
    Ok(pairs.iter().map(|[offset, length]| Extent { offset: *offset, length: *length }).collect())
}

/// The map entries of an old GNU header, or of a block that follows it: 12 bytes each, an empty one ends them.
pub(super) fn old_gnu(fields: &[u8], map: &mut Vec<Extent>) -> Result<(), Fault> {
    for field in fields.as_chunks::<24>().0 {
        if field[0] == 0 {
            break;
        }
        let offset = in_range(&field[..12], "sparse offset")?;
        let length = in_range(&field[12..], "sparse length")?;
        map.push(Extent { offset, length });
    }
    Ok(())
}

/// The numbers of a pax 1.0 map, fed with the blocks in front of the data.
#[derive(Default)]
pub(super) struct MapParser {
    digits: Vec<u8>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl MapParser {
    /// Takes a block; true when the map is complete. `stored` bytes bound how many runs can be meant, `limit` how many may be.
    pub(super) fn feed(&mut self, block: &[u8], stored: u64, limit: u64) -> Result<bool, Fault> {
        for byte in block {
            if *byte != b'\n' {
                if self.digits.len() == 20 {
                    return Err(Fault::Sparse);
                }
                self.digits.push(*byte);
                continue;
            }
            let number = decimal(&self.digits).ok_or(Fault::Sparse)?;
            self.digits.clear();
            match self.count {
                None if number > stored / 4 => return Err(Fault::Sparse),
                None if number > limit => return Err(Fault::Limit(Limit::Extents(limit))),
                None => self.count = Some(number),
                Some(_) => self.numbers.push(number),
            }
            if self.count.is_some_and(|count| self.numbers.len() as u64 == 2 * count) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn finish(self) -> Result<Vec<Extent>, Fault> {
        pairs(&self.numbers)
    }
}

/// Checks that a map is in order, apart, within the file, and about as many bytes as are stored. Empty runs are dropped.
pub(super) fn checked(
    mut map: Vec<Extent>,
    real_size: u64,
    stored: u64,
) -> Result<Vec<Extent>, Fault> {
    let (mut end, mut bytes) = (0u64, 0u64);
    for extent in &map {
        let next = extent.offset.checked_add(extent.length).ok_or(Fault::Sparse)?;
        if extent.offset < end || next > real_size {
            return Err(Fault::Sparse);
        }
        end = next;
        bytes += extent.length;
    }
    if bytes != stored {
        return Err(Fault::Sparse);
    }
    map.retain(|extent| extent.length > 0);
    Ok(map)
}
