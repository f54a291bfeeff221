//! Bounds: many containers at once, and one with next to no memory. Beside Berth the peers that run here at all, named by
//! `BERTH_CRUN` or else looked for as `crun`, and `runc`: what they come to is printed, and only Berth's has to hold.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use berth_tests::{
    oci::{Oci, reap, text},
    program, skip,
};
use serde_json::json;

const COUNT: usize = 100;
/// In KiB: a page, and what is asked of Berth. crun's own bound is 512 KiB.
const PAGE: u64 = 4;
const MOST: u64 = 512;

/// A runtime with its words before the verb.
struct Runtime {
    name: &'static str,
    line: Vec<String>,
}

impl Runtime {
    fn berth(oci: &Oci) -> Self {
        let (berth, root) = (program("berth"), oci.root());
        let words = [text(&berth), "oci", "--root", text(&root)];
        Self { name: "berth oci", line: words.map(str::to_owned).into() }
    }

    /// A peer, if it runs a container here; else the test says that it doesn't.
    fn peer(oci: &Oci, test: &str, name: &'static str) -> Option<Self> {
        let named =
            std::env::var(format!("BERTH_{}", name.to_uppercase())).unwrap_or_else(|_| name.to_owned());
        if Command::new(&named).arg("--version").output().is_err() {
            skip(test, &format!("beside Berth alone: no {name} is installed"));
            return None;
        }
        let root = oci.dir().join(name);
        let own = [named, "--root".into(), text(&root).into()];
        let line = without_unified(name).into_iter().map(str::to_owned).chain(own).collect();
        let peer = Self { name, line };
        let bundle = bundle(oci, &format!("try-{name}"), &["true"], None);
        match peer.run(oci, &bundle, &format!("try-{name}")) {
            Ok(_) => Some(peer),
            Err(why) => {
                skip(test, &format!("beside Berth alone: {name} runs no container here: {why}"));
                None
            }
        }
    }

    fn command(&self, oci: &Oci, words: &[&str]) -> Command {
        let mut command = Command::new(&self.line[0]);
        command.args(&self.line[1..]).args(words).stdin(Stdio::null());
        command.env("BERTH_TESTS_PLACE", oci.dir().file_name().expect("a place has a name"));
        command
    }

    /// Runs a container to its end; the last line of why not.
    fn run(&self, oci: &Oci, bundle: &Path, id: &str) -> Result<String, String> {
        let run = self.command(oci, &["run", "--bundle", text(bundle), id]);
        // Where the room for its pages is all but too little it reads them again and again.
        let mut bounded = Command::new("timeout");
        bounded
            .args(["--kill-after=1", "20"])
            .arg(run.get_program())
            .args(run.get_args())
            .stdin(Stdio::null());
        bounded.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let ran = oci.finish(bounded);
        if ran.code == 0 {
            return Ok(ran.stdout());
        }
        // A launch that was killed half way may have left its record.
        oci.finish(self.command(oci, &["delete", "--force", id]));
        let said = ran.stderr();
        Err(format!("{} ({})", said.lines().last().unwrap_or_default(), ran.code))
    }

    /// One container from create to delete, its init reaped as a supervisor does.
    fn once(&self, oci: &Oci, bundle: &Path, id: &str) -> Result<(), String> {
        let pid_file = bundle.join("pid");
        let verb = |words: &[&str]| {
            // A file, since the container's process has the stream as well.
            let err = bundle.join(words[0]);
            let mut command = self.command(oci, words);
            command.stdout(Stdio::null()).stderr(fs::File::create(&err).unwrap());
            let status = command.status().map_err(|error| error.to_string())?;
            let said = fs::read_to_string(&err).unwrap_or_default();
            if status.success() { Ok(()) } else { Err(format!("{} {id}: {status}: {said}", words[0])) }
        };
        verb(&["create", "--bundle", text(bundle), "--pid-file", text(&pid_file), id])?;
        let pid = fs::read_to_string(&pid_file).map_err(|error| error.to_string())?;
        let pid = pid.parse().map_err(|_| format!("{id}: {pid:?} is no pid"))?;
        let through = verb(&["start", id]).and_then(|()| verb(&["kill", id, "KILL"]));
        if through.is_err() {
            verb(&["delete", "--force", id])?;
        }
        let code = reap(pid);
        through?;
        verb(&["delete", id])?;
        if code == 128 + 9 { Ok(()) } else { Err(format!("{id} ended with {code}")) }
    }
}

/// The words before a crun's on a host of v1 with an empty v2 hierarchy beside it, which crun refuses to see: it runs in a mount
/// namespace without that.
fn without_unified(name: &str) -> Vec<&'static str> {
    const SCRIPT: &str = "umount /sys/fs/cgroup/unified && exec \"$@\"";
    if name != "crun" || !Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists() {
        return Vec::new();
    }
    vec!["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "crun"]
}

