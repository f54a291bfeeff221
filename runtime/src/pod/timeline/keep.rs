//! Stories on disk, one file for each pod below the state: read at a start, written behind those who tell, so that no call
//! waits for it. What a berthd that is killed told within the last moment is lost. Never synced.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::{info, warn};

use super::{
    REMEMBERED, Shelf, Step, Story, Timelines,
    entry::{self, Entry, Fact, VERSION},
    paper::{Change, Deed, Paper},
};
use crate::{
    Error, Result,
    id::PodId,
    pod::{blocking, clock},
};

/// What is told within so long is written together.
const TOGETHER: Duration = Duration::from_millis(50);
/// Between tries where the disk refuses.
const AGAIN: Duration = Duration::from_secs(5);
/// So long the end of berthd waits for the last words: the disk may hang.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The most that is read of a file: several times what is ever written.
const FILE_BYTES: u64 = 64 << 20;

/// A file and what could be read of it.
struct Found {
    file: String,
    entries: Vec<Entry>,
    bytes: usize,
    is_damaged: bool,
}

impl Timelines {
    /// Goes on with the stories of the berthd before, and writes them down from now on.
    ///
    /// # Errors
    /// Only where berthd ends meanwhile.
    pub async fn keep(&self, directory: PathBuf, boot_id: &str) -> Result<()> {
        let (place, boot) = (directory.clone(), boot_id.to_owned());
        let found = blocking("read stories", move || Ok(read_all(&place, &boot))).await?;
        self.lock().restore(found, boot_id, clock::monotonic());
        self.0.bell.notify_one();
        tokio::spawn(write_behind(self.clone(), directory));
        Ok(())
    }

    /// Of those that an earlier berthd told of as there, ends the stories of what is not.
    pub fn close_others(&self, is_there: impl Fn(&str) -> bool) {
        let shelf = self.lock();
        let left = shelf.stories.values().filter(|story| story.gone_at == 0 && !is_there(&story.id));
        let left: Vec<String> = left.map(|story| story.id.clone()).collect();
        drop(shelf);
        for id in left {
            self.note(&id, "not there any more", "a new berthd found no whole record of it");
            self.close(&id);
        }
    }

    /// Whether a file of that name is one that is written.
    pub fn keeps(&self, file: &str) -> bool {
        self.lock().papers.contains_key(file)
    }

    /// Writes what was told so far.
    pub async fn finish(&self) {
        self.0.hurry.notify_one();
        self.0.bell.notify_one();
        if tokio::time::timeout(LAST_WORDS, self.0.written.notified()).await.is_err() {
            warn!("the last steps of stories are not written: the disk of daemon.state does not answer");
        }
    }
}

impl Shelf {
    fn restore(&mut self, found: Vec<Found>, boot_id: &str, now: Duration) {
        for Found { file, entries, bytes, is_damaged } in found {
            let stories = entries.into_iter().filter_map(|entry| self.retell(&file, entry)).count();
            if is_damaged || stories == 0 {
                self.changed.insert(file.clone());
            }
            self.papers.insert(file, Paper::found(stories, bytes, is_damaged));
        }
        self.gone.make_contiguous().sort();
        (self.is_kept, self.boot_id) = (true, boot_id.to_owned());
        self.forget(now);
    }

    /// Something where a story begins.
    fn retell(&mut self, file: &str, Entry { id, fact }: Entry) -> Option<()> {
        match fact {
            Some(Fact::Opened(opened)) => {
                let story = Story {
                    id,
                    name: opened.name,
                    pod: opened.pod,
                    left_out: opened.left_out,
                    ..Story::default()
                };
                if story.file() == file && !self.stories.contains_key(&story.id) {
                    self.stories.insert(story.id.clone(), story);
                    return Some(());
                }
            }
            Some(Fact::Step(step)) => {
                if let Some(story) = self.stories.get_mut(&id) {
                    story.add(Step::from(step));
                }
            }
            Some(Fact::Closed(closed)) => {
                if let Some(story) = self.stories.get_mut(&id).filter(|story| story.gone_at == 0) {
                    (story.gone_at, story.ended) = (closed.at, Duration::from_nanos(closed.ended));
                    self.gone.push_back((story.ended, id));
                }
            }
            Some(Fact::Head(_)) | None => {}
        }
        None
    }

