//! A list's plugins one after the other: ADD forwards, each told the result of the one before; the others as the
//! specification has them. What each is given is made by pure functions.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{
    attachment::{Attachment, Interface},
    conf::{NetworkList, Plugin},
    run::{Programs, Verb},
    version::convert,
};
use crate::{Error, Kind, Result, error::Cause, id::PodId};

/// Where an interface is made: the words that all its plugins get.
#[derive(Debug)]
pub struct Place<'a> {
    pub pod: &'a PodId,
    pub attachment: &'a Attachment,
    /// None where it is gone.
    pub netns: Option<&'a Path>,
}

/// Runs ADD of every plugin; the last one's result.
pub async fn add(programs: &Programs, place: &Place<'_>, interface: &Interface) -> Result<Value> {
    let list = interface.list();
    let environment = environment(place, &interface.name);
    let mut previous = None;
    for plugin in &list.plugins {
        let input = input(&list, plugin, previous.as_ref(), &place.attachment.capabilities);
        let answer = programs.run(&plugin.kind, Verb::Add, &environment, &input).await?;
        let wrong = |cause: String| {
            Error::new(Kind::Unavailable, "read the answer of network plugin", plugin.kind.clone())
                .because(Cause(cause))
        };
        let answer = answer.ok_or_else(|| wrong("it answered nothing to ADD".into()))?;
        previous = Some(convert(answer, list.version).map_err(wrong)?);
    }
    previous.ok_or_else(|| Error::new(Kind::Internal, "attach to network", list.name))
}

/// Runs DEL of every plugin, the last first. Goes on after an error; gives the first.
pub async fn del(programs: &Programs, place: &Place<'_>, interface: &Interface) -> Result<()> {
    let list = interface.list();
    let environment = environment(place, &interface.name);
    let previous = interface.result.as_ref().filter(|_| list.version.has_check());
    let mut outcome = Ok(());
    for plugin in list.plugins.iter().rev() {
        let input = input(&list, plugin, previous, &place.attachment.capabilities);
        let answer = programs.run(&plugin.kind, Verb::Del, &environment, &input).await;
        outcome = outcome.and(answer.map(drop));
    }
    outcome
}

/// Runs CHECK of every plugin, where the list's version has it and nobody turned it off.
pub async fn check(programs: &Programs, place: &Place<'_>, interface: &Interface) -> Result<()> {
    let list = interface.list();
    if !list.version.has_check() || list.disable_check || interface.result.is_none() {
        return Ok(());
    }
    let environment = environment(place, &interface.name);
    for plugin in &list.plugins {
        let input = input(&list, plugin, interface.result.as_ref(), &place.attachment.capabilities);
        programs.run(&plugin.kind, Verb::Check, &environment, &input).await?;
    }
    Ok(())
}

/// Runs GC of every plugin: what belongs to none of the attachments may go. Goes on after an error; gives the first.
pub async fn gc(programs: &Programs, list: &NetworkList, valid: &[(PodId, String)]) -> Result<()> {
    if !list.version.has_gc() || list.disable_gc {
        return Ok(());
    }
    let valid: Vec<Value> = valid
        .iter()
        .map(|(pod, interface)| json!({ "containerID": pod.as_str(), "ifname": interface }))
        .collect();
    let mut outcome = Ok(());
    for plugin in &list.plugins {
        let Value::Object(mut input) = input(list, plugin, None, &Map::new()) else { continue };
        input.insert("cni.dev/valid-attachments".into(), valid.clone().into());
        // The name that libcni gives it beside the specification's.
        input.insert("cni.dev/attachments".into(), valid.clone().into());
        let answer = programs.run(&plugin.kind, Verb::Gc, &[], &Value::Object(input)).await;
        outcome = outcome.and(answer.map(drop));
    }
    outcome
}

