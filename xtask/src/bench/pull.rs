//! Pulls from a registry on loopback into a store on a fresh ext4, runtimes in turns; beside them `tar` alone.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Group,
    contender::{Bed, Contender, Who},
    disk::Disk,
    figures::{FLOOR, Figures},
    person,
};
use crate::{interrupt, kubernetes, meter, oci::children_cpu, process};

/// An image: name, layers, files, MiB, seed, compression.
type Image = (&'static str, u32, u32, u32, u32, &'static str);

/// As large as issue and literature have it; kept below the user's cache directory between runs.
const LARGE: Image = ("large", 20, 42_000, 1024, 1, "gzip");
const ZSTD: Image = ("large-zstd", 20, 42_000, 1024, 1, "zstd");
const HUGE: Image = ("huge", 1, 5, 5 * 1024, 2, "gzip");
const SMALL: [Image; 10] = [
    ("small-0", 3, 60, 6, 10, "gzip"),
    ("small-1", 3, 60, 6, 11, "gzip"),
    ("small-2", 3, 60, 6, 12, "gzip"),
    ("small-3", 3, 60, 6, 13, "gzip"),
    ("small-4", 3, 60, 6, 14, "gzip"),
    ("small-5", 3, 60, 6, 15, "gzip"),
    ("small-6", 3, 60, 6, 16, "gzip"),
    ("small-7", 3, 60, 6, 17, "gzip"),
    ("small-8", 3, 60, 6, 18, "gzip"),
    ("small-9", 3, 60, 6, 19, "gzip"),
];
const MOST_ROUNDS: usize = 5;
/// Changes with what the generator writes.
const GENERATION: &str = "bench-images-1";

/// What is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Usual,
    Huge,
}

/// The layouts that a run's registry is to give, made where they are missing.
pub fn layouts(generator: &Path, what: &[What]) -> Result<BTreeMap<String, PathBuf>> {
    let mut images = Vec::new();
    if what.contains(&What::Usual) {
        images.extend([LARGE, ZSTD].into_iter().chain(SMALL));
    }
    if what.contains(&What::Huge) {
        images.push(HUGE);
    }
    let home = kubernetes::cache()?.join(GENERATION);
    let mut layouts = BTreeMap::new();
    for image in images {
        let place = home.join(image.0);
        if !place.join("oci-layout").is_file() {
            write(generator, &image, &place)?;
        }
        layouts.insert(image.0.to_owned(), place);
    }
    Ok(layouts)
}

fn write(
    generator: &Path,
    (name, layers, files, mib, seed, compression): &Image,
    place: &Path,
) -> Result<()> {
    interrupt::check()?;
    println!("xtask: making the image {name} of {mib} MiB, once");
    let unfinished = place.with_extension("new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("remove {}", unfinished.display()))?;
    }
    fs::create_dir_all(&unfinished).with_context(|| format!("make {}", unfinished.display()))?;
    let mut command = Command::new(generator);
    command.arg(&unfinished).arg(format!("localhost/{name}:bench"));
    command.args([layers, files, mib, seed].map(u32::to_string)).arg(compression);
    process::run(&mut command)?;
    fs::rename(&unfinished, place).with_context(|| format!("name {}", place.display()))
}

/// All rounds that there is time for.
pub fn measure(
    group: &Group,
    (bed, who): (&Bed, &[Who]),
    layouts: &BTreeMap<String, PathBuf>,
    what: What,
    figures: &mut Figures,
) -> Result<()> {
    let rounds = if what == What::Huge { 1 } else { group.rounds.min(MOST_ROUNDS) };
    let name = if what == What::Huge { "huge layer" } else { "pull" };
    for round in 0..rounds {
        let began = Instant::now();
        if round == 0 && what == What::Usual {
            let floor = layouts.get(LARGE.0).context("no image").and_then(|layout| floor(layout, figures));
            if let Err(error) = floor {
                figures.fail("pull", FLOOR, &format!("{error:#}"));
            }
        }
        for one in who {
            interrupt::check()?;
            let runtime = one.name();
            if figures.has_failed(name, &runtime) {
                continue;
            }
            let pulled = match what {
                What::Usual => usual(group, bed, one, figures),
                What::Huge => huge(group, bed, one, figures),
            };
            if let Err(error) = pulled {
                figures.fail(name, &runtime, &format!("{error:#}"));
            }
        }
        if what == What::Usual {
            interrupt::check()?;
            if let Err(error) = beside_daemons(bed, layouts, figures) {
                figures.fail(name, "podman", &format!("{error:#}"));
            }
        }
        if !group.until.has_room_for(began.elapsed()) {
            break;
        }
    }
    Ok(())
}

