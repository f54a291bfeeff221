//! Ids, parsed at the door: no bare string inside names a pod, a container or a path made from one.

use std::{fmt, io::Write};

use crate::{Error, Result};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Makes a new one from the kernel's randomness.
            pub fn random() -> Self {
                Self(random_hex())
            }

            /// Takes exactly 64 lower-case hex digits.
            ///
            /// # Errors
            /// `Invalid` for anything else.
            pub fn parse(text: &str) -> Result<Self> {
                if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(Error::invalid(concat!("parse ", $what), format!("{text:?}"), "an id is 64 lower-case hex digits"))
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 13 digits, for people.
            pub fn short(&self) -> &str {
                &self.0[..13]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A pod sandbox.
    PodId,
    "pod id"
);
id!(
    /// A container.
    ContainerId,
    "container id"
);

fn random_hex() -> String {
    let mut bytes = [0u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        // getrandom(2) fails only with EINTR for so few bytes: ask again.
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    }
    let mut hex = Vec::with_capacity(64);
    for byte in bytes {
        write!(hex, "{byte:02x}").expect("a Vec takes every write");
    }
    String::from_utf8(hex).expect("hex digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_lower_case_hex_digits_are_an_id() {
        let id = PodId::random();
        assert_eq!(PodId::parse(id.as_str()).unwrap(), id);
        for bad in ["", "abc", "../../etc", &"A".repeat(64), &"g".repeat(64), &"a".repeat(65)] {
            assert!(PodId::parse(bad).is_err(), "{bad}");
        }
    }
}
