//! Reads tar streams entry by entry in bounded memory: ustar, GNU long names, PAX records.
//!
//! The `tar` crate decodes headers; the walk is ours, because its own one reads PAX records and long names of
//! any size into memory, and a few compressed kilobytes make gigabytes of them.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

/// The most that one PAX header or long name may have. An xattr's value is at most 64 KiB.
const EXTENSION_MAX_BYTES: u64 = 1 << 20;
const BLOCK: usize = 512;

/// Offset and length in a header.
#[derive(Clone, Copy)]
struct Field(usize, usize);

const MODE: Field = Field(100, 8);
const UID: Field = Field(108, 8);
const GID: Field = Field(116, 8);
const SIZE: Field = Field(124, 12);
const MTIME: Field = Field(136, 12);
const MAJOR: Field = Field(329, 8);
const MINOR: Field = Field(337, 8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
}

/// What a header says. Its content, if any, is read from the walk before the next entry is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    /// The target of a symlink, or the path of a hard link's file.
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime_seconds: i64,
    pub(super) mtime_nanos: u32,
    pub(super) size: u64,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The walk through a tar stream.
#[derive(Debug)]
pub(super) struct Walk<R> {
    stream: R,
    /// Of the current entry's content, and the padding after it.
    left_bytes: u64,
    padding_bytes: u64,
}

/// The records that apply to the next entry.
#[derive(Default)]
struct Extensions {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<R: Read> Walk<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, left_bytes: 0, padding_bytes: 0 }
    }

    /// The next entry; None at the end of the archive. A stream that ends between two members is a whole archive, with the
    /// blocks of zeros that tar(5) asks for or without: so it is for GNU tar and Go, and there are writers that leave them
    /// out, and the padding of the last member too.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        let mut announced = false;
        loop {
            let Some(header) = self.skip()?.then(|| self.header()).transpose()?.flatten() else {
                // A long name or records without what they are for: the member was cut.
                return if announced { Err(truncated()) } else { Ok(None) };
            };
            let size = number_in(&header, SIZE)?;
            announced |= matches!(header.entry_type().as_byte(), b'x' | b'L' | b'K');
            match header.entry_type().as_byte() {
                b'x' => extensions.pax = parse_pax(&self.extension(size)?)?,
                // Global records are comments in practice (git archive writes its commit there).
                b'g' => drop(self.extension(size)?),
                b'L' => extensions.long_path = Some(until_nul(self.extension(size)?)),
                b'K' => extensions.long_link = Some(until_nul(self.extension(size)?)),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Reads the current entry's content.
    pub(super) fn content(&mut self) -> Content<'_, R> {
        Content { walk: self }
    }

    pub(super) fn stream(&mut self) -> &mut R {
        &mut self.stream
    }

    /// Gives the stream back for what follows the archive.
    pub(super) fn into_inner(self) -> R {
        self.stream
    }

    fn entry(&mut self, header: &tar::Header, extensions: Extensions) -> io::Result<Entry> {
        let Extensions { long_path, long_link, mut pax } = extensions;
        if pax.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            return Err(broken("sparse files are not supported in layers"));
        }
        let number = |value: Option<Vec<u8>>, field: Field| match value {
            Some(value) => parse_number(&value),
            None => number_in(header, field),
        };
        let path = pax.remove(&b"path"[..]).or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax
            .remove(&b"linkpath"[..])
            .or(long_link)
            .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let kind = kind_of(header, &path)?;
        let size = number(pax.remove(&b"size"[..]), SIZE)?;
        let (mtime_seconds, mtime_nanos) = match pax.remove(&b"mtime"[..]) {
            Some(value) => parse_time(&value)?,
            // A time before 1970 in base 256: nobody misses it.
            None => (number_in(header, MTIME).ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0), 0),
        };
        // Old tars give links and directories a size that has no content.
        let content = if kind == Kind::File { size } else { 0 };
        if i64::try_from(content).is_err() {
            return Err(broken("an entry's size is more than a file can have"));
        }
        self.left_bytes = content;
        self.padding_bytes = content.wrapping_neg() % BLOCK as u64;
        Ok(Entry {
            path,
            link,
            kind,
            mode: small(number_in(header, MODE)? & 0o7777)?,
            uid: number(pax.remove(&b"uid"[..]), UID)?,
            gid: number(pax.remove(&b"gid"[..]), GID)?,
            mtime_seconds,
            mtime_nanos,
            size: content,
            xattrs: pax
                .into_iter()
                .filter_map(|(key, value)| Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value)))
                .collect(),
        })
    }

    fn header(&mut self) -> io::Result<Option<tar::Header>> {
        let mut block = [0; BLOCK];
        let count = read_full(&mut self.stream, &mut block)?;
        // Nothing, or one of the blocks of zeros that end an archive. The diff id tells a cut one.
        if count == 0 || (count == BLOCK && block.iter().all(|byte| *byte == 0)) {
            return Ok(None);
        }
        if count < BLOCK {
            return Err(truncated());
        }
        let header = tar::Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(broken("it is not a tar archive, or damaged: a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_MAX_BYTES {
            return Err(broken(&format!(
                "a header extension of {size} bytes; at most {EXTENSION_MAX_BYTES}"
            )));
        }
        self.left_bytes = size;
        self.padding_bytes = size.wrapping_neg() % BLOCK as u64;
        let mut bytes = Vec::new();
        self.content().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Passes what was not read of the last entry. False where the stream ends in the padding behind it.
    fn skip(&mut self) -> io::Result<bool> {
        let (content, padding) = (self.left_bytes, self.padding_bytes);
        (self.left_bytes, self.padding_bytes) = (0, 0);
        let mut pass = |bytes| io::copy(&mut (&mut self.stream).take(bytes), &mut io::sink());
        if pass(content)? < content {
            return Err(truncated());
        }
        Ok(pass(padding)? == padding)
    }
}

/// The content of the current entry; ends exactly with it, or with an error when the stream ends first.
#[derive(Debug)]
pub(super) struct Content<'a, R> {
    walk: &'a mut Walk<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.walk.left_bytes).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.walk.stream.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(truncated());
        }
        self.walk.left_bytes -= count as u64;
        Ok(count)
    }
}

