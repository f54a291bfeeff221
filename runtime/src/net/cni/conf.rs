//! CNI configurations: a file becomes a list of plugins. Pure, but for `first`, which reads the directory.
//!
//! ```text
//! <conf_dir>/10-calico.conflist   {"cniVersion", "name", "plugins": [{"type", "capabilities", …}, …]}
//! <conf_dir>/20-old.conf          {"cniVersion", "name", "type", …}: a list of one
//! <conf_dir>/<name>/*.conf        more plugins of the list of that name, unless it says loadOnlyInlinedPlugins
//! ```
//! After the CNI specification 1.1.0, section 1, and what libcni makes of it.

use std::{
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::version::Version;
use crate::{Error, Kind, Result, error::Cause};

/// No configuration is as long; what is longer is something else.
const LONGEST: u64 = 1 << 20;

/// One network: what a pod's interface is made by.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    pub name: String,
    /// The one that its plugins are spoken to in.
    pub version: Version,
    pub disable_check: bool,
    pub disable_gc: bool,
    /// In the order of ADD.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// The program's name in one of the `bin_dirs`.
    pub kind: String,
    /// Its part of the configuration, as it stands in the file.
    pub object: Map<String, Value>,
}

impl Plugin {
    /// Whether the plugin takes this capability argument.
    pub fn asks_for(&self, capability: &str) -> bool {
        self.object.get("capabilities").and_then(|asked| asked.get(capability)) == Some(&Value::Bool(true))
    }
}

impl NetworkList {
    /// Takes the text of a file, a list's or a single plugin's.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
        let Value::Object(mut object) = value else { return Err("it is no JSON object".into()) };
        let inline = match object.remove("plugins") {
            Some(Value::Array(plugins)) => plugins,
            Some(_) => return Err("`plugins` is no list".into()),
            None if object.contains_key("type") => vec![Value::Object(object.clone())],
            None => Vec::new(),
        };
        let name = match object.get("name") {
            Some(Value::String(name)) if is_name(name) => name.clone(),
            Some(Value::String(name)) => {
                return Err(format!(
                    "`name` is {name:?}: letters, digits, dots, dashes and underscores, not first"
                ));
            }
            Some(_) => return Err("`name` is no text".into()),
            None => return Err("it has no `name`".into()),
        };
        Ok(Self {
            name,
            version: version(&object)?,
            disable_check: flag(&object, "disableCheck")?,
            disable_gc: flag(&object, "disableGC")?,
            plugins: inline.into_iter().map(plugin).collect::<Result<_, _>>()?,
        })
    }

    /// Whether a plugin takes this capability argument.
    pub fn asks_for(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.asks_for(capability))
    }
}

/// The first `count` configurations of a directory, by name; none where there is none.
///
/// # Errors
/// `Unavailable` names the file: one that is broken is not passed over, as the node's owner meant it to serve.
pub fn first(dir: &Path, count: usize) -> Result<Vec<NetworkList>> {
    if dir.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    files(dir, &["conf", "conflist", "json"])?.iter().take(count).map(|path| load(path)).collect()
}

fn load(path: &Path) -> Result<NetworkList> {
    let broken = |cause: String| {
        Error::new(Kind::Unavailable, "read network configuration", path.display().to_string())
            .because(Cause(cause))
            .hint("mend or remove the file: pods get no network meanwhile")
    };
    let text = read(path).map_err(|error| broken(error.to_string()))?;
    let mut list = NetworkList::parse(&text).map_err(broken)?;
    let only_inline = serde_json::from_str::<Value>(&text)
        .is_ok_and(|value| value.get("loadOnlyInlinedPlugins") == Some(&Value::Bool(true)));
    if let Some(dir) = path.parent().filter(|_| !only_inline) {
        for file in files(&dir.join(&list.name), &["conf"])? {
            let more = |cause: String| broken(format!("{}: {cause}", file.display()));
            let text = read(&file).map_err(|error| more(error.to_string()))?;
            let value = serde_json::from_str(&text).map_err(|error| more(error.to_string()))?;
            list.plugins.push(plugin(value).map_err(more)?);
        }
    }
    match list.plugins.is_empty() {
        true => Err(broken("it names no plugin".into())),
        false => Ok(list),
    }
}

/// Files with one of the endings, by name; a directory that isn't there has none.
fn files(dir: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let failed = |error: io::Error| {
        Error::new(Kind::Unavailable, "list network configurations in", dir.display().to_string())
            .because(error)
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if endings.contains(&ending) && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // A FIFO would keep us waiting; it is no configuration.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let length = fs::File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    match length as u64 > LONGEST {
        true => Err(io::Error::other("it is longer than 1 MiB")),
        false => Ok(text),
    }
}

fn plugin(value: Value) -> Result<Plugin, String> {
    let Value::Object(object) = value else { return Err("a plugin is no JSON object".into()) };
    match object.get("type") {
        Some(Value::String(kind)) if is_program(kind) => Ok(Plugin { kind: kind.clone(), object }),
        Some(Value::String(kind)) => Err(format!("the plugin's `type` {kind:?} is no program's name")),
        Some(_) => Err("a plugin's `type` is no text".into()),
        None => Err("a plugin has no `type`".into()),
    }
}

