//! The images around this crate's own program, and where the built program is.

use crate::image::Image;
use crate::layer::Layer;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The applets of the program; each has a link in the image.
pub const APPLETS: &[&str] = &[
    "burn",
    "cat",
    "crash",
    "daemonize",
    "eat",
    "echo",
    "env",
    "exit",
    "false",
    "garble",
    "get",
    "http",
    "id",
    "info",
    "lines",
    "ls",
    "mknod",
    "names",
    "noeol",
    "notify",
    "open",
    "pwd",
    "resolve",
    "rm",
    "sctp",
    "sleep",
    "spam",
    "stat",
    "stderr",
    "stty",
    "tcp",
    "trap",
    "tree",
    "true",
    "udp",
    "wait-file",
    "write",
];

/// Names the program for tests that run elsewhere than in the target directory.
const VARIABLE: &str = "BERTH_FIXTURE";

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/false
app:x:1000:1000:an ordinary user:/home/app:/bin/false
worker:x:1001:1001:has supplementary groups:/home/worker:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
";

const GROUP: &str = "\
root:x:0:
app:x:1000:
worker:x:1001:
staff:x:2000:worker
video:x:2001:app,worker
nogroup:x:65534:
";

/// The image of most tests: the program, a link for each applet, users and groups.
///
/// # Errors
/// The program cannot be read.
pub fn fixture_image(program: &Path) -> io::Result<Image> {
    Ok(Image::new()
        .layer(fixture_layer(program)?)
        .cmd(&["/bin/fixture", "info"])
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .label("org.opencontainers.image.title", "fixture"))
}

/// The barest image: /fixture and nothing else, no directory, no user. `info` runs unless told otherwise.
///
/// # Errors
/// The program cannot be read.
pub fn scratch_image(program: &Path) -> io::Result<Image> {
    let layer = Layer::new().file("fixture", 0o755, read(program)?);
    Ok(Image::new().layer(layer).entrypoint(&["/fixture"]).cmd(&["info"]))
}

/// Finds the built program: `BERTH_FIXTURE`, or beside the running program or test.
///
/// # Errors
/// NotFound, saying how to build it.
pub fn program_path() -> io::Result<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        return Ok(PathBuf::from(path));
    }
    let running = std::env::current_exe()?;
    // A test runs from target/…/debug/deps, a program from target/…/debug.
    let found = running.ancestors().skip(1).take(2).map(|directory| directory.join("fixture"));
    found.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let place = running.display();
        let text = format!(
            "no program `fixture` near {place}; build it (cargo build -p berth-fixtures --bin fixture) or set {VARIABLE}"
        );
        io::Error::new(io::ErrorKind::NotFound, text)
    })
}

pub(crate) fn fixture_layer(program: &Path) -> io::Result<Layer> {
    let layer = APPLETS
        .iter()
        .fold(system_layer(), |layer, applet| layer.symlink(&format!("bin/{applet}"), "fixture"));
    Ok(layer.file("bin/fixture", 0o755, read(program)?))
}

fn read(program: &Path) -> io::Result<Vec<u8>> {
    fs::read(program)
        .map_err(|error| io::Error::new(error.kind(), format!("read {}: {error}", program.display())))
}

/// The directories and users that a system has, without any program.
pub(crate) fn system_layer() -> Layer {
    let plain = ["bin", "dev", "etc", "home", "proc", "run", "srv", "sys", "usr", "var"];
    let layer = plain.iter().fold(Layer::new(), |layer, path| layer.directory(path, 0o755));
    let home = |path: &str, id: u64| crate::Entry::directory(path, 0o750).owner(id, id);
    layer
        .directory("root", 0o700)
        .directory("tmp", 0o1777)
        .directory("var/tmp", 0o1777)
        .with(home("home/app", 1000))
        .with(home("home/worker", 1001))
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applets_are_sorted_and_named_once() {
        assert!(APPLETS.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = fixture_image(Path::new("/nowhere/fixture")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/nowhere/fixture"), "{error}");
    }
}
