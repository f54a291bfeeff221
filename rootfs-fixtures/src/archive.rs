//! The bytes of a layer's archive. Headers are filled by hand, because the `tar` crate rightly refuses to
//! write the names that hostile images need.
//!
//! ```text
//!   [pax records: long names, xattrs]  [GNU long name] [GNU long link]  header  content
//! ```

use crate::EPOCH_SECONDS;
use crate::entry::{Body, Device, Entry};
use crate::layer::LongNames;
use std::io;
use tar::{Builder, EntryType, Header};

/// The room for a name in a header.
const NAME_BYTES: usize = 100;

pub fn write(entries: &[&Entry], long_names: LongNames) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        append(&mut builder, entry, long_names)
            .map_err(|error| io::Error::new(error.kind(), format!("archive {}: {error}", entry.path)))?;
    }
    builder.into_inner()
}

fn append(builder: &mut Builder<Vec<u8>>, entry: &Entry, long_names: LongNames) -> io::Result<()> {
    let name = archived_name(entry);
    let target = target(entry);
    append_pax(builder, entry, &name, target, long_names)?;
    if long_names == LongNames::Gnu {
        append_gnu(builder, EntryType::GNULongName, name.as_bytes())?;
        append_gnu(builder, EntryType::GNULongLink, target.as_bytes())?;
    }
    let mut header = match long_names {
        LongNames::Pax => Header::new_ustar(),
        LongNames::Gnu => Header::new_gnu(),
    };
    let content = fill(&mut header, entry)?;
    put(&mut header.as_old_mut().name, name.as_bytes());
    put(&mut header.as_old_mut().linkname, target.as_bytes());
    header.set_cksum();
    builder.append(&header, content)
}

/// Directories end in a slash, as every archiver writes them.
fn archived_name(entry: &Entry) -> String {
    let slash = matches!(entry.body, Body::Directory) && !entry.path.ends_with('/');
    format!("{}{}", entry.path, if slash { "/" } else { "" })
}

fn target(entry: &Entry) -> &str {
    match &entry.body {
        Body::Symlink(target) | Body::HardLink(target) => target,
        Body::Directory | Body::File(_) | Body::Device(_) | Body::Fifo => "",
    }
}

/// Sets all but the names, and returns the content.
fn fill<'a>(header: &mut Header, entry: &'a Entry) -> io::Result<&'a [u8]> {
    header.set_mtime(EPOCH_SECONDS);
    header.set_mode(entry.mode);
    header.set_uid(entry.uid);
    header.set_gid(entry.gid);
    let content: &[u8] = if let Body::File(content) = &entry.body { content } else { &[] };
    header.set_size(content.len() as u64);
    header.set_entry_type(match &entry.body {
        Body::Directory => EntryType::Directory,
        Body::File(_) => EntryType::Regular,
        Body::Symlink(_) => EntryType::Symlink,
        Body::HardLink(_) => EntryType::Link,
        Body::Fifo => EntryType::Fifo,
        Body::Device(Device::Char { .. }) => EntryType::Char,
        Body::Device(Device::Block { .. }) => EntryType::Block,
    });
    // An ustar header has the two numbers for every type.
    let (major, minor) = match entry.body {
        Body::Device(Device::Char { major, minor } | Device::Block { major, minor }) => (major, minor),
        _ => (0, 0),
    };
    header.set_device_major(major)?;
    header.set_device_minor(minor)?;
    Ok(content)
}

fn append_pax(
    builder: &mut Builder<Vec<u8>>,
    entry: &Entry,
    name: &str,
    target: &str,
    long_names: LongNames,
) -> io::Result<()> {
    let mut records: Vec<(String, &[u8])> = Vec::new();
    if long_names == LongNames::Pax {
        let long = [("path", name), ("linkpath", target)].into_iter().filter(|(_, name)| is_long(name));
        records.extend(long.map(|(key, name)| (key.to_owned(), name.as_bytes())));
    }
    let xattrs = entry.xattrs.iter();
    records.extend(xattrs.map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice())));
    records.sort();
    builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), *value)))
}

fn append_gnu(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8]) -> io::Result<()> {
    if name.len() <= NAME_BYTES {
        return Ok(());
    }
    let content = [name, &[0]].concat();
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    put(&mut header.as_old_mut().name, b"././@LongLink");
    header.set_cksum();
    builder.append(&header, content.as_slice())
}

fn is_long(name: &str) -> bool {
    name.len() > NAME_BYTES
}

/// Writes as much of a name as there is room for; a longer one has been said in full before.
fn put(slot: &mut [u8; NAME_BYTES], name: &[u8]) {
    let length = name.len().min(NAME_BYTES);
    slot[..length].copy_from_slice(&name[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn read_back(bytes: &[u8]) -> Vec<(String, String, u32, String)> {
        let mut archive = tar::Archive::new(bytes);
        let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let link = entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            (path, link.unwrap_or_default(), entry.header().mode().unwrap(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn names_of_every_length_come_back_in_both_dialects() {
        for dialect in [LongNames::Pax, LongNames::Gnu] {
            for length in [1, 99, 100, 101, 255, 256, 300, 900] {
                let name = "n".repeat(length);
                let file = Entry::file(&name, 0o4755, "content");
                let link = Entry::symlink("link", &name);
                let bytes = write(&[&file, &link], dialect).unwrap();
                let expected = [
                    (name.clone(), String::new(), 0o4755, "content".to_owned()),
                    ("link".to_owned(), name, 0o777, String::new()),
                ];
                assert_eq!(read_back(&bytes), expected, "{dialect:?} {length}");
            }
        }
    }

    #[test]
    fn hostile_names_are_written_as_they_are() {
        let up = Entry::file("../../etc/passwd", 0o644, "x");
        let absolute = Entry::file("/etc/passwd", 0o644, "x");
        let names: Vec<String> = read_back(&write(&[&up, &absolute], LongNames::Pax).unwrap())
            .into_iter()
            .map(|row| row.0)
            .collect();
        assert_eq!(names, ["../../etc/passwd", "/etc/passwd"]);
    }

    #[test]
    fn xattrs_and_device_numbers_come_back() {
        let capability = [1_u8, 0, 0, 2, 0, 4, 0, 0, 0, b'\n', b'=', 0];
        let file = Entry::file("ping", 0o755, "x").xattr("security.capability", capability).owner(1000, 2000);
        let device = Entry::device("null", 0o666, Device::Char { major: 1, minor: 3 });
        let bytes = write(&[&file, &device], LongNames::Pax).unwrap();
        // By hand: the `tar` crate splits records at line feeds, and a value may hold one.
        let record = [b"49 SCHILY.xattr.security.capability=".as_slice(), &capability, b"\n"].concat();
        assert_eq!(record.len(), 49);
        assert_eq!(&bytes[512..512 + record.len()], record);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entries = archive.entries().unwrap();
        let ping = entries.next().unwrap().unwrap();
        assert_eq!((ping.header().uid().unwrap(), ping.header().gid().unwrap()), (1000, 2000));
        let null = entries.next().unwrap().unwrap();
        assert_eq!(null.header().device_major().unwrap(), Some(1));
        assert_eq!(null.header().device_minor().unwrap(), Some(3));
    }
}