/// A bundle of its own on the root that all share.
fn bundle(oci: &Oci, id: &str, words: &[&str], memory: Option<u64>) -> PathBuf {
    let bundle = oci.dir().join(format!("bundle-{id}"));
    fs::create_dir_all(&bundle).unwrap();
    let mut config = oci.config(id, words);
    config["ociVersion"] = json!("1.0.2");
    config["root"]["path"] = json!(oci.bundle().join("rootfs"));
    if let Some(bytes) = memory {
        config["linux"]["resources"] = json!({"memory": {"limit": bytes}});
    }
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    bundle
}

#[test]
fn a_hundred_containers_at_once_all_run() {
    let oci = Oci::new();
    let mut running: Vec<(String, std::process::Child)> = (0..COUNT)
        .map(|number| {
            let id = format!("c{number}");
            let bundle = bundle(&oci, &id, &["exit", "7"], None);
            let mut command: Command = oci.command(&["run", "--bundle", text(&bundle), &id]);
            let err = fs::File::create(bundle.join("err")).unwrap();
            (text(&bundle.join("err")).to_owned(), command.stderr(err).spawn().unwrap())
        })
        .collect();
    for (err, child) in &mut running {
        let code = child.wait().unwrap().code();
        assert_eq!(code, Some(7), "{}", fs::read_to_string(err).unwrap());
    }
    assert_eq!(oci.ok(&["list", "--quiet"]), "");
}

#[test]
fn a_hundred_at_once_are_created_started_killed_and_deleted() {
    const TEST: &str = "a_hundred_at_once_are_created_started_killed_and_deleted";
    let oci = Oci::new();
    let peers = ["crun", "runc"].into_iter().filter_map(|name| Runtime::peer(&oci, TEST, name));
    let runtimes: Vec<Runtime> = std::iter::once(Runtime::berth(&oci)).chain(peers).collect();
    for runtime in runtimes {
        let bundles: Vec<(String, PathBuf)> = (0..COUNT)
            .map(|number| {
                let id = format!("{}-{number}", &runtime.name[..4]);
                let bundle = bundle(&oci, &id, &["sleep", "1000"], None);
                (id, bundle)
            })
            .collect();
        let failures: Vec<String> = std::thread::scope(|scope| {
            let all: Vec<_> = bundles
                .iter()
                .map(|(id, bundle)| {
                    let (oci, runtime) = (&oci, &runtime);
                    scope.spawn(move || runtime.once(oci, bundle, id))
                })
                .collect();
            all.into_iter().filter_map(|one| one.join().unwrap().err()).collect()
        });
        eprintln!("{}: {} of {COUNT} at once came to their ends", runtime.name, COUNT - failures.len());
        assert!(runtime.name != "berth oci" || failures.is_empty(), "{failures:#?}");
    }
    assert_eq!(oci.ok(&["list", "--quiet"]), "");
}

/// The least KiB at which a container says its word three times in a row, up to `MOST`.
fn floor(oci: &Oci, runtime: &Runtime) -> Option<u64> {
    let starts = |kib: u64| {
        let bundle = bundle(oci, "small", &["echo", "small"], Some(kib << 10));
        let said = |_| {
            runtime
                .run(oci, &bundle, "small")
                .and_then(|said| if said == "small\n" { Ok(()) } else { Err(said) })
        };
        let outcome = (0..3).try_for_each(said);
        eprintln!("{} with {kib} KiB: {outcome:?}", runtime.name);
        outcome.is_ok()
    };
    if !starts(MOST) {
        return None;
    }
    let (mut too_little, mut enough) = (0, MOST / PAGE);
    while enough - too_little > 1 {
        let between = too_little + (enough - too_little) / 2;
        if starts(between * PAGE) { enough = between } else { too_little = between }
    }
    Some(enough * PAGE)
}

#[test]
fn a_container_starts_under_a_limit_of_512_kib() {
    const TEST: &str = "a_container_starts_under_a_limit_of_512_kib";
    let oci = Oci::new();
    for name in ["crun", "runc"] {
        if let Some(peer) = Runtime::peer(&oci, TEST, name) {
            let told = floor(&oci, &peer).map_or(format!("more than {MOST} KiB"), |kib| format!("{kib} KiB"));
            eprintln!("{name}: a container takes {told}");
        }
    }
    let least = floor(&oci, &Runtime::berth(&oci)).expect("512 KiB are enough");
    eprintln!("berth oci: a container takes {least} KiB");
    // It is never less than the program's own: a floor of nought would say that no limit was set.
    assert!((2 * PAGE..=MOST).contains(&least), "{least} KiB");
}