fn kind_of(header: &tar::Header, path: &[u8]) -> io::Result<Kind> {
    let device = |field| number_in(header, field).and_then(small);
    Ok(match header.entry_type().as_byte() {
        // Before POSIX a directory was a file whose name ends so.
        b'0' | b'\0' if path.ends_with(b"/") => Kind::Directory,
        b'0' | b'\0' | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character { major: device(MAJOR)?, minor: device(MINOR)? },
        b'4' => Kind::Block { major: device(MAJOR)?, minor: device(MINOR)? },
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(broken("sparse files are not supported in layers")),
        other => return Err(broken(&format!("an entry of the unknown type {:?}", char::from(other)))),
    })
}

/// Reads a number of the header: octal digits, or GNU's base 256. Go leaves fields empty that are 0.
fn number_in(header: &tar::Header, field: Field) -> io::Result<u64> {
    let bytes = &header.as_bytes()[field.0..field.0 + field.1];
    let wrong = || broken("a header's number is malformed");
    if bytes[0] & 0x80 != 0 {
        let mut number: u64 = u64::from(bytes[0] & 0x7f);
        for byte in &bytes[1..] {
            number = number.checked_mul(256).ok_or_else(wrong)? + u64::from(*byte);
        }
        return Ok(number);
    }
    let padding = |byte: &u8| matches!(*byte, b' ' | 0);
    let digits: Vec<u8> =
        bytes.iter().skip_while(|b| padding(b)).take_while(|b| !padding(b)).copied().collect();
    if digits.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(&digits).map_err(|_| wrong())?;
    u64::from_str_radix(text, 8).map_err(|_| wrong())
}

fn small(number: u64) -> io::Result<u32> {
    u32::try_from(number).map_err(|_| broken("a header's number is out of range"))
}

/// `length key=value\n`, again and again. A key that comes twice counts as the last says.
fn parse_pax(mut bytes: &[u8]) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let wrong = || broken("a PAX record is malformed");
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length = usize::try_from(parse_number(&bytes[..space])?).map_err(|_| wrong())?;
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(wrong());
        }
        let record = &bytes[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let (key, value) = (record[..equals].to_vec(), record[equals + 1..].to_vec());
        bytes = &bytes[length..];
        // An empty value takes a record back; an empty xattr is one, though.
        if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") {
            records.remove(&key);
        } else {
            records.insert(key, value);
        }
    }
    Ok(records)
}

fn parse_number(value: &[u8]) -> io::Result<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number =
        if digits { std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) } else { None };
    number.ok_or_else(|| broken("a PAX record's number is malformed"))
}