/// The large image, again, then ten small ones, and the same files by zstd on another disk.
fn usual(group: &Group, bed: &Bed, who: &Who, figures: &mut Figures) -> Result<()> {
    let name = who.name();
    {
        let disk = Disk::new(5)?;
        let contender = Contender::start(who, bed, &disk.path())?;
        pull(group, bed, (&contender, &disk), "pull", &[LARGE.0], figures)?;
        let again = group.client.sample(&contender, &words(bed, &[LARGE.0]))?;
        figures.add("pull: again", &name, "ms", again);
        let small = SMALL.map(|image| image.0);
        pull(group, bed, (&contender, &disk), "ten images", &small, figures)?;
    }
    interrupt::check()?;
    let disk = Disk::new(5)?;
    let contender = Contender::start(who, bed, &disk.path())?;
    pull(group, bed, (&contender, &disk), "pull zstd", &[ZSTD.0], figures)
}

/// podman, and unpacking alone.
fn beside_daemons(bed: &Bed, layouts: &BTreeMap<String, PathBuf>, figures: &mut Figures) -> Result<()> {
    if figures.has_failed("pull", "podman") {
        return Ok(());
    }
    let small = SMALL.map(|image| image.0);
    person::podman(bed, [("pull", &[LARGE.0]), ("ten images", &small), ("pull zstd", &[ZSTD.0])], figures)?;
    let archive = person::archive(layouts.get(LARGE.0).context("no image")?)?;
    person::load(bed, &archive, figures)
}

fn huge(group: &Group, bed: &Bed, who: &Who, figures: &mut Figures) -> Result<()> {
    let disk = Disk::new(12)?;
    let contender = Contender::start(who, bed, &disk.path())?;
    pull(group, bed, (&contender, &disk), "huge layer", &[HUGE.0], figures)
}

fn pull(
    group: &Group,
    bed: &Bed,
    (contender, disk): (&Contender, &Disk),
    name: &str,
    images: &[&str],
    figures: &mut Figures,
) -> Result<()> {
    let pid = contender.pid().context("the daemon does not run")?;
    // Nobody's pages but its own are written meanwhile.
    rustix::fs::sync();
    let used = disk.used_bytes()?;
    meter::reset_peak(pid);
    let before = contender.cpu_ms();
    let wall = group.client.sample(contender, &words(bed, images))?;
    let cpu = contender.cpu_ms() - before;
    let runtime = contender.name.as_str();
    figures.add(&format!("{name}: wall"), runtime, "s", wall / 1000.0);
    figures.add(&format!("{name}: CPU"), runtime, "s", cpu / 1000.0);
    if let Some(peak) = meter::peak_kib(pid) {
        figures.add(&format!("{name}: daemon's peak"), runtime, "MiB", peak as f64 / 1024.0);
    }
    let used = disk.used_bytes()?.saturating_sub(used);
    figures.add(&format!("{name}: disk"), runtime, "MiB", used as f64 / f64::from(1 << 20));
    Ok(())
}

fn words(bed: &Bed, images: &[&str]) -> Vec<String> {
    let reference = |image: &&str| format!("{}/{image}:bench", bed.registry);
    std::iter::once("pull".to_owned()).chain(images.iter().map(reference)).collect()
}

/// What unpacking takes by `tar`, layer by layer, without a registry and without a check.
fn floor(layout: &Path, figures: &mut Figures) -> Result<()> {
    let disk = Disk::new(5)?;
    rustix::fs::sync();
    let (used, cpu, began) = (disk.used_bytes()?, children_cpu()?, Instant::now());
    for layer in layers(layout)? {
        process::output(Command::new("tar").arg("-xzf").arg(layer).arg("-C").arg(disk.path()))?;
    }
    let wall = began.elapsed().as_secs_f64();
    let cpu = children_cpu()?.saturating_sub(cpu).as_secs_f64();
    for name in ["pull", "unpack alone"] {
        figures.add(&format!("{name}: wall"), FLOOR, "s", wall);
        figures.add(&format!("{name}: CPU"), FLOOR, "s", cpu);
    }
    let used = disk.used_bytes()?.saturating_sub(used);
    figures.add("pull: disk", FLOOR, "MiB", used as f64 / f64::from(1 << 20));
    Ok(())
}

fn layers(layout: &Path) -> Result<Vec<PathBuf>> {
    let read = |path: &Path| -> Result<Value> {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
    };
    let blob = |descriptor: &Value| {
        let hex = descriptor["digest"].as_str().unwrap_or_default().trim_start_matches("sha256:");
        layout.join("blobs/sha256").join(hex)
    };
    let manifest = read(&blob(&read(&layout.join("index.json"))?["manifests"][0]))?;
    Ok(manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(blob).collect())
}
