//! The keys that leave a terminal: Ctrl-P, then Ctrl-Q.
//!
//! Invariant: what was typed is passed on in its order, but for the two keys; the first waits for what follows it. Pure.

const FIRST: u8 = 0x10;
const SECOND: u8 = 0x11;

/// What was typed so far.
#[derive(Debug, Default)]
pub(super) struct DetachKeys {
    first_waits: bool,
}

impl DetachKeys {
    /// What of `typed` is to be passed on, at most one byte more than it has, and whether the keys were among it.
    pub(super) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            if std::mem::take(&mut self.first_waits) {
                if byte == SECOND {
                    return (passed, true);
                }
                passed.push(FIRST);
            }
            if byte == FIRST {
                self.first_waits = true;
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_keys_in_their_order_leave() {
        for (typed, want, left) in [
            (vec![&b"ab"[..]], &b"ab"[..], false),
            (vec![b"a\x10\x11b"], b"a", true),
            (vec![b"a\x10", b"\x11b"], b"a", true),
            (vec![b"\x10", b"\x10", b"\x11"], b"\x10", true),
            (vec![b"\x10x\x11", b"\x10"], b"\x10x\x11", false),
            (vec![b"\x11\x10q"], b"\x11\x10q", false),
        ] {
            let mut keys = DetachKeys::default();
            let mut all = Vec::new();
            let mut has_left = false;
            for piece in &typed {
                let (passed, left) = keys.pass(piece);
                assert!(passed.len() <= piece.len() + 1);
                all.extend(passed);
                has_left |= left;
            }
            assert_eq!((all.as_slice(), has_left), (want, left), "{typed:x?}");
        }
    }
}
