//! What the log is told of a pull that takes its time: how many bytes of how many came.

use std::{collections::HashMap, convert::Infallible, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::info;

use super::{Phase, Progress, install::Watchers, reference::Reference};

/// A pull that is through by then is told of once, at its end.
const FIRST: Duration = Duration::from_secs(2);
const EVERY: Duration = Duration::from_secs(10);
const AHEAD: usize = 256;

/// A pull, as its layers tell.
#[derive(Debug, Default)]
struct Sum {
    layers: HashMap<String, Layer>,
}

#[derive(Debug)]
struct Layer {
    bytes: u64,
    total: u64,
    phase: Phase,
}

impl Sum {
    fn note(&mut self, progress: Progress) {
        match progress {
            Progress::Resolved { .. } => {}
            Progress::Layer { digest, bytes, total, phase } => {
                self.layers.insert(digest, Layer { bytes, total, phase });
            }
        }
    }

    /// Bytes that are here and bytes of all; layers that are ready and all.
    fn so_far(&self) -> (u64, u64, usize, usize) {
        let layers = || self.layers.values();
        let ready = layers().filter(|layer| matches!(layer.phase, Phase::Done | Phase::Present));
        (
            layers().map(|layer| layer.bytes).sum(),
            layers().map(|layer| layer.total).sum(),
            ready.count(),
            self.layers.len(),
        )
    }
}

/// Tells until it is dropped.
pub(super) async fn tell(reference: &Reference, watchers: &Watchers) -> Infallible {
    let (sender, mut progress) = mpsc::channel(AHEAD);
    watchers.add(sender);
    let mut sum = Sum::default();
    let mut turns = interval_at(Instant::now() + FIRST, EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // The other end is the pull's, and this ends before it.
            Some(progress) = progress.recv() => sum.note(progress),
            _ = turns.tick() => {
                let (bytes, total, ready, layers) = sum.so_far();
                info!(reference = %reference, bytes, total, ready, layers, "image is being pulled");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_layers_are_summed_and_a_layer_that_is_told_again_counts_once() {
        let mut sum = Sum::default();
        assert_eq!(sum.so_far(), (0, 0, 0, 0));
        sum.note(Progress::Resolved { digest: "sha256:m".into() });
        let layer =
            |digest: &str, bytes, phase| Progress::Layer { digest: digest.into(), bytes, total: 100, phase };
        for told in [
            layer("a", 0, Phase::Waiting),
            layer("b", 100, Phase::Present),
            layer("c", 0, Phase::Waiting),
            layer("a", 40, Phase::Fetching),
        ] {
            sum.note(told);
        }
        assert_eq!(sum.so_far(), (140, 300, 1, 3));
        sum.note(layer("a", 100, Phase::Unpacking));
        assert_eq!(sum.so_far(), (200, 300, 1, 3));
        sum.note(layer("a", 100, Phase::Done));
        assert_eq!(sum.so_far(), (200, 300, 2, 3));
    }
}
