//! `bench`: Berth on a private berthd, and the peers that are found or built, measured in turns by one client.
//!
//! ```text
//!   contender   who is measured          pods, launch, trace, fleet, kubelet, logs, pull, command, oci   groups of measures, with their times
//!   client      who asks over CRI        figures <- samples, failures            statistics, measures: what they come to
//!   registry    where images are from    table, plot, docs, JSON                 how they are told
//! ```
//! A measure that fails is told by name and the rest goes on; all that was started is taken down.

mod client;
pub mod clock;
mod command;
pub mod contender;
mod disk;
mod docs;
pub mod figures;
mod fleet;
mod kubelet;
mod launch;
mod logs;
mod machine;
mod measures;
mod person;
mod plot;
mod podman;
mod pods;
mod pull;
mod registry;
mod statistics;
mod table;
mod trace;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use berth_fixtures::{Layout, fixture_image};
use clap::Args;
use serde_json::{Value, json};

use crate::{cargo, cni, debian, interrupt, kubernetes, oci, peers};
use client::Client;
use clock::{Deadline, share};
use contender::{Bed, Contender, OURS, Who, of_each_daemon};
use disk::Disk;
use figures::Figures;
use pull::What;
use registry::Registry;

#[derive(Debug, Args)]
pub struct Flags {
    /// Only these groups: pods, at-once, streams, memory, run, oci, logs, fleet, kubelet, pull; or huge, which is measured by name only
    names: Vec<String>,
    /// Where peers' programs are, before what was built and PATH: containerd, runc, crun, crio with pinns and conmon, podman
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// Leave out what is missing of containerd, runc, CNI's plugins and a kubelet: without, Go builds it, once
    #[arg(long)]
    no_build: bool,
    /// Where CNI's bridge, host-local and loopback plugins are
    #[arg(long, value_name = "DIR")]
    cni_plugins: Option<PathBuf>,
    /// Write the figures here as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write them into docs/PERFORMANCE.md, with plots
    #[arg(long)]
    docs: bool,
    /// How often each is measured, at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    rounds: usize,
    /// When no round begins any more, counted from the first one; each group has its part of it
    #[arg(long, value_name = "N", default_value_t = 25)]
    minutes: u64,
    /// How many pods Berth is filled with, step by step
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [10, 100, 110, 500, 1000])]
    pods: Vec<usize>,
    /// How many of those steps peers are taken along
    #[arg(long, value_name = "N", default_value_t = 110)]
    peers_pods: usize,
    /// How much a container writes to its log
    #[arg(long, value_name = "N", default_value_t = 1000)]
    log_megabytes: usize,
    /// Measure programs as cargo builds them for debugging: to try this command out
    #[arg(long)]
    dev: bool,
}

/// What a group of measures is given.
#[derive(Debug)]
pub struct Group<'a> {
    client: &'a Client,
    rounds: usize,
    until: Deadline,
}

