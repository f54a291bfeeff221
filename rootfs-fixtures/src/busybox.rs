//! The image of Debian's busybox-static, for tests that need a shell.

use crate::image::Image;
use crate::layer::Layer;
use crate::program::system_layer;
use std::fs;
use std::io;
use std::process::Command;

const BUSYBOX: &str = "/bin/busybox";
/// The program headers and the interpreter's name behind them lie in the first page.
const FIRST_PAGE_BYTES: usize = 4096;

/// Builds an image of /bin/busybox with a hard link for each applet; it starts `sh`.
///
/// # Errors
/// NotFound, naming the package, if there is no busybox; Unsupported if it is not the static one.
pub fn busybox_image() -> io::Result<Image> {
    let program = fs::read(BUSYBOX).map_err(|error| {
        let text = format!("read {BUSYBOX}: {error}; install the Debian package busybox-static");
        io::Error::new(error.kind(), text)
    })?;
    if needs_interpreter(&program) {
        let text = format!("{BUSYBOX} needs shared libraries; install the Debian package busybox-static");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let layer = with_links(system_layer(), &applets()?).file("bin/busybox", 0o755, program);
    Ok(Image::new()
        .layer(layer)
        .cmd(&["sh"])
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .label("org.opencontainers.image.title", "busybox"))
}

fn applets() -> io::Result<Vec<String>> {
    let output = Command::new(BUSYBOX).arg("--list").output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{BUSYBOX} --list: {}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// Gives each applet a hard link in /bin, where PATH finds all of them.
fn with_links(layer: Layer, applets: &[String]) -> Layer {
    let names = applets.iter().map(String::as_str).filter(|name| *name != "busybox" && !name.contains('/'));
    names.fold(layer, |layer, name| layer.hard_link(&format!("bin/{name}"), "bin/busybox"))
}

/// Tells a dynamic program from a static one by the loader that it asks for.
fn needs_interpreter(program: &[u8]) -> bool {
    let page = &program[..program.len().min(FIRST_PAGE_BYTES)];
    [b"/ld-linux".as_slice(), b"/ld-musl".as_slice()]
        .iter()
        .any(|loader| page.windows(loader.len()).any(|window| window == *loader))
}
