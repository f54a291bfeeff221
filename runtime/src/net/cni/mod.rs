//! CNI: pods' networks made by plugins. Which configuration serves, of the node's directory or of the handler's own, is
//! looked up whenever it matters, so a change is there at once; what was asked of plugins is written down before they are
//! asked.
//!
//! ```text
//! conf ── first by name ──> chain ── run, one plugin after the other ── version: results
//!   wish: what the pod wants      │
//! attachment: intent and result, on disk ── cache: results where libcni's tools look for them
//!
//! plug:    attachment written -> ADD … ADD -> results written
//! unplug:  DEL … DEL -> attachment removed; where one fails: again and again in the background, ever less often
//! ```

mod attachment;
mod cache;
mod chain;
mod conf;
mod run;
mod stray;
mod version;
mod wish;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use self::{
    attachment::{Attachment, Shelf},
    chain::Place,
    run::Programs,
};
pub use self::{
    conf::NetworkList,
    wish::{Bandwidth, Dns, IPS, Wish},
};
use super::{blocking, lock};
use crate::{Error, Kind, Result, config, error::Cause, id::PodId};

/// Between two tries of a DEL that failed.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);
/// A kubelet asks for the node's status every few seconds; plugins are asked for theirs as often at most.
const STATUS_HOLDS: Duration = Duration::from_secs(5);
/// A plugin that takes longer to say how it is, is not well.
const STATUS_WITHIN: Duration = Duration::from_secs(3);
/// statfs(2) of a namespace.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The configurations that a pod gets, and the directory that they were read in.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    pub dir: PathBuf,
    /// None: there is no CNI on this node.
    pub lists: Vec<NetworkList>,
}

/// The plugins' side of the network. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cni(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    conf_dir: PathBuf,
    /// Of handlers that have one of their own.
    handlers: BTreeMap<String, PathBuf>,
    networks: usize,
    cache_dir: PathBuf,
    programs: Programs,
    shelf: Shelf,
    pods: Mutex<BTreeMap<PodId, Entry>>,
    /// By directory.
    verdicts: Mutex<BTreeMap<PathBuf, Verdict>>,
    /// Held while plugins are asked for their status: one round at a time.
    asking: tokio::sync::Mutex<()>,
    ranges: Mutex<Vec<String>>,
    ranges_path: PathBuf,
}

/// A pod that plugins were asked for.
#[derive(Debug, Clone)]
struct Entry {
    attachment: Attachment,
    /// Held while plugins run for it.
    turn: Arc<tokio::sync::Mutex<()>>,
    past: Past,
    /// Why the last DEL failed; somebody tries again.
    trouble: Option<String>,
}

/// Whose doing an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    Ours,
    /// An earlier berthd's, whose plugins may run still.
    Before,
}

/// What the plugins of these configurations said of themselves.
#[derive(Debug, Clone)]
struct Verdict {
    lists: Vec<NetworkList>,
    at: Instant,
    outcome: Result<(), String>,
}

impl Cni {
    /// Reads what was asked of plugins before. `dir` is the network's own.
    pub fn open(
        config: &config::Network,
        handlers: &BTreeMap<String, config::Handler>,
        dir: &Path,
    ) -> Result<Self> {
        let (shelf, found) = Shelf::open(dir)?;
        let entry = |(pod, attachment)| {
            (pod, Entry { attachment, turn: Arc::default(), past: Past::Before, trouble: None })
        };
        let ranges_path = dir.join("pod_cidr");
        let ranges = std::fs::read_to_string(&ranges_path).unwrap_or_default();
        Ok(Self(Arc::new(Inner {
            conf_dir: config.conf_dir.clone(),
            handlers: own_dirs(handlers).map(|(name, dir)| (name.to_owned(), dir.to_owned())).collect(),
            networks: usize::from(config.networks),
            cache_dir: config.cache_dir.clone(),
            programs: Programs {
                dirs: config.bin_dirs.clone(),
                deadline: Duration::from_secs(config.plugin_seconds.into()),
            },
            shelf,
            pods: Mutex::new(found.into_iter().map(entry).collect()),
            verdicts: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            ranges: Mutex::new(ranges.lines().map(str::to_owned).collect()),
            ranges_path,
        })))
    }

    /// The configurations that pods get now whose handler has none of its own.
    ///
    /// # Errors
    /// `Unavailable` where the first of them is broken.
    pub async fn serving(&self) -> Result<Source> {
        self.read(&self.0.conf_dir).await
    }

