//! Pods that let their network go: the kernel removes a link some 20 ms after its namespace, and nobody waits for that
//! but us. Until then the lease stays on disk, so that whatever ends berthd its successor goes on here.
//!
//! ```text
//! release ──> leaving ──link gone──> lease given back ──> left
//!               └─ of what failed: again, ever less often, and told by `troubles`
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use berth_launch::fault;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{blocking, lease::Leases, lock, route::Route};
use crate::{Result, id::PodId};

/// How long the kernel may take to remove a link whose network namespace was let go; some 30 ms are usual.
const LINK_GOES_WITHIN: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// Between two tries of what failed.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// Who is leaving, and why one could not so far.
#[derive(Debug, Clone)]
pub struct Leaving {
    pods: watch::Sender<BTreeMap<PodId, Option<String>>>,
    leases: Arc<Mutex<Leases>>,
}

impl Leaving {
    pub fn new(leases: Arc<Mutex<Leases>>) -> Self {
        Self { pods: watch::Sender::default(), leases }
    }

    /// Gives the pod's lease back once its links are gone, in the background. Again for the same pod: once.
    pub fn begin(&self, pod: &PodId, links: Vec<String>) {
        let begun = self.pods.send_if_modified(|pods| {
            let new = !pods.contains_key(pod);
            if new {
                pods.insert(pod.clone(), None);
            }
            new
        });
        if begun {
            let (leaving, pod) = (self.clone(), pod.clone());
            tokio::spawn(async move { leaving.see_off(pod, links).await });
        }
    }

    /// Returns when the pod has left: its links' names are free, and what it holds from then on stays.
    pub async fn left(&self, pod: &PodId) {
        // We hold the sender ourselves: it can't be gone.
        self.pods.subscribe().wait_for(|pods| !pods.contains_key(pod)).await.ok();
    }

    /// Whether it is on its way out.
    pub fn has(&self, pod: &PodId) -> bool {
        self.pods.borrow().contains_key(pod)
    }

    /// Returns when one of those who are leaving now has left. False where there is nobody.
    pub async fn one_left(&self) -> bool {
        let mut seen = self.pods.subscribe();
        let before = seen.borrow_and_update().len();
        before > 0 && seen.wait_for(|pods| pods.len() < before).await.is_ok()
    }

    /// What could not be undone yet, a sentence each.
    pub fn troubles(&self) -> Vec<String> {
        let told = |(pod, trouble): (&PodId, &Option<String>)| {
            let trouble = trouble.as_ref()?;
            Some(format!("the address of pod {} is not free yet, it is tried again: {trouble}", pod.short()))
        };
        self.pods.borrow().iter().filter_map(told).collect()
    }

    async fn see_off(self, pod: PodId, links: Vec<String>) {
        let mut pause = FIRST_RETRY;
        let mut failed = false;
        while let Err(error) = self.once(&pod, &links).await {
            if !failed {
                warn!(pod = %pod, error = error.chain(), "a pod's address is not free yet; it is tried again");
                failed = true;
            }
            self.pods.send_modify(|pods| {
                pods.insert(pod.clone(), Some(error.chain()));
            });
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
        if failed {
            info!(pod = %pod, "the pod's address is free at last");
        }
        self.pods.send_modify(|pods| {
            pods.remove(&pod);
        });
    }

    async fn once(&self, pod: &PodId, links: &[String]) -> Result<()> {
        fault::point("network.leaving");
        for link in links {
            link_gone(link).await?;
        }
        fault::point("network.left");
        let (leases, owner) = (Arc::clone(&self.leases), pod.clone());
        blocking(move || lock(&leases).give_back(&owner)).await
    }
}

/// Waits until the kernel has removed a link, which it does some time after its namespace; then removes it itself.
async fn link_gone(name: &str) -> Result<()> {
    let route = Route::open()?;
    let until = Instant::now() + LINK_GOES_WITHIN;
    let mut pause = FIRST_PAUSE;
    while let Some(link) = route.link(name).await? {
        if Instant::now() >= until {
            warn!(
                link = name,
                "deleting a pod's link that outlived it: something holds its network namespace"
            );
            return route.delete(link, name).await;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    Ok(())
}
