//! Images as people get them without a daemon of CRI's: podman's pulls beside those of daemons, and archives that `berth` and
//! podman load, which is unpacking alone. Each on a fresh ext4.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use super::{
    contender::{Bed, Contender, Who},
    disk::Disk,
    figures::Figures,
    podman::Podman,
};
use crate::{oci::children_cpu, process};

const PODMAN: &str = "podman";
const LOAD: &str = "unpack alone";

/// What podman takes for the same pulls; its programs are all there is of it, so their times are its CPU.
pub fn podman(bed: &Bed, sets: [(&str, &[&str]); 3], figures: &mut Figures) -> Result<()> {
    let [large, small, zstd] = sets;
    for sets in [&[large, small][..], &[zstd]] {
        let disk = Disk::new(5)?;
        let Some(podman) = Podman::find(bed.peers, &disk.path())? else {
            figures.miss("no podman: not beside the pulls".to_owned());
            return Ok(());
        };
        for (name, images) in sets {
            pull(bed, &podman, &disk, (name, images), figures)?;
            if *name == large.0 {
                let began = Instant::now();
                pulled(bed, &podman, images)?;
                figures.add("pull: again", PODMAN, "ms", began.elapsed().as_secs_f64() * 1000.0);
            }
        }
    }
    Ok(())
}

fn pull(
    bed: &Bed,
    podman: &Podman,
    disk: &Disk,
    (name, images): (&str, &[&str]),
    figures: &mut Figures,
) -> Result<()> {
    rustix::fs::sync();
    let (used, cpu, began) = (disk.used_bytes()?, children_cpu()?, Instant::now());
    pulled(bed, podman, images)?;
    figures.add(&format!("{name}: wall"), PODMAN, "s", began.elapsed().as_secs_f64());
    let cpu = children_cpu()?.saturating_sub(cpu).as_secs_f64();
    figures.add(&format!("{name}: CPU"), PODMAN, "s", cpu);
    let used = disk.used_bytes()?.saturating_sub(used);
    figures.add(&format!("{name}: disk"), PODMAN, "MiB", used as f64 / f64::from(1 << 20));
    Ok(())
}

/// All of them at once, as the daemons are asked for them.
fn pulled(bed: &Bed, podman: &Podman, images: &[&str]) -> Result<()> {
    let start = |image: &&str| {
        let mut command = podman.command(None);
        command.args(Podman::PULL).arg(format!("{}/{image}:bench", bed.registry));
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("run podman")
    };
    let started: Vec<Result<Child>> = images.iter().map(start).collect();
    let mut failed = None;
    for child in started {
        match child.and_then(|mut child| child.wait().context("wait for podman")) {
            Ok(status) if status.success() => {}
            Ok(status) => failed = Some(format!("podman pull: {status}")),
            Err(error) => failed = Some(format!("{error:#}")),
        }
    }
    failed.map_or(Ok(()), |why| bail!(why))
}

/// The archive of a layout, beside it: made where it is missing.
pub fn archive(layout: &Path) -> Result<PathBuf> {
    let archive = layout.with_extension("tar");
    if !archive.is_file() {
        let unfinished = layout.with_extension("tar.new");
        process::output(Command::new("tar").arg("-cf").arg(&unfinished).arg("-C").arg(layout).arg("."))?;
        fs::rename(&unfinished, &archive).with_context(|| format!("name {}", archive.display()))?;
    }
    Ok(archive)
}

/// What `berth load` and `podman load` take for it.
pub fn load(bed: &Bed, archive: &Path, figures: &mut Figures) -> Result<()> {
    {
        let disk = Disk::new(5)?;
        let berth = Contender::start(&Who::Berth, bed, &disk.path())?;
        let mut command = Command::new(berth.path("bin/berth"));
        command.args(["--address", &berth.address(), "load", "-i"]).arg(archive);
        rustix::fs::sync();
        let (cpu, began) = (berth.cpu_ms(), Instant::now());
        let own = children_cpu()?;
        process::output(&mut command)?;
        figures.add(&format!("{LOAD}: wall"), &berth.name, "s", began.elapsed().as_secs_f64());
        let own = children_cpu()?.saturating_sub(own).as_secs_f64();
        figures.add(&format!("{LOAD}: CPU"), &berth.name, "s", (berth.cpu_ms() - cpu) / 1000.0 + own);
    }
    let disk = Disk::new(5)?;
    let Some(podman) = Podman::find(bed.peers, &disk.path())? else { return Ok(()) };
    rustix::fs::sync();
    let (cpu, began) = (children_cpu()?, Instant::now());
    process::output(podman.command(None).args(["load", "-q", "-i"]).arg(archive))?;
    figures.add(&format!("{LOAD}: wall"), PODMAN, "s", began.elapsed().as_secs_f64());
    let cpu = children_cpu()?.saturating_sub(cpu).as_secs_f64();
    figures.add(&format!("{LOAD}: CPU"), PODMAN, "s", cpu);
    Ok(())
}
