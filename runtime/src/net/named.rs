//! Networks that people made, on disk: `<dir>/networks/<id>` is one that is there, as JSON; `<id>.going` one that is
//! being made or removed, which the next berthd takes back. Blocks.
//!
//! ```text
//! begin ──> <id>.going ──settle──> <id> ──mark_going──> <id>.going ──erase──> nothing
//! ```
//! Written beside, synced and renamed: unlike a lease a network outlives the machine's end.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    segment::{self, Reach, Segment},
    subnet::Subnet,
};
use crate::{Error, Result, id::PodId};

const VERSION: u32 = 1;
const GOING: &str = "going";
const NEW: &str = "new";

/// What a network that somebody made has beside its segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// 64 hex digits.
    pub id: String,
    pub labels: BTreeMap<String, String>,
    /// Unix nanoseconds.
    pub created_at: i64,
}

/// A network that somebody made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub made: Made,
    pub segment: Segment,
}

/// How it stands in its file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    id: String,
    name: String,
    link: String,
    subnets: Vec<Range>,
    mtu: u32,
    reach: Reach,
    labels: BTreeMap<String, String>,
    created_at: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Range {
    subnet: String,
    gateway: IpAddr,
}

/// The directory.
#[derive(Debug, Clone)]
pub struct Shelf(PathBuf);

/// What was there at the start.
#[derive(Debug, Default)]
pub struct Found {
    pub there: Vec<Named>,
    pub going: Vec<Named>,
}

impl Named {
    /// A new one, with an id and the name of a bridge that nobody has.
    pub fn new(
        name: &str,
        subnets: Vec<Subnet>,
        mtu: u32,
        reach: Reach,
        labels: BTreeMap<String, String>,
    ) -> Self {
        let id = PodId::random().to_string();
        let link = format!("{}{}", segment::NAMED_LINKS, &id[..12]);
        let segment = Segment { name: name.to_owned(), link, subnets, mtu, reach };
        Self { made: Made { id, labels, created_at: now() }, segment }
    }

    fn parse(text: &str, id: &str) -> Result<Self, String> {
        let record: Record = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let Record { version, id: own, name, link, subnets, mtu, reach, labels, created_at } = record;
        if version != VERSION {
            return Err(format!("it has version {version}, this berthd knows {VERSION}"));
        }
        if own != id || PodId::parse(id).is_err() {
            return Err(format!("it is of the network {own:?}"));
        }
        segment::check_name(&name)?;
        if link != format!("{}{}", segment::NAMED_LINKS, &id[..12]) || !segment::good_mtu(mtu) {
            return Err(format!("bridge {link:?} with MTU {mtu} is none of ours"));
        }
        let subnet = |range: &Range| Subnet::parse(&range.subnet)?.with_gateway(range.gateway);
        let subnets: Vec<Subnet> = subnets.iter().map(subnet).collect::<Result<_, String>>()?;
        if subnets.is_empty() {
            return Err("it has no subnet".into());
        }
        let segment = Segment { name, link, subnets, mtu, reach };
        Ok(Self { made: Made { id: own, labels, created_at }, segment })
    }

    fn text(&self) -> String {
        let range = |subnet: &Subnet| Range { subnet: subnet.to_string(), gateway: subnet.gateway() };
        let Segment { name, link, subnets, mtu, reach } = self.segment.clone();
        let Made { id, labels, created_at } = self.made.clone();
        let subnets = subnets.iter().map(range).collect();
        let record = Record { version: VERSION, id, name, link, subnets, mtu, reach, labels, created_at };
        let text = serde_json::to_string_pretty(&record).expect("text, numbers and maps of text are JSON");
        text + "\n"
    }
}

