//! What has to be so afterwards: each log whole, nothing left, and as much held as before.

use std::{collections::BTreeMap, fs, path::Path, sync::atomic::Ordering, thread, time::Duration};

use berth_tests::{Line, lines, until};

use crate::{LINES, World, lock};

/// So much more may there be at the end than after the first minutes.
const MORE_MEMORY_KIB: u64 = 16 * 1024;
const MORE: u64 = 8;

impl World {
    /// All lines in their order, fewer where it was cut off; and for each killed shim at most one that lacks its beginning,
    /// in the place where it would be.
    pub fn check_log(&self, id: &str, path: &Path, cut: bool, kills: usize) {
        let text = fs::read(path).unwrap_or_default();
        let all: Vec<Line> = lines(&String::from_utf8_lossy(&text));
        self.checked_lines.fetch_add(all.len() as u64, Ordering::Relaxed);
        let numbered = |n: usize| format!("line {n:06} xxxx");
        let wrong: Vec<(usize, &Line)> =
            (1..).zip(&all).filter(|(n, line)| line.content != numbered(*n)).collect();
        let last = all.len();
        let torn = wrong.iter().filter(|(n, line)| {
            // What a stop cut off lacks its end, and there is nothing after it.
            numbered(*n).ends_with(&line.content)
                || (cut && *n == last && numbered(*n).starts_with(&line.content))
        });
        let (torn, ends) = (torn.count(), usize::from(cut));
        if kills > 0 {
            self.orphans_lines.fetch_add(last as u64, Ordering::Relaxed);
            self.torn_lines.fetch_add(torn as u64, Ordering::Relaxed);
        }
        let whole = last == LINES || (cut && last < LINES);
        if torn < wrong.len() || torn > kills + ends || !whole {
            let shown: Vec<_> = wrong.iter().take(3).map(|(n, line)| (n, &line.content)).collect();
            self.breach(format!(
                "the log of {id} has {last} lines, cut off: {cut}, {kills} kills of shims, {} not as written: {shown:?}",
                wrong.len()
            ));
        }
    }

    pub fn nothing_left(&self) {
        let daemon = self.daemon();
        let mut left = Vec::new();
        until(Duration::from_secs(30), || {
            left = daemon.left_behind();
            left.is_empty().then_some(())
        });
        left.into_iter().for_each(|leak| self.breach(format!("left behind: {leak}")));
        lock(&self.orphans).clear();
    }

    /// What berthd holds, and what is there of its files and in the kernel.
    pub fn measure(&self) -> BTreeMap<&'static str, u64> {
        // Threads of file work are let go when they have had nothing to do for ten seconds.
        thread::sleep(Duration::from_secs(15));
        let daemon = self.daemon();
        let process = Path::new("/proc").join(daemon.pid().to_string());
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let entries = |path: &Path| fs::read_dir(path).map_or(0, |entries| entries.count() as u64);
        let count = |path: &str| fs::read_to_string(path).map_or(0, |text| text.lines().count() as u64);
        BTreeMap::from([
            ("memory, KiB", field("VmRSS:")),
            ("threads", field("Threads:")),
            ("descriptors", entries(&process.join("fd"))),
            // Stories are kept for an hour, and are bounded in number.
            (
                "files",
                files(&daemon.root()) + files(&daemon.state()) - files(&daemon.state().join("stories")),
            ),
            ("cgroups", cgroups()),
            ("mounts", count("/proc/self/mounts")),
            ("links", entries(Path::new("/sys/class/net"))),
        ])
    }

    pub fn compare(&self, before: BTreeMap<&'static str, u64>, after: BTreeMap<&'static str, u64>) {
        println!("{:12} {:>10} {:>10}", "", "warmed up", "at the end");
        for (what, before) in before {
            let after = after[what];
            println!("{what:12} {before:10} {after:10}");
            // What is the whole machine's, others change as well.
            let allowed = match what {
                "memory, KiB" => before / 10 + MORE_MEMORY_KIB,
                "cgroups" | "mounts" | "links" => u64::MAX - before,
                _ => MORE,
            };
            if after > before + allowed {
                self.breach(format!("{what}: {before} before, {after} after"));
            }
        }
    }
}

fn files(top: &Path) -> u64 {
    let entries = fs::read_dir(top).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => 1 + files(&entry.path()),
            false => 1,
        })
        .sum()
}

/// All of this machine's, as the kernel counts them.
fn cgroups() -> u64 {
    let table = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
        .max()
        .unwrap_or(0)
}