    /// Those that pods of a handler get now.
    ///
    /// # Errors
    /// `Unavailable` where the first of them is broken, or the handler's own directory has none.
    pub async fn of_handler(&self, handler: &str) -> Result<Source> {
        let Some(dir) = self.0.handlers.get(handler) else { return self.serving().await };
        let source = self.read(dir).await?;
        if source.lists.is_empty() {
            const OP: &str = "find network configuration in";
            let cause = "there is none (*.conf, *.conflist, *.json), and its pods get theirs from there only";
            return Err(Error::new(Kind::Unavailable, OP, dir.display().to_string())
                .because(Cause(format!("handler {handler:?}: {cause}")))
                .hint(format!("put one there, or take cni_conf_dir out of [handlers.{handler}]")));
        }
        Ok(source)
    }

    /// Handlers with a directory of their own whose pods get no network now, and why.
    pub async fn unready_handlers(&self) -> BTreeMap<String, String> {
        let mut unready = BTreeMap::new();
        for handler in self.0.handlers.keys() {
            let ready = match self.of_handler(handler).await {
                Ok(source) => self.ready(&source).await,
                Err(error) => Err(error.chain()),
            };
            unready.extend(ready.err().map(|why| (handler.clone(), why)));
        }
        unready
    }

    async fn read(&self, dir: &Path) -> Result<Source> {
        let (dir, networks) = (dir.to_owned(), self.0.networks);
        blocking(move || conf::first(&dir, networks).map(|lists| Source { dir, lists })).await
    }

    /// Whether these configurations' plugins can take pods. What they said is good for some seconds; afterwards it is
    /// told once more while they are asked again.
    pub async fn ready(&self, source: &Source) -> Result<(), String> {
        let known = self.verdict(source);
        match known {
            Some(verdict) => {
                if verdict.at.elapsed() > STATUS_HOLDS {
                    let (cni, source) = (self.clone(), source.clone());
                    tokio::spawn(async move { cni.ask(&source).await });
                }
                verdict.outcome
            }
            None => self.ask(source).await,
        }
    }

    fn verdict(&self, source: &Source) -> Option<Verdict> {
        let known = lock(&self.0.verdicts).get(&source.dir).cloned();
        known.filter(|verdict| verdict.lists == source.lists)
    }

    async fn ask(&self, source: &Source) -> Result<(), String> {
        let _alone = self.0.asking.lock().await;
        if let Some(known) = self.verdict(source).filter(|one| one.at.elapsed() < STATUS_HOLDS) {
            return known.outcome;
        }
        let programs =
            Programs { deadline: self.0.programs.deadline.min(STATUS_WITHIN), ..self.0.programs.clone() };
        let asked = async {
            for list in &source.lists {
                chain::speaks(&programs, list).await?;
                chain::status(&programs, list).await?;
            }
            Ok(())
        };
        let outcome = asked.await.map_err(|error: Error| error.chain());
        let verdict = Verdict { lists: source.lists.clone(), at: Instant::now(), outcome: outcome.clone() };
        lock(&self.0.verdicts).insert(source.dir.clone(), verdict);
        outcome
    }

    /// Makes the pod's interfaces in its pinned namespace; its addresses, of eth0, in the plugins' order.
    ///
    /// # Errors
    /// What a plugin said. The pod has then some of it, or none: `unplug`.
    pub async fn plug(
        &self,
        pod: &PodId,
        netns: PathBuf,
        source: Source,
        wish: &Wish,
    ) -> Result<Vec<IpAddr>> {
        let lists = &source.lists;
        let arguments = wish::arguments(wish, pod.as_str())?;
        let capabilities = wish::capabilities(wish, &lock(&self.0.ranges))?;
        for (name, what) in [("portMappings", "ports of the node"), ("bandwidth", "bandwidth")] {
            if capabilities.contains_key(name) && !lists.iter().any(|list| list.asks_for(name)) {
                warn!(pod = %pod, "no plugin of the pod's network does {what}: what it asks for is not there");
            }
        }
        // Before any of them does anything: a program that is not there could not undo its part either.
        for plugin in lists.iter().flat_map(|list| &list.plugins) {
            self.0.programs.find(&plugin.kind)?;
        }
        let turn: Arc<tokio::sync::Mutex<()>> = Arc::default();
        let _turn = turn.lock().await;
        let mut attachment = Attachment::new(netns, source, arguments, capabilities);
        self.note(pod, &attachment).await?;
        let entry = Entry {
            attachment: attachment.clone(),
            turn: Arc::clone(&turn),
            past: Past::Ours,
            trouble: None,
        };
        lock(&self.0.pods).insert(pod.clone(), entry);
        for number in 0..attachment.interfaces.len() {
            let netns = attachment.netns.clone();
            let place = Place { pod, attachment: &attachment, netns: Some(&netns) };
            let result = chain::add(&self.0.programs, &place, &attachment.interfaces[number]).await?;
            attachment.interfaces[number].result = Some(result);
            if let Some(entry) = lock(&self.0.pods).get_mut(pod) {
                entry.attachment = attachment.clone();
            }
            self.note(pod, &attachment).await?;
            self.cache(pod, &attachment, number).await;
        }
        let first = attachment.interfaces.first().and_then(|interface| interface.result.clone());
        version::pod_ips(&first.unwrap_or_default())
            .map_err(|cause| Error::invalid("read result for", pod.short(), cause))
    }

