//! What a pod's task waits for on a disk, and since when. A disk may not answer: then the task waits, its work stays in its
//! hands and is done once the disk answers, but whoever asked is told instead of waiting with it.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{Error, Kind, error::Cause};

/// A piece of file work that takes longer hangs, as far as its caller is concerned.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who comes later waits so long at least: the disk may have answered just now.
const LEAST: Duration = Duration::from_secs(5);

tokio::task_local! {
    static OURS: Doing;
}

/// The file work that a pod's task waits for, the oldest first. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Doing(Arc<Mutex<Vec<Piece>>>);

#[derive(Debug, Clone, Copy)]
struct Piece {
    number: u64,
    op: &'static str,
    since: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// This hangs.
    Told(&'static str),
    LookAgain(Instant),
}

fn next(oldest: Option<Piece>, came: Instant, now: Instant) -> Next {
    let due = |piece: Piece| (piece.since + PATIENCE).max(came + LEAST);
    match oldest {
        Some(piece) if due(piece) <= now => Next::Told(piece.op),
        Some(piece) => Next::LookAgain(due(piece)),
        // What begins later is over later.
        None => Next::LookAgain(now + PATIENCE),
    }
}

/// Takes note of the end, however it comes.
struct Noted<'a> {
    doing: &'a Doing,
    number: u64,
}

impl Doing {
    /// What is noted in there is this one's.
    pub fn around<F: Future>(self, task: F) -> impl Future<Output = F::Output> {
        OURS.scope(self, task)
    }

    /// The answer, or once the task has waited too long for one piece of file work, what it waits for.
    pub async fn or_hangs<T>(
        &self,
        op: &'static str,
        object: &str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            answer = answer => answer,
            what = self.hangs() => Err(Error::new(Kind::Deadline, op, object)
                .because(Cause(format!("it still waits for a disk, since {PATIENCE:?} and more, to {what}")))
                .hint("look at the disks of daemon.root and daemon.state; it goes on by itself once they answer")),
        }
    }

    async fn hangs(&self) -> &'static str {
        let came = Instant::now();
        loop {
            let oldest = self.pieces().first().copied();
            match next(oldest, came, Instant::now()) {
                Next::Told(op) => return op,
                Next::LookAgain(at) => tokio::time::sleep_until(at).await,
            }
        }
    }

    fn begin(&self, op: &'static str) -> Noted<'_> {
        let mut pieces = self.pieces();
        let number = pieces.last().map_or(0, |last| last.number + 1);
        pieces.push(Piece { number, op, since: Instant::now() });
        Noted { doing: self, number }
    }

    fn pieces(&self) -> MutexGuard<'_, Vec<Piece>> {
        // Each change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.doing.pieces().retain(|piece| piece.number != self.number);
    }
}

/// Does file work; where a pod's task does it, those who ask that one can tell.
pub async fn noted<T>(op: &'static str, work: impl Future<Output = T>) -> T {
    let ours = OURS.try_with(Clone::clone).ok();
    let _noted = ours.as_ref().map(|doing| doing.begin(op));
    work.await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[test]
    fn the_oldest_piece_is_told_once_it_has_taken_too_long() {
        let since = Instant::now();
        let piece = |since| Some(Piece { number: 3, op: "record pod", since });
        assert_eq!(next(None, since, since), Next::LookAgain(since + PATIENCE));
        let almost = since + PATIENCE - Duration::from_millis(1);
        assert_eq!(next(piece(since), since, almost), Next::LookAgain(since + PATIENCE));
        assert_eq!(next(piece(since), since, since + PATIENCE), Next::Told("record pod"));
        // Who asks for the same later has a moment, in which the disk may answer.
        let late = since + PATIENCE * 2;
        assert_eq!(next(piece(since), late, late), Next::LookAgain(late + LEAST));
        assert_eq!(next(piece(since), late, late + LEAST), Next::Told("record pod"));
    }

    #[tokio::test]
    async fn whoever_asks_is_told_what_the_task_waits_for() {
        let doing = Doing::default();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(doing.clone().around(async {
            assert_eq!(noted("short", ready(1)).await, 1);
            let hangs = async {
                begun.send(()).unwrap();
                pending::<()>().await;
            };
            noted("record pod", hangs).await;
        }));
        has_begun.await.unwrap();
        let pieces = doing.pieces().clone();
        assert_eq!(pieces.iter().map(|piece| piece.op).collect::<Vec<_>>(), ["record pod"]);
        // As if it had begun long ago.
        doing.pieces()[0].since = Instant::now().checked_sub(PATIENCE).unwrap();
        let told = doing.or_hangs("create container", "c", pending::<Result<(), _>>()).await.unwrap_err();
        assert_eq!(told.kind, Kind::Deadline);
        assert!(told.chain().contains("to record pod"), "{}", told.chain());
        // What is there is given all the same.
        assert_eq!(doing.or_hangs("stop pod", "p", ready(Ok(7))).await.unwrap(), 7);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(doing.pieces().is_empty());
    }

    #[tokio::test]
    async fn what_no_pods_task_does_is_nobodys() {
        assert_eq!(noted("sweep", ready(2)).await, 2);
    }
}
