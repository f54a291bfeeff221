//! What a content address is: `sha256:` and 64 lower-case hex digits, parsed at the door; and writers and
//! readers that hash what passes.

use std::{
    fmt,
    io::{self, Read},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// The address of a blob. Only sha256: it is all that registries serve.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Digest(String);

impl Digest {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let wrong = |cause: &str| Error::invalid("parse digest", format!("{text:.120?}"), cause);
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(wrong("a digest is algorithm:hex"));
        };
        if algorithm != "sha256" {
            return Err(wrong("only sha256 digests are supported"));
        }
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        {
            return Err(wrong("sha256: is followed by 64 lower-case hex digits"));
        }
        Ok(Self(hex.to_owned()))
    }

    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(bytes)))
    }

    /// The 64 digits: safe as a file name.
    pub(super) fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|error| serde::de::Error::custom(error.chain()))
    }
}

/// Hashes and counts bytes as they come.
#[derive(Debug, Default)]
pub(super) struct Meter {
    hash: Sha256,
    pub(super) bytes: u64,
}

impl Meter {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Takes all that a reader has.
    pub(super) fn read(&mut self, from: &mut impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                count => self.update(&buffer[..count]),
            }
        }
    }

    pub(super) fn digest(self) -> Digest {
        Digest(hex::encode(self.hash.finalize()))
    }
}

/// A reader that meters what is read through it.
#[derive(Debug)]
pub(super) struct Metered<R> {
    inner: R,
    pub(super) meter: Meter,
}

impl<R: Read> Metered<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, meter: Meter::default() }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.meter.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_in_lower_case_is_a_digest() {
        let good = Digest::of(b"");
        assert_eq!(
            good.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(Digest::parse(&good.to_string()).unwrap(), good);
        let upper = format!("sha256:{}", "A".repeat(64));
        let long = format!("sha256:{}", "a".repeat(65));
        let sha512 = format!("sha512:{}", "a".repeat(128));
        for bad in ["", "sha256:", "sha256:../../../etc/passwd", "abc", &upper, &long, &sha512] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_metered_reader_counts_and_hashes() {
        let mut reader = Metered::new(&b"hello"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.meter.bytes, 5);
        assert_eq!(reader.meter.digest(), Digest::of(b"hello"));
    }
}