/// Name, usual seconds, other names that it has had.
type Line = (&'static str, u64, &'static [&'static str]);

const GROUPS: &[Line] = &[
    ("pods", 150, &["start", "bridge", "stop", "bridge-stop", "exec", "cni"]),
    ("at-once", 100, &[]),
    ("streams", 30, &[]),
    ("memory", 5, &[]),
    ("run", 40, &[]),
    ("oci", 30, &[]),
    ("logs", 180, &[]),
    ("fleet", 520, &["lists"]),
    ("kubelet", 400, &["probes"]),
    ("pull", 300, &[]),
    (HUGE, 300, &[]),
];
/// Takes 15 GB of the disk: by name only.
const HUGE: &str = "huge";
/// What all but pulls take of a disk, a log of [`Flags::log_megabytes`] for each runtime among it.
const ROOM_GIB: u64 = 16;

/// What has to be there for all groups.
struct Run<'a> {
    flags: &'a Flags,
    chosen: Vec<&'static Line>,
    client: Client,
    bed: Bed<'a>,
    layouts: BTreeMap<String, PathBuf>,
    /// On a disk that nothing else is on.
    room: PathBuf,
}

pub fn run(flags: &Flags) -> Result<()> {
    let chosen = chosen(&flags.names)?;
    if !rustix::process::geteuid().is_root() {
        bail!("benchmarks start containers, which takes root");
    }
    debian::install(debian::RUNTIME)?;
    if let Err(error) = debian::install(debian::PEERS) {
        eprintln!("xtask: going on without: {error:#}");
    }
    // As it is shipped: what is measured is not what a debugger wants.
    let programs = match flags.dev {
        true => cargo::programs()?,
        false => {
            let mut programs = cargo::build(&["--release", "--workspace", "--bins"])?;
            programs.extend(cargo::shim()?);
            programs
        }
    };
    interrupt::catch()?;
    let missing = if flags.no_build { peers::Missing::LeftOut } else { peers::Missing::Built };
    let found = peers::Programs::find_all(flags.peers.as_deref(), missing)?;
    let mut figures = Figures::default();
    let plugins = match (cni::plugins(flags.cni_plugins.as_deref(), missing), &flags.cni_plugins) {
        (Ok(plugins), _) => Some(plugins),
        (Err(error), Some(_)) => return Err(error),
        (Err(error), None) => {
            figures.miss(format!("no CNI plugins, and so no peers that need them: {error:#}"));
            None
        }
    };

    // One without a journal, as this machine's may be, looks at each inode that was deleted within the last minutes before
    // it takes a new one: who was measured later would be slower.
    let disk = Disk::new(ROOM_GIB)?;
    let place = tempfile::Builder::new().prefix("berth-bench-").tempdir_in(disk.path());
    let place = place.context("make a directory")?;
    let layouts = layouts(&programs, place.path(), &chosen)?;
    let registry = Registry::serve(layouts.clone())?;
    let client = Client {
        program: programs.path("bench")?.to_path_buf(),
        image: format!("{}/fixture:bench", registry.host()),
        logs: place.path().join("logs"),
    };
    let bed = Bed {
        programs: &programs,
        peers: &found,
        plugins: plugins.as_deref(),
        registry: registry.host().to_owned(),
    };
    let mut header = machine::describe(&found, if flags.dev { "dev" } else { "release" });
    let run = Run { flags, chosen, client, bed, layouts, room: disk.path() };
    run.all(&mut figures);
    header["load_after"] = machine::load().into();
    tell(flags, &figures, &header)
}

/// The groups by the names of the command line, all usual ones without.
fn chosen(names: &[String]) -> Result<Vec<&'static Line>> {
    let is = |line: &Line, name: &str| line.0 == name || line.2.contains(&name);
    if let Some(name) = names.iter().find(|name| !GROUPS.iter().any(|line| is(line, name))) {
        let all: Vec<&str> = GROUPS.iter().map(|line| line.0).collect();
        bail!("no benchmark {name:?}; there are {}", all.join(", "));
    }
    let wanted = |line: &&Line| match names.is_empty() {
        true => line.0 != HUGE,
        false => names.iter().any(|name| is(line, name)),
    };
    Ok(GROUPS.iter().filter(wanted).collect())
}

/// What this run's registry is to give.
fn layouts(programs: &cargo::Programs, place: &Path, chosen: &[&Line]) -> Result<BTreeMap<String, PathBuf>> {
    let wanted = [("pull", What::Usual), (HUGE, What::Huge)];
    let wanted = wanted.into_iter().filter(|(name, _)| chosen.iter().any(|line| line.0 == *name));
    let what: Vec<What> = wanted.map(|(_, what)| what).collect();
    let mut layouts = pull::layouts(programs.path("fixture-bulk")?, &what)?;
    let fixture = fixture_image(programs.path("fixture")?).context("make the fixture image")?;
    let pause = fixture.clone().cmd(&["/bin/fixture", "sleep", "86400"]);
    for (name, image) in [("fixture", fixture), ("pause", pause)] {
        let to = place.join(name);
        let layout = Layout::of(&format!("localhost/{name}:bench"), &image).context("make an image")?;
        layout.write_dir(&to).context("write an image")?;
        layouts.insert(name.to_owned(), to);
    }
    Ok(layouts)
}

