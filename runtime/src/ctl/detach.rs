//! ctrl-p ctrl-q: lets go of a container's terminal and leaves it running. Pure.

const FIRST: u8 = 0x10;
const SECOND: u8 = 0x11;

/// What of the keys typed is the container's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    Input(Vec<u8>),
    /// Those before the two keys; what comes behind is dropped.
    Detach(Vec<u8>),
}

/// Sees the two keys also where they come one by one.
#[derive(Debug, Default)]
pub(super) struct Keys {
    first: bool,
}

impl Keys {
    /// A ctrl-p is held back until it is known what it was for.
    pub(super) fn take(&mut self, typed: &[u8]) -> Typed {
        let mut input = Vec::with_capacity(typed.len() + 1);
        for key in typed {
            match (self.first, *key) {
                (true, SECOND) => return Typed::Detach(input),
                (true, FIRST) => input.push(FIRST),
                (true, other) => {
                    input.extend([FIRST, other]);
                    self.first = false;
                }
                (false, FIRST) => self.first = true,
                (false, other) => input.push(other),
            }
        }
        Typed::Input(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_keys_in_a_row_detach() {
        type Row = (&'static [&'static [u8]], &'static [u8], bool);
        let rows: [Row; 7] = [
            (&[b"ab"], b"ab", false),
            (&[b"a\x10\x11b"], b"a", true),
            (&[b"a\x10", b"\x11"], b"a", true),
            (&[b"\x10", b"x"], b"\x10x", false),
            (&[b"\x10\x10\x11"], b"\x10", true),
            (&[b"\x11\x10"], b"\x11", false),
            (&[b"\x10x\x11"], b"\x10x\x11", false),
        ];
        for (pieces, expected, detached) in rows {
            let (mut keys, mut input, mut left) = (Keys::default(), Vec::new(), false);
            for piece in pieces {
                match keys.take(piece) {
                    Typed::Input(more) => input.extend(more),
                    Typed::Detach(more) => {
                        input.extend(more);
                        left = true;
                    }
                }
            }
            assert_eq!((input.as_slice(), left), (expected, detached), "{pieces:?}");
        }
    }
}
