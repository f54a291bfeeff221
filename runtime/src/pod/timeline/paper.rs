//! What is yet to be written of the stories of one pod: entries that are added to its file, or all of it anew. Pure.

use super::{Shelf, Story, entry::Entry};

/// Below this a file is not worth being written anew.
const SMALL: usize = 64 * 1024;
/// A disk that takes nothing for so long gets all that is kept once it does.
const PENDING: usize = 64 * 1024;

/// The file of a pod and its containers.
#[derive(Debug, Default)]
pub struct Paper {
    /// Stories that are in it.
    pub stories: usize,
    pending: Vec<u8>,
    /// As far as was tried.
    bytes: usize,
    /// From this size on it is written anew: most of it is of what was let go.
    limit: usize,
    is_damaged: bool,
}

/// One change of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    pub file: String,
    pub deed: Deed,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Deed {
    Append(Vec<u8>),
    /// Written new and renamed.
    Replace(Vec<u8>),
    Remove,
}

impl Paper {
    /// One that lies there already.
    pub fn found(stories: usize, bytes: usize, is_damaged: bool) -> Self {
        Self { stories, pending: Vec::new(), bytes, limit: SMALL.max(2 * bytes), is_damaged }
    }

    pub fn add(&mut self, entry: &Entry) {
        entry.write(&mut self.pending);
        if self.pending.len() > PENDING {
            self.spoil();
        }
    }

    /// What lies there is not to be added to.
    pub fn spoil(&mut self) {
        self.pending = Vec::new();
        self.is_damaged = true;
    }
}

impl Shelf {
    /// What is to be done to a file that something has been added to.
    pub fn change(&mut self, file: String) -> Change {
        let Some(paper) = self.papers.get_mut(&file).filter(|paper| paper.stories > 0) else {
            self.papers.remove(&file);
            return Change { file, deed: Deed::Remove };
        };
        let pending = std::mem::take(&mut paper.pending);
        let is_new = paper.bytes == 0;
        if !is_new && !paper.is_damaged && paper.bytes + pending.len() <= paper.limit {
            paper.bytes += pending.len();
            return Change { file, deed: Deed::Append(pending) };
        }
        let mut whole = Vec::new();
        Entry::head(&self.boot_id).write(&mut whole);
        let of_file = self.stories.values().filter(|story| story.file() == file);
        of_file.for_each(|story| write_whole(story, &mut whole));
        (paper.bytes, paper.limit, paper.is_damaged) = (whole.len(), SMALL.max(2 * whole.len()), false);
        Change { file, deed: Deed::Replace(whole) }
    }
}

fn write_whole(story: &Story, to: &mut Vec<u8>) {
    Entry::opened(story).write(to);
    story.steps().for_each(|step| Entry::step(&story.id, step).write(to));
    if story.gone_at != 0 {
        Entry::closed(&story.id, story.gone_at, story.ended).write(to);
    }
}
