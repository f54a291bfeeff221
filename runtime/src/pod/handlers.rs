//! The runtime handlers of this node: Berth itself, as "" and `berth`, and the OCI runtimes of the host that its
//! configuration names. A pod's namespaces are Berth's whichever it has; its containers are the handler's.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio::process::Command;
use tracing::warn;

use crate::{
    Error, Result,
    config::{self, HandlerKind},
    error::Cause,
};

/// CRI wants the default one listed as "".
const BUILT_IN: [&str; 2] = ["", "berth"];
/// What it can do is asked once, at the start.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub enum Handler {
    BuiltIn,
    Runtime { program: PathBuf, args: Vec<String>, recursive_read_only: RecursiveReadOnly },
}

/// Whether a runtime has the mount option `rro`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecursiveReadOnly {
    Known,
    Unknown,
}

/// All of them, by name. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handlers(Arc<BTreeMap<String, Handler>>);

impl Handlers {
    /// Reads the configuration and asks each runtime for its features. One that can't be run now is told, and asked for
    /// again by whoever makes a container.
    ///
    /// # Errors
    /// `Invalid` for a name that is taken, or a path that is none.
    pub async fn find(configured: &BTreeMap<String, config::Handler>) -> Result<Self> {
        let mut all: BTreeMap<_, _> = BUILT_IN.map(|name| (name.to_owned(), Handler::BuiltIn)).into();
        for (name, handler) in configured {
            let found = match check(name, handler)? {
                None => Handler::BuiltIn,
                Some(program) => {
                    let args = handler.args.clone();
                    let recursive_read_only = features(name, program, &args).await;
                    Handler::Runtime { program: program.to_owned(), args, recursive_read_only }
                }
            };
            all.insert(name.clone(), found);
        }
        Ok(Self(Arc::new(all)))
    }

    /// # Errors
    /// `NotFound` says which there are.
    pub fn get(&self, name: &str) -> Result<&Handler> {
        self.0.get(name).ok_or_else(|| {
            let known: Vec<_> = self.0.keys().map(|name| format!("{name:?}")).collect();
            Error::not_found("find runtime handler", format!("{name:?}"))
                .because(Cause(format!("there is no runtime handler {name:?}")))
                .hint(format!("there are {}; others are configured as [handlers.NAME]", known.join(", ")))
        })
    }

    pub fn all(&self) -> impl Iterator<Item = (&str, &Handler)> {
        self.0.iter().map(|(name, handler)| (name.as_str(), handler))
    }
}

/// The program of a handler that is not built in.
fn check<'a>(name: &str, handler: &'a config::Handler) -> Result<Option<&'a Path>> {
    let refuse = |why: &str| Err(Error::invalid("read configuration", format!("handlers.{name}"), why));
    let (path, conf_dir) = (handler.path.as_path(), handler.cni_conf_dir.as_path());
    if !conf_dir.as_os_str().is_empty() && !conf_dir.is_absolute() {
        return refuse("its cni_conf_dir has to be absolute");
    }
    match handler.r#type {
        HandlerKind::Builtin if path.as_os_str().is_empty() && handler.args.is_empty() => Ok(None),
        HandlerKind::Builtin => refuse("a built-in handler has no path and no args"),
        HandlerKind::Oci if BUILT_IN.contains(&name) => refuse("that name is the built-in handler's"),
        HandlerKind::Oci if !path.is_absolute() => refuse("its path has to be absolute"),
        HandlerKind::Oci => Ok(Some(path)),
    }
}

async fn features(name: &str, program: &Path, args: &[String]) -> RecursiveReadOnly {
    let asked = Command::new(program).args(args).arg("features").kill_on_drop(true).output();
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => read(&answer.stdout),
        Ok(Err(error)) => {
            warn!(handler = name, path = %program.display(), %error, "a handler's runtime can't be run");
            RecursiveReadOnly::Unknown
        }
        Err(_) => {
            warn!(handler = name, path = %program.display(), "a handler's runtime does not tell its features");
            RecursiveReadOnly::Unknown
        }
    }
}

/// `runc features`, `features.md` of the runtime spec.
fn read(told: &[u8]) -> RecursiveReadOnly {
    let told: Value = serde_json::from_slice(told).unwrap_or_default();
    match told["mountOptions"].as_array().is_some_and(|all| all.iter().any(|option| option == "rro")) {
        true => RecursiveReadOnly::Known,
        false => RecursiveReadOnly::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(r#type: HandlerKind, path: &str) -> config::Handler {
        config::Handler { r#type, path: path.into(), cni_conf_dir: PathBuf::new(), args: Vec::new() }
    }

    #[test]
    fn a_handler_has_a_name_of_its_own_and_an_absolute_path() {
        let rows = [
            ("runc", HandlerKind::Oci, "/usr/bin/runc", ""),
            ("mine", HandlerKind::Builtin, "", ""),
            ("mine", HandlerKind::Builtin, "/x", "has no path"),
            ("berth", HandlerKind::Oci, "/x", "the built-in handler's"),
            ("runc", HandlerKind::Oci, "runc", "has to be absolute"),
            ("runc", HandlerKind::Oci, "", "has to be absolute"),
        ];
        for (name, kind, path, why) in rows {
            match check(name, &handler(kind, path)) {
                Ok(_) => assert_eq!(why, "", "{name} {path}"),
                Err(error) => assert!(error.chain().contains(why) && !why.is_empty(), "{}", error.chain()),
            }
        }
    }

    #[test]
    fn a_handlers_directory_of_networks_is_absolute_or_not_its_own() {
        let of =
            |dir: &str| config::Handler { cni_conf_dir: dir.into(), ..handler(HandlerKind::Builtin, "") };
        assert!(check("fast", &of("/etc/cni/fast.d")).is_ok() && check("fast", &of("")).is_ok());
        let told = check("fast", &of("fast.d")).unwrap_err().chain();
        assert!(told.contains("handlers.fast") && told.contains("cni_conf_dir has to be absolute"), "{told}");
    }

    #[tokio::test]
    async fn an_unknown_handler_is_told_with_those_there_are() {
        let runtime = handler(HandlerKind::Oci, "/nowhere/runtime");
        let handlers = Handlers::find(&BTreeMap::from([("kata".to_owned(), runtime)])).await.unwrap();
        assert!(matches!(handlers.get("kata"), Ok(Handler::Runtime { .. })));
        let text = handlers.get("gvisor").unwrap_err().chain();
        for part in ["no runtime handler \"gvisor\"", "\"berth\"", "\"kata\"", "[handlers.NAME]"] {
            assert!(text.contains(part), "{text} has no {part}");
        }
    }

    #[test]
    fn features_are_read_from_what_a_runtime_tells() {
        assert_eq!(read(br#"{"mountOptions":["bind","rro"]}"#), RecursiveReadOnly::Known);
        assert_eq!(read(br#"{"mountOptions":["bind"]}"#), RecursiveReadOnly::Unknown);
        assert_eq!(read(b"unknown command"), RecursiveReadOnly::Unknown);
    }
}