impl Run<'_> {
    /// Every group that was chosen, each within its share of the time.
    fn all(&self, figures: &mut Figures) {
        let deadline = Deadline::after(Duration::from_secs(60 * self.flags.minutes));
        let seconds = |lines: &[&Line]| Duration::from_secs(lines.iter().map(|line| line.1).sum());
        let who = self.who(figures);
        let mut contenders = self.contenders(&who, figures);
        for (at, line) in self.chosen.iter().enumerate() {
            if interrupt::check().is_err() {
                figures.miss(format!("interrupted before {}", line.0));
                break;
            }
            if deadline.is_over() {
                figures.miss(format!("no time for {}", line.0));
                continue;
            }
            let share = share(deadline.left(), seconds(&[line]), seconds(&self.chosen[at + 1..]));
            eprintln!("xtask: {}, up to {} s", line.0, share.as_secs());
            let group =
                Group { client: &self.client, rounds: self.flags.rounds, until: Deadline::after(share) };
            if let Err(error) = self.one(line.0, &group, &who, &mut contenders, figures) {
                figures.fail(line.0, "all", &format!("{error:#}"));
                for contender in &contenders {
                    eprintln!("xtask: the end of {}'s log:\n{}", contender.name, contender.log());
                }
            }
        }
    }

    fn one(
        &self,
        name: &str,
        group: &Group,
        who: &[Who],
        contenders: &mut Vec<Contender>,
        figures: &mut Figures,
    ) -> Result<()> {
        let flags = self.flags;
        match name {
            "pods" => {
                pods::in_turns(group, contenders, figures)?;
                if let Some(ours) = contenders.iter().find(|one| one.name == OURS) {
                    trace::measure(group, ours, figures)?;
                }
                // One that can't do that can't do the rest.
                contenders.retain(|one| !figures.has_failed("pods one at a time", &one.name));
                Ok(())
            }
            "at-once" => pods::at_once(group, contenders, figures),
            "streams" => pods::streams(group, contenders, figures),
            "memory" => pods::chatty(group, contenders, figures),
            "run" => command::measure(group, contenders, self.bed.peers, &self.room, figures),
            "oci" => {
                let place = oci::Place::new(self.bed.programs, &self.room)?;
                oci::measure(&place, self.bed.peers, flags.rounds, group.until, figures)
            }
            "logs" => {
                let producer = self.bed.programs.path("fixture")?;
                logs::measure(group, contenders, producer, flags.log_megabytes * 1_000_000, figures)
            }
            "fleet" => fleet::measure(group, contenders, &flags.pods, flags.peers_pods, figures),
            "kubelet" => match kubelet_programs(flags.no_build)? {
                Some(programs) => kubelet::measure(group, contenders, &programs, &self.room, figures),
                None => {
                    figures.miss("no kubelet: without probes by one".to_owned());
                    Ok(())
                }
            },
            _ => {
                // Their stores begin anew, and nobody else is to be on the machine.
                contenders.clear();
                let able = |who: &&Who| !figures.has_failed("start", &who.name());
                let who: Vec<Who> = who.iter().filter(able).cloned().collect();
                let who: Vec<Who> = of_each_daemon(&who, Who::name).into_iter().cloned().collect();
                let what = if name == HUGE { What::Huge } else { What::Usual };
                pull::measure(group, (&self.bed, &who), &self.layouts, what, figures)
            }
        }
    }

    /// Whom there are the programs of; says of the others what is missing.
    fn who(&self, figures: &mut Figures) -> Vec<Who> {
        let mut who = vec![Who::Berth];
        if self.bed.plugins.is_none() {
            return who;
        }
        who.push(Who::BerthOnCni);
        for kind in peers::KINDS {
            let missing = kind.programs().into_iter().find(|name| self.bed.peers.find(name).is_none());
            match missing {
                Some(missing) => figures.miss(format!("no {missing}: without {}", kind.name())),
                None => who.push(Who::Peer(kind)),
            }
        }
        who
    }

    /// All that come up, with the image in them.
    fn contenders(&self, who: &[Who], figures: &mut Figures) -> Vec<Contender> {
        let needed = |line: &&&Line| !["oci", "pull", HUGE].contains(&line.0);
        if self.chosen.iter().filter(needed).count() == 0 {
            return Vec::new();
        }
        let mut contenders = Vec::new();
        for one in who {
            let started = Contender::start(one, &self.bed, &self.room).and_then(|contender| {
                let words = ["pull".to_owned(), self.client.image.clone()];
                let pulled = self.client.sample(&contender, &words);
                if pulled.is_err() {
                    eprintln!("xtask: the end of {}'s log:\n{}", contender.name, contender.log());
                }
                pulled.map(|_| contender)
            });
            match started {
                Ok(contender) => contenders.push(contender),
                Err(error) => figures.fail("start", &one.name(), &format!("{error:#}")),
            }
        }
        contenders
    }
}

/// A kubelet's directory, and what asks it; none where there is none and none is to be built.
fn kubelet_programs(no_build: bool) -> Result<Option<PathBuf>> {
    const WANTED: &[&str] = &["kubelet", "kubectl"];
    match no_build {
        true => kubernetes::built(WANTED),
        false => kubernetes::programs(WANTED).map(Some),
    }
}

fn tell(flags: &Flags, figures: &Figures, header: &Value) -> Result<()> {
    print!("{}", table::text(figures));
    if let Some(file) = &flags.json {
        let mut all = figures.json();
        all["machine"] = header.clone();
        all["not like for like"] = json!(table::UNLIKE);
        fs::write(file, format!("{all:#}\n")).with_context(|| format!("write {}", file.display()))?;
    }
    if flags.docs {
        docs::write(figures, header)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_their_old_names_and_the_huge_one_only_its_own() {
        let names = |words: &[&str]| -> Vec<&str> {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            chosen(&words).unwrap().iter().map(|line| line.0).collect()
        };
        assert_eq!(names(&["start", "bridge-stop", "lists"]), ["pods", "fleet"]);
        assert!(!names(&[]).contains(&HUGE) && names(&[]).contains(&"pull"));
        assert_eq!(names(&[HUGE]), [HUGE]);
        assert!(chosen(&["nothing".to_owned()]).is_err());
    }
}
