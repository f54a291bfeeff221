//! How stories are written down: one entry after the other, each with its length and a checksum, so that what a crash or a
//! disk has left of a file can be told from what was written. Pure.
//!
//! ```text
//! length u32 | checksum u32 | Entry      both little-endian; the first entry of a file is its head
//! ```

use std::{borrow::Cow, time::Duration};

use prost::Message;

use super::{Step, Story};

pub const VERSION: u32 = 1;
/// The longest entry that is believed in: texts are cut long before.
const ENTRY_BYTES: usize = 64 * 1024;

#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// Of the pod or container that it is about; of a head, none.
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(oneof = "Fact", tags = "2, 3, 4, 5")]
    pub fact: Option<Fact>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Fact {
    #[prost(message, tag = "2")]
    Head(Head),
    #[prost(message, tag = "3")]
    Opened(Opened),
    #[prost(message, tag = "4")]
    Step(Written),
    #[prost(message, tag = "5")]
    Closed(Closed),
}

#[derive(Clone, PartialEq, Message)]
pub struct Head {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Times of another boot's clock say nothing.
    #[prost(string, tag = "2")]
    pub boot_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Opened {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub pod: String,
    /// Steps that had been let go when this was written.
    #[prost(uint64, tag = "3")]
    pub left_out: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Written {
    #[prost(int64, tag = "1")]
    pub at: i64,
    #[prost(uint64, optional, tag = "2")]
    pub took_ns: Option<u64>,
    #[prost(string, tag = "3")]
    pub what: String,
    #[prost(string, tag = "4")]
    pub detail: String,
    #[prost(string, tag = "5")]
    pub error: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Closed {
    #[prost(int64, tag = "1")]
    pub at: i64,
    /// The same by CLOCK_MONOTONIC, nanoseconds: by that it is forgotten.
    #[prost(uint64, tag = "2")]
    pub ended: u64,
}

impl Entry {
    pub fn head(boot_id: &str) -> Self {
        Self::of("", Fact::Head(Head { version: VERSION, boot_id: boot_id.to_owned() }))
    }

    pub fn opened(story: &Story) -> Self {
        let opened = Opened { name: story.name.clone(), pod: story.pod.clone(), left_out: story.left_out };
        Self::of(&story.id, Fact::Opened(opened))
    }

    pub fn step(id: &str, step: &Step) -> Self {
        let took_ns = step.took.map(|took| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        let (what, detail, error) = (step.what.to_string(), step.detail.clone(), step.error.clone());
        Self::of(id, Fact::Step(Written { at: step.at, took_ns, what, detail, error }))
    }

    pub fn closed(id: &str, at: i64, ended: Duration) -> Self {
        let ended = u64::try_from(ended.as_nanos()).unwrap_or(u64::MAX);
        Self::of(id, Fact::Closed(Closed { at, ended }))
    }

    fn of(id: &str, fact: Fact) -> Self {
        Self { id: id.to_owned(), fact: Some(fact) }
    }

    pub fn write(&self, to: &mut Vec<u8>) {
        let bytes = self.encode_to_vec();
        // Texts are bounded, so that its length is too.
        to.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        to.extend(checksum(&bytes).to_le_bytes());
        to.extend(bytes);
    }
}

impl From<Written> for Step {
    fn from(written: Written) -> Self {
        Self {
            at: written.at,
            took: written.took_ns.map(Duration::from_nanos),
            what: Cow::Owned(written.what),
            detail: written.detail,
            error: written.error,
        }
    }
}

/// All entries up to the first that is damaged, and what is wrong there.
pub fn read(mut bytes: &[u8]) -> (Vec<Entry>, Option<&'static str>) {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        match next(&mut bytes) {
            Ok(entry) => found.push(entry),
            Err(why) => return (found, Some(why)),
        }
    }
    (found, None)
}

fn next(bytes: &mut &[u8]) -> Result<Entry, &'static str> {
    let (length, rest) = number(bytes).ok_or("it ends within an entry")?;
    let (sum, rest) = number(rest).ok_or("it ends within an entry")?;
    let length = length as usize;
    if length > ENTRY_BYTES {
        return Err("an entry is longer than any that is written");
    }
    let (entry, rest) = rest.split_at_checked(length).ok_or("it ends within an entry")?;
    if checksum(entry) != sum {
        return Err("an entry is not what was written");
    }
    *bytes = rest;
    Entry::decode(entry).map_err(|_| "an entry can't be understood")
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*number), rest))
}

/// FNV-1a: against damage, not against malice.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some() -> Vec<Entry> {
        let story = Story { id: "ab".into(), name: "web".into(), left_out: 3, ..Story::default() };
        let took = Some(Duration::from_micros(1500));
        let step = Step { at: 7, took, what: "launch".into(), detail: "d".into(), error: "ü".into() };
        vec![
            Entry::head("boot"),
            Entry::opened(&story),
            Entry::step("ab", &step),
            Entry::closed("ab", 9, Duration::from_secs(5)),
        ]
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| entry.write(&mut bytes));
        bytes
    }

    #[test]
    fn entries_come_back_as_written() {
        assert_eq!(read(&written(&some())), (some(), None));
        assert_eq!(read(b""), (Vec::new(), None));
        let Some(Fact::Step(step)) = some().remove(2).fact else { panic!("a step") };
        let step = Step::from(step);
        assert_eq!((step.took, step.what.as_ref()), (Some(Duration::from_micros(1500)), "launch"));
    }

    proptest! {
        #[test]
        fn what_is_cut_off_or_changed_costs_no_entry_before_it(cut in 0usize..200, at in 0usize..200, bit in 0u8..8) {
            let whole = written(&some());
            let (cut, at) = (cut % whole.len(), at % whole.len());
            let before = |end: usize| (0..=4).rev().find(|n| written(&some()[..*n]).len() <= end).unwrap_or(0);
            let (entries, why) = read(&whole[..cut]);
            prop_assert_eq!(&entries[..], &some()[..before(cut)]);
            prop_assert_eq!(why.is_none(), written(&entries).len() == cut);
            let mut changed = whole;
            changed[at] ^= 1 << bit;
            let (entries, why) = read(&changed);
            prop_assert_eq!(&entries[..], &some()[..before(at)]);
            prop_assert!(why.is_some());
        }

        #[test]
        fn no_file_brings_it_down(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            read(&bytes);
        }
    }
}