    /// Undoes `plug`, or what there is of it. Nothing there: success. A namespace that is gone takes its links along:
    /// then plugins are told so, and one that still fails keeps nobody waiting.
    ///
    /// # Errors
    /// What a plugin said, while the namespace is there. It is tried again in the background either way.
    pub async fn unplug(&self, pod: &PodId) -> Result<()> {
        let Some(turn) = lock(&self.0.pods).get(pod).map(|entry| Arc::clone(&entry.turn)) else {
            return Ok(());
        };
        let _turn = turn.lock().await;
        let Some(entry) = lock(&self.0.pods).get(pod).cloned() else { return Ok(()) };
        let there = is_namespace(&entry.attachment.netns);
        let Err(error) = self.undo(pod, &entry).await else { return Ok(()) };
        let retried = match lock(&self.0.pods).get_mut(pod) {
            Some(entry) => entry.trouble.replace(error.chain()).is_some(),
            None => true,
        };
        if !retried {
            self.retry(pod.clone());
        }
        match there {
            true => Err(error),
            false => {
                warn!(pod = %pod, error = error.chain(), "a network plugin can't undo its part; it is tried again");
                Ok(())
            }
        }
    }

    /// Pods that plugins were asked for.
    pub fn pods(&self) -> Vec<PodId> {
        lock(&self.0.pods).keys().cloned().collect()
    }

    /// The namespace that plugins made interfaces in.
    pub fn netns(&self, pod: &PodId) -> Option<PathBuf> {
        lock(&self.0.pods).get(pod).map(|entry| entry.attachment.netns.clone())
    }

    pub fn has(&self, pod: &PodId) -> bool {
        lock(&self.0.pods).contains_key(pod)
    }

    /// What could not be undone yet, a sentence each.
    pub fn troubles(&self) -> Vec<String> {
        let pods = lock(&self.0.pods);
        let told = |(pod, entry): (&PodId, &Entry)| {
            let trouble = entry.trouble.as_ref()?;
            let dir = entry.attachment.conf_dir.display();
            Some(format!(
                "the network of pod {} (of {dir}) is not undone yet, it is tried again: {trouble}",
                pod.short()
            ))
        };
        pods.iter().filter_map(told).collect()
    }

    /// CHECK of a pod's interfaces: whether they are as they were made.
    pub async fn check(&self, pod: &PodId) -> Result<()> {
        let Some(entry) = lock(&self.0.pods).get(pod).cloned() else { return Ok(()) };
        let _turn = entry.turn.lock().await;
        let attachment = &entry.attachment;
        let place = Place { pod, attachment, netns: Some(&attachment.netns) };
        for interface in &attachment.interfaces {
            chain::check(&self.0.programs, &place, interface).await?;
        }
        Ok(())
    }

    /// GC: tells the plugins of every configuration that serves, or that a pod was made with, which attachments there
    /// are; they let all others go. Failures are logged: nobody waits for this.
    pub async fn collect(&self) {
        if self.0.shelf.has_unreadable() {
            warn!(
                "no garbage of network plugins is collected: attachments were set aside, and pods may live by them"
            );
            return;
        }
        let pods = lock(&self.0.pods).clone();
        let mut lists = Vec::new();
        for dir in [&self.0.conf_dir].into_iter().chain(self.0.handlers.values()) {
            // One that is broken is told to whoever makes a pod; what others say holds all the same.
            let source = self.read(dir).await.ok();
            let all = source.into_iter().flat_map(|source| source.lists);
            lists.extend(all.filter(|list| !lists.contains(list)).collect::<Vec<_>>());
        }
        for interface in pods.values().flat_map(|entry| &entry.attachment.interfaces) {
            if !lists.iter().any(|list| list.name == interface.network) {
                lists.push(interface.list());
            }
        }
        for list in lists {
            let of_list = pods.iter().flat_map(|(pod, entry)| {
                let interfaces = entry.attachment.interfaces.iter();
                interfaces
                    .filter(|interface| interface.network == list.name)
                    .map(|interface| (pod.clone(), interface.name.clone()))
            });
            let valid: Vec<_> = of_list.collect();
            if let Err(error) = chain::gc(&self.0.programs, &list, &valid).await {
                warn!(network = list.name, error = error.chain(), "plugins could not collect their garbage");
            }
        }
    }