/// Seconds with a fraction, perhaps before 1970: `-1.25` is two seconds before, and three quarters after that.
fn parse_time(value: &[u8]) -> io::Result<(i64, u32)> {
    let wrong = || broken("a PAX record's time is malformed");
    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(parse_number(whole.as_bytes())?).map_err(|_| wrong())?;
    let nanos: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos = u32::try_from(parse_number(nanos.as_bytes())?).map_err(|_| wrong())?;
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// Reads until the buffer is full or the stream ends.
pub(super) fn read_full(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short")
}

pub(super) fn broken(cause: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    #[test]
    fn long_names_and_records_reach_their_entry_and_no_other() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("{}/file", "d".repeat(300));
        let mut gnu = tar::Header::new_gnu();
        gnu.set_size(3);
        gnu.set_mode(0o600);
        gnu.set_cksum();
        builder.append_data(&mut gnu, &long, &b"abc"[..]).unwrap();
        let records = [
            ("path", &b"other"[..]),
            ("mtime", b"-1.25"),
            ("uid", b"70000"),
            ("SCHILY.xattr.user.x", b"1\n2=3"),
        ];
        builder.append_pax_extensions(records).unwrap();
        builder.append(&header("short", tar::EntryType::Regular, 1), &b"x"[..]).unwrap();
        builder.append(&header("last", tar::EntryType::Directory, 0), io::empty()).unwrap();
        let bytes = builder.into_inner().unwrap();

        let mut walk = Walk::new(&bytes[..]);
        let first = walk.next().unwrap().unwrap();
        assert_eq!((first.path, first.size), (long.into_bytes(), 3));
        let mut content = String::new();
        walk.content().read_to_string(&mut content).unwrap();
        assert_eq!(content, "abc");
        let second = walk.next().unwrap().unwrap();
        assert_eq!((second.path.as_slice(), second.uid), (&b"other"[..], 70000));
        assert_eq!((second.mtime_seconds, second.mtime_nanos), (-2, 750_000_000));
        assert_eq!(second.xattrs, BTreeMap::from([(b"user.x".to_vec(), b"1\n2=3".to_vec())]));
        let third = walk.next().unwrap().unwrap();
        assert_eq!(
            (third.path.as_slice(), third.kind, third.xattrs.len()),
            (&b"last"[..], Kind::Directory, 0)
        );
        assert_eq!(walk.next().unwrap(), None);
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header("file", tar::EntryType::Regular, 600), &[7; 600][..]).unwrap();
        let good = builder.into_inner().unwrap();
        let drain = |bytes: &[u8]| {
            let mut walk = Walk::new(bytes);
            while walk.next()?.is_some() {}
            Ok::<_, io::Error>(())
        };
        drain(&good).unwrap();
        for cut in [1, 511, 513, 1024, 1111] {
            let error = drain(&good[..cut]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
        let mut flipped = good.clone();
        flipped[0] ^= 1;
        assert!(drain(&flipped).unwrap_err().to_string().contains("checksum"));
        assert!(drain(&[b'x'; 4096]).unwrap_err().to_string().contains("not a tar"));
    }

    #[test]
    fn an_archive_may_end_at_any_member_with_no_blocks_of_zeros_and_no_padding() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header("first", tar::EntryType::Regular, 600), &[7; 600][..]).unwrap();
        builder.append(&header("empty", tar::EntryType::Regular, 0), io::empty()).unwrap();
        builder.append_pax_extensions([("mtime", &b"1.5"[..])]).unwrap();
        builder.append(&header("last", tar::EntryType::Regular, 3), &b"abc"[..]).unwrap();
        let whole = builder.into_inner().unwrap();
        let names = |bytes: &[u8]| {
            let (mut walk, mut names) = (Walk::new(bytes), Vec::new());
            while let Some(entry) = walk.next()? {
                let mut content = Vec::new();
                walk.content().read_to_end(&mut content)?;
                assert_eq!(content.len() as u64, entry.size);
                names.push(String::from_utf8(entry.path).unwrap());
            }
            Ok::<_, io::Error>(names)
        };
        // first, its padding; empty; records with their content; last, its padding; zeros.
        let ends: [(usize, &[&str]); 11] = [
            (0, &[]),
            (512 + 600, &["first"]),
            (512 + 601, &["first"]),
            (1536, &["first"]),
            (2048, &["first", "empty"]),
            (3072 + 512 + 3, &["first", "empty", "last"]),
            (3072 + 512 + 300, &["first", "empty", "last"]),
            (4096, &["first", "empty", "last"]),
            (4096 + 512, &["first", "empty", "last"]),
            (4096 + 700, &["first", "empty", "last"]),
            (4096 + 1024, &["first", "empty", "last"]),
        ];
        for (end, expected) in ends {
            assert_eq!(names(&whole[..end]).unwrap(), expected, "ends at {end}");
        }
        for inside in [100, 1100, 1600, 2100, 2560, 2600, 3072, 3100, 3585, 3586, 4097, 4607] {
            let error = names(&whole[..inside]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "ends at {inside}");
        }
    }

    #[test]
    fn giant_extensions_and_malformed_records_are_refused() {
        let giant = header("x", tar::EntryType::XHeader, 1 << 33);
        let error = Walk::new(giant.as_bytes().as_slice()).next().unwrap_err();
        assert!(error.to_string().contains("8589934592 bytes"), "{error}");
        for bad in
            ["5 a=", "99 a=b\n", "x a=b\n", "0 \n", "7 abcd\n", "  a=b\n", "99999999999999999999 a=b\n"]
        {
            assert!(parse_pax(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for bad in ["", "-", "1.x", "99999999999999999999", "1e3"] {
            assert!(parse_time(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
