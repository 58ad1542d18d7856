//! Archives block by block, as no archiver writes them.

use std::io::{self, Write};

pub(crate) const BLOCK: usize = 512;

/// A header. Sizes beyond the octal digits are in base 256.
pub(crate) fn header(name: &[u8], kind: u8, size: u64, link: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    if size < 1 << 33 {
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// A header with records about the next entry (`x`) or all that follow (`g`).
pub(crate) fn extended(kind: u8, records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        // The length counts its own digits.
        let length =
            (1..20).map(|digits| rest + digits).find(|all| all.to_string().len() == all - rest);
        body.extend(format!("{} ", length.expect("a length")).as_bytes());
        body.extend_from_slice(&[key, &b"="[..], value, b"\n"].concat());
    }
    padded(header(b"records", kind, body.len() as u64, b""), &body)
}

/// A header and its data.
pub(crate) fn padded(header: [u8; BLOCK], data: &[u8]) -> Vec<u8> {
    let mut bytes = [&header[..], data].concat();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// `count` times a block of zeros.
pub(crate) fn zeros(out: &mut dyn Write, count: usize) -> io::Result<()> {
    let zeros = [0; 1 << 16];
    let mut left = count * BLOCK;
    while left > 0 {
        let wanted = left.min(zeros.len());
        out.write_all(&zeros[..wanted])?;
        left -= wanted;
    }
    Ok(())
}
