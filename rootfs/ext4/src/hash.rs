//! The half-MD4 hash that orders large directories.

/// The hash of a name and the second hash that comes with it: the first is even and never the mark of the end.
pub(crate) fn half_md4(seed: &[u32; 4], name: &[u8]) -> (u32, u32) {
    let mut state =
        if *seed == [0; 4] { [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476] } else { *seed };
    let mut rest = name;
    // A name of no bytes does not exist, but the loop of the kernel would not run either.
    while !rest.is_empty() {
        transform(&mut state, &words(rest));
        rest = rest.get(32..).unwrap_or_default();
    }
    let hash = state[1] & !1;
    (if hash == END { END - 2 } else { hash }, state[2])
}

/// The hash that no name has: positions in a directory end there.
const END: u32 = 0xffff_fffe;

/// Up to 32 bytes as eight words with the first byte highest, filled up with the length of all that is left.
fn words(rest: &[u8]) -> [u32; 8] {
    let length = u32::try_from(rest.len()).expect("a name has at most 255 bytes");
    let pad = length | (length << 8);
    let pad = pad | (pad << 16);
    let mut words = [pad; 8];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        *word = bytes.iter().fold(pad, |value, byte| (value << 8).wrapping_add(u32::from(*byte)));
    }
    words
}

/// Three rounds of eight steps. A step works on the four words in turn: a, d, c, b.
fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    const ROUNDS: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5a82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in &ROUNDS {
        for (step, word) in order.iter().enumerate() {
            let sum = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(input[*word])
                .wrapping_add(*constant)
                .rotate_left(shifts[step % 4]);
            (a, b, c, d) = (d, sum, b, c);
        }
    }
    for (word, value) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(value);
    }
}

#[cfg(test)]
mod tests {
    use super::half_md4;

    #[test]
    fn hashes_are_those_of_debugfs() {
        // `dx_hash -h half_md4 [-s SEED] NAME` of debugfs.
        for (seed, name, expected) in TABLE {
            assert_eq!(half_md4(&seed, name.as_bytes()), expected, "{name}");
        }
    }

    const NONE: [u32; 4] = [0; 4];
    const SEED: [u32; 4] = [0x3322_1100, 0x7766_5544, 0xbbaa_9988, 0xffee_ddcc];
    const TABLE: [([u32; 4], &str, (u32, u32)); 10] = [
        (NONE, "a", (0xd5fa_7d7a, 0xacb4_8187)),
        (SEED, "a", (0x9375_2ee6, 0x578c_30ba)),
        (NONE, "abc", (0xd196_a868, 0xc420_eb28)),
        (SEED, "abc", (0xb1cd_624a, 0x9519_aec5)),
        (NONE, "0123456789012345678901234567890", (0xf304_da2c, 0xe983_51fe)),
        (SEED, "0123456789012345678901234567890", (0xd6e6_d656, 0x254a_696e)),
        (NONE, "01234567890123456789012345678901", (0x6538_762a, 0x2370_aa1f)),
        (SEED, "01234567890123456789012345678901", (0xcd52_496a, 0x5755_13b3)),
        (NONE, "012345678901234567890123456789012", (0xb2c3_09ae, 0x30bd_9930)),
        (SEED, "012345678901234567890123456789012", (0x1581_1496, 0xc99d_c6fe)),
    ];

    #[test]
    fn the_longest_names_are_hashed_whole() {
        assert_eq!(half_md4(&NONE, &[b'x'; 255]), (0x2aa7_169e, 0x655f_9d9c));
        assert_eq!(half_md4(&SEED, &[b'x'; 255]), (0x5966_f920, 0x2628_1ca3));
    }
}
