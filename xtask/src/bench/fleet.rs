//! A node full of pods: how long until all run, what daemon and monitors take, how soon a killed daemon's successor tells of
//! all of them, what probes and lists cost.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{
    Group,
    client::words,
    clock::monotonic_nanos,
    contender::{Contender, OURS},
    figures::Figures,
};
use crate::{interrupt, meter};

const CLIENTS: usize = 8;
const RESTARTS: usize = 3;
/// In seconds.
const LISTED_WITHIN: usize = 120;
const PROBED_SECONDS: usize = 10;
/// In seconds.
const SETTLES_WITHIN: usize = 20;
/// In a second, by a machine on which nothing happens.
const STILL_FREED_KIB: u64 = 256;
const LISTED: usize = 20;
/// Probes of more than this many would measure how many a machine can do at all.
const PROBED_PODS: usize = 100;
/// As many as a kubelet takes by itself.
const FULL_NODE: usize = 110;
/// Half of the kubelet's longest period, a minute, with each question in it.
const ASKED_SECONDS: usize = 30;

/// Fills every contender in steps, one contender after the other: others than ours on its own bridge up to
/// `peers_pods` only.
pub fn measure(
    group: &Group,
    contenders: &mut [Contender],
    steps: &[usize],
    peers_pods: usize,
    figures: &mut Figures,
) -> Result<()> {
    for contender in contenders {
        interrupt::check()?;
        if group.until.is_over() {
            figures.miss(format!("no time for many pods of {}", contender.name));
            continue;
        }
        let most = if contender.name == OURS { usize::MAX } else { peers_pods };
        let steps: Vec<usize> = steps.iter().copied().filter(|step| *step <= most).collect();
        if let Err(error) = fill(group, contender, &steps, figures) {
            figures.fail("many pods", &contender.name, &format!("{error:#}"));
        }
        let name = steps.last().map_or_else(String::new, |last| format!("{last} pods: "));
        let emptied = group.client.measure(contender, &words("down", &[CLIENTS]), &name, figures);
        if let Err(error) = emptied {
            figures.fail("many pods", &contender.name, &format!("{error:#}"));
        }
    }
    Ok(())
}

fn fill(group: &Group, contender: &mut Contender, steps: &[usize], figures: &mut Figures) -> Result<()> {
    memory(contender, 0, figures)?;
    let kernel = settled_kernel_kib()?;
    let mut last = 0;
    for step in steps {
        interrupt::check()?;
        if last > 0 && group.until.is_over() {
            figures.miss(format!("no time for more than {last} pods of {}", contender.name));
            break;
        }
        let prefix = format!("{last}-{step} pods: ");
        let answers = group.client.ask([&*contender], &words("up", &[last, *step, CLIENTS]))?;
        // Until all of them run, from none: of the first step alone it is known.
        let prefix = if last == 0 { format!("{step} pods: ") } else { prefix };
        let failed = answers.iter().any(|answer| answer.outcome.is_err());
        figures.take(answers, &prefix);
        if failed {
            anyhow::bail!("not all of {step} pods run");
        }
        last = *step;
        memory(contender, *step, figures)?;
        let grown = meter::kernel_kib()?.saturating_sub(kernel) as f64 / *step as f64;
        figures.add(&format!("{step} pods: kernel memory a pod"), &contender.name, "KiB", grown);
        let prefix = format!("{step} pods: ");
        if *step == FULL_NODE {
            questions(group, contender, &prefix, figures)?;
        } else if *step >= 100 {
            restart(group, contender, *step, figures)?;
            group.client.measure(contender, &words("lists", &[LISTED]), &prefix, figures)?;
        }
        if *step == PROBED_PODS {
            probes(group, contender, &prefix, figures)?;
        }
    }
    Ok(())
}

/// The kernel's own memory once what the one before has left is freed: that goes on for seconds after its last pod.
fn settled_kernel_kib() -> Result<u64> {
    // Without, it shows in what is waited for.
    std::fs::write("/proc/sys/vm/drop_caches", "2").ok();
    let mut last = meter::kernel_kib()?;
    for _ in 0..SETTLES_WITHIN {
        interrupt::pause(Duration::from_secs(1))?;
        let now = meter::kernel_kib()?;
        if now + STILL_FREED_KIB >= last {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

fn memory(contender: &Contender, pods: usize, figures: &mut Figures) -> Result<()> {
    let daemon = meter::of_process(contender.pid().context("the daemon does not run")?)?;
    let (prefix, name) = (format!("{pods} pods: "), contender.name.as_str());
    let mib = |kib: u64| kib as f64 / 1024.0;
    figures.add(&format!("{prefix}daemon RSS"), name, "MiB", mib(daemon.rss_kib));
    figures.add(&format!("{prefix}daemon PSS"), name, "MiB", mib(daemon.pss_kib));
    if pods > 0 {
        let monitors = meter::of_programs(&contender.monitors());
        let each = |kib: u64| kib as f64 / pods as f64;
        figures.add(&format!("{prefix}monitors' PSS a pod"), name, "KiB", each(monitors.pss_kib));
        figures.add(
            &format!("{prefix}monitors' private dirty a pod"),
            name,
            "KiB",
            each(monitors.private_dirty_kib),
        );
    }
    Ok(())
}

fn restart(group: &Group, contender: &mut Contender, pods: usize, figures: &mut Figures) -> Result<()> {
    for _ in 0..RESTARTS {
        contender.kill();
        let began = monotonic_nanos();
        contender.launch()?;
        let listed = group.client.sample(contender, &words("await", &[pods, LISTED_WITHIN]))?;
        let name = format!("{pods} pods: restart until listed");
        figures.add(&name, &contender.name, "ms", (listed - began) / 1e6);
    }
    Ok(())
}

/// What a kubelet asks of a node where nothing happens.
fn questions(group: &Group, contender: &Contender, prefix: &str, figures: &mut Figures) -> Result<()> {
    let before = contender.cpu_ms();
    let answers = group.client.ask([contender], &words("questions", &[ASKED_SECONDS]))?;
    let used = contender.cpu_ms() - before;
    if answers.iter().all(|answer| answer.outcome.is_ok()) {
        let name = format!("{prefix}CPU of a kubelet's questions");
        figures.add(&name, &contender.name, "%", used / (ASKED_SECONDS as f64 * 10.0));
    }
    figures.take(answers, prefix);
    Ok(())
}

fn probes(group: &Group, contender: &Contender, prefix: &str, figures: &mut Figures) -> Result<()> {
    let before = contender.cpu_ms();
    let answers = group.client.ask([contender], &words("probes", &[PROBED_SECONDS]))?;
    let probe = answers.iter().find(|answer| answer.name == "probe");
    if let Some(Ok(probes)) = probe.map(|answer| &answer.outcome) {
        let each = (contender.cpu_ms() - before) / probes.len() as f64;
        figures.add(&format!("{prefix}CPU of a probe"), &contender.name, "ms", each);
    }
    figures.take(answers, prefix);
    Ok(())
}