/// Asks every plugin whether it can take pods: STATUS where the list's version has it, else only whether it is there.
pub async fn status(programs: &Programs, list: &NetworkList) -> Result<()> {
    for plugin in &list.plugins {
        programs.find(&plugin.kind)?;
        if list.version.has_gc() {
            let input = input(list, plugin, None, &Map::new());
            programs.run(&plugin.kind, Verb::Status, &[], &input).await?;
        }
    }
    Ok(())
}

/// Asks every plugin for the versions it speaks; one that has no answer may still do its work.
///
/// # Errors
/// `Unavailable` where one says that it does not speak the list's.
pub async fn speaks(programs: &Programs, list: &NetworkList) -> Result<()> {
    for plugin in &list.plugins {
        programs.find(&plugin.kind)?;
        // As libcni asks.
        let environment = [("CNI_CONTAINERID", "dummy"), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy")]
            .map(|(name, value)| (name, value.to_owned()));
        let input = json!({ "cniVersion": list.version.text() });
        let answer =
            programs.run(&plugin.kind, Verb::Version, &environment, &input).await.unwrap_or_default();
        let said =
            answer.as_ref().and_then(|answer| answer.get("supportedVersions")).and_then(Value::as_array);
        let Some(said) = said else { continue };
        let said: Vec<&str> = said.iter().filter_map(Value::as_str).collect();
        if !said.contains(&list.version.text()) {
            let object = format!("{} as the network {} wants it", plugin.kind, list.name);
            return Err(Error::new(Kind::Unavailable, "use network plugin", object)
                .because(Cause(format!(
                    "the configuration is of version {}, the plugin speaks {}",
                    list.version.text(),
                    said.join(", ")
                )))
                .hint("install a newer plugin, or write an older cniVersion"));
        }
    }
    Ok(())
}

/// libcni's name of a cached result.
pub fn cache_name(network: &str, pod: &PodId, interface: &str) -> String {
    format!("{network}-{pod}-{interface}")
}

fn environment(place: &Place<'_>, interface: &str) -> Vec<(&'static str, String)> {
    let pairs: Vec<String> =
        place.attachment.arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let netns = place.netns.map(|path| path.display().to_string()).unwrap_or_default();
    vec![
        ("CNI_CONTAINERID", place.pod.to_string()),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", interface.to_owned()),
        ("CNI_ARGS", pairs.join(";")),
    ]
}

/// What a plugin reads from stdin: its part of the list, with the list's name and version, and what it asked for.
fn input(
    list: &NetworkList,
    plugin: &Plugin,
    previous: Option<&Value>,
    capabilities: &Map<String, Value>,
) -> Value {
    let mut input = plugin.object.clone();
    input.insert("name".into(), json!(list.name));
    input.insert("cniVersion".into(), json!(list.version.text()));
    let asked: Map<String, Value> = capabilities
        .iter()
        .filter(|(name, _)| plugin.asks_for(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !asked.is_empty() {
        input.insert("runtimeConfig".into(), Value::Object(asked));
    }
    if let Some(previous) = previous {
        input.insert("prevResult".into(), previous.clone());
    }
    Value::Object(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_only_what_it_asks_for() {
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[
            {"type":"a","capabilities":{"portMappings":true,"bandwidth":false},"mine":1},{"type":"b"}]}"#;
        let list = NetworkList::parse(text).unwrap();
        let mut capabilities = Map::new();
        capabilities.insert("portMappings".into(), json!([{"hostPort": 1}]));
        capabilities.insert("bandwidth".into(), json!({"ingressRate": 1}));
        let first = input(&list, &list.plugins[0], None, &capabilities);
        assert_eq!(
            first,
            json!({"type": "a", "capabilities": {"portMappings": true, "bandwidth": false}, "mine": 1,
                   "name": "n", "cniVersion": "1.0.0", "runtimeConfig": {"portMappings": [{"hostPort": 1}]}})
        );
        let second = input(&list, &list.plugins[1], Some(&json!({"ips": []})), &capabilities);
        assert_eq!(
            second,
            json!({"type": "b", "name": "n", "cniVersion": "1.0.0", "prevResult": {"ips": []}})
        );
    }
}
