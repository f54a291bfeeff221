//! What has happened to each pod and container, step by step: when, how long, with what error. Bounded, and kept for an hour
//! after what it is about has gone. For `berth explain`. In memory; `keep` writes it down behind us, for the next berthd.

mod entry;
mod keep;
mod paper;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet, VecDeque},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use self::{entry::Entry, paper::Paper};
use super::clock;
use crate::{Error, Result, launcher::Fault, oci};

/// Of each story the beginning is kept, and of the rest the newest.
const FIRST_STEPS: usize = 40;
const LAST_STEPS: usize = 88;
/// Characters of a detail or an error.
const TEXT_CHARS: usize = 500;
/// What has gone is remembered so long, and so many of it.
const REMEMBERED: Duration = Duration::from_secs(3600);
const GONE: usize = 256;

/// What a step may fail with.
pub trait Told {
    /// The whole chain of causes.
    fn text(&self) -> String;
}

impl Told for Error {
    fn text(&self) -> String {
        self.chain()
    }
}

impl Told for Fault {
    fn text(&self) -> String {
        match self {
            Self::Failed(failure) => oci::explain(failure).chain(),
            Self::Error(error) => error.chain(),
            Self::Gone => "its shim has gone".into(),
        }
    }
}

/// All stories of this node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Timelines(Arc<Desk>);

#[derive(Debug, Default)]
struct Desk {
    shelf: Mutex<Shelf>,
    /// Something is to be written; at once; it has been.
    bell: Notify,
    hurry: Notify,
    written: Notify,
}

#[derive(Debug, Default)]
struct Shelf {
    stories: HashMap<String, Story>,
    /// When by a clock that nobody sets, and which; the oldest first.
    gone: VecDeque<(Duration, String)>,
    /// Whether anybody writes them down.
    is_kept: bool,
    boot_id: String,
    papers: HashMap<String, Paper>,
    /// Those of the papers that something is to be done to.
    changed: HashSet<String>,
}

/// What is known of one pod or container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Story {
    pub id: String,
    pub name: String,
    /// Of a container, its pod's id.
    pub pod: String,
    first: Vec<Step>,
    last: VecDeque<Step>,
    /// Steps between the two that were let go.
    pub left_out: u64,
    /// Unix nanoseconds; 0: it is there.
    pub gone_at: i64,
    /// The same by the clock that it is forgotten by.
    ended: Duration,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// When it began, unix nanoseconds.
    pub at: i64,
    /// None: it took no time that counts.
    pub took: Option<Duration>,
    pub what: Cow<'static, str>,
    pub detail: String,
    /// Why it failed; empty: it did not.
    pub error: String,
}

impl Story {
    /// Which file it is in: its pod's.
    fn file(&self) -> &str {
        if self.pod.is_empty() { &self.id } else { &self.pod }
    }

    /// All that is kept, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.first.iter().chain(&self.last)
    }

    fn add(&mut self, step: Step) {
        match self.first.len() < FIRST_STEPS {
            true => self.first.push(step),
            false => {
                if self.last.len() >= LAST_STEPS {
                    self.last.pop_front();
                    self.left_out += 1;
                }
                self.last.push_back(step);
            }
        }
    }
}

impl Timelines {
    /// Begins a story, or goes on with one. `pod` is empty where it is about a pod.
    pub fn open(&self, id: &str, name: &str, pod: &str) {
        self.lock().open(id, name, pod);
        self.0.bell.notify_one();
    }

    /// Something happened. To what has no story: nothing.
    pub fn note(&self, id: &str, what: &'static str, detail: impl Into<String>) {
        self.add(
            id,
            Step { at: clock::now(), what: what.into(), detail: cut(detail.into()), ..Step::default() },
        );
    }

    /// Does a step and tells how it went.
    pub async fn timed<T, E: Told>(
        &self,
        id: &str,
        what: &'static str,
        work: impl Future<Output = std::result::Result<T, E>>,
    ) -> std::result::Result<T, E> {
        let (at, began) = (clock::now(), Instant::now());
        let done = work.await;
        self.done(id, what, at, began, &done);
        done
    }

    /// The same where it blocks.
    pub fn timed_here<T>(&self, id: &str, what: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (at, began) = (clock::now(), Instant::now());
        let done = work();
        self.done(id, what, at, began, &done);
        done
    }

    /// It has gone: its story is kept for a while.
    pub fn close(&self, id: &str) {
        self.lock().close(id, clock::now(), clock::monotonic());
        self.0.bell.notify_one();
    }

    /// Whether there is a story of it.
    pub fn knows(&self, id: &str) -> bool {
        self.lock().stories.contains_key(id)
    }

    /// Those with that id, the beginning of it, or that name; those that are there before those that have gone, and of
    /// these the last first.
    pub fn find(&self, text: &str) -> Vec<Story> {
        let mut shelf = self.lock();
        shelf.forget(clock::monotonic());
        let is_meant =
            |story: &&Story| !text.is_empty() && (story.id.starts_with(text) || story.name == text);
        let mut found: Vec<Story> = shelf.stories.values().filter(is_meant).cloned().collect();
        found.sort_by_key(|story| (story.gone_at != 0, std::cmp::Reverse(story.gone_at)));
        found
    }

