//! A blob on its way: one thread writes its file, another reads it right behind.
//!
//! ```text
//! begin ─> grew, grew, … ─┬─> end(Whole)    who follows comes to the end of the file
//!            ^            └─> end(Broken)   who follows gets an error
//!            └── spoil: what came so far was wrong and comes again; who follows gets an error, and begins anew
//! ```
//! What is read so is not verified yet: whoever follows keeps it to itself until the blob is whole.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// How far the blob's file is.
#[derive(Debug, Default)]
pub(super) struct Growth {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    bytes: u64,
    /// How often what had come was thrown away.
    spoiled: u32,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It has its size and its digest.
    Whole,
    Broken,
}

impl Growth {
    /// The file as it is found, with so many good bytes.
    pub(super) fn begin(&self, file: &File, bytes: u64) -> io::Result<()> {
        let file = Arc::new(file.try_clone()?);
        self.change(|state| {
            if bytes < state.bytes {
                state.spoiled += 1;
            }
            (state.file, state.bytes) = (Some(file), bytes);
        });
        Ok(())
    }

    /// So many bytes of the file are written by now.
    pub(super) fn grew(&self, bytes: u64) {
        self.change(|state| state.bytes = bytes);
    }

    /// The file goes: what is in it is wrong.
    pub(super) fn spoil(&self) {
        self.change(|state| {
            state.spoiled += 1;
            (state.file, state.bytes) = (None, 0);
        });
    }

    /// No more comes.
    pub(super) fn end(&self, end: End) {
        self.change(|state| state.end = Some(end));
    }

    /// Whether who followed from the beginning may have read what was wrong.
    pub(super) fn was_spoiled(&self) -> bool {
        self.lock().spoiled > 0
    }

    pub(super) fn follow(self: &Arc<Self>) -> Follower {
        Follower { growth: Arc::clone(self), file: None, at: 0, known: 0 }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the blob from its beginning, and waits where it is not there yet.
#[derive(Debug)]
pub(super) struct Follower {
    growth: Arc<Growth>,
    file: Option<Arc<File>>,
    at: u64,
    known: u64,
}

impl Follower {
    /// Waits for more; gives how far the file is, which is where we are only at its end.
    fn wait(&mut self) -> io::Result<u64> {
        let mut state = self.growth.lock();
        loop {
            if state.spoiled > 0 {
                return Err(io::Error::other("its blob comes anew"));
            }
            if state.bytes > self.at || state.end == Some(End::Whole) {
                self.file.clone_from(&state.file);
                return Ok(state.bytes);
            }
            if state.end == Some(End::Broken) {
                return Err(io::Error::other("the rest of its blob did not come"));
            }
            state = self.growth.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.known == self.at {
            self.known = self.wait()?;
        }
        let most = usize::try_from(self.known - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let Some(file) = self.file.as_ref().filter(|_| most > 0) else { return Ok(0) };
        let count = file.read_at(&mut buffer[..most], self.at)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its blob's file was cut"));
        }
        self.at += count as u64;
        Ok(count)
    }
}

/// Ends the growth as broken if its owner leaves without a word: nobody waits for ever.
#[derive(Debug)]
pub(super) struct Grower(pub(super) Arc<Growth>);

impl Drop for Grower {
    fn drop(&mut self) {
        self.0.change(|state| {
            state.end.get_or_insert(End::Broken);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, thread};

    use super::*;

    fn followed(growth: &Arc<Growth>) -> thread::JoinHandle<io::Result<Vec<u8>>> {
        let mut follower = growth.follow();
        thread::spawn(move || {
            let mut read = Vec::new();
            follower.read_to_end(&mut read).map(|_| read)
        })
    }

    #[test]
    fn who_follows_reads_all_that_is_written_and_no_more() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"begun ").unwrap();
        let growth = Arc::new(Growth::default());
        let (early, late) = (followed(&growth), growth.follow());
        growth.begin(&file, 6).unwrap();
        for part in [&b"grown "[..], b"and ", b"whole"] {
            file.write_all(part).unwrap();
            growth.grew(file.metadata().unwrap().len());
        }
        // What is not told of is not there.
        file.write_all(b" secret").unwrap();
        growth.end(End::Whole);
        assert_eq!(early.join().unwrap().unwrap(), b"begun grown and whole");
        let mut read = String::new();
        { late }.read_to_string(&mut read).unwrap();
        assert_eq!(read, "begun grown and whole");
        assert!(!growth.was_spoiled());
    }

    #[test]
    fn an_end_without_the_rest_and_a_spoiled_file_are_errors() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"part").unwrap();
        type Act = fn(&Arc<Growth>, &File);
        let acts: [(Act, &str, bool); 4] = [
            (|growth, _| growth.end(End::Broken), "did not come", false),
            (|growth, _| drop(Grower(Arc::clone(growth))), "did not come", false),
            (|growth, _| growth.spoil(), "anew", true),
            (|growth, file| growth.begin(file, 1).unwrap(), "anew", true),
        ];
        for (act, cause, spoiled) in acts {
            let growth = Arc::new(Growth::default());
            growth.begin(&file, 4).unwrap();
            let following = followed(&growth);
            act(&growth, &file);
            let error = following.join().unwrap().unwrap_err();
            assert!(error.to_string().contains(cause), "{error}");
            assert_eq!(growth.was_spoiled(), spoiled);
        }
        // Whole, and its owner leaves: whole it stays.
        let growth = Arc::new(Growth::default());
        growth.begin(&file, 4).unwrap();
        let grower = Grower(Arc::clone(&growth));
        growth.end(End::Whole);
        drop(grower);
        assert_eq!(followed(&growth).join().unwrap().unwrap(), b"part");
    }
}