impl Shelf {
    /// Reads what is there. What can't be understood is left where it is, with a warning.
    pub fn open(dir: &Path) -> Result<(Self, Found)> {
        let dir = dir.join("networks");
        let failed = |error: io::Error| Error::io("read networks", dir.display().to_string(), error);
        fs::create_dir_all(&dir).map_err(failed)?;
        let mut found = Found::default();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension == Some(NEW) {
                // berthd ended before the rename: nothing was made.
                fs::remove_file(&path).map_err(failed)?;
                continue;
            }
            let id = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            let read = fs::read_to_string(&path).map_err(|error| error.to_string());
            match read.and_then(|text| Named::parse(&text, &id)) {
                Ok(named) if extension == Some(GOING) => found.going.push(named),
                Ok(named) => found.there.push(named),
                Err(cause) => {
                    warn!(file = %path.display(), cause, "a network can't be read; it is not there until its file can be");
                }
            }
        }
        found.there.sort_by_key(|named| named.made.created_at);
        Ok((Self(dir), found))
    }

    /// Writes that the network is being made.
    pub fn begin(&self, named: &Named) -> Result<()> {
        let (new, going) = (self.path(named, Some(NEW)), self.path(named, Some(GOING)));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(named.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &going)?;
            self.sync()
        };
        write().map_err(|error| {
            // The write's failure is the one to tell; what is left of it is swept at the next start.
            fs::remove_file(&new).ok();
            Error::io("write network", going.display().to_string(), error)
        })
    }

    /// Writes that it is there.
    pub fn settle(&self, named: &Named) -> Result<()> {
        self.rename(&self.path(named, Some(GOING)), &self.path(named, None))
    }

    /// Writes that it is being removed.
    pub fn mark_going(&self, named: &Named) -> Result<()> {
        self.rename(&self.path(named, None), &self.path(named, Some(GOING)))
    }

    /// Removes what there is of it. Absent: success.
    pub fn erase(&self, named: &Named) -> Result<()> {
        for path in [self.path(named, None), self.path(named, Some(GOING))] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove network", path.display().to_string(), error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to)
            .and_then(|()| self.sync())
            .map_err(|error| Error::io("write network", to.display().to_string(), error))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn path(&self, named: &Named, extension: Option<&str>) -> PathBuf {
        let path = self.0.join(&named.made.id);
        extension.map_or(path.clone(), |extension| path.with_extension(extension))
    }
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Named {
        let subnets = [("10.9.0.0/24", "10.9.0.254"), ("fd09::/64", "fd09::1")];
        let subnets = subnets.map(|(subnet, gateway)| {
            Subnet::parse(subnet).unwrap().with_gateway(gateway.parse().unwrap()).unwrap()
        });
        let labels = BTreeMap::from([("k".to_owned(), "v=1".to_owned())]);
        Named::new(name, subnets.to_vec(), 1400, Reach::Internal, labels)
    }

    fn names(networks: &[Named]) -> Vec<&str> {
        networks.iter().map(|named| named.segment.name.as_str()).collect()
    }

    #[test]
    fn a_network_is_read_as_it_was_written_and_known_as_going_until_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (shelf, found) = Shelf::open(dir.path()).unwrap();
        assert!(found.there.is_empty() && found.going.is_empty());
        let (one, two) = (named("one"), named("two"));
        shelf.begin(&one).unwrap();
        shelf.begin(&two).unwrap();
        assert_eq!(Shelf::open(dir.path()).unwrap().1.going.len(), 2);
        shelf.settle(&one).unwrap();
        let found = Shelf::open(dir.path()).unwrap().1;
        assert_eq!((found.there, names(&found.going)), (vec![one.clone()], vec!["two"]));
        shelf.mark_going(&one).unwrap();
        shelf.erase(&two).unwrap();
        shelf.erase(&two).unwrap();
        let found = Shelf::open(dir.path()).unwrap().1;
        assert!(found.there.is_empty() && names(&found.going) == ["one"]);
        shelf.erase(&one).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("networks")).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_understood_is_kept_and_is_no_network() {
        let dir = tempfile::tempdir().unwrap();
        let (shelf, _) = Shelf::open(dir.path()).unwrap();
        let one = named("one");
        shelf.begin(&one).unwrap();
        shelf.settle(&one).unwrap();
        let path = dir.path().join("networks").join(&one.made.id);
        let text = fs::read_to_string(&path).unwrap();
        let hostile = [
            ("", "torn"),
            (&text[..text.len() / 2], "half"),
            (&text.replace("\"version\": 1", "\"version\": 2"), "of a newer one"),
            (&text.replace("btn", "eth"), "a link of the node's"),
            (&text.replace("\"one\"", "\"x\\\"; drop\""), "a name that is none"),
            (&text.replace("10.9.0.254", "10.8.0.1"), "a gateway outside"),
            (&text.replace(&one.made.id, &PodId::random().to_string()), "another's id"),
        ];
        for (text, what) in hostile {
            fs::write(&path, text).unwrap();
            let found = Shelf::open(dir.path()).unwrap().1;
            assert!(found.there.is_empty() && found.going.is_empty(), "{what}");
            assert!(path.exists(), "{what}");
        }
        fs::write(dir.path().join("networks/left.new"), "x").unwrap();
        fs::write(&path, text).unwrap();
        assert_eq!(Shelf::open(dir.path()).unwrap().1.there, [one]);
        assert!(!dir.path().join("networks/left.new").exists());
    }
}