    /// The stories of a pod's containers.
    pub fn of_pod(&self, pod: &str) -> Vec<Story> {
        let shelf = self.lock();
        shelf.stories.values().filter(|story| story.pod == pod).cloned().collect()
    }

    fn done<T, E: Told>(
        &self,
        id: &str,
        what: &'static str,
        at: i64,
        began: Instant,
        done: &std::result::Result<T, E>,
    ) {
        let error = done.as_ref().err().map(|error| cut(error.text())).unwrap_or_default();
        let took = Some(began.elapsed());
        self.add(id, Step { at, took, what: what.into(), detail: String::new(), error });
    }

    fn add(&self, id: &str, step: Step) {
        self.lock().add(id, step);
        self.0.bell.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        // Whoever panicked left whole stories behind: each change is one insertion.
        self.0.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn open(&mut self, id: &str, name: &str, pod: &str) {
        let is_new = !self.stories.contains_key(id);
        let story = self.stories.entry(id.to_owned()).or_default();
        if !is_new && story.name == name && story.pod == pod {
            return;
        }
        (story.id, story.name, story.pod) = (id.into(), name.into(), pod.into());
        let (file, entry) = (story.file().to_owned(), Entry::opened(story));
        self.write(&file, &entry);
        if is_new && let Some(paper) = self.papers.get_mut(&file) {
            paper.stories += 1;
        }
    }

    fn add(&mut self, id: &str, step: Step) {
        let Some(story) = self.stories.get_mut(id) else { return };
        let (file, entry) = (story.file().to_owned(), Entry::step(id, &step));
        story.add(step);
        self.write(&file, &entry);
    }

    fn close(&mut self, id: &str, at: i64, now: Duration) {
        let Some(story) = self.stories.get_mut(id).filter(|story| story.gone_at == 0) else { return };
        (story.gone_at, story.ended) = (at, now);
        let file = story.file().to_owned();
        self.gone.push_back((now, id.to_owned()));
        self.write(&file, &Entry::closed(id, at, now));
        self.forget(now);
    }

    fn write(&mut self, file: &str, entry: &Entry) {
        if self.is_kept {
            self.papers.entry(file.to_owned()).or_default().add(entry);
            self.changed.insert(file.to_owned());
        }
    }

    fn forget(&mut self, now: Duration) {
        let is_over = |(at, _): &(Duration, String)| now.saturating_sub(*at) >= REMEMBERED;
        while self.gone.len() > GONE || self.gone.front().is_some_and(is_over) {
            let story = self.gone.pop_front().and_then(|(_, id)| self.stories.remove(&id));
            let Some(story) = story else { continue };
            let Some(paper) = self.papers.get_mut(story.file()) else { continue };
            paper.stories = paper.stories.saturating_sub(1);
            if paper.stories == 0 {
                self.changed.insert(story.file().to_owned());
            }
        }
    }
}

fn cut(text: String) -> String {
    match text.char_indices().nth(TEXT_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_story_tells_each_step_how_long_it_took_and_why_it_failed() {
        let all = Timelines::default();
        all.note("ab", "unheard of", "");
        all.open("ab01", "web", "");
        all.open("cd01", "c", "ab01");
        all.timed("ab01", "good", async { Ok::<_, Error>(()) }).await.unwrap();
        let failed: Result<()> = all.timed_here("ab01", "bad", || Err(Error::invalid("do", "it", "why")));
        failed.unwrap_err();
        all.note("ab01", "said", "x".repeat(2 * TEXT_CHARS));
        let story = all.find("web").remove(0);
        let steps: Vec<_> = story.steps().collect();
        assert_eq!(steps.iter().map(|step| step.what.as_ref()).collect::<Vec<_>>(), ["good", "bad", "said"]);
        assert!(steps[0].took.is_some() && steps[0].error.is_empty() && steps[1].error.contains("why"));
        assert_eq!(steps[2].detail.chars().count(), TEXT_CHARS + 1);
        assert_eq!(all.find("ab")[0].id, "ab01");
        assert_eq!(all.of_pod("ab01")[0].id, "cd01");
        assert!(all.find("").is_empty() && all.find("we").is_empty());
    }

    #[test]
    fn a_long_story_keeps_its_beginning_and_its_end() {
        let all = Timelines::default();
        all.open("ab", "", "");
        for n in 0..1000 {
            all.note("ab", "step", n.to_string());
        }
        let story = all.find("ab").remove(0);
        let details: Vec<_> = story.steps().map(|step| step.detail.parse().unwrap()).collect();
        assert_eq!(details.len(), FIRST_STEPS + LAST_STEPS);
        assert_eq!(
            (details[0], details[FIRST_STEPS - 1], *details.last().unwrap()),
            (0, FIRST_STEPS - 1, 999)
        );
        assert_eq!(story.left_out, 1000 - details.len() as u64);
    }

    #[test]
    fn what_has_gone_is_kept_for_an_hour_and_not_without_bound() {
        let all = Timelines::default();
        for n in 0..GONE + 10 {
            all.open(&format!("{n:04}"), "same", "");
            all.close(&format!("{n:04}"));
            all.close(&format!("{n:04}"));
        }
        assert_eq!(all.find("same").len(), GONE);
        all.open("there", "same", "");
        assert_eq!(all.find("same")[0].id, "there");
        all.lock().forget(clock::monotonic() + REMEMBERED);
        assert_eq!(all.find("same").len(), 1);
    }
}
