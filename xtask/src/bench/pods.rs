//! Pods one at a time, and by eight clients at once; streams into them; a chatty container's shim.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{
    Group,
    client::words,
    contender::{Contender, OURS},
    figures::Figures,
    launch,
};
use crate::{interrupt, meter};

const WARM_UP: usize = 3;
const CLIENTS: usize = 8;
const AT_ONCE: usize = 40;
const AT_ONCE_ROUNDS: usize = 2;
const STREAM_MIB: usize = 16;
/// One takes a quarter of a second.
const STREAM_ROUNDS: usize = 20;
/// How long a container is chatty before its shim is looked at.
const CHATTY: Duration = Duration::from_secs(2);

/// One at a time, in turns.
pub fn in_turns(group: &Group, contenders: &[Contender], figures: &mut Figures) -> Result<()> {
    let before: Vec<f64> = contenders.iter().map(Contender::cpu_ms).collect();
    let seconds = usize::try_from(group.until.left().as_secs()).unwrap_or(usize::MAX);
    let answers = group.client.ask(contenders, &words("turns", &[group.rounds, seconds]))?;
    for (contender, before) in contenders.iter().zip(before) {
        let lives = answers.iter().find(|answer| answer.runtime == contender.name && answer.name == "pod up");
        if let Some(Ok(lives)) = lives.map(|answer| &answer.outcome) {
            let each = (contender.cpu_ms() - before) / (lives.len() + WARM_UP) as f64;
            figures.add("CPU of a pod's life", &contender.name, "ms", each);
            if contender.name == OURS {
                launch::steps(contender, lives.len() + WARM_UP, figures)?;
            }
        }
    }
    figures.take(answers, "");
    launch::floor(figures)
}

/// Eight clients, one runtime after the other.
pub fn at_once(group: &Group, contenders: &[Contender], figures: &mut Figures) -> Result<()> {
    for _ in 0..AT_ONCE_ROUNDS {
        let began = Instant::now();
        for contender in contenders {
            interrupt::check()?;
            group.client.measure(contender, &words("burst", &[CLIENTS, AT_ONCE]), "", figures)?;
        }
        if !group.until.has_room_for(began.elapsed()) {
            break;
        }
    }
    Ok(())
}

/// Port-forward and attach.
pub fn streams(group: &Group, contenders: &[Contender], figures: &mut Figures) -> Result<()> {
    let rounds = group.rounds.min(STREAM_ROUNDS);
    for contender in contenders {
        interrupt::check()?;
        let measured = group.client.measure(contender, &words("streams", &[rounds, STREAM_MIB]), "", figures);
        if let Err(error) = measured {
            figures.fail("streams", &contender.name, &format!("{error:#}"));
            group.client.measure(contender, &words("down", &[1]), "", &mut Figures::default())?;
        }
    }
    Ok(())
}

/// What a shim of ours takes beside a container that writes a thousand lines a second.
pub fn chatty(group: &Group, contenders: &[Contender], figures: &mut Figures) -> Result<()> {
    let ours = contenders.iter().find(|contender| contender.name == OURS).context("Berth is not measured")?;
    let taken = group.client.ask([ours], &["chatty".to_owned()]);
    // It is one pod, and it runs.
    let memory = taken.map(|_| {
        std::thread::sleep(CHATTY);
        meter::of_programs(&ours.monitors())
    });
    group.client.ask([ours], &words("down", &[1]))?;
    figures.add("chatty shim's private dirty", OURS, "KiB", memory?.private_dirty_kib as f64);
    Ok(())
}