    /// Notes the node's ranges of pod addresses, for plugins that ask for `ipRanges`; kept over a restart.
    pub async fn set_ranges(&self, ranges: Vec<String>) -> Result<()> {
        let (path, text) = (self.0.ranges_path.clone(), ranges.join("\n"));
        *lock(&self.0.ranges) = ranges;
        blocking(move || {
            let new = path.with_extension("new");
            std::fs::write(&new, text)
                .and_then(|()| std::fs::rename(&new, &path))
                .map_err(|error| Error::io("write", path.display().to_string(), error))
        })
        .await
    }

    async fn undo(&self, pod: &PodId, entry: &Entry) -> Result<()> {
        if entry.past == Past::Before {
            let owner = pod.clone();
            blocking(move || {
                stray::end(&owner);
                Ok(())
            })
            .await?;
        }
        let attachment = &entry.attachment;
        let netns = Some(attachment.netns.as_path()).filter(|path| is_namespace(path));
        let mut outcome = Ok(());
        for interface in attachment.interfaces.iter().rev() {
            let place = Place { pod, attachment, netns };
            outcome = outcome.and(chain::del(&self.0.programs, &place, interface).await);
        }
        outcome?;
        let (inner, owner, gone) = (Arc::clone(&self.0), pod.clone(), attachment.clone());
        blocking(move || {
            for number in 0..gone.interfaces.len() {
                cache::remove(&inner.cache_dir, &owner, &gone, number)?;
            }
            inner.shelf.remove(&owner)
        })
        .await?;
        lock(&self.0.pods).remove(pod);
        Ok(())
    }

    /// Tries a DEL that failed until it works.
    fn retry(&self, pod: PodId) {
        let cni = self.clone();
        tokio::spawn(async move {
            let mut pause = FIRST_RETRY;
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_RETRY);
                // Its failure is in `troubles`.
                cni.unplug(&pod).await.ok();
                if !cni.has(&pod) {
                    info!(pod = %pod, "the pod's network is undone at last");
                    return;
                }
            }
        });
    }

    async fn note(&self, pod: &PodId, attachment: &Attachment) -> Result<()> {
        let (inner, pod, attachment) = (Arc::clone(&self.0), pod.clone(), attachment.clone());
        blocking(move || inner.shelf.write(&pod, &attachment)).await
    }

    /// For others' tools: the pod runs without it.
    async fn cache(&self, pod: &PodId, attachment: &Attachment, number: usize) {
        let (inner, owner, made) = (Arc::clone(&self.0), pod.clone(), attachment.clone());
        let written = blocking(move || cache::write(&inner.cache_dir, &owner, &made, number)).await;
        if let Err(error) = written {
            warn!(pod = %pod, error = error.chain(), "tools that read libcni's cache don't see the pod's network");
        }
    }
}

/// Whether a pinned namespace is there: after a reboot, or once let go, an empty file is, or nothing.
fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == NSFS_MAGIC)
}

/// The directories that handlers have for themselves.
fn own_dirs(handlers: &BTreeMap<String, config::Handler>) -> impl Iterator<Item = (&str, &Path)> {
    let own = handlers.iter().filter(|(_, handler)| !handler.cni_conf_dir.as_os_str().is_empty());
    own.map(|(name, handler)| (name.as_str(), handler.cni_conf_dir.as_path()))
}

/// Checks the configuration's keys.
///
/// # Errors
/// `Invalid` names the key.
pub fn checked(config: &config::Network) -> Result<()> {
    let absolute = |path: &Path| path.as_os_str().is_empty() || path.is_absolute();
    let dirs = config.bin_dirs.iter().map(|dir| ("network.bin_dirs", dir));
    let keys = [("network.conf_dir", &config.conf_dir), ("network.cache_dir", &config.cache_dir)];
    for (key, path) in keys.into_iter().chain(dirs) {
        if !absolute(path) || path.to_string_lossy().contains(':') {
            let cause = format!("{path:?} is no absolute path without a colon");
            return Err(Error::invalid("read configuration", key, cause));
        }
    }
    for (key, value) in
        [("network.plugin_seconds", config.plugin_seconds), ("network.networks", u32::from(config.networks))]
    {
        if !(1..=600).contains(&value) {
            return Err(Error::invalid("read configuration", key, "it is not one of 1 to 600"));
        }
    }
    Ok(())
}