    /// When something is to be forgotten next.
    fn next_to_go(&self) -> Option<Duration> {
        self.gone.front().map(|(at, _)| *at + REMEMBERED)
    }
}

/// Reads all files; tells of those that are damaged, and lets go of those of another boot.
fn read_all(directory: &Path, boot_id: &str) -> Vec<Found> {
    let mut found = Vec::new();
    let (mut strangers, mut of_before) = (0, 0);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if name.strip_suffix(".new").is_some_and(|id| PodId::parse(id).is_ok()) {
            // The one before it is whole.
            fs::remove_file(&path).ok();
            continue;
        }
        if !is_file || PodId::parse(&name).is_err() {
            strangers += 1;
            continue;
        }
        let (entries, bytes, damage) = read(&path);
        let damage = damage.or_else(|| head_of(&entries, boot_id).err());
        match damage {
            Some(OTHER_BOOT) => of_before += 1,
            Some(why) => {
                let steps = entries.len();
                warn!(file = %path.display(), why, steps, "a story is damaged: what comes before that is kept");
            }
            None => {}
        }
        let is_useless = entries.is_empty() || head_of(&entries, boot_id).is_err();
        if is_useless {
            if let Err(error) = fs::remove_file(&path) {
                warn!(file = %path.display(), %error, "a story that can't be read stays");
            }
            continue;
        }
        found.push(Found { file: name, entries, bytes, is_damaged: damage.is_some() });
    }
    if strangers > 0 {
        warn!(directory = %directory.display(), strangers, "files that are no stories lie among them; they are left alone");
    }
    if of_before > 0 {
        info!(of_before, "stories of before the machine was started anew are let go");
    }
    found
}

const OTHER_BOOT: &str = "it is of another boot";

fn head_of(entries: &[Entry], boot_id: &str) -> std::result::Result<(), &'static str> {
    match entries.first().and_then(|entry| entry.fact.as_ref()) {
        Some(Fact::Head(head)) if head.version > VERSION => Err("a newer berthd wrote it"),
        Some(Fact::Head(head)) if head.boot_id != boot_id => Err(OTHER_BOOT),
        Some(Fact::Head(_)) => Ok(()),
        Some(Fact::Opened(_) | Fact::Step(_) | Fact::Closed(_)) | None => {
            Err("it does not begin as a story does")
        }
    }
}

fn read(path: &Path) -> (Vec<Entry>, usize, Option<&'static str>) {
    let mut bytes = Vec::new();
    let opened = fs::File::open(path).and_then(|file| file.take(FILE_BYTES).read_to_end(&mut bytes));
    let (entries, why) = entry::read(&bytes);
    (entries, bytes.len(), why.or(opened.is_err().then_some("it can't be read")))
}

