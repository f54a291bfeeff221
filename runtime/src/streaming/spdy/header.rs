//! Header blocks: names and values, compressed with one zlib stream per direction that lives as long as the
//! connection. Each block ends with a sync flush, so it can be read as soon as it is there.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::dictionary::DICTIONARY;

/// Names in lower case with their values; a name that repeats has its values apart by NUL.
pub type Headers = Vec<(String, String)>;

/// What a block may hold once inflated; a kubelet's has some hundred bytes.
pub const MAX_BLOCK_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;

#[derive(Debug)]
pub struct Deflater(Compress);

#[derive(Debug)]
pub struct Inflater {
    stream: Decompress,
}

impl Deflater {
    pub fn new() -> io::Result<Self> {
        let mut stream = Compress::new(Compression::fast(), true);
        stream.set_dictionary(&DICTIONARY).map_err(io::Error::other)?;
        Ok(Self(stream))
    }

    pub fn deflate(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let block = encode(headers);
        // Grows below where the block doesn't shrink.
        let mut out = Vec::with_capacity(block.len() + 64);
        let before = self.0.total_in();
        loop {
            let taken = usize::try_from(self.0.total_in() - before).unwrap_or(block.len());
            self.0.compress_vec(&block[taken..], &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
            // Room left over means that the flush is complete.
            if out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}

impl Inflater {
    pub fn new() -> Self {
        Self { stream: Decompress::new(true) }
    }

    /// # Errors
    /// `InvalidData`: the stream is damaged, or the block too large. Nothing can be read after it.
    pub fn inflate(&mut self, mut bytes: &[u8]) -> io::Result<Headers> {
        let mut block = Vec::with_capacity(1024);
        loop {
            let (taken, given) = (self.stream.total_in(), block.len());
            let inflated = self.stream.decompress_vec(bytes, &mut block, FlushDecompress::Sync);
            let taken = usize::try_from(self.stream.total_in() - taken).unwrap_or(bytes.len());
            bytes = &bytes[taken..];
            match inflated {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.stream.set_dictionary(&DICTIONARY).map_err(|error| invalid(error.to_string()))?;
                    continue;
                }
                Err(error) => return Err(invalid(error.to_string())),
            }
            if block.len() > MAX_BLOCK_BYTES {
                return Err(invalid(format!("a header block of more than {MAX_BLOCK_BYTES} bytes")));
            }
            if bytes.is_empty() && block.len() < block.capacity() {
                return decode(&block);
            }
            if taken == 0 && block.len() == given && block.len() < block.capacity() {
                return Err(invalid("compressed bytes after the end of the stream"));
            }
            block.reserve(1024);
        }
    }
}

/// The value of a header.
pub fn value<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(there, _)| there.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn encode(headers: &Headers) -> Vec<u8> {
    let mut block = (headers.len() as u32).to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend_from_slice(&(text.len() as u32).to_be_bytes());
        block.extend_from_slice(text.as_bytes());
    }
    block
}

fn decode(mut block: &[u8]) -> io::Result<Headers> {
    let count = word(&mut block)?;
    if count > MAX_HEADERS {
        return Err(invalid(format!("{count} headers")));
    }
    let headers =
        (0..count).map(|_| Ok((text(&mut block)?, text(&mut block)?))).collect::<io::Result<_>>()?;
    match block {
        [] => Ok(headers),
        _ => Err(invalid("bytes after the last header")),
    }
}

fn word(block: &mut &[u8]) -> io::Result<usize> {
    let (bytes, rest) = block.split_first_chunk::<4>().ok_or_else(|| invalid("a header block cut short"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*bytes) as usize)
}

fn text(block: &mut &[u8]) -> io::Result<String> {
    let length = word(block)?;
    let (bytes, rest) = block.split_at_checked(length).ok_or_else(|| invalid("a header cut short"))?;
    *block = rest;
    String::from_utf8(bytes.to_vec()).map_err(|_| invalid("a header that is no UTF-8"))
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_stream_begins_with_the_id_of_the_dictionary_and_serves_block_after_block() {
        let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
        let rows = [
            headers(&[("streamtype", "error")]),
            headers(&[]),
            headers(&[("streamtype", "data"), ("port", "80")]),
        ];
        for (n, row) in rows.iter().enumerate() {
            let bytes = deflater.deflate(row).unwrap();
            assert_eq!(bytes[2..6] == [0xe3, 0xc6, 0xa7, 0xc2], n == 0);
            assert!(bytes.ends_with(&[0, 0, 0xff, 0xff]), "no sync flush: {bytes:x?}");
            assert_eq!(&inflater.inflate(&bytes).unwrap(), row);
        }
        assert_eq!(value(&rows[2], "Port"), Some("80"));
        assert_eq!(value(&rows[2], "requestid"), None);
    }

    #[test]
    fn what_can_not_be_right_is_refused() {
        let block = |headers: &Headers| Deflater::new().unwrap().deflate(headers).unwrap();
        // A bomb, too many, cut short, and noise.
        let bomb = block(&headers(&[("a", &"x".repeat(10 * MAX_BLOCK_BYTES))]));
        let many = block(&vec![("a".to_owned(), "b".to_owned()); MAX_HEADERS + 1]);
        let whole = block(&headers(&[("streamtype", "stdin")]));
        for bad in [&bomb[..], &many, &whole[..12], &[], b"noise that is no zlib"] {
            assert_eq!(Inflater::new().inflate(bad).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    proptest! {
        #[test]
        fn any_headers_come_back(blocks in prop::collection::vec(prop::collection::vec(("[a-z]{1,9}", ".{0,300}"), 0..9), 1..9)) {
            let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
            for block in blocks {
                prop_assert_eq!(&inflater.inflate(&deflater.deflate(&block).unwrap()).unwrap(), &block);
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_spin(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            Inflater::new().inflate(&bytes).ok();
            decode(&bytes).ok();
        }
    }
}
