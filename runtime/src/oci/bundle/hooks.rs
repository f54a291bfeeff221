//! A spec's hooks, and the state that each reads from its standard input.

use std::{os::unix::ffi::OsStrExt, path::Path};

use berth_launch::v1 as launch;
use oci_spec::runtime::{Hook, Spec};
use serde_json::{Value, json};

use super::refused;
use crate::Result;

/// The hooks that the shim runs; none where there are none. Those that come later are looked at too: a container with a
/// hook that can't be run is none that could be started.
pub fn early_hooks(spec: &Spec, id: &str, bundle: &Path) -> Result<Option<launch::Hooks>> {
    let Some(asked) = spec.hooks() else { return Ok(None) };
    late_hooks(spec)?;
    let pieces = |status: &str| state_pieces(spec, id, bundle, status).map(String::into_bytes).to_vec();
    let hooks = launch::Hooks {
        prestart: all(asked.prestart())?,
        create_runtime: all(asked.create_runtime())?,
        create_container: all(asked.create_container())?,
        start_container: all(asked.start_container())?,
        creating: pieces("creating"),
        created: pieces("created"),
        ..launch::Hooks::default()
    };
    let is_empty = [&hooks.prestart, &hooks.create_runtime, &hooks.create_container, &hooks.start_container]
        .iter()
        .all(|list| list.is_empty());
    Ok((!is_empty).then_some(hooks))
}

/// The hooks after the start, and those after the end: whoever runs the verbs runs them.
///
/// # Errors
/// `Invalid` for a hook without an absolute path.
pub fn late_hooks(spec: &Spec) -> Result<(Vec<launch::Hook>, Vec<launch::Hook>)> {
    match spec.hooks() {
        Some(asked) => Ok((all(asked.poststart())?, all(asked.poststop())?)),
        None => Ok((Vec::new(), Vec::new())),
    }
}

/// The container's state as JSON, `runtime.md` of the spec.
pub fn state_text(spec: &Spec, id: &str, bundle: &Path, status: &str, pid: i32) -> Vec<u8> {
    state_pieces(spec, id, bundle, status).join(&pid.to_string()).into_bytes()
}

/// The same with the pid left out: it goes between the two pieces.
pub fn state_pieces(spec: &Spec, id: &str, bundle: &Path, status: &str) -> [String; 2] {
    let annotations = spec.annotations().clone().unwrap_or_default();
    let rest: Value = json!({ "bundle": bundle.to_string_lossy(), "annotations": annotations });
    let head = json!({ "ociVersion": spec.version(), "id": id, "status": status });
    let (head, rest) = (head.to_string(), rest.to_string());
    let head = format!("{},\"pid\":", head.trim_end_matches('}'));
    let tail = format!(",{}", rest.trim_start_matches('{'));
    [head, tail]
}

fn all(hooks: &Option<Vec<Hook>>) -> Result<Vec<launch::Hook>> {
    hooks.iter().flatten().map(one).collect()
}

fn one(hook: &Hook) -> Result<launch::Hook> {
    let shown = hook.path().display().to_string();
    if !hook.path().is_absolute() {
        return Err(refused("hooks", &format!("{shown:?} is not absolute")));
    }
    let timeout = hook.timeout().unwrap_or(0);
    let seconds = u32::try_from(timeout).ok().filter(|seconds| hook.timeout().is_none() || *seconds > 0);
    let bytes =
        |text: &Option<Vec<String>>| text.iter().flatten().map(|text| text.clone().into_bytes()).collect();
    Ok(launch::Hook {
        path: hook.path().as_os_str().as_bytes().to_vec(),
        args: bytes(hook.args()),
        env: bytes(hook.env()),
        timeout_seconds: seconds
            .ok_or_else(|| refused("hooks", &format!("{shown}: a timeout of {timeout} s is none")))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_of_any_point_is_looked_at_before_anything_is_made() {
        let points =
            ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        for point in points {
            let early = |hook: Value| {
                let spec = json!({"ociVersion": "1.2.0", "hooks": {point: [hook]}});
                early_hooks(&serde_json::from_value(spec).unwrap(), "c1", Path::new("/b"))
            };
            assert!(early(json!({"path": "/bin/true", "timeout": 1})).is_ok(), "{point}");
            for bad in [
                json!({"path": "bin/true"}),
                json!({"path": "/x", "timeout": 0}),
                json!({"path": "/x", "timeout": -1}),
            ] {
                assert!(early(bad.clone()).is_err(), "{point}: {bad}");
            }
        }
    }

    #[test]
    fn a_state_is_json_with_the_pid_in_it() {
        let spec: Spec =
            serde_json::from_value(json!({"ociVersion": "1.2.0", "annotations": {"a": "}{"}})).unwrap();
        let text = state_text(&spec, "c1", Path::new("/b"), "creating", 7);
        let state: Value = serde_json::from_slice(&text).unwrap();
        let expected = json!({"ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 7, "bundle": "/b",
            "annotations": {"a": "}{"}});
        assert_eq!(state, expected);
    }
}