/// Lives as long as berthd does.
async fn write_behind(timelines: Timelines, directory: PathBuf) {
    let desk = &timelines.0;
    let mut is_refused = false;
    loop {
        let next = timelines.lock().next_to_go();
        let over = async {
            match next {
                Some(at) => tokio::time::sleep(at.saturating_sub(clock::monotonic())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = desk.bell.notified() => {}
            () = over => {}
        }
        let pause = if is_refused { AGAIN } else { TOGETHER };
        // Whoever is in a hurry waits for what is written now.
        let is_last = tokio::time::timeout(pause, desk.hurry.notified()).await.is_ok();
        let changes = timelines.changes();
        let place = directory.clone();
        let done = blocking("write stories", move || Ok(carry_out(&place, changes))).await;
        let refused = match done {
            Ok((_, None)) => None,
            Ok((files, Some(error))) => {
                timelines.spoiled(files);
                Some(error)
            }
            Err(error) => Some(error),
        };
        match &refused {
            Some(error) if !is_refused => {
                warn!(
                    error = error.chain(),
                    "stories can't be written: they are in memory only, and it is tried again"
                );
            }
            None if is_refused => info!("stories are written again"),
            Some(_) | None => {}
        }
        is_refused = refused.is_some();
        if is_last {
            desk.written.notify_one();
        }
    }
}

impl Timelines {
    fn changes(&self) -> Vec<Change> {
        let mut shelf = self.lock();
        shelf.forget(clock::monotonic());
        let changed: HashSet<String> = std::mem::take(&mut shelf.changed);
        changed.into_iter().map(|file| shelf.change(file)).collect()
    }

    /// What lies at those is not what was to be there.
    fn spoiled(&self, files: Vec<String>) {
        let mut shelf = self.lock();
        for file in files {
            if let Some(paper) = shelf.papers.get_mut(&file) {
                paper.spoil();
                shelf.changed.insert(file);
            }
        }
        drop(shelf);
        self.0.bell.notify_one();
    }
}

/// Which files have not become what they were to be, and why the last of them.
fn carry_out(directory: &Path, changes: Vec<Change>) -> (Vec<String>, Option<Error>) {
    let (mut files, mut last) = (Vec::new(), None);
    for Change { file, deed } in changes {
        if let Err(error) = change(directory, &file, &deed) {
            last = Some(Error::io("write story", directory.join(&file).display().to_string(), error));
            files.push(file);
        }
    }
    (files, last)
}

fn change(directory: &Path, file: &str, deed: &Deed) -> io::Result<()> {
    let path = directory.join(file);
    let mut options = OpenOptions::new();
    options.mode(0o600);
    match deed {
        // Where it is not there any more, it is to be written whole.
        Deed::Append(bytes) => options.append(true).open(&path)?.write_all(bytes),
        Deed::Replace(bytes) => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let new = directory.join(format!("{file}.new"));
            options.write(true).create(true).truncate(true).open(&new)?.write_all(bytes)?;
            fs::rename(new, path)
        }
        Deed::Remove => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ContainerId;

    const BOOT: &str = "boot";

    /// What the next berthd would find.
    fn next(directory: &Path, boot_id: &str) -> Timelines {
        let timelines = Timelines::default();
        timelines.lock().restore(read_all(directory, boot_id), boot_id, clock::monotonic());
        timelines
    }

    fn written(timelines: &Timelines, directory: &Path) {
        assert!(carry_out(directory, timelines.changes()).1.is_none());
    }

    fn whats(timelines: &Timelines, id: &str) -> Vec<String> {
        let story = timelines.find(id).remove(0);
        story.steps().map(|step| format!("{}{}", step.what, step.detail)).collect()
    }

    fn pod_with_container(directory: &Path) -> (Timelines, String, String) {
        let timelines = next(directory, BOOT);
        let (pod, container) = (PodId::random().to_string(), ContainerId::random().to_string());
        timelines.open(&pod, "default/web", "");
        timelines.open(&container, "c", &pod);
        timelines.note(&pod, "one", "");
        timelines.note(&container, "two", "");
        written(&timelines, directory);
        timelines.note(&container, "three", "");
        written(&timelines, directory);
        (timelines, pod, container)
    }

    #[test]
    fn the_next_berthd_goes_on_with_what_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("stories");
        let (timelines, pod, container) = pod_with_container(&place);
        timelines.close(&container);
        written(&timelines, &place);
        let later = next(&place, BOOT);
        assert_eq!(
            (whats(&later, &pod), whats(&later, &container)),
            (vec!["one".into()], vec!["two".into(), "three".into()])
        );
        let (told, before) = (later.find(&container).remove(0), timelines.find(&container).remove(0));
        assert_eq!((told.gone_at, told.ended, told.pod), (before.gone_at, before.ended, pod.clone()));
        assert_ne!(told.gone_at, 0);
        // Told again by who finds it, nothing is added.
        later.open(&pod, "default/web", "");
        assert_eq!(later.changes(), []);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        // What is not there any more is ended.
        later.close_others(|_| false);
        assert_ne!(later.find(&pod)[0].gone_at, 0);
        assert_eq!(whats(&later, &pod).len(), 2);
    }

    #[test]
    fn after_an_hour_by_a_clock_that_nobody_sets_it_is_forgotten_and_its_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (timelines, pod, container) = pod_with_container(dir.path());
        [&pod, &container].iter().for_each(|id| timelines.close(id));
        written(&timelines, dir.path());
        let later = |by: Duration| {
            let later = Timelines::default();
            later.lock().restore(read_all(dir.path(), BOOT), BOOT, clock::monotonic() + by);
            later
        };
        let almost = later(REMEMBERED - Duration::from_secs(60));
        assert!(almost.knows(&pod) && almost.keeps(&pod) && almost.knows(&container));
        let over = later(REMEMBERED);
        assert!(!over.knows(&pod) && !over.knows(&container));
        assert_eq!(over.changes(), [Change { file: pod.clone(), deed: Deed::Remove }]);
        assert!(!over.keeps(&pod));
        assert!(change(dir.path(), &pod, &Deed::Remove).is_ok());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(change(dir.path(), &pod, &Deed::Remove).is_ok());
    }

    #[test]
    fn a_file_is_bounded_by_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (timelines, pod, _) = pod_with_container(dir.path());
        let mut most = 0;
        for round in 0..200 {
            (0..50).for_each(|_| timelines.note(&pod, "again", "x".repeat(100)));
            written(&timelines, dir.path());
            most = most.max(fs::metadata(dir.path().join(&pod)).unwrap().len());
            assert!(fs::metadata(dir.path().join(&pod)).unwrap().len() > 0, "{round}");
        }
        assert!(most < 80 * 1024, "{most} bytes");
        let later = next(dir.path(), BOOT);
        assert_eq!(whats(&later, &pod), whats(&timelines, &pod));
        assert_eq!(later.find(&pod)[0].left_out, timelines.find(&pod)[0].left_out);
        // A disk that takes nothing costs a bounded room, and gets all of it in the end.
        (0..2000).for_each(|_| timelines.note(&pod, "more", "x".repeat(100)));
        let changes = timelines.changes();
        assert!(
            matches!(&changes[..], [Change { deed: Deed::Replace(whole), .. }] if whole.len() < 64 * 1024)
        );
    }

    #[test]
    fn what_is_damaged_or_of_another_boot_or_no_story_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (_, pod, container) = pod_with_container(dir.path());
        let path = dir.path().join(&pod);
        let whole = fs::read(&path).unwrap();
        // Foreign things, and what a crash left of one that was written anew.
        fs::write(dir.path().join("README"), "mine").unwrap();
        fs::create_dir(dir.path().join(PodId::random().as_str())).unwrap();
        fs::write(dir.path().join(format!("{pod}.new")), "half").unwrap();
        fs::write(dir.path().join(PodId::random().as_str()), "no story").unwrap();
        assert_eq!(whats(&next(dir.path(), BOOT), &container).len(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        // Cut off, its beginning is kept, and it is whole again after the next start.
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let cut = next(dir.path(), BOOT);
        assert_eq!(whats(&cut, &container), ["two"]);
        written(&cut, dir.path());
        assert!(!read_all(dir.path(), BOOT)[0].is_damaged);
        // A later one of another boot begins anew.
        assert!(next(dir.path(), "other").find(&pod).is_empty());
        assert!(!path.exists());
        // What can't be added to is written whole.
        let (again, pod, _) = pod_with_container(dir.path());
        fs::remove_file(dir.path().join(&pod)).unwrap();
        again.note(&pod, "more", "");
        let (files, error) = carry_out(dir.path(), again.changes());
        assert!(error.is_some());
        again.spoiled(files);
        written(&again, dir.path());
        assert_eq!(whats(&next(dir.path(), BOOT), &pod), ["one", "more"]);
    }
}
