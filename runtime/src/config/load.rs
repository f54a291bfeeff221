//! Reads the configuration: a file, its drop-ins, merged key by key. Every key that nobody knows and every value of
//! the wrong type is named with file and line; parsing takes text, only `load` touches files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::Config;
use crate::{Error, Kind, Result};

/// The file that is read when none is named; it may be missing.
pub const FILE: &str = "/etc/berth/berthd.toml";

/// `berthd config default`: every key with its default and what it is for.
pub const DEFAULT: &str = include_str!("default.toml");

/// Reads `file` and the `*.toml` of the directory `<file>.d`, in the order of their names.
///
/// # Errors
/// `NotFound` when a file that was asked for is missing; `Invalid` names every mistake with its file and line.
pub fn load(file: Option<&Path>) -> Result<Config> {
    let path = file.unwrap_or(Path::new(FILE));
    let mut texts = Vec::new();
    match fs::read_to_string(path) {
        Ok(text) => texts.push((path.to_owned(), text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::new(Kind::NotFound, "read configuration", path.display().to_string())
                .because(error)
                .hint("`berthd config default` prints one to start from"));
        }
        Err(error) => return Err(Error::io("read configuration", path.display().to_string(), error)),
    }
    for path in drop_ins(path)? {
        let text = fs::read_to_string(&path)
            .map_err(|error| Error::io("read configuration", path.display().to_string(), error))?;
        texts.push((path, text));
    }
    merge(&texts)
}

/// Merges texts, the later over the earlier, each known by its path.
pub fn merge(texts: &[(PathBuf, String)]) -> Result<Config> {
    let mut merged = Table::new();
    let mut mistakes = Vec::new();
    for (path, text) in texts {
        match check(text) {
            Ok(table) => lay_over(&mut merged, table),
            Err(found) => mistakes
                .extend(found.into_iter().map(|(line, what)| format!("{}:{line}: {what}", path.display()))),
        }
    }
    if !mistakes.is_empty() {
        let files: Vec<_> = texts.iter().map(|(path, _)| path.display().to_string()).collect();
        return Err(Error::invalid("read configuration", files.join(", "), mistakes.join("; ")));
    }
    merged
        .try_into()
        .map_err(|error: toml::de::Error| Error::invalid("read configuration", "merged", error.message()))
}

/// The keys whose values differ, as `section.key`, for what a reload can't change.
pub fn difference(one: &Config, other: &Config) -> Vec<String> {
    let table = |config| Table::try_from(config).expect("a Config is a table");
    let mut keys = Vec::new();
    differing("", &table(one), &table(other), &mut keys);
    keys
}

fn drop_ins(file: &Path) -> Result<Vec<PathBuf>> {
    let mut directory = file.as_os_str().to_owned();
    directory.push(".d");
    let shown = || directory.to_string_lossy().into_owned();
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read drop-ins", shown(), error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Error::io("read drop-ins", shown(), error))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// One text by itself: all its mistakes as (line, what).
fn check(text: &str) -> Result<Table, Vec<(usize, String)>> {
    let line_of = |offset: usize| 1 + text[..offset.min(text.len())].matches('\n').count();
    let of_toml = |error: toml::de::Error| {
        let line = error.span().map_or(1, |span| line_of(span.start));
        vec![(line, error.message().trim_end().replace('\n', ", "))]
    };
    let parsed = DeTable::parse(text).map_err(of_toml)?;
    let known = Table::try_from(Config::default()).expect("a Config is a table");
    let mut unknown = Vec::new();
    unknown_keys("", parsed.get_ref(), &known, &mut |offset, what| unknown.push((line_of(offset), what)));
    if !unknown.is_empty() {
        return Err(unknown);
    }
    toml::from_str::<Config>(text).map_err(of_toml)?;
    text.parse().map_err(of_toml)
}

fn unknown_keys(prefix: &str, table: &DeTable<'_>, known: &Table, found: &mut dyn FnMut(usize, String)) {
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        match (known.get(name), value.get_ref()) {
            (Some(_), DeValue::Table(named)) if prefix.is_empty() && name == "handlers" => {
                for (name, handler) in named {
                    if let DeValue::Table(inner) = handler.get_ref() {
                        unknown_keys(&format!("handlers.{}.", name.get_ref()), inner, &of_handler(), found);
                    }
                }
            }
            (Some(Value::Table(known)), DeValue::Table(inner)) => {
                unknown_keys(&format!("{prefix}{name}."), inner, known, found);
            }
            (Some(_), _) => {}
            (None, _) => {
                let what = match nearest(name, known.keys()) {
                    Some(near) => {
                        format!("unknown key `{prefix}{name}`, did you mean `{prefix}{near}`?")
                    }
                    None => {
                        let keys: Vec<_> = known.keys().map(|key| format!("`{key}`")).collect();
                        format!("unknown key `{prefix}{name}`; here may be {}", keys.join(", "))
                    }
                };
                found(key.span().start, what);
            }
        }
    }
}