/// `cniVersion`, or the best of `cniVersions` (1.1.0) that we speak.
fn version(object: &Map<String, Value>) -> Result<Version, String> {
    let mut said = Vec::new();
    match object.get("cniVersions") {
        Some(Value::Array(versions)) => said.extend(versions.iter().filter_map(Value::as_str)),
        Some(_) => return Err("`cniVersions` is no list".into()),
        None => {}
    }
    match object.get("cniVersion") {
        Some(Value::String(version)) => said.push(version),
        Some(_) => return Err("`cniVersion` is no text".into()),
        None => {}
    }
    if said.is_empty() {
        return Err("it has no `cniVersion`; 0.3.1 to 1.1.0 are spoken".into());
    }
    let known = said.iter().filter_map(|version| Version::parse(version)).max();
    known.ok_or_else(|| format!("`cniVersion` is {}; 0.3.0 to 1.1.0 are spoken", said.join(", ")))
}

/// A boolean, which old writers put as text.
fn flag(object: &Map<String, Value>, name: &str) -> Result<bool, String> {
    match object.get(name) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("`{name}` is {other}, neither true nor false")),
    }
}

/// Of the specification: it becomes part of a file's name in the cache.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=128).contains(&name.len())
        && name.bytes().all(allowed)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

fn is_program(name: &str) -> bool {
    !name.is_empty() && name.len() < 256 && !name.contains(['/', '\0']) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_single_plugins_are_read() {
        let text = r#"{"cniVersion":"1.0.0","name":"a.b","disableCheck":"true","plugins":[
            {"type":"bridge","x":1},{"type":"portmap","capabilities":{"portMappings":true,"dns":false}}]}"#;
        let list = NetworkList::parse(text).unwrap();
        assert_eq!((list.name.as_str(), list.version, list.disable_check), ("a.b", Version::V1_0_0, true));
        assert_eq!(list.plugins[0].object["x"], 1);
        assert!(list.asks_for("portMappings") && !list.asks_for("dns"));
        let one = NetworkList::parse(r#"{"cniVersion":"0.3.1","name":"n","type":"ptp","ipam":{}}"#).unwrap();
        assert_eq!((one.plugins.len(), one.plugins[0].kind.as_str()), (1, "ptp"));
        let best = r#"{"cniVersion":"0.4.0","cniVersions":["1.1.0","9.9.9","0.4.0"],"name":"n","type":"x"}"#;
        assert_eq!(NetworkList::parse(best).unwrap().version, Version::V1_1_0);
    }

    #[test]
    fn what_is_no_configuration_is_told() {
        for (text, cause) in [
            ("", "no JSON"),
            ("[]", "no JSON object"),
            (r#"{"name":"n","type":"x"}"#, "no `cniVersion`"),
            (r#"{"cniVersion":"0.2.0","name":"n","type":"x"}"#, "0.3.0 to 1.1.0 are spoken"),
            (r#"{"cniVersion":"1.0.0","type":"x"}"#, "no `name`"),
            (r#"{"cniVersion":"1.0.0","name":"../n","type":"x"}"#, "`name`"),
            (r#"{"cniVersion":"1.0.0","name":"n","type":"../x"}"#, "no program's name"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, "no list"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[1]}"#, "no JSON object"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "no `type`"),
        ] {
            let error = NetworkList::parse(text).unwrap_err();
            assert!(error.contains(cause), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_by_name_serves_and_a_broken_one_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let conf = |name: &str| format!(r#"{{"cniVersion":"1.0.0","name":"{name}","type":"x"}}"#);
        assert_eq!(first(&dir.path().join("none"), 1).unwrap(), []);
        fs::write(dir.path().join("20.conf"), conf("two")).unwrap();
        fs::write(dir.path().join("30.conflist"), conf("three")).unwrap();
        fs::write(dir.path().join("00.txt"), "not one of ours").unwrap();
        fs::create_dir(dir.path().join("05.conf")).unwrap();
        let names = |count| -> Vec<String> {
            first(dir.path(), count).unwrap().into_iter().map(|list| list.name).collect()
        };
        assert_eq!(names(1), ["two"]);
        assert_eq!(names(9), ["two", "three"]);
        // More plugins beside it.
        fs::create_dir(dir.path().join("two")).unwrap();
        fs::write(dir.path().join("two/9.conf"), r#"{"type":"y"}"#).unwrap();
        assert_eq!(first(dir.path(), 1).unwrap()[0].plugins[1].kind, "y");
        fs::write(dir.path().join("10.conf"), "{").unwrap();
        let error = first(dir.path(), 1).unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable);
        assert!(error.chain().contains("10.conf: it is no JSON"), "{}", error.chain());
        fs::write(dir.path().join("10.conf"), r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#).unwrap();
        assert!(first(dir.path(), 1).unwrap_err().chain().contains("names no plugin"));
    }
}
