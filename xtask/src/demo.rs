//! `demo`: a standalone container and a pod on a private berthd, with the time of each step; nothing stays.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use berth_fixtures::{Compression, Layout, fixture_image};

use crate::{
    cargo::{self, Programs},
    debian, interrupt,
    private::{Private, Wish},
    process,
};

/// The name that the demo's image is loaded under.
pub const IMAGE: &str = "localhost/fixture:demo";

pub fn run() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo starts containers, which takes root: sudo -E env PATH=\"$PATH\" cargo xtask demo");
    }
    debian::install(debian::RUNTIME)?;
    let programs = cargo::programs()?;
    interrupt::catch()?;

    let begun = Instant::now();
    let private = Private::start(&programs, &Wish { purpose: "demo", ..Wish::default() })?;
    step("start berthd", begun.elapsed());
    let shown = show(&private, &programs);
    if shown.is_err() {
        eprintln!("xtask: the end of berthd's log:\n{}", private.log());
        clear(&private, &programs);
    }
    let begun = Instant::now();
    let left = private.stop();
    step("stop berthd and clean up", begun.elapsed());
    left.iter().for_each(|line| eprintln!("xtask: cleaning up: {line}"));
    shown?;
    println!("\nAll of it worked, and nothing of it is left on this machine.");
    Ok(())
}

fn show(private: &Private, programs: &Programs) -> Result<()> {
    let archive = private.path("image.tar");
    write_image(programs.path("fixture")?, &archive)?;
    let berth = |words: &[&str]| {
        let mut command = Command::new(private.path("bin/berth"));
        command.args(["--address", &private.address()]).args(words);
        command
    };
    let archive = archive.to_str().context("the temporary directory's name is no UTF-8")?;

    println!("\nA container for a person, by `berth`:");
    timed("berth load", &mut berth(&["load", "-i", archive]))?;
    let word = "hello from a container that berth ran";
    let said = timed("berth run --rm", &mut berth(&["run", "--rm", IMAGE, "/bin/echo", word]))?;
    if said.trim() != word {
        bail!("the container was to say {word:?}, and said {said:?}");
    }

    println!("\nA pod with a container, as a kubelet does it, over CRI:");
    interrupt::check()?;
    let logs = private.path("pod-logs");
    process::run(Command::new(programs.path("demo")?).arg(private.address()).arg(IMAGE).arg(logs))?;
    interrupt::check()
}

/// Writes the fixture image as an OCI layout archive.
pub fn write_image(program: &Path, archive: &Path) -> Result<()> {
    let image = fixture_image(program).context("make the fixture image")?;
    let layout = Layout::of(IMAGE, &image).context("make the fixture image")?;
    layout.write_tar(archive, Compression::None).context("write the fixture image")
}

/// Removes what a failed demo left in the daemon, as far as the daemon still answers.
fn clear(private: &Private, programs: &Programs) {
    let Ok(client) = programs.path("demo") else { return };
    // Its answer changes nothing: what it can't remove the sweep of leftovers does.
    process::succeeds(Command::new(client).arg(private.address()).arg("--sweep"));
}

/// Runs a step, prints what it said, indented, and how long it took.
fn timed(name: &str, command: &mut Command) -> Result<String> {
    interrupt::check()?;
    let begun = Instant::now();
    let said = process::output(command)?;
    step(name, begun.elapsed());
    said.lines().for_each(|line| println!("    | {line}"));
    Ok(said)
}

fn step(name: &str, took: Duration) {
    println!("  {name:<34} {:>8.1} ms", took.as_secs_f64() * 1000.0);
}