/// What each handler may have; their names are the node's own.
fn of_handler() -> Table {
    ["type", "path", "cni_conf_dir", "args"]
        .map(|key| (key.to_owned(), Value::String(String::new())))
        .into_iter()
        .collect()
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    known
        .map(|key| (strsim::jaro_winkler(name, key), key.as_str()))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, key)| key)
}

fn lay_over(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => lay_over(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn differing(prefix: &str, one: &Table, other: &Table, keys: &mut Vec<String>) {
    for (key, value) in one {
        match (value, other.get(key)) {
            (Value::Table(one), Some(Value::Table(other))) => {
                differing(&format!("{prefix}{key}."), one, other, keys);
            }
            (value, there) if Some(value) != there => keys.push(format!("{prefix}{key}")),
            (_, _) => {}
        }
    }
    keys.extend(other.keys().filter(|key| !one.contains_key(*key)).map(|key| format!("{prefix}{key}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(texts: &[&str]) -> Result<Config> {
        let texts: Vec<_> = texts
            .iter()
            .enumerate()
            .map(|(n, text)| (PathBuf::from(format!("{n}.toml")), (*text).to_owned()))
            .collect();
        merge(&texts)
    }

    #[test]
    fn the_printed_default_is_the_default_with_every_key() {
        assert_eq!(merged(&[DEFAULT]).unwrap(), Config::default());
        let printed: Table = DEFAULT.parse().unwrap();
        assert_eq!(printed, Table::try_from(Config::default()).unwrap());
    }

    #[test]
    fn a_later_text_wins_key_by_key() {
        let config = merged(&[
            "[daemon]\nroot = \"/a\"\nlog_level = \"warn\"\n",
            "[daemon]\nroot = \"/b\"\n[network.bridge]\nmtu = 1400\n",
        ])
        .unwrap();
        assert_eq!(config.daemon.root, PathBuf::from("/b"));
        assert_eq!(config.daemon.log_level, "warn");
        assert_eq!(config.network.bridge.mtu, 1400);
        assert_eq!(config.network.bridge.name, "berth0");
    }

    #[test]
    fn mistakes_are_named_with_file_line_and_a_suggestion() {
        let rows = [
            (
                "[daemon]\n\nlisen = \"x\"\n",
                "0.toml:3: unknown key `daemon.lisen`, did you mean `daemon.listen`?",
            ),
            ("[network.bridge]\nMTU = 9\n", "0.toml:2: unknown key `network.bridge.MTU`; here may be"),
            ("[demon]\n", "0.toml:1: unknown key `demon`, did you mean `daemon`?"),
            ("[registry]\nstall_seconds = \"soon\"\n", "0.toml:2: invalid type: string"),
            ("[daemon]\nroot = /var\n", "0.toml:2: "),
            ("daemon = 1\n", "0.toml:1: invalid type"),
            (
                "[handlers.kata]\ntype = \"oci\"\npth = \"/x\"\n",
                "0.toml:3: unknown key `handlers.kata.pth`, did you mean `handlers.kata.path`?",
            ),
            ("[handlers.kata]\ntype = \"vm\"\n", "0.toml:2: unknown variant `vm`"),
        ];
        for (text, expected) in rows {
            let message = merged(&[text]).unwrap_err().chain();
            assert!(message.contains(expected), "{message} has no {expected}");
        }
    }

    #[test]
    fn all_unknown_keys_of_all_files_are_told_at_once() {
        let message = merged(&["a = 1\nb = 2\n", "c = 3\n"]).unwrap_err().chain();
        for key in ["0.toml:1: unknown key `a`", "0.toml:2: unknown key `b`", "1.toml:1: unknown key `c`"] {
            assert!(message.contains(key), "{message} has no {key}");
        }
    }

    #[test]
    fn difference_names_the_keys_that_changed() {
        let mut other = Config::default();
        other.daemon.log_level = "debug".into();
        other.network.bridge.mtu = 9000;
        let handler = super::super::Handler {
            r#type: super::super::HandlerKind::Oci,
            path: "/r".into(),
            cni_conf_dir: Default::default(),
            args: Vec::new(),
        };
        other.handlers.insert("runc".into(), handler);
        let expected = ["daemon.log_level", "handlers.runc", "network.bridge.mtu"];
        assert_eq!(difference(&Config::default(), &other), expected);
    }

    #[test]
    fn drop_ins_are_read_in_the_order_of_their_names_and_a_missing_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("berthd.toml");
        let message = load(Some(&file)).unwrap_err().chain();
        assert!(message.contains("berthd config default"), "{message}");
        fs::write(&file, "[daemon]\nlog_level = \"info\"\n").unwrap();
        let drop = dir.path().join("berthd.toml.d");
        fs::create_dir(&drop).unwrap();
        fs::write(drop.join("20.toml"), "[daemon]\nlog_level = \"trace\"\n").unwrap();
        fs::write(drop.join("10.toml"), "[daemon]\nlog_level = \"warn\"\nlog_format = \"json\"\n").unwrap();
        fs::write(drop.join("30.txt"), "not toml").unwrap();
        let config = load(Some(&file)).unwrap();
        assert_eq!((config.daemon.log_level.as_str(), config.daemon.log_format.as_str()), ("trace", "json"));
    }
}
