//! The line of the architecture: which room of the daemon may import which, who knows gRPC, where `unsafe` is.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A room and those that it may import. `error` is everybody's but the tool's.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "bin",
        &[
            "api",
            "cgroup",
            "config",
            "ctl",
            "error",
            "image",
            "launcher",
            "net",
            "ocicli",
            "pod",
            "streaming",
        ],
    ),
    ("api", &["cgroup", "config", "error", "id", "image", "net", "oci", "pod", "streaming"]),
    ("streaming", &["config", "error", "id", "launcher", "pod"]),
    ("pod", &["cgroup", "config", "error", "id", "image", "launcher", "net", "oci"]),
    ("image", &["config", "error"]),
    ("net", &["config", "error", "id"]),
    ("cgroup", &["error", "id"]),
    ("oci", &["config", "error", "id"]),
    ("launcher", &["error", "id"]),
    // A client: it knows the daemon's proto and nothing of the daemon.
    ("ctl", &["host"]),
    // What the tool looks at without a daemon.
    ("host", &[]),
    // An OCI runtime's verbs: no daemon, no pod.
    ("ocicli", &["cgroup", "error", "oci"]),
    ("config", &["error"]),
    ("id", &["error"]),
    ("error", &[]),
    ("lib", &["error"]),
];

/// A crate and the rooms that may use it.
const CRATES: &[(&str, &[&str])] = &[
    ("tonic", &["api", "ctl"]),
    ("tower", &["api", "ctl"]),
    ("hyper_util", &["api", "ctl", "streaming"]),
    ("hyper", &["api", "streaming"]),
    ("prometheus_client", &["api"]),
    ("tokio_tungstenite", &["streaming"]),
    ("clap", &["bin", "ctl"]),
    ("reqwest", &["image"]),
    ("rtnetlink", &["net"]),
    ("hickory_proto", &["net"]),
    // CRI's messages are data that these may read.
    ("berth_cri", &["api", "pod", "oci", "ctl"]),
    // Plans are for those who make, hand on and explain them; net says what a link is.
    ("berth_launch", &["pod", "oci", "ocicli", "launcher", "net", "api"]),
];

/// The only places of `unsafe`.
const UNSAFE: &[&str] = &["shim/src/kernel/", "rootfs-fixtures/src/bin/fixture/kernel.rs"];

#[test]
fn rooms_import_only_along_the_arrows() {
    let mut wrong = Vec::new();
    for file in sources("runtime/src") {
        let room = room(&file);
        let allowed = ARROWS.iter().find(|(name, _)| *name == room).map(|(_, to)| *to);
        let Some(allowed) = allowed else {
            wrong.push(format!("{}: the room {room} is not in the architecture", file.display()));
            continue;
        };
        let rooms: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
        for (line, target) in imports(&text_of(&file)) {
            let through =
                target == room || !rooms.contains(target.as_str()) || allowed.contains(&target.as_str());
            if !through {
                wrong.push(format!("{}:{line}: {room} imports {target}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that are not in the architecture:\n{}", wrong.join("\n"));
}

#[test]
fn crates_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for file in sources("runtime/src") {
        let room = room(&file);
        let text = code(&text_of(&file));
        for (line, words) in text.lines().enumerate() {
            for (name, rooms) in CRATES {
                if !rooms.contains(&room.as_str()) && uses(words, name) {
                    wrong.push(format!("{}:{}: {room} uses {name}", file.display(), line + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "crates outside of their rooms:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_is_only_where_the_kernel_is_spoken_to() {
    let mut wrong = Vec::new();
    for top in ["proto", "runtime", "shim", "rootfs-fixtures", "tests", "xtask"] {
        for file in sources(top) {
            if UNSAFE.iter().any(|place| file.starts_with(place)) {
                continue;
            }
            let text = code(&text_of(&file));
            let lines = text.lines().enumerate().filter(|(_, words)| has_word(words, "unsafe"));
            wrong.extend(lines.map(|(line, _)| format!("{}:{}", file.display(), line + 1)));
        }
    }
    assert!(wrong.is_empty(), "unsafe outside of {UNSAFE:?}:\n{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_imports_reads_all_forms() {
    let text = "use crate::{Error, net, pod::{A, image::B}, cgroup::Stats};\nfn f() { crate::launcher::x(); }\n\
                // crate::comment::x\nlet s = \"crate::text::x\";\nuse berth::{api::{self, Door},\n  ctl};\n";
    let found: Vec<(usize, String)> = imports(text);
    let names: Vec<&str> = found.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["Error", "net", "pod", "cgroup", "launcher", "api", "ctl"]);
    assert_eq!((found[0].0, found[4].0, found[6].0), (1, 2, 5));
    assert!(uses("use tonic::Status;", "tonic") && uses("-> tonic::Result<()>", "tonic"));
    assert!(
        !uses("let platonic::x", "tonic")
            && has_word("unsafe {", "unsafe")
            && !has_word("unsafe_code", "unsafe")
    );
}

/// The directory of the workspace: this crate is one below it.
fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the crate is in the workspace").to_owned()
}

/// Every Rust file below a directory, relative to the workspace, sorted.
fn sources(top: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(top)];
    while let Some(directory) = open.pop() {
        let entries = fs::read_dir(workspace().join(&directory)).expect("list the sources");
        for entry in entries.flatten() {
            let path = directory.join(entry.file_name());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() != "target" {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no Rust file below {top}");
    found.sort();
    found
}

fn text_of(file: &Path) -> String {
    fs::read_to_string(workspace().join(file)).expect("read a source")
}

/// `runtime/src/api/serve.rs` and `runtime/src/api.rs` are both of the room `api`.
fn room(file: &Path) -> String {
    let below = file.strip_prefix("runtime/src").expect("it was listed there");
    let first = below.components().next().expect("a file has a name").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The first names behind `crate::` or `berth::`, with their line.
fn imports(text: &str) -> Vec<(usize, String)> {
    let text = code(text);
    let mut found = Vec::new();
    for start in ["crate::", "berth::"] {
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let line = text[..at].matches('\n').count() + 1;
            found.extend(first_names(&text[at + start.len()..]).into_iter().map(|name| (line, name)));
        }
    }
    found
}

/// `a::b` gives a; `{a, b::{c, d}}` gives a and b.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = rest.strip_prefix('{') else {
        return vec![name(rest)];
    };
    let (mut depth, mut names, mut begin) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(name(&group[begin..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(name(&group[begin..at]));
                begin = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// The text with comments and strings blanked, lines kept.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let length = if rest.starts_with(b"//") {
            rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            find(rest, b"*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with(b"r#\"") {
            find(rest, b"\"#").map_or(rest.len(), |end| end + 2)
        } else if rest[0] == b'"' {
            string_length(rest)
        } else if rest.starts_with(b"'\"'") || rest.starts_with(b"b'\"'") {
            3
        } else {
            let c = text[at..].chars().next().expect("the text goes on");
            out.push(c);
            at += c.len_utf8();
            continue;
        };
        out.extend(rest[..length].iter().map(|byte| if *byte == b'\n' { '\n' } else { ' ' }));
        at += length;
    }
    out
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).skip(1).position(|window| window == word).map(|at| at + 1)
}

fn string_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn uses(line: &str, name: &str) -> bool {
    has_word(line, name) && line.contains(&format!("{name}::")) || has_word(line, &format!("use {name}"))
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part)
            && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}
