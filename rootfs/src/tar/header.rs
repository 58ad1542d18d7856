//! One 512-byte header block and its fields.

use super::error::Fault;

pub(super) const BLOCK: usize = 512;

/// A header block whose checksum holds.
#[derive(Clone)]
pub(super) struct Header([u8; BLOCK]);

/// Which tar wrote the header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Posix,
    Star,
    Gnu,
}

impl Header {
    /// Takes a block as a header.
    pub(super) fn new(block: [u8; BLOCK]) -> Result<Self, Fault> {
        let stated = number(&block[148..156]).ok_or(Fault::Checksum)?;
        // The checksum field itself counts as spaces. Some old archivers added signed bytes.
        let others = || block[..148].iter().chain(&block[156..]);
        let unsigned: i64 = 8 * 32 + others().map(|byte| i64::from(*byte)).sum::<i64>();
        let signed: i64 = 8 * 32 + others().map(|byte| i64::from(byte.cast_signed())).sum::<i64>();
        if stated != unsigned && stated != signed {
            return Err(Fault::Checksum);
        }
        Ok(Self(block))
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name with the prefix in front of it.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.dialect() {
            Dialect::Posix => text(&self.0[345..500]),
            Dialect::Star => text(&self.0[345..476]),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, Fault> {
        // Some archivers store the type in the upper bits.
        let mode = number(&self.0[100..108]).ok_or(Fault::Number("mode"))?;
        u32::try_from(mode & 0o7777).map_err(|_| Fault::Number("mode"))
    }

    pub(super) fn uid(&self) -> Result<u32, Fault> {
        in_range(&self.0[108..116], "uid")
    }

    pub(super) fn gid(&self) -> Result<u32, Fault> {
        in_range(&self.0[116..124], "gid")
    }

    pub(super) fn size(&self) -> Result<u64, Fault> {
        in_range(&self.0[124..136], "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, Fault> {
        number(&self.0[136..148]).ok_or(Fault::Number("mtime"))
    }

    pub(super) fn device(&self) -> Result<(u32, u32), Fault> {
        let major = in_range(&self.0[329..337], "devmajor")?;
        let minor = in_range(&self.0[337..345], "devminor")?;
        Ok((major, minor))
    }

    /// The four map entries of an old GNU sparse header, and whether blocks with more follow.
    pub(super) fn old_sparse(&self) -> (&[u8], bool) {
        (&self.0[386..482], self.0[482] != 0)
    }

    /// The size with holes of an old GNU sparse file.
    pub(super) fn old_real_size(&self) -> Result<u64, Fault> {
        in_range(&self.0[483..495], "realsize")
    }

    fn dialect(&self) -> Dialect {
        match &self.0[257..263] {
            b"ustar\0" if &self.0[508..512] == b"tar\0" => Dialect::Star,
            b"ustar\0" => Dialect::Posix,
            b"ustar " => Dialect::Gnu,
            _ => Dialect::V7,
        }
    }
}

/// A field up to its first NUL byte.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

pub(super) fn in_range<T: TryFrom<i64>>(field: &[u8], name: &'static str) -> Result<T, Fault> {
    number(field).and_then(|value| T::try_from(value).ok()).ok_or(Fault::Number(name))
}

/// A numeric field: octal digits between spaces and NULs, or base 256 when the top bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first()? {
        first if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(blank) {
        return None;
    }
    digits[..end].iter().try_fold(0i64, |value, byte| {
        let digit = matches!(byte, b'0'..=b'7').then(|| i64::from(byte - b'0'))?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

/// Two's complement, most significant byte first; the marker bit is not part of the number.
fn base256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] | 0x80 } else { field[0] & 0x7f };
    let start = if negative { -1 } else { 0 };
    std::iter::once(&first)
        .chain(&field[1..])
        .try_fold(start, |value: i64, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"644 \0\0\0\0", Some(0o644)),
            (b"77777777777 ", Some(0o77_777_777_777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"0000648\0", None),
            (b"12 34\0\0\0", None),
            (b"-000001\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00", Some(-256)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xc0\0\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }
}
